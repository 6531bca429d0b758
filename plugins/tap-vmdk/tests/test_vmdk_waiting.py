"""When nothing is in the page cache, or a write fails: every answer comes late, or is an error."""

import errno
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

import tapcore
from diskmodel import run_all
from tapcore.engine import DISCARD, FLUSH, READ, WRITE, ZERO, Request
from tapcore.files.imagefile import ImageFile
from vmdkwriters import empty

SIZE = (40 << 20) + 1024
WINDOW = 600_000


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever could be done at once has to be waited for."""
    for name in ("read_now", "write_now", "metadata_now"):
        monkeypatch.setattr(ImageFile, name, lambda self, offset, buf: None)


def make(folder: Path, rng: random.Random, options: dict[str, str], child: bool) -> Path:
    image = folder / "disk.vmdk"
    if child:
        base = folder / "base.vmdk"
        tapcore.create_image(f"vmdk:{base}", SIZE)
        with tapcore.open(f"vmdk:{base}", readonly=False) as disk:
            disk.pwrite(0, rng.randbytes(WINDOW))
            disk.pwrite(SIZE - WINDOW, rng.randbytes(WINDOW))
        tapcore.create_image(f"vmdk:{image}", None, parent="vmdk:base.vmdk", options=options)
    else:
        tapcore.create_image(f"vmdk:{image}", SIZE, options=options)
    return image


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize(
    ("options", "child"),
    [
        ({}, False),
        ({}, True),
        ({"zeroed_grain": "on"}, True),
        ({"subformat": "twoGbMaxExtentFlat"}, False),
        ({"subformat": "streamOptimized"}, False),
    ],
)
def test_batches_of_requests(
    tmp_path: Path, rng: random.Random, options: dict[str, str], child: bool
) -> None:
    image = make(tmp_path, rng, options, child)
    for _ in range(3):
        with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
            model = bytearray(disk.pread(0, length=SIZE))
            for _ in range(12):
                batch(disk, model, rng)
            assert disk.pread(0, length=SIZE) == model
        with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
            assert disk.pread(0, length=SIZE) == model


def batch(disk: tapcore.Disk, model: bytearray, rng: random.Random) -> None:
    """Requests side by side that do not overlap, but share grains."""
    base = rng.choice((0, SIZE - WINDOW, (32 << 20) - WINDOW // 2))
    cuts = sorted({rng.randrange(WINDOW) for _ in range(17)})
    requests: list[Request] = [Request(FLUSH, 0, 0, None, lambda _: None)]
    expected = {}
    for start, end in itertools.pairwise(cuts):
        op, at = rng.choice((READ, WRITE, WRITE, ZERO, DISCARD)), base + start
        view = memoryview(bytearray(rng.randbytes(end - start))) if op in (READ, WRITE) else None
        request = Request(op, at, end - start, view, lambda _: None)
        request.may_unmap = rng.random() < 0.5
        if op == READ:
            expected[request] = bytes(model[at : base + end])
        elif op == WRITE:
            assert view is not None
            model[at : base + end] = view
        elif op == ZERO:
            model[at : base + end] = bytes(end - start)
        requests.append(request)
    rng.shuffle(requests)
    run_all(disk, requests)
    for request in requests:
        assert request.status == 0
        if request.op == READ:
            assert bytes(request.buf or b"") == expected[request]
        elif request.op == DISCARD:  # as it was, or zeroes, or the parent's: all are right
            end = request.offset + request.length
            model[request.offset : end] = disk.pread(request.offset, length=request.length)


@pytest.mark.parametrize("options", [{}, {"subformat": "streamOptimized"}])
def test_a_write_that_fails_changes_nothing_else(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    image = make(tmp_path, rng, options, child=False)
    content = rng.randbytes(65536)
    full, write_now = False, ImageFile.write_now

    def failing(self: ImageFile, offset: int, buf: memoryview) -> int | None:
        return -errno.ENOSPC if full else write_now(self, offset, buf)

    monkeypatch.setattr(ImageFile, "write_now", failing)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, content)
        full = True
        for _ in range(2):
            with pytest.raises(tapcore.IOFailedError, match="No space left"):
                disk.pwrite(65536, b"x" * 70_000)
        full = False
        assert disk.pread(0, length=200_000) == content + bytes(200_000 - 65536)
        disk.pwrite(65536, content)
        disk.sync()
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        assert disk.pread(0, length=200_000) == content * 2 + bytes(200_000 - 131072)


@pytest.mark.parametrize("options", [{}, {"subformat": "streamOptimized"}])
def test_a_flush_that_fails_is_done_again_by_the_next(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    image = make(tmp_path, rng, options, child=False)
    content = rng.randbytes(200_000)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, content)
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, "flush_blocking", lambda self: -errno.EIO)
            with pytest.raises(tapcore.IOFailedError):
                disk.sync()
        with monkeypatch.context() as patch:

            def failing(self: ImageFile, offset: int, data: Any) -> None:
                raise OSError(errno.EIO, "no")

            patch.setattr(ImageFile, "write_metadata", failing)
            with pytest.raises(tapcore.IOFailedError):
                disk.sync()
        disk.sync()
        with tapcore.open(f"vmdk:{image}", readonly=True, lock=False) as other:
            assert other.pread(0, length=len(content)) == content


@pytest.mark.parametrize("stage", [1, 2])
def test_after_a_failed_flush_a_new_table_is_changed_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """Where a directory may name it on disk, it is written after what it points to is safe.

    Else it is as new as before, and written first.
    """
    image = tmp_path / "disk.vmdk"
    content = bytearray(empty(1 << 20, name="disk.vmdk"))
    for at in (56, 48):  # both directories name no table
        directory = int.from_bytes(content[at : at + 8], "little") * 512
        content[directory : directory + 16] = bytes(16)
    image.write_bytes(content)
    steps: list[str] = []
    failing = stage
    write_metadata = ImageFile.write_metadata

    def write(file: ImageFile, offset: int, data: Any) -> None:
        steps.append("write")
        write_metadata(file, offset, data)

    def flush(file: ImageFile) -> int:
        steps.append("flush")
        return -errno.EIO if steps.count("flush") == failing else 0

    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * 4096)
        monkeypatch.setattr(ImageFile, "write_metadata", write)
        monkeypatch.setattr(ImageFile, "flush_blocking", flush)
        with pytest.raises(tapcore.IOFailedError):
            disk.sync()
        disk.pwrite(4096, b"y" * 4096)
        steps.clear()
        failing = 0
        disk.sync()
        first = steps[0]
    assert first == ("flush" if stage == 2 else "write")


def test_a_new_table_lies_in_both_of_its_places(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    content = bytearray(empty(1 << 20, name="disk.vmdk"))
    directories = [int.from_bytes(content[at : at + 8], "little") * 512 for at in (56, 48)]
    for directory in directories:
        content[directory : directory + 16] = bytes(16)
    image.write_bytes(content)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * 4096)
    content = bytearray(image.read_bytes())
    places = [int.from_bytes(content[at : at + 4], "little") * 512 for at in directories]
    tables = [content[place : place + 512] for place in places]
    assert places[0] != places[1]
    assert tables[0] == tables[1]
    assert any(tables[0])


def test_a_first_write_fails_where_the_content_id_cannot_be_changed(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make(tmp_path, rng, {}, child=False)
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        with monkeypatch.context() as patch:

            def failing(self: ImageFile, offset: int, data: Any) -> None:
                raise OSError(errno.EIO, "no")

            patch.setattr(ImageFile, "write_metadata", failing)
            with pytest.raises(tapcore.IOFailedError):
                disk.pwrite(0, b"x")
        disk.pwrite(0, b"y")
        assert disk.pread(0, length=2) == b"y\0"


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("call", ["flush_blocking", "write_metadata"])
def test_a_flush_fails_where_one_file_of_several_does(
    call: str, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever answers last; and the next one brings to the disk what is missing."""
    image = tmp_path / "disk.vmdk"
    options = {"subformat": "twoGbMaxExtentSparse"}
    tapcore.create_image(f"vmdk:{image}", (2 << 30) + (1 << 20), options=options)
    name = sorted(path.name for path in tmp_path.glob("disk-*"))[failing]
    real = getattr(ImageFile, call)

    def fail(self: ImageFile, *args: Any) -> Any:
        if Path(self.path).name != name:
            return real(self, *args)
        if call == "write_metadata":
            raise OSError(errno.EIO, "no")
        return -errno.EIO

    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, b"a" * 512)
        disk.pwrite(2 << 30, b"b" * 512)
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, call, fail)
            with pytest.raises(tapcore.IOFailedError):
                disk.sync()
        disk.sync()
        with tapcore.open(f"vmdk:{image}", readonly=True, lock=False) as other:
            assert other.pread(0, length=512) == b"a" * 512
            assert other.pread(2 << 30, length=512) == b"b" * 512
