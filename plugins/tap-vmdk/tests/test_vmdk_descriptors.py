"""Descriptors as VMware, VirtualBox and others write them: found, read right, and kept."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cputime import CpuTime

import tapcore
from peers import peer
from tap_vmdk.descriptor.text import Descriptor
from tap_vmdk.signature import kind_of
from tapcore.tools.info import image_info
from tapcore.tools.inspect import inspect_image
from tapcore.tools.rebase import rebase_image
from tapcore.tools.resize import resize_image
from vmdkwriters import cowd, descriptor, hosted

SIZE = 64 << 10
FLAT = f'RW {SIZE // 512} FLAT "x-flat.vmdk" 0'
GOOD = descriptor("monolithicFlat", [FLAT])
REST = GOOD.split(b"\n", 1)[1]
BEGINNINGS = {
    "as VMware writes it": b"# Disk DescriptorFile\n",
    "with a space": b"# Disk Descriptor File\n",
    "without the first space": b"#Disk DescriptorFile\n",
    "VirtualBox's fourth": b"#Disk Descriptor File\n",
    "in capitals": b"# DISK DESCRIPTORFILE\n",
    "none": b"",
    "another comment": b"# written by hand\n",
    "many comments": b"# a\n#\n# b\n" * 20,
    "blank lines": b"\n\n \n\t\n",
    "blank and comments": b"   \n# one\n\n# two\n  ",
    "a long comment": b"# " + b"c" * 3000 + b"\n",
    "pages of nothing": b"\n \n" * 3000,
    "a byte order mark": b"\xef\xbb\xbf# Disk DescriptorFile\n",
    "a byte order mark alone": b"\xef\xbb\xbf",
}


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """Of the flat file beside every descriptor here."""
    data = os.urandom(SIZE)
    (tmp_path / "x-flat.vmdk").write_bytes(data)
    return data


def home(folder: Path) -> tapcore.ReferencePolicy:
    """Files in the image's directory are no danger."""
    return tapcore.ReferencePolicy((str(folder),))


def reads(image: Path, **how: Any) -> bytes:
    with tapcore.open(str(image), readonly=True, **how) as disk:
        assert disk.handle == "vmdk"
        return disk.pread(0, length=disk.size)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("first", BEGINNINGS)
def test_a_descriptor_is_one_however_it_begins(
    tmp_path: Path, content: bytes, first: str, end: bytes
) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes((BEGINNINGS[first] + REST).replace(b"\n", end))
    assert reads(image) == content
    assert ("extent", "x-flat.vmdk") in inspect_image(str(image)).references
    raw = inspect_image(f"aio:{image}")
    assert raw.dangerous, "a raw disk that looks like this is a danger"


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize(
    "how", ["{}\n", "{}\r\n", "# c\n{}\n", "  \n{}\n", "# c\rd\n  \r\n{}\n", '{}\nCID="1"\n']
)
def test_what_qemu_would_probe_is_recognised(version: int, how: str) -> None:
    assert kind_of(how.format(f"version={version}").encode()) == "descriptor"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        bytes(1024),
        b"\n" * 1024,
        b"#" * 1024,
        b"#\n" * 512,
        b" " * 1024,
        b"\xeb\x3c\x90mkfs.fat",
        b"# comment\nhello=1\n",
        b"#!/bin/sh\necho version=1\n",
        b"versions=1\n",
        b"RWX 1 FLAT\n",
        b"\xff\xfe" + bytes(100),
        b"\xef\xbb\xbf",
        os.urandom(1024),
    ],
)
def test_what_is_no_descriptor_is_none(head: bytes) -> None:
    assert kind_of(head) == ""


