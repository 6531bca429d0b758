"""Clusters of zstd straight to where they are wanted, and what comes of all that is wrong."""

import random
from pathlib import Path

import pytest
from backports import zstd

import tapcore
from tap_qcow2.data import codecs
from tapcore.formats import zstd as formats_zstd
from tapcore.zstd import decompress_into, into_place

SIZE = 64 << 10
ZSTD = 1

pytestmark = pytest.mark.skipif(into_place() is None, reason="needs libzstd.so.1")


@pytest.fixture
def content(rng: random.Random) -> bytes:
    return rng.randbytes(700) * (SIZE // 700) + bytes(SIZE % 700)


def test_a_frame_fills_its_view_and_what_follows_is_none_of_it(content: bytes) -> None:
    buffer = bytearray(3 * SIZE)
    frame = zstd.compress(content)
    for behind in (b"", bytes(512), frame, b"\x28\xb5\x2f\xfd"):
        buffer[:] = bytes(len(buffer))
        assert decompress_into(frame + behind, memoryview(buffer)[SIZE : 2 * SIZE])
        assert buffer == bytes(SIZE) + content + bytes(SIZE)


def test_a_frame_that_does_not_state_its_size(content: bytes) -> None:
    compressor = zstd.ZstdCompressor()
    frame = compressor.compress(content[:100]) + compressor.compress(content[100:])
    buffer = bytearray(SIZE)
    assert decompress_into(frame + compressor.flush(), memoryview(buffer))
    assert buffer == content


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1, 16 * SIZE])
def test_another_size_is_left_to_who_can_tell(size: int) -> None:
    buffer = bytearray(2 * SIZE)
    view = memoryview(buffer)[:SIZE]
    assert not decompress_into(zstd.compress(b"x" * size), view)
    assert not any(buffer[SIZE:])


def test_damage_anywhere_is_found_or_harmless(content: bytes, rng: random.Random) -> None:
    """The same as the other way says, byte for byte; and the context can be used again."""
    inflate, _ = codecs.codec(ZSTD)
    frame = zstd.compress(content)
    buffer = bytearray(SIZE)
    for _ in range(500):
        harmed = bytearray(frame)
        harmed[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
        harmed = harmed[: rng.randrange(1, len(harmed) + 1)]
        if decompress_into(bytes(harmed), memoryview(buffer)):
            assert inflate(bytes(harmed), SIZE) == buffer
    assert not decompress_into(b"", memoryview(buffer))
    assert decompress_into(frame, memoryview(buffer))
    assert buffer == content


@pytest.mark.parametrize("there", [True, False])
def test_an_image_reads_the_same_either_way(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    data = b"".join(rng.randbytes(256) * 256 if at % 3 else bytes(SIZE) for at in range(40))
    (tmp_path / "disk").write_bytes(data)
    name = tmp_path / "disk.qcow2"
    options = {"compression_type": "zstd"}
    tapcore.convert_image(f"aio:{tmp_path}/disk", name, compressed=True, options=options)
    if not there:
        monkeypatch.setattr(formats_zstd, "_library", lambda: None)
    with tapcore.open(name) as disk:
        assert disk.pread(0, length=len(data)) == data
        assert disk.pread(SIZE + 512, length=1024) == data[SIZE + 512 : SIZE + 1536]
