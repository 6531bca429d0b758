"""A disk is a file that Python's own tools take well: read in pieces, copied, hashed, sent."""

import asyncio
import hashlib
import io
import os
import pickle
import random
import shutil
import tarfile
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapcore
from tapcore.disk.window import WINDOW_BYTES

MIB = 1 << 20
SIZE = 3 * MIB + 512


@pytest.fixture
def content(rng: random.Random) -> bytes:
    return rng.randbytes(MIB) + bytes(MIB) + rng.randbytes(SIZE - 2 * MIB)


@pytest.fixture
def image(tmp_path: Path, content: bytes) -> str:
    tapcore.create_image(f"qcow2:{tmp_path / 'disk.qcow2'}", SIZE)
    with tapcore.open(f"qcow2:{tmp_path / 'disk.qcow2'}", "r+b") as disk:
        disk.pwrite(0, content[:MIB])
        disk.pwrite(2 * MIB, content[2 * MIB :])
    return f"qcow2:{tmp_path / 'disk.qcow2'}"


# ---- reading -----------------------------------------------------------------------------------


def test_small_reads_one_after_the_other_are_few_requests(image: str, content: bytes) -> None:
    with tapcore.open(image, "rb") as disk:
        with patch.object(disk._calls, "ask", wraps=disk._calls.ask) as ask:
            found = b"".join(iter(lambda: disk.read(4096), b""))
        assert found == content
        assert ask.call_count <= SIZE // WINDOW_BYTES + 3


@settings(max_examples=40)
@given(data=st.data())
def test_reads_and_writes_in_any_order_are_those_of_a_file(data: st.DataObject) -> None:
    size = 1 << 20
    with (
        tempfile.NamedTemporaryFile() as plain,
        tapcore.open(f"ram:{size}", "r+b") as disk,
    ):
        plain.truncate(size)
        numbers = st.integers(0, size)
        for _ in range(12):
            what = data.draw(st.sampled_from(("read", "read", "read", "write", "seek", "zero")))
            length = data.draw(st.one_of(st.integers(0, 5000), numbers))
            if what == "seek":
                assert disk.seek(length) == plain.seek(length)
            elif what == "read":
                assert disk.read(length) == plain.read(length)
            elif what == "write" and disk.tell() < size:
                some = random.Random(length).randbytes(min(length, size - disk.tell()))
                assert disk.write(some) == plain.write(some)
            elif what == "zero":
                at = data.draw(st.integers(0, size - 1))
                length = min(length, size - at)
                disk.zero(at, length=length)
                place = plain.tell()
                plain.seek(at)
                plain.write(bytes(length))
                plain.seek(place)
            assert disk.tell() == plain.tell()


def test_what_changes_the_content_is_seen_by_the_next_read(image: str) -> None:
    with tapcore.open(image, "r+b") as disk:
        assert len(disk.read(512) + disk.read(512)) == 1024  # a window is there now
        for change in (
            lambda: disk.pwrite(1024, b"a" * 512),
            lambda: disk.discard(1024, length=512),
            lambda: disk.zero(1024, length=512),
            lambda: disk.resize(f"{SIZE // 512 + 2}k"),
        ):
            disk.seek(1024)
            change()
            assert disk.read(512) == disk.pread(1024, length=512)


def test_of_a_disk_without_a_lock_nothing_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    with tapcore.open(f"aio:{path}", "rb", lock=False) as disk:
        disk.read(512)
        disk.read(512)
        path.write_bytes(b"x" * 8192)
        assert disk.read(512) == b"x" * 512


def test_pythons_own_tools_take_it(image: str, content: bytes, tmp_path: Path) -> None:
    with tapcore.open(image, "rb") as disk:
        digest = hashlib.file_digest(disk, "sha256")
        assert digest.digest() == hashlib.sha256(content).digest()
        disk.seek(0)
        copy = io.BytesIO()
        shutil.copyfileobj(disk, copy)
        assert copy.getvalue() == content
        disk.seek(0)
        assert io.BufferedReader(disk).read() == content
    with tapcore.open(image, "rb") as disk, tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("disk")
        info.size = disk.size
        tar.addfile(info, disk)
    with tarfile.open(tmp_path / "a.tar") as tar:
        member = tar.extractfile("disk")
        assert member is not None
        assert member.read() == content


def test_a_copy_into_a_file_is_sparse(image: str, content: bytes, tmp_path: Path) -> None:
    with tapcore.open(image, "rb") as disk, open(tmp_path / "copy", "wb") as copy:
        assert disk.copy_to(copy) == SIZE - MIB
        assert copy.tell() == SIZE
    assert (tmp_path / "copy").read_bytes() == content
    assert os.stat(tmp_path / "copy").st_blocks * 512 < SIZE - MIB // 2