def test_a_descriptor_in_16_bits_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    image = tmp_path / "disk.vmdk"
    for codec, mark in (("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")):
        image.write_bytes(mark + GOOD.decode().encode(codec))
        with pytest.raises(tapcore.NotSupportedError, match="in UTF-16"):
            reads(image)
        with pytest.raises(tapcore.NotSupportedError, match="in UTF-16"):
            inspect_image(str(image))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_a_change_keeps_line_ends_mark_and_unknown_lines(end: str) -> None:
    raw = (
        b"\xef\xbb\xbf# Disk DescriptorFile\nversion=1\nCID = 12345678\nparentCID=ffffffff\n"
        b'createType="custom"\nname="\xbf\xf3\xb3\xe6"\n\n'
        b'RW 8 FLAT "\xbf.vmdk" 0 partitionUUID x\n\nddb.x = "y"\n'
    ).replace(b"\n", end.encode())
    text = Descriptor.parse(raw + bytes(100))
    assert text.serialise() == raw
    text.set("CID", "9abcdef0")
    text.replace_extents(text.extents())
    assert text.serialise() == raw.replace(b"CID = 12345678", b"CID=9abcdef0")


@pytest.mark.parametrize(
    ("version", "fine"),
    [
        ("1", True),
        ("3", True),
        ('"1"', True),
        ("1 ", True),
        ("1 as VMware reads it", True),
        ("5", False),
        ("11", False),
        ("x", False),
    ],
)
def test_versions_of_descriptors(tmp_path: Path, content: bytes, version: str, fine: bool) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(GOOD.replace(b"version=1", f"version={version}".encode()))
    if fine:
        assert reads(image) == content
    else:
        with pytest.raises(tapcore.NotSupportedError, match="descriptor of version"):
            reads(image)


@pytest.mark.parametrize(
    "lines",
    [
        [FLAT.replace(" ", "\t")],
        ["  " + FLAT.lower() + "  "],
        [FLAT + ' partitionUUID "t10.ATA"'],
        ["NOACCESS 0 ZERO ", FLAT],
        [FLAT, 'RW 0 FLAT "nothing.vmdk" 0', "RDONLY 0 ZERO"],
    ],
)
def test_extent_lines_in_odd_but_clear_forms(
    tmp_path: Path, content: bytes, lines: list[str]
) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(descriptor("monolithicFlat", lines))
    assert reads(image) == content
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, b"new")
    assert reads(image) == b"new" + content[3:]
    resize_image(str(image), "+4K")
    assert reads(image) == b"new" + content[3:] + bytes(4096)


def test_keys_in_any_case_with_spaces_round_the_equals_sign(tmp_path: Path, content: bytes) -> None:
    image = tmp_path / "disk.vmdk"
    text = GOOD.replace(b"createType=", b"CREATETYPE = ").replace(b"parentCID=", b"ParentCid =\t")
    image.write_bytes(text.replace(b"CID=1", b'cid = "1').replace(b"5678\n", b'5678"\n'))
    assert reads(image) == content
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, b"new")
    assert reads(image) == b"new" + content[3:]


KINDS = {
    "2GbMaxExtentFlat": "twoGbMaxExtentFlat",
    "MONOLITHICFLAT": "monolithicFlat",
    "fullDevice": "fullDevice",
    "partitionedDevice": "partitionedDevice",
    "vmfs": "vmfs",
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_by_all_their_names(tmp_path: Path, content: bytes, kind: str) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(descriptor(kind, [FLAT]))
    assert reads(image) == content
    assert image_info(str(image))[0].format["subformat"] == KINDS[kind]


def test_sparse_extents_of_2gb_by_their_short_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "disk-s001.vmdk").write_bytes(hosted(content))
    image = tmp_path / "disk.vmdk"
    line = FLAT.replace("FLAT", "SPARSE").replace("x-flat.vmdk", "disk-s001.vmdk")
    image.write_bytes(descriptor("2GbMaxExtentSparse", [line.removesuffix(" 0")]))
    assert reads(image) == content
    assert image_info(str(image))[0].format["subformat"] == "twoGbMaxExtentSparse"


def test_a_partitioned_device_over_plain_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pt.vmdk").write_bytes(b"p" * 1024)
    image = tmp_path / "disk.vmdk"
    lines = ['RW 2 FLAT "pt.vmdk" 0', "RW 6 ZERO", FLAT, "RDONLY 3 ZERO"]
    image.write_bytes(descriptor("partitionedDevice", lines))
    assert reads(image) == b"p" * 1024 + bytes(3072) + content + bytes(1536)
    image.write_bytes(descriptor("partitionedDevice", ['RW 1 FLAT "/dev/sda" 63']))
    with pytest.raises(tapcore.ReferencePolicyError, match="/dev/sda"):
        reads(image)
    assert inspect_image(str(image), parents=home(tmp_path)).dangerous


