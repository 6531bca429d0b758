"""What QEMU would follow of a damaged descriptor, as a model of its rules tells, inspect shows."""

import ctypes
import os
import random
import re
from pathlib import Path

import tapcore
from tap_vmdk.signature import kind_of
from tapcore.formats.foreign import Sample, what_it_says_it_is
from tapcore.tools.inspect import inspect_image

CASES = 150 * int(os.environ.get("TAPCORE_THOROUGH") or 1)
GOOD = b"""# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="twoGbMaxExtentFlat"
parentFileNameHint="/etc/hint"
RW 4 FLAT "/etc/one" 4
RW 8 ZERO
RW 4 SPARSE "/etc/two"
ddb.adapterType = "ide"
"""
WORDS = [
    *(b'"', b"\n", b"\r", b"=", b" ", b"\0", b"\xff", b"\t", b"\v", b"\f", b"#", b"+", b"-"),
    *(b"RW ", b"RW\n", b'RW\t2\tFLAT\n"/etc/x" 0', b"RDONLY ", b"9" * 25, b"version=1\n", b" \n"),
    *(b"\xef\xbb\xbf", b'encoding="windows-1250"\n', b'encoding="GBK"\n', b"\xc5\xbc", b"\x81\x22"),
    *(b"\x85", b"\xc2\x85", b"\xe2\x80\xa8", b"\x1c", b"parentFileNameHint"),
    b'parentFileNameHint="/etc/y"',
]
libc = ctypes.CDLL(None)


def extents(text: bytes) -> list[bytes]:
    """The names in lines that QEMU's `sscanf` takes for extents."""
    found = []
    for start in (0, *(match.end() for match in re.finditer(rb"\n", text))):
        access, kind = ctypes.create_string_buffer(12), ctypes.create_string_buffer(12)
        name = ctypes.create_string_buffer(520)
        sectors, offset = ctypes.c_longlong(), ctypes.c_longlong()
        count = libc.sscanf(
            text[start:],
            b'%9s %lld %9s "%511[^\n\r"]" %lld',
            access,
            ctypes.byref(sectors),
            kind,
            name,
            ctypes.byref(offset),
        )
        if count >= 4 and access.value == b"RW":
            found.append(name.value)
    return found


def parent(text: bytes) -> bytes:
    """What stands between the second character behind the entry's name and the next quote."""
    _, key, rest = text[: 20 * 512].partition(b"parentFileNameHint")
    return rest[2:].partition(b'"')[0] if key and b'"' in rest[2:] else b""


def probed(head: bytes) -> bool:
    """Whether QEMU takes a file for a descriptor: by comments, lines of spaces, and a version."""
    lines = re.match(rb"(?:#[^\n]*\n| +\r?\n)*", head)
    assert lines is not None
    return re.match(rb"version=[123]\r?\n", head[lines.end() :]) is not None


def mutated(rng: random.Random) -> bytes:
    text = bytearray(GOOD)
    for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
        at, how = rng.randrange(len(text) + 1), rng.random()
        if how < 0.6:
            text[at : at + rng.randrange(4)] = rng.choice(WORDS)
        elif how < 0.8:
            text[at : at + 1] = rng.randbytes(1)
        else:
            copied = rng.randrange(len(text))
            text[at:at] = text[copied : copied + rng.randrange(40)]
    return bytes(text)


def test_inspect_shows_what_qemu_would_follow(tmp_path: Path, rng: random.Random) -> None:
    image = tmp_path / "disk.vmdk"
    home = tapcore.ReferencePolicy((str(tmp_path),))
    shown = 0
    for _ in range(CASES):
        raw = mutated(rng)
        if probed(raw[:512]):
            assert kind_of(raw) == "descriptor", raw
        text = raw.split(b"\0", 1)[0]
        outside = [each for each in (*extents(text), parent(text)) if each.startswith(b"/")]
        image.write_bytes(raw)
        try:
            seen = inspect_image(f"vmdk:{image}", parents=home)
        except tapcore.TapError:
            continue
        if outside:
            shown += 1
            assert seen.dangerous, raw
    assert shown > CASES / 4


PIECES = [
    *(b"#", b" ", b"\t", b"\n", b"\r", b"\r\n", b"\v", b"\f", b"\0", b"\x1c", b"\x85", b"=", b'"'),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"Disk", b"disk", b"Descriptor", b"File", b"# note\n", b"12"),
    *(b"version", b"version=1", b"encoding", b"CID", b"CID=", b"parentCID", b"isNativeSnapshot"),
    *(b"createType", b"parentFileNameHint", b"RW", b"RDONLY", b"NOACCESS", b"FLAT", b"ddb.x = 1\n"),
    *(b"# Disk DescriptorFile", b"RW 12 FLAT", b"KDMV", b"COWD", b"x"),
]


def test_what_is_told_without_this_driver_is_what_it_would_say(rng: random.Random) -> None:
    """The core knows how a VMDK begins too: for whoever has no tap-vmdk, and for guests' writes."""
    known = 0
    for _ in range(20 * CASES):
        head = b"".join(rng.choices(PIECES, k=rng.choice((1, 2, 3, 4, 6, 9))))
        if rng.random() < 0.1:
            head = head.decode("latin1").encode(rng.choice(("utf-16", "utf-16-be")))
        seen = what_it_says_it_is(Sample(len(head), head, head))
        assert (seen is not None and seen.code == "vmdk") == bool(kind_of(head)), head
        known += bool(kind_of(head))
    assert known > CASES / 2