def test_a_copy_into_a_pipe_is_whole(image: str, content: bytes) -> None:
    class Pipe(io.RawIOBase):
        got = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            some = bytes(memoryview(data)[:70_000])  # type: ignore[arg-type]
            self.got += some
            return len(some)

    pipe = Pipe()
    with tapcore.open(image, "rb") as disk:
        disk.copy_to(pipe)  # type: ignore[arg-type]
    assert pipe.got == content


# ---- opening -----------------------------------------------------------------------------------


def test_a_mode_is_that_of_pythons_open(image: str) -> None:
    for mode, writable in (("rb", False), ("r+b", True), ("rb+", True)):
        with tapcore.open(image, mode) as disk:  # type: ignore[arg-type]
            assert disk.writable() is writable
            assert disk.mode == ("rb+" if writable else "rb")
    for wrong in ("w", "wb", "r"):
        with pytest.raises(tapcore.UsageError, match="no mode"):
            tapcore.open(image, wrong)  # type: ignore[arg-type]
    with pytest.raises(tapcore.UsageError, match="contradict"):
        tapcore.open(image, "rb", readonly=False)


def test_sizes_may_be_written_as_people_do(tmp_path: Path) -> None:
    tapcore.create_image(f"qcow2:{tmp_path / 'd'}", "1.5G")
    with tapcore.open(f"qcow2:{tmp_path / 'd'}", "r+b") as disk:
        assert disk.size == 3 << 29
        disk.resize("2GiB")
        assert disk.size == 2 << 30
        with pytest.raises(tapcore.UsageError, match="not a size"):
            disk.resize("2Q")


def _digest_of(disk: tapcore.Disk) -> str:
    with disk:
        return hashlib.sha256(disk.read()).hexdigest()


