"""Tables that are named again and again: told before it takes long. Tables in holes: not read."""

import random
from collections.abc import Iterator

import attrs
import pytest

import tapcore
from tapcore import EmptyTables, TableVisits
from tapcore.formats.tablevisits import MOST_AGAIN

TABLE = 65536


def test_tables_of_their_own_may_be_as_many_as_there_are(rng: random.Random) -> None:
    """In any order, aligned or not, side by side or apart."""
    visits = TableVisits(TABLE)
    places = [512 + number * TABLE for number in range(3000)]
    rng.shuffle(places)
    for place in places:
        visits.visit(place)


@pytest.mark.parametrize("step", [0, 512, TABLE - 512, 512 - TABLE])
def test_tables_on_top_of_each_other_may_be_few(step: int) -> None:
    visits, seen = TableVisits(TABLE), iter(range(1000))

    def visit_all() -> None:
        for number in seen:
            visits.visit((1 << 40) + number * step)

    with pytest.raises(tapcore.ImageFormatError, match="same tables so often"):
        visit_all()
    assert MOST_AGAIN // TABLE < next(seen) <= 2 * MOST_AGAIN // TABLE + 3


def test_a_few_are_always_borne_with() -> None:
    """However large they are: a disk that has a table twice can be copied."""
    visits = TableVisits(MOST_AGAIN)
    for _ in range(5):
        visits.visit(MOST_AGAIN)
    with pytest.raises(tapcore.ImageFormatError):
        visits.visit(MOST_AGAIN)


@attrs.define
class _Holey:
    """A file with data in every tenth table, that counts how often it is asked."""

    size: int = 10_000 * TABLE
    asked: int = 0

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        self.asked += 1
        tenth = offset // (10 * TABLE) * 10 * TABLE
        if offset < tenth + TABLE:
            yield offset, tenth + TABLE, True
        else:
            yield offset, min(tenth + 10 * TABLE, offset + length), False


def test_a_file_is_asked_once_for_each_hole(rng: random.Random) -> None:
    file = _Holey()
    empty = EmptyTables(file, TABLE)
    places = [number * TABLE for number in range(10_000) if number % 10]
    assert all(map(empty.holds, places))
    assert file.asked == 1000
    rng.shuffle(places)
    assert all(map(empty.holds, places))
    assert file.asked == 1000


@pytest.mark.parametrize("place", [0, 512, TABLE - 512, 10 * TABLE - 512, 9999 * TABLE + 512])
def test_a_table_that_lies_in_a_hole_in_part_is_not_empty(place: int) -> None:
    assert not EmptyTables(_Holey(), TABLE).holds(place)