ENCODINGS = {
    "windows-1250": ("cp1250", "zażółć"),
    "windows-1251": ("cp1251", "диск"),
    "Windows-1253": ("cp1253", "δίσκος"),
    "windows-874": ("cp874", "ดิสก์"),
    "windows-932": ("cp932", "髙①"),
    "windows-936": ("gbk", "磁盘"),
    "windows-949": ("cp949", "디스크"),
    "windows-950": ("cp950", "磁碟"),
    "Shift_JIS": ("cp932", "髙①"),
    "Big5": ("cp950", "磁碟"),
    "EUC-KR": ("cp949", "똠방"),
    "EUC-JP": ("euc_jp", "磁気"),
    "GBK": ("gbk", "磁盘"),
    "GB18030": ("gb18030", "磁盘"),
    "ISO-8859-1": ("latin-1", "müll"),
    "ISO-8859-2": ("iso8859_2", "zażółć"),
    "ISO-8859-15": ("iso8859_15", "5€"),
    "KOI8-R": ("koi8_r", "диск"),
    "UTF-8": ("utf-8", "zażółć"),
}


@pytest.mark.parametrize("key", ["encoding", "ddb.encoding"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_names_in_every_encoding(tmp_path: Path, encoding: str, key: str) -> None:
    codec, word = ENCODINGS[encoding]
    raw = word.encode(codec)
    image = tmp_path / "disk.vmdk"
    text = descriptor("monolithicFlat", ['RW 1 FLAT "NAME.vmdk" 0'], **{key: f'"{encoding}"'})
    image.write_bytes(text.replace(b"NAME", raw))
    meant, bytewise = tmp_path / f"{word}.vmdk", tmp_path / os.fsdecode(raw + b".vmdk")
    meant.write_bytes(b"m" * 512)
    assert reads(image) == b"m" * 512
    with tapcore.open(f"vmdk:{image}", readonly=False) as disk:
        disk.pwrite(0, b"M")
    assert meant.read_bytes() == b"M" + b"m" * 511
    assert raw + b".vmdk" in image.read_bytes(), "what the descriptor says is kept byte for byte"
    seen = inspect_image(str(image), parents=tapcore.ReferencePolicy(("/",)))
    assert seen.references == (("extent", f"{word}.vmdk"),)
    assert not seen.dangerous, seen.findings
    extents = image_info(str(image))[0].format["extents"]
    assert [each["filename"] for each in extents] == [f"{word}.vmdk"]
    meant.rename(bytewise)
    assert reads(image) == b"M" + b"m" * 511, "the bytes as they stand are a name too"


def test_names_where_no_encoding_is_said(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(descriptor("monolithicFlat", ['RW 1 FLAT "@.vmdk" 0']).replace(b"@", b"\xe4"))
    (tmp_path / os.fsdecode(b"\xe4.vmdk")).write_bytes(b"a" * 512)
    assert reads(image) == b"a" * 512
    assert inspect_image(str(image)).references == (("extent", "ä.vmdk"),)


@pytest.mark.parametrize("others", [False, True], ids=["ASCII else", "other names too"])
def test_a_parent_is_recorded_so_that_everybody_finds_it(tmp_path: Path, others: bool) -> None:
    base, child = tmp_path / "b\u00e4se.vmdk", tmp_path / "child.vmdk"
    for image in (base, tmp_path / "old.vmdk"):
        tapcore.create_image(f"vmdk:{image}", SIZE)
    tapcore.create_image(f"vmdk:{child}", SIZE, parent="vmdk:old.vmdk")
    raw = bytearray(child.read_bytes())
    text = raw[512 : 21 * 512].rstrip(b"\0").replace(b'"UTF-8"', b'"windows-1252"')
    text += b'comment="\xfc"\n' if others else b""
    raw[512 : 21 * 512] = text.ljust(20 * 512, b"\0")
    child.write_bytes(raw)
    rebase_image(f"vmdk:{child}", f"vmdk:{base.name}")
    said = base.name.encode("cp1252" if others else "utf-8")
    assert b'parentFileNameHint="%s"' % said in child.read_bytes()
    assert image_info(f"vmdk:{child}")[0].parent == str(base)
    with tapcore.open(f"vmdk:{child}", readonly=True) as disk:
        assert disk.pread(0, length=512) == bytes(512)
    if not others:
        return
    tapcore.create_image(f"vmdk:{tmp_path}/\u0434.vmdk", SIZE)
    with pytest.raises(tapcore.NotSupportedError, match="no letters"):
        rebase_image(f"vmdk:{child}", "vmdk:\u0434.vmdk")
    assert image_info(f"vmdk:{child}")[0].parent == str(base)


HINTS = {
    "an entry": 'parentFileNameHint="/etc/passwd"',
    "a comment": '# parentFileNameHint="/etc/passwd"',
    "inside another": 'x.parentFileNameHint="/etc/passwd"',
    "twice": 'parentFileNameHint="x-flat.vmdk"\nparentFileNameHint="/etc/passwd"',
    "without quotes": "parentFileNameHint=/etc/passwd",
    "another quote": 'parentFileNameHint=x/etc/passwd"',
}


@pytest.mark.parametrize("hint", HINTS)
@pytest.mark.parametrize("cid", ["ffffffff", "1"])
def test_inspect_shows_every_parent_that_some_program_would_open(
    tmp_path: Path, content: bytes, hint: str, cid: str
) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(
        descriptor("monolithicFlat", [FLAT], parentCID=cid).replace(
            b"# Extent", HINTS[hint].encode() + b"\n# Extent"
        )
    )
    seen = inspect_image(str(image), parents=home(tmp_path))
    assert ("parent", "/etc/passwd") in seen.references
    assert seen.dangerous


@pytest.mark.parametrize("kind", ["no descriptor", "another place", "COWD"])
def test_inspect_looks_where_qemu_looks_for_a_parent(tmp_path: Path, kind: str) -> None:
    text = descriptor("monolithicSparse", ["RW 8 ZERO"], parentFileNameHint='"/etc/passwd"')
    image = tmp_path / "disk.vmdk"
    if kind == "COWD":
        raw = cowd(b"x" * 4096)
        raw = raw[:512] + text + raw[512 + len(text) :]
    else:
        fields: dict[str, Any] = {"descriptorOffset": 0, "descriptorSize": 0}
        raw = hosted(b"x" * 4096, text=text, **fields)
        if kind == "another place":
            place, harmless = len(raw) // 512, text.replace(b"/etc/passwd", b"x.vmdk")
            raw = hosted(b"x" * 4096, text=text, descriptorOffset=place, descriptorSize=1)
            raw += harmless.ljust(512, b"\0")
    image.write_bytes(raw)
    done = subprocess.run(
        [peer("qemu-img"), "info", "-f", "vmdk", "--output=json", str(image)],
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["backing-filename"] == "/etc/passwd"
    seen = inspect_image(f"vmdk:{image}", parents=home(tmp_path))
    assert ("parent", "/etc/passwd") in seen.references
    assert seen.dangerous


@pytest.mark.parametrize(
    "line",
    [
        'CID=@"x',
        'CID=@x" ',
        "@CID=1",
        "CID@=1@",
        'CID="@"@"',
        "RW@x",
        "RW 1 A@x",
        'RW 1 A "x"@y"',
        "RW 1 @",
        "parentFileNameHint@",
        "createType=@" + '"',
        "@@=",
    ],
)
@pytest.mark.parametrize("fill", [" ", "\t", "a ", '"', "\v"])
def test_hostile_lines_cost_no_more_than_others(line: str, fill: str) -> None:
    """Seconds of CPU for a descriptor of the greatest length; it was hours for 1 MiB of spaces."""
    raw = GOOD + line.replace("@", fill * (300_000 // len(fill))).encode() + b"\n"
    spent = CpuTime()
    try:
        text = Descriptor.parse(raw)
        text.extents()
        text.hints()
        assert text.serialise() == raw
    except tapcore.ImageFormatError:
        pass
    assert spent.is_about(5)
