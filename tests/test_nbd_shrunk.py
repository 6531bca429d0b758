"""A file that becomes shorter under a running server: an error, never a hole of zeroes."""

import contextlib
import itertools
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nbd_client import BLOCK_STATUS, CACHE, EIO, READ, TRIM, WRITE, WRITE_ZEROES, Answer
from nbdwire import LateDisk, Wire, finish, opened
from served import served

import tapcore
from tapcore.interface.options import CacheMode

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB

KINDS = [
    ("sync", "writeback"),
    *itertools.product(("aio", "vmdk-flat", "vmdk-split", "vmdk-sparse"), ("writeback", "none")),
]
OPTIONS = {
    "vmdk-flat": {"subformat": "monolithicFlat"},
    "vmdk-split": {"subformat": "twoGbMaxExtentFlat"},
}


@contextmanager
def disk_of(
    kind: str, cache: CacheMode, structured: bool, folder: Path
) -> Iterator[tuple[Wire, LateDisk, Path]]:
    """A full disk, served, and the file that its data lies in."""
    handle = kind.partition("-")[0]
    name = f"{handle}:{folder / 'd.vmdk'}"
    tapcore.create_image(name, SIZE, options=OPTIONS.get(kind, {}))
    with tapcore.open(name, readonly=False) as image:
        image.pwrite(0, random.Random(1).randbytes(SIZE))
    file = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    with opened(name, cache=cache) as state:
        wire = Wire(state, structured=structured)
        yield wire, LateDisk(wire), file
        wire.end()


def ask(wire: Wire, disk: LateDisk, command: int, offset: int, length: int) -> Answer:
    wire.feed(wire.make(command, offset, length))
    finish(wire, disk)
    return wire.answer()


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize(("kind", "cache"), KINDS)
def test_what_is_missing_is_an_error(
    kind: str, cache: CacheMode, structured: bool, tmp_path: Path
) -> None:
    with disk_of(kind, cache, structured, tmp_path) as (wire, disk, file):
        before = ask(wire, disk, READ, 0, 2 * MIB).content(0, 2 * MIB)
        assert ask(wire, disk, READ, SIZE - 64 * KIB, 64 * KIB).error == 0
        os.truncate(file, file.stat().st_size - MIB - 100)
        for offset, length in [
            (SIZE - MIB, MIB),
            (SIZE - 64 * KIB, 64 * KIB),
            (SIZE - 4096, 4096),
            (SIZE - 2 * MIB, 2 * MIB),
            (0, SIZE),
            (SIZE - 5, 3),
        ]:
            answer = ask(wire, disk, READ, offset, length)
            assert (answer.error, answer.pieces) == (EIO, []), (offset, length)
            if structured and kind != "vmdk-sparse":  # whose tables are there, and say data
                assert ask(wire, disk, BLOCK_STATUS, offset, length).error == EIO
        if structured:
            assert not any(state for _, state in ask(wire, disk, BLOCK_STATUS, 0, MIB).runs)
        ask(wire, disk, CACHE, 0, SIZE)
        assert ask(wire, disk, READ, 0, 2 * MIB).content(0, 2 * MIB) == before


