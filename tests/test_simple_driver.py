"""`tapcore.SimpleDriver`: its methods become hooks, run in a thread; their mistakes are told."""

import gzip
import logging
import random
import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest

import tapcore
from docpages import ROOT
from tapcore import (
    DriverError,
    ImageFormatError,
    NotWritableError,
    Registry,
    SimpleDriver,
    TapError,
)
from tapcore.engine import READ, Request, chain_extents
from tapcore.errors import IOFailedError, LostContentError
from tapcore.interface.registry import default_registry
from tapcore.opening.probe import probe

SIZE = 1 << 20


class Plain(SimpleDriver):
    """A file that is the disk, with a log of the calls."""

    handle, title, api = "plain", "for tests", 1
    calls: ClassVar[list[str]] = []

    def pread(self, offset: int, length: int) -> bytes | None:
        self.calls.append(f"pread {offset} {length}")
        return self.read(offset, length)

    def pwrite(self, offset: int, data: memoryview) -> None:
        self.calls.append(f"pwrite {offset} {len(data)}")
        self.write(offset, data)

    def flush(self) -> None:
        self.calls.append("flush")
        self.sync()

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


def use(monkeypatch: pytest.MonkeyPatch, *drivers: type[SimpleDriver]) -> Registry:
    """Those drivers, and what is installed."""
    registry = Registry()
    for driver in drivers:
        row = registry.register(driver)
        assert not row.error, row.error
    monkeypatch.setattr("tapcore.interface.registry._default", registry)
    return registry


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Registry:
    Plain.calls.clear()
    return use(monkeypatch, Plain)


# ---- what it is for ------------------------------------------------------------------------------


def test_the_smallest_driver_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is under 25 lines, recognises its files, reads them, and refuses to be written."""
    page = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- file: smallest driver -->\n```python\n(.*?)```", page, re.DOTALL)
    assert found
    assert found[1].count("\n") < 25
    names: dict[str, Any] = {}
    exec(found[1], names)
    registry = use(monkeypatch, names["Gzipped"])
    assert registry.get("gz").capabilities == ("read",)
    content = random.Random(2).randbytes(100_000)
    path = tmp_path / "disk.gz"
    path.write_bytes(gzip.compress(content))
    with tapcore.open(str(path), readonly=True) as disk:
        assert disk.state.image.drivertype == "gz"
        assert disk.pread(0, length=disk.size) == content + bytes(-len(content) % 512)
        assert disk.pread(99_000, length=1000) == content[99_000:]
    with pytest.raises(NotWritableError, match="can only be read"):
        tapcore.open(f"gz:{path}", readonly=False)


def test_capabilities_follow_from_the_methods(plain: Registry) -> None:
    assert plain.get("plain").capabilities == ("read", "write")


def test_a_format_is_recognised_by_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a magic there, by a method that sees both ends, or one that sees the head alone."""

    class Footed(Plain):
        handle, magic, magic_offset = "footed", b"FOOT", -512

    class Looks(Plain):
        handle = "looks"

        @classmethod
        def probe(cls, head: bytes, tail: bytes = b"") -> bool:
            return head.startswith(b"A") and tail.endswith(b"Z")

    class Head(Plain):
        handle = "head"

        @classmethod
        def probe(cls, head: bytes) -> bool:  # type: ignore[override]
            return head.startswith(b"B")

    registry = use(monkeypatch, Footed, Looks, Head)
    contents = {
        "footed": bytes(100_000) + b"FOOT".ljust(512, b"."),
        "looks": b"A" + bytes(200_000) + b"Z",
        "head": b"B" + bytes(600),
    }
    for handle, content in contents.items():
        (tmp_path / "disk").write_bytes(content)
        assert probe(str(tmp_path / "disk"), registry) == handle


def test_what_was_written_is_read_and_flushed(plain: Registry, image: Path) -> None:
    with tapcore.open(f"plain:{image}", readonly=False) as disk:
        disk.pwrite(1000, b"x" * 3000)
        assert disk.pread(999, length=3002)[1:-1] == b"x" * 3000
        disk.sync()
    assert image.read_bytes()[1000:4000] == b"x" * 3000
    assert Plain.calls[-2:] == ["flush", "close"]


