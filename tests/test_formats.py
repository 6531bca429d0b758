"""The table of foreign formats: what is recognised, what is a disk, what people are told."""

from pathlib import Path

import pytest
from drivers.broken import OldApi, Tiny
from foreignfiles import DISKS, FOREIGN, WITH_DRIVERS, iso, padded

from tapcore import ImageFormatError, Registry
from tapcore.formats.foreign import (
    HEAD_BYTES,
    SIGNATURES,
    TAIL_BYTES,
    Sample,
    read_sample,
    what_it_says_it_is,
)
from tapcore.opening.probe import probe

ALL = FOREIGN | WITH_DRIVERS


def sample_of(content: bytes, *, device: bool = False) -> Sample:
    return Sample(len(content), content[:HEAD_BYTES], content[-TAIL_BYTES:], device)


@pytest.fixture(scope="module")
def bare() -> Registry:
    """As after `pip install tapcore tap-sync`: no driver knows any format."""
    registry = Registry(discover=False)
    assert not registry.register(Tiny("sync")).error
    return registry


@pytest.mark.parametrize("name", ALL)
def test_every_format_of_the_table_is_recognised(name: str) -> None:
    code, content = ALL[name]
    found = what_it_says_it_is(sample_of(content))
    assert found is not None
    assert found.code == code


def test_each_row_of_the_table_is_tried() -> None:
    assert {row.code for row in SIGNATURES} - {code for code, _ in ALL.values()} == {"luks"}
    for row in SIGNATURES:
        assert row.advice.startswith(row.name)
        assert "\n" not in row.advice


@pytest.mark.parametrize("name", DISKS)
def test_a_disk_is_a_disk(name: str, tmp_path: Path, bare: Registry) -> None:
    path = tmp_path / "disk"
    path.write_bytes(DISKS[name])
    assert what_it_says_it_is(sample_of(DISKS[name])) is None
    assert probe(str(path), bare) == "sync"
    assert probe(str(path), Registry()) == "aio"


@pytest.mark.parametrize("name", FOREIGN)
def test_whatever_is_cut_short_is_looked_at_all_the_same(name: str) -> None:
    content = FOREIGN[name][1]
    for length in (*range(0, 40), 64, 255, 256, 257, 262, 511, 512, 1023, 1024):
        what_it_says_it_is(sample_of(content[:length]))
        what_it_says_it_is(sample_of(content[-length:]))


def test_a_sample_is_both_ends_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    for size in (0, 1, TAIL_BYTES, HEAD_BYTES, HEAD_BYTES + 1, 3 * HEAD_BYTES):
        content = bytes(range(1, 252)) * (size // 251 + 1)
        path.write_bytes(content[:size])
        with open(path, "rb") as file:
            assert read_sample(file.fileno()) == sample_of(content[:size])


def test_what_lies_bare_on_a_block_device_is_its_content() -> None:
    for name in ("iso", "iso-hybrid", "squashfs", "erofs"):
        assert what_it_says_it_is(sample_of(FOREIGN[name][1], device=True)) is None
    assert what_it_says_it_is(sample_of(FOREIGN["qed"][1], device=True)) is not None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qed", "is a QED image; no driver for it is installed: qemu-img can convert it"),
        ("vhdx", "is a VHDX image: pip install tap-vhdx"),
        ("vdi", "is a VDI image: pip install tap-vdi"),
        ("vhd-fixed", "is a VHD image: pip install tap-vhd"),
        ("qcow2", "is a qcow2 image: pip install tap-qcow2"),
        ("qcow", "is a qcow image: pip install tap-qcow"),
        ("vmdk-text-bare", "is a VMDK image: pip install tap-vmdk"),
        ("qcow2-of-version-9", "is a qcow image of an unknown version; no driver for it"),
        ("gzip", "is gzip-compressed: gunzip it first"),
        ("ova", "is an OVA: tar xf it first"),
        ("iso", "is an ISO 9660 image, of a CD: with the handle 'aio:' it is a raw disk"),
        ("html", "is an HTML page, not a disk: "),
    ],
)
def test_the_error_says_what_it_is_and_what_to_do(
    name: str, text: str, tmp_path: Path, bare: Registry
) -> None:
    path = tmp_path / "file"
    path.write_bytes(ALL[name][1])
    with pytest.raises(ImageFormatError) as caught:
        probe(str(path), bare)
    assert caught.value.message.startswith(text)
    assert caught.value.image == str(path)


