"""Compressed clusters: what either engine writes everyone reads, and no input does harm."""

import random
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from peers import missing
from tapcore import ImageFormatError
from tapcore.formats import deflate
from tapcore.formats.deflate import inflate

CLUSTER = 64 << 10
ZLIB_ONLY = {"isal": None, "isal.isal_zlib": None}  # as on a machine without it


@pytest.fixture(params=["isal", "zlib"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each test runs with both engines."""
    if request.param == "isal":
        if find_spec("isal") is None:
            missing("isal is not installed (pip install isal)")
    else:
        for name, module in ZLIB_ONLY.items():
            monkeypatch.setitem(sys.modules, name, module)
    deflate._engine.cache_clear()
    yield request.param
    deflate._engine.cache_clear()


def repeats(rng: random.Random, distance: int, length: int = CLUSTER) -> bytes:
    """Noise in which everything is found again at `distance`, and nowhere nearer."""
    noise = rng.randbytes(distance)
    return (noise * (length // distance + 1))[:length]


def texts(rng: random.Random) -> dict[str, bytes]:
    words = [rng.randbytes(rng.randrange(2, 12)) for _ in range(300)]
    return {
        "empty": b"",
        "one": b"x",
        "zeroes": bytes(CLUSTER),
        "noise": rng.randbytes(CLUSTER),
        "words": b"".join(rng.choices(words, k=20_000))[:CLUSTER],
        "far": b"".join(repeats(rng, d, 9000) for d in (300, 3900, 4090, 4096, 4097, 4100, 5000)),
        "large": b"".join(rng.choices(words, k=200_000)),
    }


def zlib_stream(content: bytes, wbits: int, level: int = 9) -> bytes:
    return zlib.compress(content, level, wbits)


def read_with_window(stream: bytes, wbits: int) -> bytes:
    """What a reader gets that keeps nothing but its window: it is given room byte by byte."""
    reader = zlib.decompressobj(wbits)
    content = bytearray(reader.decompress(stream, 1))
    while not reader.eof:
        piece = reader.decompress(reader.unconsumed_tail, 1)
        if not piece and not reader.eof:
            raise AssertionError("the stream has no end")
        content += piece
    return bytes(content)


def test_the_engine_is_the_one_meant(engine: str) -> None:
    assert deflate._engine().module.__name__ == {"isal": "isal.isal_zlib", "zlib": "zlib"}[engine]


@pytest.mark.parametrize("wbits", [-12, -15, 15])
def test_what_is_compressed_comes_back(wbits: int, rng: random.Random) -> None:
    for name, text in texts(rng).items():
        stream = deflate.deflate(text, wbits=wbits)
        assert zlib.decompress(stream, wbits) == text, name
        assert inflate(stream, len(text) or 1, wbits=-15 if wbits < 0 else 15) == text, name


@pytest.mark.parametrize("distance", [*range(3800, 4400, 37), 4095, 4096, 4097, 9000, 32_768])
def test_the_default_output_needs_no_more_than_4_kib_of_window(
    distance: int, rng: random.Random
) -> None:
    content = repeats(rng, distance, 5 * distance)
    assert read_with_window(deflate.deflate(content), -12) == content


def test_ordinary_content_needs_no_more_than_4_kib_of_window(rng: random.Random) -> None:
    for name in ("words", "zeroes", "noise", "far"):
        text = texts(rng)[name]
        assert read_with_window(deflate.deflate(text), -12) == text


def test_compressing_is_worth_it(rng: random.Random) -> None:
    assert len(deflate.deflate(bytes(CLUSTER))) < 1000
    words = texts(rng)["words"]
    assert len(deflate.deflate(words)) < 1.25 * len(zlib_stream(words, -12, 6))
    assert len(deflate.deflate(rng.randbytes(CLUSTER))) < CLUSTER + 512


@pytest.mark.parametrize("distance", [5000, 30_000, 32_000])
def test_a_stream_may_use_any_window(distance: int, rng: random.Random) -> None:
    content = repeats(rng, distance, 4 * distance)
    stream = zlib_stream(content, -15)
    assert len(stream) < 1.1 * distance  # so it does look back that far
    assert inflate(stream, len(content)) == content


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_kind_of_buffer_will_do(
    wrap: type[bytes] | type[bytearray] | type[memoryview], rng: random.Random
) -> None:
    text = texts(rng)["words"]
    assert inflate(wrap(deflate.deflate(wrap(text))), CLUSTER) == text


def test_a_memoryview_may_be_a_slice(rng: random.Random) -> None:
    text = texts(rng)["words"]
    padded = b"x" * 100 + text + b"y" * 100
    stream = deflate.deflate(memoryview(padded)[100:-100])
    assert inflate(memoryview(b"z" + stream + b"z")[1:], CLUSTER) == text


@pytest.mark.parametrize("wbits", [-15, 15])
@pytest.mark.parametrize("tail", [b"\0", b"\xff" * 511, b"x" * 5000])
def test_what_follows_the_stream_is_ignored(wbits: int, tail: bytes, rng: random.Random) -> None:
    text = texts(rng)["words"]
    assert inflate(zlib_stream(text, wbits) + tail, CLUSTER, wbits=wbits) == text
    assert inflate(zlib_stream(text, wbits) + tail, 2 * CLUSTER, wbits=wbits) == text


@pytest.mark.parametrize("wbits", [-15, 15])
def test_a_stream_that_is_cut_short_gives_what_it_holds(wbits: int, rng: random.Random) -> None:
    text = texts(rng)["words"]
    stream = zlib_stream(text, wbits)
    for cut in (0, 1, 2, 3, len(stream) // 3, len(stream) - 1, *rng.sample(range(len(stream)), 30)):
        content = inflate(stream[:cut], CLUSTER, wbits=wbits)
        assert text.startswith(content)
        assert cut < 5000 or len(content) >= cut


@pytest.mark.parametrize("wbits", [-15, 15])
@pytest.mark.parametrize("limit", [1, 511, 512, 4096, 16_383, 16_385, CLUSTER - 1])
def test_nothing_is_inflated_past_the_limit(limit: int, wbits: int, rng: random.Random) -> None:
    text = texts(rng)["words"]
    assert inflate(zlib_stream(text, wbits), limit, wbits=wbits) == text[:limit]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_nothing_gives_nothing(limit: int) -> None:
    assert inflate(zlib_stream(b"content", -15), limit) == b""


@pytest.mark.parametrize("wbits", [-15, 15])
def test_a_bomb_takes_no_memory(wbits: int) -> None:
    bomb = zlib_stream(bytes(64 << 20), wbits)
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        assert inflate(bomb, CLUSTER, wbits=wbits) == bytes(CLUSTER)
        assert tracemalloc.get_traced_memory()[1] < 8 * CLUSTER
    finally:
        tracemalloc.stop()


def test_a_small_stream_takes_no_memory_for_its_limit() -> None:
    stream = zlib_stream(b"little", -15)
    tracemalloc.start()
    try:
        assert inflate(stream, 1 << 40) == b"little"
        assert tracemalloc.get_traced_memory()[1] < 8 * CLUSTER
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("data", [b"\x07", b"\xff" * 40, b"\x01\x05\x00\x05\x00hello"])
def test_what_is_no_stream_is_damaged(data: bytes) -> None:
    with pytest.raises(ImageFormatError, match="compressed data is damaged"):
        inflate(data, CLUSTER)


def test_a_wrong_header_is_damage() -> None:
    with pytest.raises(ImageFormatError):
        inflate(b"\x78\x9d" + zlib_stream(b"content", 15)[2:], CLUSTER, wbits=15)


@pytest.mark.parametrize("room", [0, 1, 1000])
def test_a_wrong_checksum_is_damage_even_where_the_content_fills_the_limit(
    room: int, rng: random.Random
) -> None:
    text = texts(rng)["words"]
    stream = bytearray(zlib_stream(text, 15))
    assert inflate(stream, CLUSTER + room, wbits=15) == text
    stream[-1] ^= 1
    with pytest.raises(ImageFormatError):
        inflate(stream, CLUSTER + room, wbits=15)


def test_damage_gives_an_error_or_what_zlib_would_give(rng: random.Random) -> None:
    stream = zlib_stream(texts(rng)["words"], -15)
    for _ in range(600):
        damaged = bytearray(stream)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(400)] = rng.randrange(256)
        try:
            content = inflate(damaged, CLUSTER)
            expected = zlib.decompressobj(-15).decompress(damaged, CLUSTER)
        except (ImageFormatError, zlib.error):
            continue  # one of the two may be stricter
        # One of them may hold back the last bytes of a stream that seems to be cut short.
        common = min(len(content), len(expected))
        assert len(content) <= CLUSTER
        assert content[:common] == expected[:common]
        assert abs(len(content) - len(expected)) < 300
