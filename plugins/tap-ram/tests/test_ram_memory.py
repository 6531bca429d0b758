"""What a RAM disk costs: nothing until it is written, and nothing any more when discarded."""

import errno
import os
import random
from pathlib import Path

import pytest

import tapcore
from tap_ram.memory import Memory

MIB = 1 << 20


def used(disk: tapcore.Disk) -> int:
    """Bytes of memory that the kernel keeps for the disk."""
    found: int = disk.info()["memory_used"]
    return found


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def shape(disk: tapcore.Disk) -> list[tuple[int, int, str]]:
    return [(run.start, run.length, run.kind) for run in disk.extents()]


def test_an_empty_terabyte_costs_nothing() -> None:
    with tapcore.open("ram:16M", readonly=False):
        pass  # everything is imported
    before = resident()
    with tapcore.open("ram:1T", readonly=False) as disk:
        assert (disk.size, used(disk)) == (1 << 40, 0)
        assert shape(disk) == [(0, 1 << 40, "zero")]
        disk.zero(0, length=1 << 40)
        disk.discard(1 << 30, length=1 << 39)
        assert used(disk) == 0
        assert resident() - before < 4 * MIB
        disk.pwrite((1 << 40) - 5, b"hello")
        disk.pwrite(1 << 39, b"there")
        assert disk.pread((1 << 40) - 6, length=100) == b"\0hello"
        assert used(disk) == 2 * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("length", [512, 4096, 65_536, 100_000, MIB])
def test_reading_holes_allocates_nothing(length: int, rng: random.Random) -> None:
    with tapcore.open("ram:64M", readonly=False) as disk:
        for _ in range(40):
            assert not any(disk.pread(rng.randrange(63 * MIB), length=length))
        assert used(disk) == 0
        disk.pwrite(32 * MIB, b"x" * 65_536)
        for _ in range(40):
            disk.pread(rng.randrange(63 * MIB), length=length)
        assert used(disk) == 65_536


def test_discard_and_zero_give_memory_back() -> None:
    with tapcore.open("ram:16M", readonly=False) as disk:
        disk.pwrite(0, b"x" * 8 * MIB)
        assert used(disk) == 8 * MIB
        disk.discard(0, length=4 * MIB)
        assert used(disk) == 4 * MIB
        disk.zero(4 * MIB, length=2 * MIB)
        disk.zero(6 * MIB, length=MIB, unmap=False)
        assert used(disk) == MIB
        assert shape(disk) == [
            (0, 7 * MIB, "zero"),
            (7 * MIB, MIB, "data"),
            (8 * MIB, 8 * MIB, "zero"),
        ]
        assert disk.pread(0, length=16 * MIB) == bytes(7 * MIB) + b"x" * MIB + bytes(8 * MIB)
        assert used(disk) == MIB


def test_what_was_discarded_piece_by_piece_stays_a_hole_when_it_is_read() -> None:
    with tapcore.open("ram:4M", readonly=False) as disk:
        disk.pwrite(0, b"x" * MIB)
        for at in range(0, MIB, 4096):
            disk.discard(at, length=4096)
        assert used(disk) == 0
        assert disk.pread(0, length=4 * MIB) == bytes(4 * MIB)
        assert used(disk) == 0


