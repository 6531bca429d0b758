"""Converting: every pair of raw drivers, sparseness, and what is left behind when it goes wrong."""

import errno
import fcntl
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest

import tapcore
from peers import peer
from tapcore.tools.convert import convert_image

KIB = 1 << 10
MIB = 1 << 20


def sparse_file(path: Path, rng: random.Random, size: int) -> bytes:
    """A file with holes, data, and zeroes that were written; returns its content."""
    content = bytearray(size)
    with open(path, "wb") as file:
        file.truncate(size)
        for _ in range(12):
            start = rng.randrange(0, size, 512)
            length = min(rng.choice((512, 4 * KIB, 100 * KIB, 700 * KIB)), size - start)
            piece = bytes(length) if rng.random() < 0.3 else rng.randbytes(length)
            content[start : start + length] = piece
            file.seek(start)
            file.write(piece)
    return bytes(content)


EXTENT_BLOCK = 4096
"""What ext4 adds to the size of a file whose content lies in more than four places."""


def occupied(path: Path) -> int:
    os.sync()  # delayed allocation
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("size", [6 * MIB, 3 * MIB + 512, 2 * MIB + 17])
@pytest.mark.parametrize("target", ["aio", "sync"])
@pytest.mark.parametrize("source", ["aio", "sync", "ram"])
def test_every_pair(
    tmp_path: Path, rng: random.Random, source: str, target: str, size: int
) -> None:
    content = sparse_file(tmp_path / "a", rng, size)
    whole = size + -size % 512
    made, written = convert_image(f"{source}:{tmp_path}/a", f"{target}:{tmp_path}/b")
    assert (made.name, made.drivertype) == (f"{tmp_path}/b", target)
    assert (tmp_path / "b").read_bytes() == content + bytes(whole - size)
    assert written <= occupied(tmp_path / "a")
    assert occupied(tmp_path / "b") <= occupied(tmp_path / "a") + EXTENT_BLOCK


def test_an_empty_disk_in_memory_becomes_a_hole(tmp_path: Path) -> None:
    target = tmp_path / "b.img"
    assert convert_image("ram:1G", str(target))[1] == 0
    assert target.stat().st_size == 1 << 30
    assert occupied(target) == 0


