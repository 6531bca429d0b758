"""The installed distribution offers its driver to the core; a file's name has to say what it is."""

import logging
from importlib.metadata import distribution
from pathlib import Path

import pytest

import tapcore
from tapcore import ImageFormatError, NotSupportedError
from tapcore.cli.main import main
from tapcore.opening.guard import guard_of
from tapcore.zstd import zstd_module
from zrawtools import KINDS, MIB

CONTENT = b"a disk".ljust(4096, b"\0")


def test_the_driver_is_registered_and_imports() -> None:
    points = distribution("tap-zraw").entry_points.select(group="tapcore.drivers")
    assert points.names == {"zraw"}
    assert points["zraw"].load().__name__ == "tap_zraw.driver"


def test_a_new_image_is_one_by_its_name(tmp_path: Path) -> None:
    for name in ("disk.raw.zst", "disk.img.zst", "DISK.IMG.ZST"):
        tapcore.create_image(tmp_path / name, MIB)
        with tapcore.open(tmp_path / name, readonly=True) as disk:
            assert (disk.handle, disk.size) == ("zraw", MIB)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_is_found_by_its_name_without_a_word(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / kind).write_bytes(KINDS[kind](CONTENT))
    with tapcore.open(tmp_path / kind, readonly=True) as disk:
        assert (disk.handle, disk.pread(0, length=4096)) == ("zraw", CONTENT)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("backup.zst", "frames.img.zst", "is zstd-compressed: unzstd it first, or"),
        ("backup.tar.zst", "frames.img.zst", "is zstd-compressed: unzstd it first, or"),
        ("disk.qcow2.xz", "xz.img.xz", "is xz-compressed: unxz it first, or"),
        ("disk", "gzip.img.gz", "is gzip-compressed: gunzip it first, or"),
        ("disk.img", "gzip.img.gz", "is gzip-compressed: gunzip it first, or"),
        ("disk.img.gz", "xz.img.xz", "is xz-compressed: unxz it first, or"),
    ],
)
def test_what_is_only_compressed_is_no_disk(
    name: str, kind: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(KINDS[kind](CONTENT))
    with pytest.raises(ImageFormatError) as caught:
        tapcore.open(tmp_path / name, readonly=True)
    assert caught.value.message == f"{text}, if a raw disk is in it, write zraw:PATH"
    with tapcore.open(f"zraw:{tmp_path / name}", readonly=True) as disk:
        assert disk.pread(0, length=4096) == CONTENT


@pytest.mark.parametrize(
    ("head", "what"),
    [(b"QFI\xfb\0\0\0\3", "a qcow2 image"), (bytes(64) + b"\x7f\x10\xda\xbe", "a VDI image")],
)
def test_an_image_of_another_format_inside_is_said(
    head: bytes, what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Some call a qcow2 `.img`."""
    path = tmp_path / "cloud.img.gz"
    path.write_bytes(KINDS["gzip.img.gz"](head.ljust(4096, b"\0")))
    with tapcore.open(path, readonly=True) as disk:
        assert disk.pread(0, length=len(head)) == head
    assert [each.message for each in caplog.records] == [
        f"{path}: holds {what}, whose bytes are read here: unpack it to a file first"
    ]


def test_a_raw_disk_must_not_become_one(tmp_path: Path) -> None:
    """A guest that writes zstd's magic to its first sector is told so, whatever is installed."""
    for name in ("disk.img", "disk.img.zst"):
        guard = guard_of(str(tmp_path / name), tapcore.Registry())
        for make in KINDS.values():
            head = make(CONTENT).ljust(4096, b"\0")
            assert guard.reason(head, bytes(4096), MIB)


def test_it_is_only_read(tmp_path: Path) -> None:
    tapcore.create_image(tmp_path / "disk.raw.zst", MIB)
    with pytest.raises(tapcore.NotWritableError, match="can only be read"):
        tapcore.open(f"zraw:{tmp_path / 'disk.raw.zst'}", readonly=False)


def test_what_is_missing_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tapcore.create_image(tmp_path / "disk.raw.zst", MIB)
    (tmp_path / "disk.img.gz").write_bytes(KINDS["gzip.img.gz"](CONTENT))
    monkeypatch.setitem(__import__("sys").modules, "backports.zstd", None)
    monkeypatch.setitem(__import__("sys").modules, "backports", None)
    monkeypatch.setitem(__import__("sys").modules, "compression", None)
    zstd_module.cache_clear()
    try:
        assert main(["info", str(tmp_path / "disk.raw.zst")]) == 1
        said = capsys.readouterr().err
        assert said.endswith("not installed: pip install 'tap-zraw[zstd]'\n")
        assert said.count("\n") == 1
        with pytest.raises(NotSupportedError, match="tap-zraw"):
            tapcore.create_image(tmp_path / "new.raw.zst", MIB)
        assert not (tmp_path / "new.raw.zst").exists()
        with tapcore.open(tmp_path / "disk.img.gz", readonly=True) as disk:
            assert disk.pread(0, length=4096) == CONTENT
    finally:
        zstd_module.cache_clear()


def test_a_name_that_promises_it_is_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path = tmp_path / "disk.img.zst"
    path.write_bytes(b"\x37" * 8192)
    with pytest.raises(ImageFormatError, match=r"is named like .*, but does not hold one"):
        tapcore.open(path, readonly=True)