def test_blocks_come_one_by_one(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Blocks(Plain):
        handle, block_size = "blocks", 4096

    use(monkeypatch, Blocks)
    Plain.calls.clear()
    with tapcore.open(f"blocks:{image}", readonly=True) as disk:
        content = disk.pread(5000, length=8000)
    assert content == image.read_bytes()[5000:13000]
    reads = [call for call in Plain.calls if call.startswith("pread")]
    assert reads == ["pread 4096 4096", "pread 8192 4096", "pread 12288 4096"]


def test_a_disk_of_bytes_ends_where_it_ends(tmp_path: Path, plain: Registry) -> None:
    """The rest of its last sector reads as zeroes; such a disk is not written."""
    path = tmp_path / "odd"
    path.write_bytes(b"a" * 700)
    with tapcore.open(f"plain:{path}", readonly=True) as disk:
        assert disk.pread(0, length=1024) == b"a" * 700 + bytes(324)
    assert Plain.calls[0] == "pread 0 700"
    with pytest.raises(ImageFormatError, match="no whole number of sectors"):
        tapcore.open(f"plain:{path}", readonly=False)


def test_holes_are_the_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Child(SimpleDriver):
        handle, api = "holes", 1

        def pread(self, offset: int, length: int) -> bytes | None:
            return None

        def extents(self, offset: int, length: int) -> Iterable[tuple[int, str]]:
            yield length, "hole"

        def parent(self) -> str:
            return self.read(0, 512).rstrip(b"\0").decode()

    use(monkeypatch, Child)
    (tmp_path / "base").write_bytes(b"b" * 4096)
    for recorded in ("aio:base", "base"):
        (tmp_path / "child").write_bytes(recorded.encode().ljust(4096, b"\0"))
        with tapcore.open(f"holes:{tmp_path}/child", readonly=True) as disk:
            assert disk.pread(0, length=4096) == b"b" * 4096
            assert [extent.kind for extent in disk.extents()] == ["data"]


# ---- it does not block ---------------------------------------------------------------------------


def test_a_call_that_waits_holds_nobody_up(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue call returns at once, and so one loop serves other disks meanwhile."""
    go_on = threading.Event()

    class Waits(Plain):
        handle = "waits"

        def pread(self, offset: int, length: int) -> bytes | None:
            assert go_on.wait(60)
            return super().pread(offset, length)

    use(monkeypatch, Waits)
    with tapcore.open(f"waits:{image}", readonly=True) as disk:
        done: list[Request] = []
        buf = bytearray(4096)
        disk.submit(Request(READ, 0, 4096, memoryview(buf), done.append))
        assert not done
        go_on.set()
        assert disk.pread(4096, length=512) == image.read_bytes()[4096:4608]
        assert [req.status for req in done] == [0]  # in order: it came first
        assert buf == image.read_bytes()[:4096]


def test_who_asks_what_lies_where_does_not_wait_for_a_call(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as a read is under way all counts as content; the loop is not held up by it."""
    inside, go_on = threading.Event(), threading.Event()

    class Holes(Plain):
        handle = "holes"

        def pread(self, offset: int, length: int) -> bytes | None:
            inside.set()
            assert go_on.wait(60)
            return super().pread(offset, length)

        def extents(self, offset: int, length: int) -> Iterable[tuple[int, str]]:
            yield length, "hole"

    use(monkeypatch, Holes)
    with tapcore.open(f"holes:{image}", readonly=True) as disk:
        done: list[Request] = []
        disk.submit(Request(READ, 0, 4096, memoryview(bytearray(4096)), done.append))
        assert inside.wait(60)
        for _ in range(100):
            assert kinds(disk) == ["compressed"]
        assert not done
        go_on.set()
        disk.pread(0, length=512)
        assert kinds(disk) == ["zero"]


def kinds(disk: tapcore.Disk) -> list[str]:
    """Of all of it, as a server asks."""
    return [extent.kind for extent in chain_extents(disk.state.disks, 0, disk.size)]


def test_one_call_at_a_time(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counts(Plain):
        handle = "counts"
        inside: ClassVar[int] = 0
        most: ClassVar[int] = 0

        def pread(self, offset: int, length: int) -> bytes | None:
            Counts.inside += 1
            Counts.most = max(Counts.most, Counts.inside)
            content = super().pread(offset, length)
            Counts.inside -= 1
            return content

    use(monkeypatch, Counts)
    with tapcore.open(f"counts:{image}", readonly=True) as disk:
        done: list[Request] = []
        buffers = [memoryview(bytearray(512)) for _ in range(64)]
        for number, buf in enumerate(buffers):
            disk.submit(Request(READ, number * 512, 512, buf, done.append))
        disk.pread(0, length=512)
        assert len(done) == 64
    assert Counts.most == 1


# ---- mistakes ------------------------------------------------------------------------------------


class Faulty(Plain):
    handle = "faulty"
    error: ClassVar[Exception | None] = None
    answer: ClassVar[bytes] = b""
    told: ClassVar[list[tuple[int, str]]] = []

    def pread(self, offset: int, length: int) -> bytes | None:
        if self.error is not None:
            raise self.error
        return self.answer

    def extents(self, offset: int, length: int) -> Iterable[tuple[int, str]]:
        return self.told


def test_what_is_damaged_is_named(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Faulty)
    monkeypatch.setattr(Faulty, "error", ImageFormatError("has a damaged block"))
    disk = tapcore.open(f"faulty:{image}", readonly=True)
    with disk, pytest.raises(LostContentError, match="has a damaged block"):
        disk.pread(0, length=512)


def test_a_bug_fails_the_request_and_is_logged(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, Faulty)
    monkeypatch.setattr(Faulty, "error", ValueError("oops"))
    disk = tapcore.open(f"faulty:{image}", readonly=True)
    with disk, caplog.at_level(logging.ERROR), pytest.raises(IOFailedError):
        disk.pread(0, length=512)
    assert "a bug in the driver faulty: ValueError: oops" in caplog.text


@pytest.mark.parametrize("answer", [b"", b"x" * 511, b"x" * 513])
def test_content_of_another_length_is_no_content(
    image: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    use(monkeypatch, Faulty)
    monkeypatch.setattr(Faulty, "answer", answer)
    with tapcore.open(f"faulty:{image}", readonly=True) as disk, pytest.raises(IOFailedError):
        disk.pread(0, length=512)


@pytest.mark.parametrize(
    "told",
    [
        [],
        [(512, "data")],
        [(SIZE - 512, "data")],
        [(SIZE + 512, "data")],
        [(SIZE // 2, "data"), (-512, "hole"), (SIZE // 2 + 512, "data")],
        [(SIZE, "content")],
        [(700, "data"), (SIZE - 700, "data")],
    ],
)
def test_extents_that_cannot_be_are_an_error(
    image: Path, monkeypatch: pytest.MonkeyPatch, told: list[tuple[int, str]]
) -> None:
    """Half a range would make a copy lose data."""
    use(monkeypatch, Faulty)
    monkeypatch.setattr(Faulty, "told", told)
    with tapcore.open(f"faulty:{image}", readonly=True) as disk, pytest.raises(TapError):
        list(disk.extents())


@pytest.mark.parametrize("size", [-1, 1.5, "512", None])
def test_a_size_that_cannot_be(image: Path, monkeypatch: pytest.MonkeyPatch, size: object) -> None:
    class Sized(Plain):
        handle = "sized"

        def open(self) -> None:
            self.size = size  # type: ignore[assignment]

    use(monkeypatch, Sized)
    with pytest.raises(DriverError, match="sized has set an impossible size"):
        tapcore.open(f"sized:{image}", readonly=True)


def test_a_flush_that_fails_is_told_and_everything_is_released(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Plain):
        handle = "full"

        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    use(monkeypatch, Full)
    Plain.calls.clear()
    disk = tapcore.open(f"full:{image}", readonly=False)
    with pytest.raises(TapError):
        disk.close()
    assert Plain.calls[-1] == "close"
    with tapcore.open(f"full:{image}", readonly=True):
        pass  # its lock was given back


def test_an_open_that_fails_leaves_nothing_open(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses(Plain):
        handle = "refuses"

        def open(self) -> None:
            raise ImageFormatError("is none of mine")

    use(monkeypatch, Refuses)
    for _ in range(3):
        with pytest.raises(ImageFormatError, match="is none of mine"):
            tapcore.open(f"refuses:{image}", readonly=False)


def test_what_lies_past_the_end_of_the_file_is_an_error(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Long(Plain):
        handle = "long"

        def open(self) -> None:
            self.size = 2 * SIZE

    use(monkeypatch, Long)
    with tapcore.open(f"long:{image}", readonly=True) as disk:
        assert disk.pread(0, length=512) == image.read_bytes()[:512]
        with pytest.raises(LostContentError, match="cut short"):
            disk.pread(SIZE, length=512)


def test_past_the_page_cache_is_refused(image: Path, plain: Registry) -> None:
    with pytest.raises(tapcore.UsageError, match="always goes through the page cache"):
        tapcore.open(f"plain:{image}", cache="none", readonly=False)


def test_an_old_version_is_a_row_with_an_error() -> None:
    class Old(Plain):
        handle, api = "old", 77

    row = Registry(discover=False).register(Old)
    assert "version 77" in row.error


def test_a_disk_that_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pattern(SimpleDriver):
        handle, api, needs_file = "pattern", 1, False

        def open(self) -> None:
            self.size = int(self.name)

        def pread(self, offset: int, length: int) -> bytes | None:
            return bytes((offset + at) // 512 % 251 for at in range(length))

    use(monkeypatch, Pattern)
    with tapcore.open("pattern:10240", readonly=True) as disk:
        assert disk.pread(0, length=10240) == bytes(at // 512 for at in range(10240))
    assert default_registry().get("pattern").file_backed is False
