"""Windows: memory that is a part of a host file, looked at by the kernel alone."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from hostfs import loop_device, mounted
from peers import missing
from tapcore.files.hostfile import punch_hole
from tapcore.files.imagefile import ImageFile
from tapcore.files.mappable import maps_well, tells_of_pages, writes_pay
from tapcore.files.mapping import PAGE, Mapping, is_mapped
from tapcore.files.windowbudget import BUDGET
from tapcore.files.windows import LOOK, OFTEN, REGION, WINDOW, Windows

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes no write wait."""
    monkeypatch.setattr("tapcore.files.imagefile.SLOW_WRITE_SECONDS", float("inf"))


def content_of(view: memoryview) -> bytes:
    """What a system call finds there."""
    memory = os.memfd_create("content")
    try:
        assert os.pwritev(memory, [view], 0) == len(view)
        return os.pread(memory, len(view), 0)
    finally:
        os.close(memory)


def failure_of(call: Callable[[], object]) -> int:
    """The errno of a call that fails; what it held is free afterwards."""
    try:
        call()
    except OSError as exc:
        return exc.errno or 0
    return 0


def maps_of(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


@contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[tuple[ImageFile, Windows]]:
    fd = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
    file = ImageFile(fd, str(path), read_only=read_only)
    assert file.windows is not None
    try:
        if not file.windows.usable:
            missing(f"{path} lies on a file system that is not mapped")
        yield file, file.windows
    finally:
        file.close()
    assert maps_of(path) == 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    where = tmp_path / "disk"
    where.write_bytes(b"".join(n.to_bytes(2, "little") * (PAGE // 2) for n in range(512)))
    return where


def page(number: int) -> bytes:
    return number.to_bytes(2, "little") * (PAGE // 2)


def test_what_lies_in_memory_is_handed_out(path: Path) -> None:
    with opened(path) as (file, windows):
        view = windows.to_read(3 * PAGE + 7, 2 * PAGE, 0.0)
        assert view is not None
        assert is_mapped(view)
        assert content_of(view) == (page(3) + page(4) + page(5))[7 : 7 + 2 * PAGE]
        os.pwrite(file.fd, b"w" * PAGE, 4 * PAGE)  # everybody sees the same pages
        assert content_of(view)[PAGE : PAGE + 7] == b"w" * 7
        del view


@pytest.mark.parametrize("read_only", [True, False])
def test_nothing_can_be_written_there(read_only: bool, path: Path) -> None:
    with opened(path, read_only=read_only) as (file, windows):
        view = windows.to_read(0, PAGE, 0.0)
        assert view is not None
        assert view.readonly
        assert content_of(view) == page(0)
        by_window = not read_only and writes_pay(file.fd)
        (permissions,) = [
            line.split()[1]
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith(str(path))
        ]
        assert permissions == ("rw-s" if by_window else "r--s")  # `to_write` is another view
        del view


def test_what_does_not_lie_in_memory_is_left_to_others(path: Path) -> None:
    with opened(path) as (file, windows):
        os.fsync(file.fd)
        os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        cold = Mapping(file.fd, 0, LOOK)
        cold.look(0, LOOK // PAGE)
        if any(cold.pages):
            missing("this file system keeps its pages in memory")
        del cold
        assert windows.to_read(0, PAGE, 0.0) is None
        os.pread(file.fd, 2 * MIB, 0)
        view = windows.to_read(0, PAGE, 0.0)  # what was not there is looked at again
        assert view is not None
        del view


def test_pages_are_looked_at_many_at_once_and_once_a_second(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[tuple[int, int]] = []
    look = Mapping.look

    def counted(mapping: Mapping, first: int, count: int) -> None:
        looks.append((first, count))
        look(mapping, first, count)

    monkeypatch.setattr(Mapping, "look", counted)
    with opened(path) as (_, windows):
        for now in (0.0, 0.5, 0.99):
            for number in range(64):
                assert windows.to_read(number * PAGE, PAGE, now) is not None
        assert looks == [(0, LOOK // PAGE)]
        assert windows.to_read(0, PAGE, 1.5) is not None
        assert looks == [(0, LOOK // PAGE)] * 2


def test_holes_are_no_data(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(4 * MIB)
        punch_hole(file.fileno(), 64 * PAGE, 8 * PAGE)
    with opened(path) as (image, windows):
        os.pread(image.fd, 4 * MIB, 0)
        for number, data in ((63, True), (64, False), (71, False), (72, True), (600, False)):
            assert windows.to_read(number * PAGE, PAGE, 0.0) is not None
            assert (windows.data_to_read(number * PAGE, PAGE, 0.0) is not None) == data, number
        assert windows.data_to_read(62 * PAGE, 4 * PAGE, 0.0) is None
        os.pwrite(image.fd, b"d" * PAGE, 64 * PAGE)
        assert windows.data_to_read(64 * PAGE, PAGE, 2.0) is not None  # looked at again by then
        assert image.discard_blocking(0, 4 * PAGE) == 0
        os.pread(image.fd, 4 * PAGE, 0)
        assert windows.data_to_read(0, PAGE, 2.0) is None  # at once: it was our own doing


def test_a_range_across_two_windows_is_left_to_others(tmp_path: Path) -> None:
    path = tmp_path / "long"
    with open(path, "wb") as file:
        file.truncate(WINDOW + MIB)
        file.seek(WINDOW - MIB)
        file.write(b"x" * 2 * MIB)
    with opened(path) as (_, windows):
        assert windows.to_read(WINDOW - PAGE, 2 * PAGE, 0.0) is None
        before = windows.to_read(WINDOW - PAGE, PAGE, 0.0)
        behind = windows.to_read(WINDOW, PAGE, 0.0)
        assert before is not None
        assert behind is not None
        assert windows.open == 2
        del before, behind


def test_a_file_that_grows_is_seen_and_one_that_shrinks_is_given_up(path: Path) -> None:
    with opened(path) as (file, windows):
        kept = windows.to_read(256 * PAGE, PAGE, 0.0)
        assert kept is not None
        os.pwrite(file.fd, b"n" * PAGE, 512 * PAGE)
        file.look_again()
        view = windows.to_read(512 * PAGE, PAGE, 0.0)
        assert view is not None
        assert content_of(view) == b"n" * PAGE
        os.ftruncate(file.fd, 100 * PAGE + 100)
        assert windows.shrunk()
        assert windows.open == 0
        assert windows.to_read(0, PAGE, 0.0) is None
        assert failure_of(partial(content_of, kept)) == errno.EFAULT  # and no signal
        file.size = 100 * PAGE + 100
        again = windows.to_read(0, PAGE, 9.0)
        assert again is not None
        del kept, view, again


def test_what_was_handed_out_lives_as_long_as_it_is_kept(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    file = ImageFile(fd, str(path), read_only=False)
    assert file.windows is not None
    view = file.windows.to_read(PAGE, PAGE, 0.0)
    assert view is not None
    file.close()
    assert maps_of(path) == 1
    assert content_of(view) == page(1)
    del view
    assert maps_of(path) == 0


def test_a_resize_gives_all_up(path: Path) -> None:
    with opened(path) as (file, windows):
        assert windows.to_read(PAGE, PAGE, 0.0) is not None
        file.resize(MIB)
        assert windows.open == 0
        assert windows.to_read(PAGE, PAGE, 0.0) is not None


def test_no_more_windows_than_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in use stay; of others the one that was used longest ago goes."""
    path = tmp_path / "long"
    with open(path, "wb") as file:
        file.truncate(8 * WINDOW)
    monkeypatch.setattr(BUDGET, "most", 3)
    with opened(path, read_only=True) as (image, windows):
        for number in range(8):
            os.pread(image.fd, PAGE, number * WINDOW)
        for number, now in ((0, 0.0), (1, 0.3), (2, 0.6)):
            assert windows.to_read(number * WINDOW, PAGE, now) is not None
        assert windows.to_read(3 * WINDOW, PAGE, 0.9) is None
        assert windows.to_read(2 * WINDOW, PAGE, 0.9) is not None
        assert windows.to_read(3 * WINDOW, PAGE, 1.1) is not None
        assert windows.open == 3
        assert windows.to_read(WINDOW, PAGE, 1.1) is not None
        assert windows.to_read(0, PAGE, 1.1) is None
        assert maps_of(path) == 3
    assert windows.open == 0


def test_page_tables_stay_within_what_is_stated(tmp_path: Path) -> None:
    """2 MiB for each GiB that is touched."""

    def page_tables() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmPTE"))

    path = tmp_path / "long"
    with open(path, "wb") as file:
        file.truncate(2 * WINDOW)
    with opened(path) as (image, windows):
        sink = os.open("/dev/null", os.O_WRONLY)
        before = page_tables()
        for offset in range(0, 2 * WINDOW, 2 * MIB):
            os.pread(image.fd, PAGE, offset)
            view = windows.to_read(offset, PAGE, 0.0)
            assert view is not None
            content_of(view)
            del view
        os.close(sink)
        assert page_tables() - before <= (2 * WINDOW >> 9 >> 10) + 64


# ---- where it does not work ----------------------------------------------------------------


def works(path: Path, flags: int = os.O_RDWR) -> bool:
    fd = os.open(path, flags)
    try:
        return maps_well(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(("kind", "good"), [("tmpfs", True), ("ramfs", False)])
def test_file_systems_in_memory(kind: str, good: bool, tmp_path: Path) -> None:
    with mounted(kind, tmp_path / "fs") as where:
        (where / "file").write_bytes(bytes(PAGE))
        assert works(where / "file") is good


def test_a_block_device_is_left_alone(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    with loop_device(image) as device:
        assert not works(Path(device), os.O_RDONLY)


def test_whose_pages_the_kernel_tells(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        assert tells_of_pages(fd)
        if os.geteuid():
            return
        os.chmod(path, 0o644)
        os.seteuid(65534)
        try:
            assert not tells_of_pages(fd)
        finally:
            os.seteuid(0)
    finally:
        os.close(fd)


def test_sent_past_the_end_nothing_arrives(path: Path) -> None:
    with opened(path) as (file, windows):
        view = windows.to_read(256 * PAGE, PAGE, 0.0)
        assert view is not None
        os.ftruncate(file.fd, 0)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert failure_of(partial(ours.sendmsg, [b"head", view])) == errno.EFAULT
            with pytest.raises(BlockingIOError):
                theirs.recv(100, socket.MSG_DONTWAIT)
        file.size = 0
        del view


def test_a_python_without_ctypes_has_no_windows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(fd: int) -> int:
        raise ImportError("ctypes")

    monkeypatch.setattr("tapcore.files.mappable.file_system_magic", none)
    file = ImageFile(os.open(path, os.O_RDWR), str(path), read_only=False)
    assert file.windows is not None
    assert file.windows.to_read(0, PAGE, 0.0) is None
    file.close()


# ---- writing -----------------------------------------------------------------------------------


@pytest.fixture
def on_ext4(path: Path) -> Path:
    """A file on a file system where writing through a window pays."""
    with opened(path) as (file, _):
        if not writes_pay(file.fd):
            missing(f"{path} does not lie on ext4")
    return path


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first write of a region goes through the window already."""
    monkeypatch.setattr("tapcore.files.windows.OFTEN", 0)


@pytest.mark.usefixtures("at_once")
def test_a_small_write_goes_to_its_place(on_ext4: Path) -> None:
    with opened(on_ext4) as (file, windows):
        before = on_ext4.read_bytes()
        for offset, length in ((0, 512), (3 * PAGE + 512, 4096), (511 * PAGE, PAGE), (7, 1)):
            content = os.urandom(length)
            assert file.write_mapped(offset, memoryview(content), 0.0)
            before = before[:offset] + content + before[offset + length :]
        assert on_ext4.read_bytes() == before
        os.fdatasync(file.fd)
        os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what is on the disk
        assert on_ext4.read_bytes() == before
        assert windows.open == 1


@pytest.mark.usefixtures("at_once")
def test_only_what_has_blocks_and_lies_in_memory_is_written_so(on_ext4: Path) -> None:
    with open(on_ext4, "r+b") as host:
        host.truncate(2 * MIB + 64 * PAGE)
    with opened(on_ext4) as (file, windows):
        content = memoryview(b"x" * PAGE)
        assert windows.to_write(2 * MIB + PAGE, PAGE, 0.0) is None  # a hole
        assert not file.write_mapped(2 * MIB + PAGE, content, 0.0)
        punch_hole(file.fd, 8 * PAGE, PAGE)
        file.holes.forget()
        windows.forget_blocks()
        assert windows.to_write(8 * PAGE, PAGE, 0.0) is None
        os.fsync(file.fd)
        os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        windows.distrust()
        assert windows.to_write(100 * PAGE, PAGE, 1.0) is None
        before = on_ext4.read_bytes()
        assert before[8 * PAGE : 9 * PAGE] == bytes(PAGE)


def test_what_is_seldom_written_makes_nothing_else_dirty(on_ext4: Path) -> None:
    """The disk writes all of a folio of which one page was written through a window."""

    def left(at: int = 0, now: float = 0.0) -> int:
        """How many writes at a place go by `pwrite` before one goes through the window."""
        count = 0
        while windows.to_write(at, PAGE, now) is None:
            count += 1
            assert count <= OFTEN
        return count

    with open(on_ext4, "ab") as host:
        host.write(bytes(REGION))
    with opened(on_ext4) as (file, windows):
        assert (left(), left(), left(REGION - PAGE), left(REGION)) == (OFTEN, 0, 0, OFTEN)
        assert file.flush_blocking() == 0
        assert (left(), left()) == (OFTEN, 0)
        assert (left(0, 0.9), left(0, 9.9), left(0, 10.9), left(0, 11.0)) == (0, 0, OFTEN, 0)


@pytest.mark.usefixtures("at_once")
def test_a_file_that_shrank_is_not_written_through_a_window(
    on_ext4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(on_ext4) as (file, windows):
        assert windows.to_write(300 * PAGE, PAGE, 0.0) is not None  # and so it is mapped
        os.truncate(on_ext4, 256 * PAGE)
        assert not file.write_mapped(300 * PAGE, memoryview(b"x" * PAGE), 0.0)
        monkeypatch.setattr(ImageFile, "_lost_by", lambda *_: False)  # nobody has looked
        assert not file.write_mapped(300 * PAGE, memoryview(b"x" * PAGE), 0.0)  # EFAULT, no signal
        assert on_ext4.stat().st_size == 256 * PAGE


def test_what_is_only_read_has_no_place_to_write(on_ext4: Path) -> None:
    with opened(on_ext4, read_only=True) as (_, windows):
        assert windows.to_read(0, PAGE, 0.0) is not None
        assert windows.to_write(0, PAGE, 0.0) is None


@pytest.mark.usefixtures("at_once")
def test_file_systems_where_it_does_not_pay_are_left_alone(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path) as folder:
        where = folder / "disk"
        where.write_bytes(bytes(MIB))
        with opened(where) as (file, windows):
            assert windows.to_read(0, PAGE, 0.0) is not None
            assert not file.write_mapped(0, memoryview(b"x" * PAGE), 0.0)


@pytest.mark.usefixtures("at_once")
def test_closing_lets_go_of_what_writes_go_through(on_ext4: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with opened(on_ext4) as (file, _):
        assert file.write_mapped(0, memoryview(b"x" * 512), 0.0)
        assert len(os.listdir("/proc/self/fd")) > before + 1
    assert len(os.listdir("/proc/self/fd")) == before