def test_written_zeroes_are_left_out(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(bytes(4 * MIB) + b"x" * 100 + bytes(4 * MIB))
    convert_image(f"aio:{source}", f"aio:{tmp_path}/b")
    assert (tmp_path / "b").read_bytes()[: 8 * MIB + 100] == source.read_bytes()
    assert occupied(tmp_path / "b") <= 8 * KIB


def test_the_same_as_qemu_img(tmp_path: Path, rng: random.Random) -> None:
    qemu_img = peer("qemu-img")
    sparse_file(tmp_path / "a", rng, 5 * MIB)
    ways = ["-f", "raw", "-O", "raw"]
    subprocess.run([qemu_img, "convert", *ways, tmp_path / "a", tmp_path / "theirs"], check=True)
    convert_image(f"aio:{tmp_path}/a", f"aio:{tmp_path}/ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert occupied(tmp_path / "ours") <= occupied(tmp_path / "theirs")


def pretend_to_share_blocks(monkeypatch: pytest.MonkeyPatch, *, fails_after: int) -> list[int]:
    """FICLONERANGE as a file system has it that can share blocks; returns the lengths shared."""
    shared: list[int] = []

    def clone(target: int, request: int, packed: bytes) -> int:
        fd, offset, length, at = struct.unpack("qQQQ", packed)
        assert request == 0x4020940D
        assert not (offset | at | length) % 4096
        if len(shared) >= fails_after:
            raise OSError(errno.EOPNOTSUPP, "no")
        assert os.copy_file_range(fd, target, length, offset, at) == length
        shared.append(length)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    return shared


@pytest.mark.parametrize("fails_after", [0, 1, 100])
def test_blocks_are_shared_where_the_file_system_can(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, fails_after: int
) -> None:
    shared = pretend_to_share_blocks(monkeypatch, fails_after=fails_after)
    content = rng.randbytes(2 * MIB) + bytes(MIB) + rng.randbytes(MIB + 700)
    with open(tmp_path / "a", "wb") as file:
        file.write(content[: 2 * MIB])
        file.seek(3 * MIB)
        file.write(content[3 * MIB :])
    _, written = convert_image(f"aio:{tmp_path}/a", f"sync:{tmp_path}/b")
    assert shared == [2 * MIB, MIB][:fails_after]
    assert written == 3 * MIB + 1024
    assert (tmp_path / "b").read_bytes() == content + bytes(-len(content) % 512)


def test_progress_goes_up_to_the_end(tmp_path: Path, rng: random.Random) -> None:
    (tmp_path / "a").write_bytes(rng.randbytes(3 * MIB))
    told: list[tuple[int, int]] = []
    convert_image(
        f"aio:{tmp_path}/a", f"aio:{tmp_path}/b", progress=lambda *step: told.append(step)
    )
    assert told == sorted(told)
    assert told[-1] == (3 * MIB, 3 * MIB)


class Enough(BaseException):
    """Like Ctrl-C."""


def test_stopped_half_way_nothing_is_left(tmp_path: Path, rng: random.Random) -> None:
    (tmp_path / "a").write_bytes(rng.randbytes(3 * MIB))

    def stop(done: int, total: int) -> None:
        if done:
            assert not (tmp_path / "b").exists()
            raise Enough

    with pytest.raises(Enough):
        convert_image(f"aio:{tmp_path}/a", f"aio:{tmp_path}/b", progress=stop)
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("target", ["aio", "sync"])
def test_no_room_names_the_target_and_leaves_nothing(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a").write_bytes(rng.randbytes(3 * MIB))
    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(tapcore.IOFailedError) as caught:
        convert_image(f"ram:{tmp_path}/a", f"{target}:{tmp_path}/b")
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value) == f"{tmp_path}/b: write failed: No space left on device"
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_read_names_the_source_and_the_place(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def broken(fd: int, buffers: list[memoryview], offset: int, *flags: int) -> int:
        if offset >= 2 * MIB:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, buffers, offset, *flags)

    (tmp_path / "a").write_bytes(rng.randbytes(3 * MIB))
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(tapcore.IOFailedError) as caught:
        convert_image(f"aio:{tmp_path}/a", f"aio:{tmp_path}/b")
    place = f"between {2 * MIB} and {3 * MIB}"
    assert str(caught.value) == f"{tmp_path}/a: read failed {place}: Input/output error"
    assert os.listdir(tmp_path) == ["a"]


def test_a_source_that_shrinks_meanwhile_is_an_error(tmp_path: Path, rng: random.Random) -> None:
    (tmp_path / "a").write_bytes(rng.randbytes(3 * MIB))

    def shrink(done: int, total: int) -> None:
        if done == MIB:
            os.truncate(tmp_path / "a", MIB + 100)

    with pytest.raises(tapcore.IOFailedError, match=r"a: read failed between \d+ and \d+: Input"):
        convert_image(f"aio:{tmp_path}/a", f"aio:{tmp_path}/b", progress=shrink)
    assert os.listdir(tmp_path) == ["a"]


def test_an_existing_target_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 512)
    (tmp_path / "b").write_bytes(b"b" * 512)
    with pytest.raises(tapcore.UsageError, match="exists already; --force replaces it"):
        convert_image(f"aio:{tmp_path}/a", f"aio:{tmp_path}/b")
    with pytest.raises(tapcore.UsageError, match="no option 'nope'"):
        convert_image(f"aio:{tmp_path}/a", f"aio:{tmp_path}/b", force=True, options={"nope": "1"})
    assert (tmp_path / "b").read_bytes() == b"b" * 512
    convert_image(f"aio:{tmp_path}/a", f"aio:{tmp_path}/b", force=True)
    assert (tmp_path / "b").read_bytes() == b"a" * 512


def test_a_target_in_use_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 512)
    (tmp_path / "b").write_bytes(b"b" * 512)
    with (
        tapcore.open(f"aio:{tmp_path}/b", readonly=False),
        pytest.raises(tapcore.ImageLockedError, match="is in use"),
    ):
        convert_image(f"aio:{tmp_path}/a", f"aio:{tmp_path}/b", force=True)
    assert (tmp_path / "b").read_bytes() == b"b" * 512


@pytest.mark.parametrize("how", ["same", "hard link", "symbolic link"])
def test_onto_itself_is_refused(tmp_path: Path, how: str) -> None:
    source = target = tmp_path / "a"
    source.write_bytes(b"a" * 512)
    if how == "hard link":
        target = tmp_path / "b"
        target.hardlink_to(source)
    elif how == "symbolic link":
        target = tmp_path / "b"
        target.symlink_to(source)
    with pytest.raises(tapcore.UsageError, match="is the source"):
        convert_image(f"aio:{source}", f"aio:{target}", force=True)
    assert source.read_bytes() == b"a" * 512


def test_what_a_format_does_not_have_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 512)
    source, target = f"aio:{tmp_path}/a", f"aio:{tmp_path}/b"
    with pytest.raises(
        tapcore.NotSupportedError, match=r"'aio' cannot store compressed data \(-c\)"
    ):
        convert_image(source, target, compressed=True)
    with pytest.raises(tapcore.NotSupportedError, match="'aio' has no internal snapshots"):
        convert_image(source, target, snapshot="one")
    with pytest.raises(tapcore.NotSupportedError, match=r"'aio' has no parents \(-b\)"):
        convert_image(source, target, parent="a")
    with pytest.raises(tapcore.UsageError, match="exists only while it is open"):
        convert_image(source, "ram:64M")
    assert os.listdir(tmp_path) == ["a"]


def test_preallocation(tmp_path: Path) -> None:
    target = tmp_path / "b"
    convert_image("ram:4M", f"aio:{target}", options={"preallocation": "falloc"})
    assert occupied(target) >= 4 * MIB