@pytest.mark.parametrize(("kind", "cache"), KINDS)
def test_no_write_makes_it_longer_again(
    kind: str, cache: CacheMode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was cut off would read as zeroes from then on."""
    with disk_of(kind, cache, True, tmp_path) as (wire, disk, file):
        end = file.stat().st_size - MIB - 100
        os.truncate(file, end)
        for command, offset, length in [
            (WRITE, SIZE - 4096, 4096),
            (WRITE, SIZE - 512, 512),
            (WRITE, SIZE - 3, 3),
            (WRITE, SIZE - 2 * MIB, 2 * MIB),
            (WRITE_ZEROES, SIZE - MIB, MIB),
            (TRIM, SIZE - MIB, MIB),
        ]:
            payload = b"w" * length if command == WRITE else b""
            wire.feed(wire.make(command, offset, length, payload=payload))
            finish(wire, disk)
            if command == WRITE or kind != "vmdk-sparse":  # where it is a table that changes
                assert wire.answer().error == EIO, (command, offset, length)
            assert file.stat().st_size <= end
        assert ask(wire, disk, READ, SIZE - MIB + 64 * KIB, 512).error == EIO
        wire.feed(wire.make(WRITE, MIB, payload=b"n" * 4096))
        finish(wire, disk)
        assert ask(wire, disk, READ, MIB, 4096).content(MIB, 4096) == b"n" * 4096
    said = [record for record in caplog.records if "nothing is written past" in record.message]
    assert len(said) == 1


@pytest.mark.parametrize("missing", [1, 100, 511])
def test_less_than_a_sector_is_missed_too(missing: int, tmp_path: Path) -> None:
    with disk_of("aio", "writeback", True, tmp_path) as (wire, disk, file):
        os.truncate(file, SIZE - missing)
        for length in (512, 64 * KIB):
            assert ask(wire, disk, READ, SIZE - length, length).error == EIO
        assert ask(wire, disk, READ, SIZE - 64 * KIB, 63 * KIB).error == 0


@pytest.mark.parametrize("structured", [True, False])
def test_a_last_sector_that_was_never_full_is_none_of_this(
    structured: bool, tmp_path: Path
) -> None:
    (tmp_path / "d").write_bytes(b"t" * (64 * KIB + 100))
    with opened(f"aio:{tmp_path / 'd'}") as state:
        wire = Wire(state, structured=structured)
        disk = LateDisk(wire)
        length = 64 * KIB + 512
        wanted = b"t" * (64 * KIB + 100) + bytes(412)
        assert ask(wire, disk, READ, 0, length).content(0, length) == wanted
        wire.end()


def test_tables_that_are_missing_are_no_holes(tmp_path: Path) -> None:
    """Those of a stream lie behind the data."""
    raw, name = tmp_path / "raw", f"vmdk:{tmp_path / 'd.vmdk'}"
    raw.write_bytes(b"d" * SIZE)
    tapcore.create_image(name, SIZE, options={"subformat": "streamOptimized"})
    with tapcore.open(name, readonly=False) as image:
        image.pwrite(0, raw.read_bytes())
    with opened(name, flags=tapcore.TD_RDONLY) as state:
        wire = Wire(state)
        disk = LateDisk(wire)
        os.truncate(tmp_path / "d.vmdk", 64 * KIB)
        assert ask(wire, disk, READ, 0, SIZE).error == EIO
        wire.end()


def test_what_waits_to_be_sent_from_a_file_that_shrinks_ends_the_connection(tmp_path: Path) -> None:
    """Its reply has begun, so an error can be told in no other way."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"d" * (32 * MIB))
    with served("aio:disk.img", "--socket", "s", cwd=tmp_path, quiet=False) as server:
        with server.client() as client:
            for n in range(8):
                client.send(READ, 4 * MIB * n, 4 * MIB)
            client.wait_until(lambda: client.parser._in)  # begun; most of it waits for us
            os.truncate(path, 0)
            with contextlib.suppress(EOFError, ConnectionResetError):
                client.wait_until(lambda: client.parser.idle)
            answers = client.parser.answers.values()
            pieces = [content for answer in answers for _, content in answer.pieces]
            assert not any(piece.strip(b"d") for piece in pieces if isinstance(piece, bytes))
            assert all(isinstance(piece, bytes) for piece in pieces)
            idle = client.parser.idle
        with server.client() as client:
            assert client.answer(client.send(WRITE, 0, payload=bytes(512))).error == EIO
    # a kernel that cannot say what its page cache holds sends nothing from files
    assert idle != any("client dropped" in line for line in server.messages)


def test_a_write_beside_a_file_that_grows_is_not_taken_for_one_that_shrinks(tmp_path: Path) -> None:
    (tmp_path / "d").touch()
    tapcore.create_image(f"vmdk:{tmp_path / 'd.vmdk'}", 64 * MIB)
    with opened(f"vmdk:{tmp_path / 'd.vmdk'}") as state:
        wire = Wire(state)
        disk = LateDisk(wire)
        for n in range(0, 64, 16):
            wire.feed(wire.make(WRITE, n * MIB, payload=b"w" * MIB))
            wire.feed(wire.make(BLOCK_STATUS, 0, 64 * MIB))
            wire.feed(wire.make(READ, 0, 8 * MIB))
        finish(wire, disk)
        assert set(wire.errors()) == {0}
        wire.end()