def test_a_discard_of_a_part_keeps_the_rest() -> None:
    with tapcore.open("ram:4M", readonly=False) as disk:
        disk.pwrite(0, b"x" * (256 << 10))
        disk.discard(1024, length=512)
        disk.discard(60_000 // 512 * 512, length=10 << 10)
        expected = bytearray(b"x" * (256 << 10))
        expected[1024:1536] = bytes(512)
        start = 60_000 // 512 * 512
        expected[start : start + (10 << 10)] = bytes(10 << 10)
        assert disk.pread(0, length=256 << 10) == expected


def test_the_end_of_a_run_of_data_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel walks all of it; a read that asks again each time would cost the disk's size."""
    memory = Memory(8 * MIB)
    memory.write(0, memoryview(b"d" * 4 * MIB))
    asked: list[int] = []
    real = os.lseek

    def counted(fd: int, offset: int, whence: int) -> int:
        asked.append(whence)
        return real(fd, offset, whence)

    monkeypatch.setattr(os, "lseek", counted)
    for at in range(0, 4 * MIB, 64 << 10):
        assert list(memory.runs(at, at + 1000)) == [(at, at + 1000, True)]
    assert asked == [os.SEEK_DATA, os.SEEK_HOLE]
    memory.punch(MIB, MIB)
    memory.write(6 * MIB, memoryview(b"e" * 4096))
    runs = [(0, True), (MIB, False), (2 * MIB, True), (4 * MIB, False)]
    runs += [(6 * MIB, True), (6 * MIB + 4096, False)]
    assert [(start, data) for start, _, data in memory.runs(0, 8 * MIB)] == runs
    memory.close()


def test_a_sparse_file_is_loaded_sparse(tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    with open(path, "wb") as file:
        file.truncate(10 << 30)
        file.seek(5 << 30)
        file.write(b"middle" * 1000)
    with tapcore.open(f"ram:{path}", readonly=False) as disk:
        assert disk.size == 10 << 30
        assert 6000 <= used(disk) <= 16 << 10
        assert disk.pread(5 << 30, length=6000) == b"middle" * 1000
        disk.pread(0, length=MIB)
        assert used(disk) <= 16 << 10
        assert [kind for _, _, kind in shape(disk)] == ["zero", "data", "zero"]


def test_the_file_is_left_as_it_was(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "disk.img"
    content = rng.randbytes(100_001)
    path.write_bytes(content)
    before = path.stat()
    with tapcore.open(f"ram:{path}", readonly=False) as disk:
        assert disk.pread(0, length=disk.size) == content + bytes(disk.size - len(content))
        assert disk.info()["loaded_from"] == str(path)
        disk.pwrite(0, b"x" * disk.size)
        disk.discard(0, length=disk.size)
        disk.resize(MIB)
        disk.sync()
    after = path.stat()
    assert path.read_bytes() == content
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


def test_resize_frees_what_is_cut_off_and_brings_zeroes_back() -> None:
    with tapcore.open("ram:4M", readonly=False) as disk:
        disk.pwrite(0, b"x" * 4 * MIB)
        disk.resize(MIB + 512)
        assert used(disk) <= MIB + 4096
        disk.resize(1 << 40)
        assert used(disk) <= MIB + 4096
        assert disk.pread(MIB, length=2048) == b"x" * 512 + bytes(1536)
        assert disk.pread((1 << 40) - 512, length=512) == bytes(512)
        disk.resize(512)
        assert disk.pread(0, length=4096) == b"x" * 512
        with pytest.raises(tapcore.UsageError, match="at least one sector"):
            disk.resize(0)


def test_a_resize_that_is_not_possible_changes_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with tapcore.open("ram:1M", readonly=False) as disk:
        disk.pwrite(0, b"x" * MIB)
        with pytest.raises(tapcore.TapError) as caught:
            disk.resize(1 << 62)
        assert caught.value.image == "ram:1M"
        assert (disk.size, disk.pread(0, length=MIB), used(disk)) == (MIB, b"x" * MIB, MIB)
        disk.resize(2 * MIB)
        assert disk.pread(0, length=2 * MIB) == b"x" * MIB + bytes(MIB)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_cannot_be_read_is_an_error_that_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bad.img"
    path.write_bytes(b"x" * 3 * MIB)

    def fails(self: tapcore.ImageFile, offset: int, buf: memoryview) -> int:
        return -errno.EIO if offset >= MIB else 0

    monkeypatch.setattr(tapcore.ImageFile, "read_blocking", fails)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(tapcore.ImageOpenError, match="Input/output error") as caught:
        tapcore.open(f"ram:{path}", readonly=False)
    assert (caught.value.errno, caught.value.image) == (errno.EIO, str(path))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("0", "must not be empty"),
        ("64Q", "neither an existing file nor a size"),
        ("/nowhere/disk.img", "neither an existing file nor a size"),
        ("7E", "neither"),
        ("8191P", "more than this machine can address"),
    ],
)
def test_what_is_not_a_ram_disk(name: str, words: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(tapcore.TapError, match=words) as caught:
        tapcore.open(f"ram:{name}", readonly=False)
    assert caught.value.image == name
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_empty_file_is_not_a_ram_disk(tmp_path: Path) -> None:
    path = tmp_path / "empty.img"
    path.touch()
    with pytest.raises(tapcore.UsageError, match="is empty"):
        tapcore.open(f"ram:{path}", readonly=False)


def test_sizes_are_rounded_up_to_sectors() -> None:
    with tapcore.open("ram:1000", readonly=False) as disk:
        assert disk.size == 1024
        disk.pwrite(1000, b"x" * 24)


def test_there_is_no_cache_mode() -> None:
    with pytest.raises(tapcore.UsageError, match="no cache mode"):
        tapcore.open("ram:1M", cache="none", readonly=False)


def test_reads_across_written_and_unwritten_chunks(rng: random.Random) -> None:
    """`Memory.read` directly, over all patterns of chunks."""
    memory = Memory(16 << 16)
    model = bytearray(16 << 16)
    for chunk in rng.sample(range(16), 7):
        content = rng.randbytes(1 << 16)
        memory.write(chunk << 16, memoryview(content))
        model[chunk << 16 : (chunk + 1) << 16] = content
    for _ in range(200):
        start, end = sorted(rng.randrange((16 << 16) + 1) for _ in range(2))
        buf = bytearray(b"\xee" * (end - start))
        memory.read(start, memoryview(buf))
        assert buf == model[start:end]
    assert memory.used() == 7 << 16
    memory.close()