def test_a_disk_that_is_read_can_be_sent_to_another_process(
    image: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        tapcore.open("qcow2:disk.qcow2", "rb") as disk,  # by a relative name
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        monkeypatch.chdir("/")
        assert pool.submit(_digest_of, disk).result(60) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("how", [{"mode": "r+b"}, {"mode": "rb", "keys": b"secret"}])
def test_what_would_work_against_it_or_tell_a_secret_is_not_sent(
    how: dict[str, object], image: str
) -> None:
    with tapcore.open(image, **how) as disk, pytest.raises(TypeError, match="open it again"):  # type: ignore[arg-type]
        pickle.dumps(disk)


# ---- for reading, unless told otherwise --------------------------------------------------------


def test_a_disk_is_opened_for_reading(image: str, content: bytes) -> None:
    with tapcore.open(image) as disk:
        assert (disk.mode, disk.read_only, disk.writable()) == ("rb", True, False)
        assert disk.read(512) == content[:512]
        with tapcore.open(image) as other:  # readers keep out only who writes
            assert other.size == disk.size
        for write in (
            lambda: disk.write(b"x"),
            lambda: disk.pwrite(0, b"x"),
            lambda: disk.zero(0, length=512),
            lambda: disk.discard(0, length=512),
            lambda: disk.resize("8M"),
        ):
            with pytest.raises(tapcore.ReadOnlyError, match="readonly=False"):
                write()
    with pytest.raises(tapcore.UsageError, match="readonly=False"):
        tapcore.open(image, copy_on_read=True)


def test_a_format_is_guessed_for_writing_only_where_that_is_said(image: str) -> None:
    path = image.removeprefix("qcow2:")
    with pytest.raises(tapcore.UsageError, match="HANDLE:PATH"):
        tapcore.open(path, "r+b")
    with tapcore.open(path, "r+b", probe=True) as disk:
        assert (disk.handle, disk.pwrite(0, b"x")) == ("qcow2", 1)


def test_a_raw_disk_that_was_guessed_keeps_its_look(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    with tapcore.open(tmp_path / "disk.img", readonly=False, probe=True) as disk:
        assert disk.pwrite(4096, b"x") == 1
        with pytest.raises(tapcore.TapError):
            disk.pwrite(0, b"QFI\xfb\0\0\0\3")


# ---- asyncio, fsspec ---------------------------------------------------------------------------


def test_asyncio_goes_on_meanwhile(image: str, content: bytes) -> None:
    async def work() -> None:
        async with tapcore.aopen(image, "r+b") as disk:
            parts = await asyncio.gather(
                *(disk.pread(at, length=4096) for at in range(0, 65536, 4096))
            )
            assert b"".join(parts) == content[:65536]
            assert await disk.pwrite(512, b"new", fua=True) == 3
            await disk.zero(MIB, length=4096)
            await disk.discard(MIB, length=4096)
            await disk.sync()
            assert (await disk.pread(512, length=3)) == b"new"
            assert sum(run.length for run in await disk.extents()) == SIZE == disk.size
            await disk.resize("4M")
            with pytest.raises(tapcore.OutOfRangeError):
                await disk.pwrite(4 * MIB, b"x")
        assert disk.disk.closed

    asyncio.run(work())


def test_a_call_that_is_cancelled_leaves_the_disk_whole(image: str) -> None:
    async def work() -> None:
        disk = await tapcore.aopen(image, "r+b")
        task = asyncio.ensure_future(disk.pwrite(0, b"x" * MIB))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await disk.pread(0, length=1) == b"x"
        await disk.close()

    asyncio.run(work())


def test_asyncio_may_also_await_a_disk_or_make_a_task_of_it(image: str) -> None:
    async def work() -> None:
        disk = await tapcore.aopen(image)
        assert (disk.size, disk.name) == (SIZE, disk.disk.name)
        await disk.close()
        async with await asyncio.create_task(tapcore.aopen(image, "r+b")) as disk:
            assert await disk.pwrite(0, b"x") == 1
        with pytest.raises(KeyError):
            async with tapcore.aopen(image) as disk:
                raise KeyError
        assert disk.disk.closed

    asyncio.run(work())


def test_who_is_cancelled_while_a_disk_opens_leaves_it_closed(
    image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go, opened = threading.Event(), threading.Event(), list[tapcore.Disk]()

    def slowly(*args: Any, **how: Any) -> tapcore.Disk:
        began.set()
        assert go.wait(60)
        opened.append(tapcore.open(*args, **how))
        return opened[0]

    async def work() -> None:
        task = asyncio.create_task(tapcore.aopen(image, "r+b"))
        await asyncio.get_running_loop().run_in_executor(None, began.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        threads = [
            thread for thread in threading.enumerate() if thread.name.startswith("tapcore-disk")
        ]
        go.set()
        for thread in threads:
            thread.join(60)
        assert opened[0].closed

    monkeypatch.setattr("tapcore.disk.asyncdisk.open", slowly)
    asyncio.run(work())


def test_what_cannot_be_opened_says_so_to_asyncio_too(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(tapcore.aopen(f"aio:{tmp_path / 'gone'}", "rb"))


def test_fsspec_reads_a_disk_by_its_url(image: str, content: bytes) -> None:
    with fsspec.open(f"tapdisk://{image}") as file:
        assert file.read(1000) == content[:1000]
    files = fsspec.filesystem("tapdisk", parents="any")
    assert files.info(image)["size"] == SIZE
    assert files.ls(image, detail=False) == [image]
    assert files.cat_file(image, 100, 200) == content[100:200]
    assert files.cat_file(image, -100) == content[-100:]
    assert files.cat(image) == content
    assert files.exists(image)
    assert not files.exists("qcow2:/gone")
    with files.open(image, "r+b") as file:
        file.write(b"new")
    assert files.cat_file(image, 0, 3) == b"new"
    with pytest.raises(NotImplementedError):
        files.open(image, "ab")


def test_what_fsspec_makes_of_a_file_system_works_with_disks(
    image: str, content: bytes, tmp_path: Path
) -> None:
    """Of fsspec's abstract tests those for copying out and opening; the others make files."""
    files = fsspec.filesystem("tapdisk")
    files.get(image, str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == content
    files.get_file(f"tapdisk://{image}", str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == content
    assert (files.isfile(image), files.isdir(image), files.size(image)) == (True, False, SIZE)
    assert (files.head(image, 10), files.tail(image, 10)) == (content[:10], content[-10:])
    assert files.read_block(image, 1000, 24) == content[1000:1024]
    ranges = [(0, 5), (MIB - 2, MIB + 2), (-7, None)]
    starts, ends = map(list, zip(*ranges, strict=True))
    found = files.cat_ranges([image] * 3, starts, ends)
    assert found == [content[first:last] for first, last in ranges]
    assert files.checksum(image) == files.checksum(image)
    assert fsspec.get_mapper(f"tapdisk://{image}", check=False).fs == files
    for mode in ("wb", "xb"):
        with pytest.raises(NotImplementedError):
            files.open(image, mode)
    with fsspec.open_files([f"tapdisk://{image}"] * 2)[1] as file:
        assert hashlib.file_digest(file, "sha256").digest() == hashlib.sha256(content).digest()
