"""Logs to be replayed: left by QEMU that was killed, made by hand, hostile."""

import itertools
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path
from uuid import UUID, uuid4

import attrs
import pytest
from cputime import CpuTime

import tapcore
from peers import peer
from tap_vhdx.crc32c import crc32c
from tap_vhdx.headers import Headers, read_headers
from tap_vhdx.logentries import SECTOR, pack_entry
from tap_vhdx.overlay import Overlay
from tapcore import ImageFile, ImageFormatError, NotSupportedError, TapError
from tapcore.tools.check import check_image
from tapcore.tools.inspect import inspect_image
from vhdxtools import (
    KIB,
    MIB,
    bat_of,
    content_of,
    header_of,
    make,
    plain_crc32c,
    poke,
    qemu_content,
    qemu_io,
    run,
    sealed,
)

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
LOG_AT = MIB


def is_dirty(image: Path) -> bool:
    """Whether a file's log may have something to say."""
    return any(header_of(image.read_bytes())[1][48:64])


@pytest.mark.parametrize("count", [0, 1, 3, 4095, 4096, 65536 + 7, 300_000])
def test_checksums(count: int, rng: random.Random) -> None:
    assert crc32c(b"123456789") == 0xE3069283  # of all descriptions of this checksum
    for zeroes in (0, 1, 5000):
        content = rng.randbytes(count) + bytes(zeroes)
        assert crc32c(content) == plain_crc32c(content)


def test_an_overlay_is_what_was_laid_over_last(rng: random.Random) -> None:
    for _ in range(200):
        overlay, file = Overlay(), bytearray(rng.randbytes(100))
        want = bytearray(file)
        for _ in range(rng.randrange(12)):
            start = rng.randrange(99)
            end = rng.randint(start + 1, 100)
            new = rng.choice((None, rng.randbytes(end - start)))
            overlay.put(start, end, new)
            want[start:end] = new or bytes(end - start)
        assert overlay.patch(0, bytes(file)) == want
        at, end = sorted(rng.sample(range(101), 2))
        assert overlay.patch(at, bytes(file[at:end])) == want[at:end]
        assert all(a <= b for a, b in itertools.pairwise(overlay.starts))


# ---- left by QEMU ----------------------------------------------------------------------------


