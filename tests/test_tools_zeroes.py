"""Finding zeroes and differences in buffers, against the obvious slow ways."""

from hypothesis import given
from hypothesis import strategies as st

from tapcore.buffers import long_bytearray
from tapcore.tools.zeroes import (
    ZERO_BLOCK,
    data_runs,
    first_difference,
    first_nonzero,
    is_zero,
)

SIZE = 5 * ZERO_BLOCK


@st.composite
def buffers(draw: st.DrawFn) -> tuple[bytearray, int]:
    """Mostly zeroes, with a few bytes set, and a length that need not be whole blocks."""
    buffer = bytearray(SIZE)
    for at in draw(st.lists(st.integers(0, SIZE - 1), max_size=4)):
        buffer[at] = draw(st.integers(1, 255))
    return buffer, draw(st.integers(1, SIZE))


@given(buffers())
def test_data_runs_leave_out_exactly_the_zero_blocks(case: tuple[bytearray, int]) -> None:
    buffer, length = case
    kept = bytearray(length)
    before = -1
    for start, end in data_runs(buffer, length):
        assert before < start < end <= length  # in order, and neighbours are joined
        assert start % ZERO_BLOCK == 0
        kept[start:end] = buffer[start:end]
        for at in range(start, end, ZERO_BLOCK):
            assert any(buffer[at : min(at + ZERO_BLOCK, length)])
        before = end
    assert kept == buffer[:length]


@given(buffers())
def test_zero_and_first_nonzero(case: tuple[bytearray, int]) -> None:
    buffer, length = case
    nonzero = [i for i in range(length) if buffer[i]]
    assert is_zero(buffer, length) == (not nonzero)
    assert first_nonzero(buffer, length) == (nonzero[0] if nonzero else None)


@given(buffers(), buffers())
def test_first_difference(case: tuple[bytearray, int], other: tuple[bytearray, int]) -> None:
    one, length = case
    two = other[0]
    wanted = next((i for i in range(length) if one[i] != two[i]), None)
    assert first_difference(one, two, length) == wanted


def test_a_long_bytearray_is_all_zero_and_as_long_as_was_asked() -> None:
    made = long_bytearray(1 << 20)
    assert made == bytes(1 << 20)
    with memoryview(made) as view:
        view[-1] = 1
    assert made.find(1) == (1 << 20) - 1