def test_a_driver_that_cannot_be_used_is_named_with_its_error(tmp_path: Path) -> None:
    registry = Registry(discover=False)
    registry.register(OldApi(), handle="qcow2")
    path = tmp_path / "x"
    path.write_bytes(WITH_DRIVERS["qcow2"][1])
    with pytest.raises(ImageFormatError, match="is a qcow2 image, and the driver 'qcow2' cannot"):
        probe(str(path), registry)


def test_luks_is_raw_with_a_note(
    tmp_path: Path, bare: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "disk"
    for version in (1, 2):
        path.write_bytes(padded(b"LUKS\xba\xbe\0" + bytes([version])))
        caplog.clear()
        assert probe(str(path), bare) == "sync"
        assert "encrypted with LUKS" in caplog.text


# ---- names that say something else -----------------------------------------------------------


@pytest.mark.parametrize("suffix", [".qcow2", ".QCOW2", ".qcow", ".vmdk", ".vhdx", ".gz", ".e01"])
@pytest.mark.parametrize("installed", [False, True])
def test_a_file_that_is_not_what_its_suffix_says_is_refused(
    suffix: str, installed: bool, tmp_path: Path, bare: Registry
) -> None:
    registry = Registry() if installed else bare
    path = tmp_path / f"x{suffix}"
    for content, text in (
        (b"", "is empty, and so not "),
        (bytes(4096), "but does not hold one"),
        (b"rubbish" * 1000, "but does not hold one"),
    ):
        path.write_bytes(content)
        with pytest.raises(ImageFormatError, match=text):
            probe(str(path), registry)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("x.qcow2", DISKS["mbr"], "named like a qcow2 image, but holds a partition table"),
        ("x.vhdx", DISKS["ext4"], "named like a VHDX image, but holds an ext file system"),
        ("x.raw", WITH_DRIVERS["qcow2"][1], "named like a raw disk, but holds qcow2"),
        ("x.img", WITH_DRIVERS["qcow2"][1], "named like a raw disk, but holds qcow2"),
        ("x.vmdk", WITH_DRIVERS["qcow2"][1], "named like a VMDK image, but holds qcow2"),
        ("x.qcow", WITH_DRIVERS["qcow2"][1], "named like a qcow image, but holds qcow2"),
    ],
)
def test_an_odd_name_is_said(
    name: str, content: bytes, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(content)
    assert probe(str(tmp_path / name), Registry()) in ("aio", "qcow2")
    assert text in caplog.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.img", b""),
        ("x.raw", b"anything"),
        ("x", b""),
        ("x.bin", b"anything"),
        ("x-flat.vmdk", b"anything"),
        ("x-f001.vmdk", b"anything"),
        ("x.qcow2", WITH_DRIVERS["qcow2"][1]),
        ("x.iso", WITH_DRIVERS["qcow2"][1]),
    ],
)
def test_nothing_is_said_of_a_name_that_fits(
    name: str, content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(content)
    probe(str(tmp_path / name), Registry())
    assert not caplog.text


def test_a_name_wins_over_nothing_that_the_content_says(tmp_path: Path, bare: Registry) -> None:
    (tmp_path / "x.img").write_bytes(iso())
    with pytest.raises(ImageFormatError, match="ISO 9660"):
        probe(str(tmp_path / "x.img"), bare)