def _killed_in_mid_write(image: Path, rng: random.Random) -> None:
    """Let `qemu-io` write blocks in disorder, and kill it when the log has something to say."""
    places = rng.sample(range(100), 100)
    words = [word for at in places for word in ("-c", f"write -P {at % 255 + 1} {at}M 64k")]
    before = image.stat().st_mtime_ns
    child = subprocess.Popen(
        [peer("qemu-io"), "-f", "vhdx", *words, str(image)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and image.stat().st_mtime_ns == before:
            time.sleep(0.001)
        time.sleep(rng.random() ** 2 * 0.05)  # a fast machine is soon done
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()


def test_qemu_killed_in_mid_write(tmp_path: Path, rng: random.Random) -> None:
    """What is read over the log is what QEMU reads once it has replayed it."""
    dirty, tries = 0, 0
    while tries < 2 * THOROUGH or not dirty:  # how far it gets is not ours to say
        tries += 1
        assert tries < 100, "QEMU was never killed with something in its log"
        image, theirs = tmp_path / "disk.vhdx", tmp_path / "theirs.vhdx"
        run("qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", image, "100M")
        _killed_in_mid_write(image, rng)
        shutil.copyfile(image, theirs)
        found = is_dirty(image)
        dirty += found
        over = content_of(image)
        assert is_dirty(image) == found  # nothing was written
        qemu_io(theirs, ["read 0 512"])
        assert qemu_content(theirs) == over
        tapcore.open(f"vhdx:{image}", readonly=False).close()
        assert not is_dirty(image)
        assert content_of(image) == over == qemu_content(image)


# ---- made by hand ----------------------------------------------------------------------------


@attrs.define
class Dirty:
    """An image of 8 MiB in blocks of 1 MiB, of which only a log knows the content.

    Attributes:
        path: of the file.
        content: of the blocks that there are to be linked.
        id: of its log.
    """

    path: Path
    content: list[bytes]
    id: UUID

    @property
    def headers(self) -> Headers:
        """Of the file."""
        content = self.path.read_bytes()
        return read_headers(lambda at, length: content[at : at + length])

    def page(self, *blocks: int) -> tuple[int, bytes]:
        """The first page of the block table, with these blocks linked."""
        entries = [0] * 512
        for block in blocks:
            entries[block] = (4 + block) << 20 | 6
        return bat_of(self.path.read_bytes())[0], struct.pack("<512Q", *entries)

    def entry(self, at: int, sequence: int, *blocks: int, **changes: int) -> bytes:
        """An entry that links these blocks."""
        size = changes.pop("size", 12 * MIB)
        entry = pack_entry(self.id, at, sequence, size, [self.page(*blocks)])
        places = {
            "tail": ("<I", 12),
            "length": ("<I", 8),
            "flushed": ("<Q", 48),
            "last": ("<Q", 56),
        }
        for name, value in changes.items():
            kind, place = places[name]
            packed = struct.pack(kind, value)
            entry = entry[:place] + packed + entry[place + len(packed) :]
        return sealed(entry)

    def put(self, at: int, entry: bytes) -> None:
        """Write into the log, which is a ring."""
        for number in range(0, len(entry), SECTOR):
            place = (at + number) % MIB
            poke(self.path, LOG_AT + place, entry[number : number + SECTOR])

    def expect(self, *blocks: int) -> None:
        """These are linked: over the log, after a replay of QEMU's, and after ours."""
        want = b"".join(
            each if block in blocks else bytes(MIB) for block, each in enumerate(self.content)
        )
        assert content_of(self.path) == want
        theirs = self.path.with_name("theirs.vhdx")
        shutil.copyfile(self.path, theirs)
        qemu_io(theirs, ["read 0 512"])
        assert qemu_content(theirs) == want
        tapcore.open(f"vhdx:{self.path}", readonly=False).close()
        assert not is_dirty(self.path)
        assert content_of(self.path) == want


@pytest.fixture
def dirty(tmp_path: Path, rng: random.Random) -> Dirty:
    path = tmp_path / "disk.vhdx"
    make(path, 8 * MIB)
    content = [rng.randbytes(512).ljust(MIB, b"c") for _ in range(8)]
    with open(path, "r+b") as file:
        file.seek(4 * MIB)
        file.write(b"".join(content))
    made = Dirty(path, content, uuid4())
    header = attrs.evolve(made.headers.current, log=made.id)
    for number, at in enumerate((64 * KIB, 128 * KIB)):
        poke(path, at, attrs.evolve(header, sequence=number + 5).pack())
    return made


def test_an_empty_log(dirty: Dirty) -> None:
    dirty.expect()


def test_the_last_sequence_counts(dirty: Dirty) -> None:
    """Older ones, one that stands alone, and one behind a gap, do not."""
    dirty.put(0, dirty.entry(0, 7, 1))
    dirty.put(2 * SECTOR, dirty.entry(2 * SECTOR, 8, 1, 2, tail=0))
    dirty.put(40 * SECTOR, dirty.entry(40 * SECTOR, 5, 3))
    dirty.put(60 * SECTOR, dirty.entry(60 * SECTOR, 6, 4))
    dirty.expect(1, 2)


def test_a_sequence_in_a_ring(dirty: Dirty) -> None:
    """It goes on at the start of the log; an entry of it lies on both sides of the end."""
    first, second, third = MIB - 3 * SECTOR, MIB - SECTOR, SECTOR
    dirty.put(first, dirty.entry(first, 20, 1))
    dirty.put(second, dirty.entry(second, 21, 1, 2, tail=first))
    dirty.put(third, dirty.entry(third, 22, 1, 2, 3, tail=first))
    dirty.expect(1, 2, 3)


def test_an_entry_that_is_torn_was_never_there(dirty: Dirty) -> None:
    dirty.put(0, dirty.entry(0, 7, 1))
    torn = dirty.entry(2 * SECTOR, 8, 1, 2)
    dirty.put(2 * SECTOR, torn[: SECTOR + 512])
    dirty.expect(1)


@pytest.mark.parametrize("at", [4, 100, SECTOR - 1, SECTOR + 4, 2 * SECTOR - 2])
def test_an_entry_whose_checksum_is_wrong_was_never_there(at: int, dirty: Dirty) -> None:
    entry = bytearray(dirty.entry(0, 7, 1))
    entry[at] ^= 1
    dirty.put(0, bytes(entry))
    dirty.expect()


def test_entries_of_another_log_do_not_count(dirty: Dirty) -> None:
    other = attrs.evolve(dirty, id=uuid4())
    dirty.put(0, other.entry(0, 7, 1))
    dirty.expect()


def test_a_sequence_whose_beginning_is_gone_does_not_count(dirty: Dirty) -> None:
    """So says the specification; QEMU does not look at it."""
    dirty.put(4 * SECTOR, dirty.entry(4 * SECTOR, 9, 1, tail=0))
    dirty.put(10 * SECTOR, dirty.entry(10 * SECTOR, 3, 2))
    want = bytes(2 * MIB) + dirty.content[2] + bytes(5 * MIB)
    assert content_of(dirty.path) == want
    tapcore.open(f"vhdx:{dirty.path}", readonly=False).close()
    assert content_of(dirty.path) == want


def test_zeroes_in_a_log(dirty: Dirty) -> None:
    """A descriptor of zeroes over what an entry before it has linked."""
    at, _ = dirty.page()
    dirty.put(0, dirty.entry(0, 7, 1, 2))
    head = struct.pack(
        "<4sIIIQII16sQQ", b"loge", 0, SECTOR, 0, 8, 1, 0, dirty.id.bytes_le, MIB, MIB
    )
    zero = struct.pack("<4s4xQQQ", b"zero", SECTOR, at, 8)
    dirty.put(2 * SECTOR, sealed((head + zero).ljust(SECTOR, b"\0")))
    dirty.expect()


def test_what_a_log_says_is_safe_before_it_is_empty(
    dirty: Dirty, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, _ = dirty.page()
    dirty.put(0, dirty.entry(0, 7, 1, 2))
    steps: list[str] = []
    write, flush = ImageFile.write_metadata, ImageFile.flush_blocking

    def noted(file: ImageFile, offset: int, data: bytes) -> None:
        steps.append("page" if offset == at else "header")
        write(file, offset, data)

    def flushed(file: ImageFile) -> int:
        steps.append("safe")
        return flush(file)

    monkeypatch.setattr(ImageFile, "write_metadata", noted)
    monkeypatch.setattr(ImageFile, "flush_blocking", flushed)
    tapcore.open(f"vhdx:{dirty.path}", readonly=False).close()
    assert steps[:3] == ["page", "safe", "header"]


def test_a_file_is_made_as_long_as_its_log_says(dirty: Dirty) -> None:
    """What the log has linked may lie in space that was never written."""
    dirty.put(0, dirty.entry(0, 7, 1, last=20 * MIB))
    dirty.expect(1)
    assert dirty.path.stat().st_size == 20 * MIB


def test_what_is_said_of_it(dirty: Dirty) -> None:
    dirty.put(0, dirty.entry(0, 7, 1))
    found = inspect_image(f"vhdx:{dirty.path}").findings
    assert [each.code for each in found] == ["not-closed"]
    result = check_image(f"vhdx:{dirty.path}")
    assert result.messages == ["its log has changes that are not in their place yet"]
    assert is_dirty(dirty.path)
    check_image(f"vhdx:{dirty.path}", repair="leaks")
    assert not is_dirty(dirty.path)


# ---- hostile ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"flushed": 13 * MIB}, "was cut: its log knows a file of 13631488 bytes"),
        ({"last": 1 << 60}, "for a file of 1152921504606846976 bytes, which cannot be"),
    ],
)
def test_a_log_of_another_file(change: dict[str, int], text: str, dirty: Dirty) -> None:
    dirty.put(0, dirty.entry(0, 7, 1, **change))
    _refused(dirty, ImageFormatError, text)


@pytest.mark.parametrize("at", [0, 64 * KIB, 128 * KIB, MIB + 8 * KIB, 1 << 50])
def test_a_log_that_changes_what_it_must_not(at: int, dirty: Dirty) -> None:
    page = (at, bytes(SECTOR))
    dirty.put(0, pack_entry(dirty.id, 0, 7, 12 * MIB, [page]))
    _refused(dirty, ImageFormatError, "changes what it must not")


def _refused(dirty: Dirty, error: type[TapError], text: str) -> None:
    before = dirty.path.read_bytes()
    for readonly in (True, False):
        with pytest.raises(error, match=text):
            tapcore.open(f"vhdx:{dirty.path}", readonly=readonly)
    assert dirty.path.read_bytes() == before


def test_a_log_that_changes_content_has_to_be_written(dirty: Dirty) -> None:
    """It is not laid over content that is read; QEMU and we replay it alike."""
    pages = [dirty.page(1), (5 * MIB + SECTOR, b"n" * SECTOR)]
    dirty.put(0, pack_entry(dirty.id, 0, 7, 12 * MIB, pages))
    with pytest.raises(NotSupportedError, match="changes what its disk holds"):
        tapcore.open(f"vhdx:{dirty.path}", readonly=True)
    dirty.content[1] = dirty.content[1][:SECTOR] + b"n" * SECTOR + dirty.content[1][2 * SECTOR :]
    tapcore.open(f"vhdx:{dirty.path}", readonly=False).close()
    assert content_of(dirty.path)[MIB : 2 * MIB] == dirty.content[1]


def test_a_huge_log_is_not_looked_at(dirty: Dirty) -> None:
    header = attrs.evolve(
        dirty.headers.current, log_length=1 << 31, log_offset=64 * MIB, sequence=9
    )
    poke(dirty.path, 64 * KIB, header.pack())
    with pytest.raises(NotSupportedError, match="a log of 2048 MiB to be replayed"):
        tapcore.open(f"vhdx:{dirty.path}", readonly=True)


def test_entries_that_overlap_cost_little(dirty: Dirty) -> None:
    """Each sector begins an entry that takes all of the log, whose checksum is wrong."""
    spent = CpuTime()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    entry = dirty.entry(0, 7, 1, length=MIB)
    for at in range(0, MIB, SECTOR):
        dirty.put(at, entry[:SECTOR])
    _refused(dirty, ImageFormatError, "its entries overlap")
    assert spent.is_about(3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_any_damage_is_an_error_or_content(dirty: Dirty, rng: random.Random) -> None:
    """Of single bytes, with the checksum made right again."""
    parts = [dirty.entry(0, 7, 1), dirty.entry(2 * SECTOR, 8, 1, 2, tail=0)]
    said = set()
    for _ in range(40 * THOROUGH):
        bad = [bytearray(each) for each in parts]
        for _ in range(rng.randint(1, 2)):
            which = rng.choice(bad)
            at = rng.choice((rng.randrange(8, 96), rng.randrange(SECTOR, SECTOR + 8)))
            which[at] = rng.choice((0, 255, rng.randrange(256), which[at] ^ 1 << rng.randrange(8)))
        for number, each in enumerate(bad):
            dirty.put(2 * number * SECTOR, sealed(bytes(each)))
        try:
            content_of(dirty.path)
        except TapError as exc:
            said.add(exc.message.partition(":")[0])
    assert said
