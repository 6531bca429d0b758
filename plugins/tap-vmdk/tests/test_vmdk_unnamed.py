"""A header that does not say where its descriptor is, while there is one: where QEMU looks for it.

Taken for an extent alone, a child would read as zeroes where its parent shows through.
"""

import logging
import random
import struct
import subprocess
from pathlib import Path

import pytest

import tapcore
from peers import peer
from tapcore.tools.check import check_image
from tapcore.tools.inspect import inspect_image
from tapcore.tools.rebase import rebase_image
from vmdkwriters import descriptor, hosted

SIZE = 16 << 16
PLACE = 28
"""Of `descriptorOffset` and `descriptorSize` in the header."""
UNNAMED = [(0, 20), (1, 0), (0, 0), (5, 3)]
"""What they may be; in the last case only zeroes lie there."""


def reads(image: Path) -> bytes:
    with tapcore.open(f"vmdk:{image}", readonly=True) as disk:
        return disk.pread(0, length=disk.size)


def damaged_child(folder: Path, rng: random.Random, place: tuple[int, int]) -> tuple[Path, bytes]:
    """A child with one grain of its own, on a parent that is full; and what the disk reads as."""
    content = rng.randbytes(SIZE)
    line = f"RW {SIZE // 512} SPARSE"
    text = descriptor("monolithicSparse", [f'{line} "base.vmdk"'])
    (folder / "base.vmdk").write_bytes(hosted(content, text=text))
    child = folder / "child.vmdk"
    entries = {"parentCID": "12345678", "parentFileNameHint": '"base.vmdk"'}
    text = descriptor("monolithicSparse", [f'{line} "child.vmdk"'], **entries)
    own = rng.randbytes(65536)
    raw = bytearray(hosted(own + bytes(SIZE - 65536), text=text))
    struct.pack_into("<QQ", raw, PLACE, *place)
    child.write_bytes(raw)
    return child, own + content[65536:]


@pytest.mark.parametrize("place", UNNAMED)
def test_its_parent_is_read_and_the_header_is_mended(
    tmp_path: Path, rng: random.Random, caplog: pytest.LogCaptureFixture, place: tuple[int, int]
) -> None:
    child, content = damaged_child(tmp_path, rng, place)
    with caplog.at_level(logging.WARNING):
        assert reads(child) == content
    assert [record.getMessage() for record in caplog.records] == [
        f"{child}: its header does not say where its descriptor is, which lies behind the header; "
        "it is read"
    ]
    before = child.read_bytes()
    with pytest.raises(tapcore.ImageFormatError, match="check --repair all"):
        tapcore.open(f"vmdk:{child}", readonly=False)
    with pytest.raises(tapcore.ImageFormatError, match="check --repair all"):
        rebase_image(f"vmdk:{child}", "vmdk:base.vmdk", unsafe=True)
    assert check_image(f"vmdk:{child}", repair="leaks").corruptions == 1
    assert child.read_bytes() == before
    found = check_image(f"vmdk:{child}", repair="all")
    assert (found.corruptions, found.corruptions_fixed) == (0, 1), found.messages
    assert struct.unpack_from("<QQ", child.read_bytes(), PLACE) == (1, 20)
    assert not check_image(f"vmdk:{child}").corruptions
    assert reads(child) == content
    with tapcore.open(f"vmdk:{child}", readonly=False) as disk:
        disk.pwrite(SIZE - 512, b"n" * 512)
    assert reads(child) == content[:-512] + b"n" * 512


@pytest.mark.parametrize("place", UNNAMED)
def test_qemu_reads_the_same(tmp_path: Path, rng: random.Random, place: tuple[int, int]) -> None:
    child, content = damaged_child(tmp_path, rng, place)
    target = tmp_path / "by-qemu.raw"
    command = [peer("qemu-img"), "convert", "-f", "vmdk", "-O", "raw", str(child), str(target)]
    subprocess.run(command, check=True, capture_output=True)
    assert target.read_bytes() == content == reads(child)


def test_inspect_shows_that_parent(tmp_path: Path, rng: random.Random) -> None:
    child, _ = damaged_child(tmp_path, rng, (0, 0))
    seen = inspect_image(f"vmdk:{child}")
    assert seen.dangerous, "the policy for strangers allows no parent"
    assert ("parent", "base.vmdk") in seen.references
    assert "descriptor-not-named" in [each.code for each in seen.findings]
    assert "lone-extent" not in [each.code for each in seen.findings]


def test_a_hidden_descriptor_that_makes_no_sense_is_no_reason_to_read_without_it(
    tmp_path: Path, rng: random.Random
) -> None:
    child, _ = damaged_child(tmp_path, rng, (0, 0))
    raw = child.read_bytes()
    for word in (b"CID=", b"createType"):
        raw = raw.replace(word, b"x" * len(word))
    child.write_bytes(raw)
    with pytest.raises(tapcore.ImageFormatError, match="no descriptor that could be understood"):
        reads(child)
