"""Repair: afterwards QEMU finds nothing, and what could be read before reads the same."""

import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

import tapcore
from peers import peer
from qcow2tools import MIB, assert_clean, create, qemu_img, qemu_io
from qcow2walk import COPIED, OFFSET, walk
from qcow2wrecks import DAMAGES, LAYOUTS, SIZE, Layout, Wreck
from tap_qcow2.snapshots.operations import apply_snapshot, create_snapshot, delete_snapshot
from tapcore.errors import LostContentError
from tapcore.testkit import Recording, State
from tapcore.tools.check import check_image, check_status

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


def content(image: Path) -> bytes | None:
    """The disk as QEMU reads it; None: it cannot."""
    raw = image.with_suffix(".raw")
    words = [peer("qemu-img"), "convert", "-f", "qcow2", "-O", "raw", image.name, raw.name]
    done = subprocess.run(words, cwd=image.parent, capture_output=True, timeout=60, check=False)
    found = None if done.returncode else raw.read_bytes()
    raw.unlink(missing_ok=True)
    return found


def qemu_check(image: Path, *flags: str) -> int:
    """Exit status of `qemu-img check`."""
    words = [peer("qemu-img"), "check", "-q", "-f", "qcow2", *flags, image.name]
    done = subprocess.run(words, cwd=image.parent, capture_output=True, timeout=60, check=False)
    return done.returncode


def repair(image: Path, how: str = "all") -> tapcore.CheckResult:
    """`check --repair`."""
    return check_image(f"qcow2:{image}", repair=how)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_damage_is_repaired(layout: Layout, tmp_path: Path, rng: random.Random) -> None:
    """All of it, even where QEMU's own repair gives up."""
    image = layout.make(tmp_path, rng)
    good = image.read_bytes()
    for number in range(5 * THOROUGH):
        names = rng.sample(sorted(DAMAGES), 1 + (number % 4 == 3))
        wreck = Wreck(bytearray(good), rng)
        done = [name for name in names if DAMAGES[name](wreck)]
        image.write_bytes(wreck.content)
        before = content(image)
        first = check_image(f"qcow2:{image}")
        result = repair(image)
        case = f"{done}: {result}"
        if any("too many for its refcount" in message for message in result.messages):
            continue  # nothing that can be written would be right
        assert check_status(result) == 0, case
        assert qemu_check(image) == 0, case
        assert check_status(check_image(f"qcow2:{image}")) == 0, case
        assert result.corruptions_fixed == first.corruptions, case
        assert result.leaks_fixed == first.leaks, case
        after = content(image)
        assert before is None or after == before, case
        if after is not None:  # else data is damaged: a compressed stream, or not in its file
            if "truncated" in done and _cut_stream(image):
                continue  # QEMU inflates what is left and zeroes, and takes what comes
            _goes_on(image, rng, case, shared="l1-twice" in done)


def _cut_stream(image: Path) -> bool:
    """Whether a compressed cluster is cut by the end of the file."""
    try:
        with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
            disk.pread(0, length=SIZE)
    except LostContentError as exc:
        return "compressed cluster is too short" in str(exc)
    return False


def _goes_on(image: Path, rng: random.Random, case: str, *, shared: bool) -> None:
    """The image is written to as any other.

    Where the disk has an L2 table twice, a COPIED flag is not set again once its data has only one
    user left: as with QEMU.
    """
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        want = bytearray(disk.pread(0, length=SIZE))
        for _ in range(6):
            at = rng.randrange(SIZE // 512 - 100) * 512
            part = rng.randbytes(rng.choice((512, 5120, 50_688)))
            disk.pwrite(at, part)
            want[at : at + len(part)] = part
        assert disk.pread(0, length=SIZE) == want, case
    if shared:
        found = walk(image.read_bytes())
        assert not found.problems, case
        assert not found.leaks, case
    else:
        assert qemu_check(image) == 0, case
    assert content(image) == bytes(want), case


_UNSEEN = ("past the end of the data file", "is cut by the end of the file")
"""What QEMU does not look at: how long a data file is, and whether all of a table is there."""


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_after_the_repair_of_qemu_nothing_is_found(
    layout: Layout, tmp_path: Path, rng: random.Random
) -> None:
    image = layout.make(tmp_path, rng)
    good = image.read_bytes()
    for name in rng.sample(sorted(DAMAGES), min(3 * THOROUGH, len(DAMAGES))):
        wreck = Wreck(bytearray(good), rng)
        if not DAMAGES[name](wreck):
            continue
        image.write_bytes(wreck.content)
        if qemu_check(image, "-r", "all") == 0:
            result = check_image(f"qcow2:{image}")
            if layout.name == "data-file":
                unseen = [text for text in result.messages if any(map(text.count, _UNSEEN))]
                seen = [text for text in result.messages if text not in unseen]
                result.corruptions -= sum("is lost" not in text for text in unseen)  # a summary
                assert not seen, (name, result)
            assert check_status(result) == 0, (name, result)


# ---- leaks alone --------------------------------------------------------------------------------


def test_leaks_alone(tmp_path: Path) -> None:
    """They are given back, with other refcounts left as they are; QEMU sees the same left."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
    qemu_io(image, "write 0 200k")
    wreck = Wreck(bytearray(image.read_bytes()), random.Random(1))
    numbers = sorted(number for number, _ in walk(bytes(wreck.content)).refcounts())
    block = wreck.places("refcount block")[0].offset
    for number in numbers[10:20]:
        struct.pack_into(">H", wreck.content, block + number * 2, 5)
    for number in range(numbers[-1] + 1, numbers[-1] + 4):
        struct.pack_into(">H", wreck.content, block + number * 2, 1)
    wreck.content.extend(bytes(8 * 4096))
    image.write_bytes(wreck.content)
    first = check_image(f"qcow2:{image}")
    assert first.leaks == 13
    result = repair(image, "leaks")
    assert (result.leaks, result.leaks_fixed) == (0, 13)
    assert check_status(result) == 0
    assert_clean(image)


def test_leaks_are_kept_while_tables_are_damaged(tmp_path: Path, rng: random.Random) -> None:
    """They may be what the damaged entry led to: a file that is still there can be saved."""
    image = create(tmp_path / "disk.qcow2", SIZE, cluster_size=4096)
    qemu_io(image, "write 0 2M")
    wreck = Wreck(bytearray(image.read_bytes()), rng)
    assert DAMAGES["l1-outside"](wreck)
    image.write_bytes(wreck.content)
    result = repair(image, "leaks")
    assert result.leaks > 10
    assert not result.leaks_fixed
    assert any("kept" in message for message in result.messages)
    assert image.read_bytes() == wreck.content


def test_wrong_refcounts_stay_where_only_leaks_are_repaired(
    tmp_path: Path, rng: random.Random
) -> None:
    image = create(tmp_path / "disk.qcow2", SIZE, cluster_size=4096)
    qemu_io(image, "write 0 2M")
    wreck = Wreck(bytearray(image.read_bytes()), rng)
    assert DAMAGES["refcount-down"](wreck)
    assert DAMAGES["refcount-far-up"](wreck)
    image.write_bytes(wreck.content)
    result = repair(image, "leaks")
    assert check_status(result) == 2
    assert result.leaks_fixed == 1
    assert qemu_check(image) == 2


# ---- marks in the header ------------------------------------------------------------------------


def _mark(image: Path, bits: int) -> None:
    with open(image, "r+b") as file:
        file.seek(72)
        file.write(struct.pack(">Q", bits))


def _marks(image: Path) -> int:
    with open(image, "rb") as file:
        file.seek(72)
        return int(struct.unpack(">Q", file.read(8))[0])


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_marks_go_with_the_damage(bits: int, tmp_path: Path, rng: random.Random) -> None:
    """Dirty and corrupt: cleared where nothing is wrong, or nothing any more; not by looking."""
    image = create(tmp_path / "disk.qcow2", MIB)
    qemu_io(image, "write 0 500k")
    _mark(image, bits)
    good = image.read_bytes()
    check_image(f"qcow2:{image}")
    assert image.read_bytes() == good
    repair(image)
    assert _marks(image) == 0
    wreck = Wreck(bytearray(good), rng)
    assert DAMAGES["refcount-block-zeroed"](wreck)
    image.write_bytes(wreck.content)
    repair(image)
    assert _marks(image) == 0
    assert_clean(image)


def _with_lost_refcounts(image: Path) -> None:
    """As after a crash with lazy refcounts: none of the new clusters is counted."""
    create(image, 8 * MIB, lazy_refcounts="on", cluster_size=4096)
    early = walk(image.read_bytes())
    qemu_io(image, "write -P 5 0 5M")
    content = bytearray(image.read_bytes())
    found = walk(bytes(content))
    first = next(place for place in found.places if place.name.startswith("refcount block"))
    for number, _ in list(found.refcounts()):
        if number * 4096 >= early.end:
            struct.pack_into(">H", content, first.offset + number * 2, 0)
    image.write_bytes(content)
    _mark(image, 1)


def test_a_dirty_image_is_repaired_when_it_is_opened_for_writing(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    _with_lost_refcounts(image)
    dirty = image.read_bytes()
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert disk.pread(0, length=5 * MIB) == b"\5" * (5 * MIB)
    assert image.read_bytes() == dirty
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        assert _marks(image) == 0
        assert_clean_copy(image)
        disk.pwrite(6 * MIB, b"6" * MIB)
        assert disk.pread(0, length=5 * MIB) == b"\5" * (5 * MIB)
    assert_clean(image)


def assert_clean_copy(image: Path) -> None:
    """QEMU cannot look at an image that is open for writing."""
    copy = image.with_suffix(".copy")
    shutil.copy(image, copy)
    assert_clean(copy)


def test_a_dirty_image_that_is_damaged_is_not_opened_for_writing(
    tmp_path: Path, rng: random.Random
) -> None:
    image = create(tmp_path / "disk.qcow2", SIZE, cluster_size=4096)
    qemu_io(image, "write 0 2M")
    wreck = Wreck(bytearray(image.read_bytes()), rng)
    assert DAMAGES["l2-outside"](wreck)
    image.write_bytes(wreck.content)
    _mark(image, 1)
    before = image.read_bytes()
    with pytest.raises(tapcore.ImageOpenError, match="--repair all"):
        tapcore.open(f"qcow2:{image}", readonly=False)
    assert image.read_bytes() == before
    repair(image)
    tapcore.open(f"qcow2:{image}", readonly=False).close()


# ---- what lies on top of each other ------------------------------------------------------------


def test_data_on_tables_gets_a_place_of_its_own(tmp_path: Path, rng: random.Random) -> None:
    """The tables stay; the disk shows what it showed; writing there harms nothing."""
    image = create(tmp_path / "disk.qcow2", SIZE, cluster_size=4096)
    qemu_io(image, "write -P 1 0 2M")
    wreck = Wreck(bytearray(image.read_bytes()), rng)
    names = ("header", "L1 table", "L2 table", "refcount block", "refcount table")
    places = [wreck.places(name)[0] for name in names if name != "header"]
    entries = wreck.words("L2", lambda word: word & OFFSET)
    for at, place in zip(entries, places, strict=False):
        wreck.set_word(at, COPIED | place.offset)
    image.write_bytes(wreck.content)
    before = content(image)
    result = repair(image)
    assert check_status(result) == 0, result
    assert content(image) == before
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"\2" * SIZE)
    assert_clean(image)
    assert content(image) == b"\2" * SIZE


def test_an_entry_that_is_only_flagged_leads_no_write_to_the_header(
    tmp_path: Path, rng: random.Random
) -> None:
    image = create(tmp_path / "disk.qcow2", MIB)
    qemu_io(image, "write -P 1 0 128k")
    wreck = Wreck(bytearray(image.read_bytes()), rng)
    wreck.set_word(wreck.words("L2")[0], COPIED)
    image.write_bytes(wreck.content)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(65536, b"a" * 512)
        disk.pwrite(0, b"b" * 512)
        assert disk.pread(0, length=512) == b"b" * 512
    assert content(image) == b"b" * 512 + bytes(65024) + b"a" * 512 + b"\1" * 65024 + bytes(917504)


def test_twins_are_parted(tmp_path: Path, rng: random.Random) -> None:
    """As after two programs have written: each entry still shows the same, and for itself."""
    image = create(tmp_path / "disk.qcow2", SIZE, cluster_size=4096)
    qemu_io(image, "write -P 1 0 1M", "write -P 2 1M 1M")
    wreck = Wreck(bytearray(image.read_bytes()), rng)
    entries = wreck.words("L2", lambda word: word & OFFSET)
    for number in range(0, 40, 2):
        wreck.set_word(entries[number], wreck.word(entries[number + 300]))
        wreck.set_word(entries[number + 1], wreck.word(entries[0]))
    image.write_bytes(wreck.content)
    before = content(image)
    assert check_status(repair(image)) == 0
    assert content(image) == before
    hosts = list(walk(image.read_bytes()).mapped.values())
    assert len(hosts) == len(set(hosts)) == 512


def test_a_structure_that_is_proven_to_be_free_is_all_that_is_reused(tmp_path: Path) -> None:
    """Old blocks are counted as free after a rebuild, and nothing else."""
    image = create(tmp_path / "disk.qcow2", SIZE, cluster_size=512)
    qemu_io(image, "write -P 1 0 700k")
    before = image.read_bytes()
    found = walk(before)
    with open(image, "r+b") as file:
        file.seek(found.reftable_offset)
        file.write(bytes(512))
    result = repair(image)
    assert any("made anew" in message for message in result.messages)
    after = image.read_bytes()
    assert after[512 : found.reftable_offset] == before[512 : found.reftable_offset]
    assert after[found.reftable_offset + 512 : len(before)] == before[found.reftable_offset + 512 :]
    assert_clean(image)


def test_snapshots_whose_entries_are_incomplete_are_completed(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, compat="0.10", cluster_size=4096)
    qemu_io(image, "write -P 1 0 100k")
    for name in ("one", "two"):
        qemu_img("snapshot", "-c", name, image)
    data = bytearray(image.read_bytes())
    table = walk(bytes(data)).snapshots_offset
    entries: list[bytearray] = []
    at = table
    for text in (b"1one", b"2two"):
        entries.append(data[at : at + 36] + struct.pack(">I", 0) + text + bytes(4))
        at += 40 + 24 + len(text)
        at += -at % 8
    data[table : table + 4096] = b"".join(entries).ljust(4096, b"\0")
    struct.pack_into(">I", data, 4, 3)
    struct.pack_into(">QQQII", data, 72, 0, 0, 0, 4, 104)
    image.write_bytes(data)
    assert check_image(f"qcow2:{image}").corruptions == 2
    assert check_status(repair(image)) == 0
    assert_clean(image)
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert [(s.name, s.disk_size) for s in disk.snapshots()] == [("one", MIB), ("two", MIB)]


def test_damaged_bitmaps_are_dropped_and_the_disk_can_be_written_again(
    tmp_path: Path, rng: random.Random
) -> None:
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
    qemu_img("bitmap", "--add", image, "bits")
    qemu_io(image, "write 0 100k")
    wreck = Wreck(bytearray(image.read_bytes()), rng)
    place = wreck.places("bitmap directory")[0]
    wreck.set_word(place.offset, 1 << 50)
    image.write_bytes(wreck.content)
    result = repair(image)
    assert check_status(result) == 0
    assert any("bitmaps" in message for message in result.messages)
    assert_clean(image)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        assert disk.bitmaps() == []
        disk.pwrite(0, b"x" * 512)


# ---- interrupted --------------------------------------------------------------------------------


def _states(recording: Recording, rng: random.Random, count: int) -> list[State]:
    step = max(len(recording.changes) // count, 1)
    return [*recording.prefixes(step), *recording.states(rng, count * THOROUGH)]


@pytest.mark.parametrize(
    "name",
    ["refcount-table-zeroed", "refcount-block-zeroed", "l2-on-l1", "l1-on-l1", "l2-outside"],
)
def test_a_repair_that_a_crash_interrupts_can_be_done_again(
    name: str, tmp_path: Path, rng: random.Random
) -> None:
    image = create(tmp_path / "disk.qcow2", SIZE, cluster_size=2048)
    for _ in range(8):
        at = rng.randrange(SIZE // 512 - 200) * 512
        qemu_io(image, f"write -P {rng.randint(1, 255)} {at} 100k")
    qemu_img("snapshot", "-c", "one", image)
    qemu_io(image, "write -P 7 1M 100k")
    wreck = Wreck(bytearray(image.read_bytes()), rng)
    DAMAGES[name](wreck)
    image.write_bytes(wreck.content)
    with Recording(image) as recording:
        assert check_status(repair(image)) == 0
    want = content(image)
    crashed = tmp_path / "crashed.qcow2"
    for state in _states(recording, rng, 5):
        state.write({image: crashed})
        result = repair(crashed)
        assert check_status(result) == 0, f"{state}: {result}"
        assert qemu_check(crashed) == 0, state
        assert content(crashed) == want, state


@pytest.mark.parametrize("compat", ["1.1", "0.10"])
@pytest.mark.parametrize("operation", [create_snapshot, apply_snapshot, delete_snapshot])
def test_a_snapshot_operation_that_a_crash_interrupts(
    operation: object, compat: str, tmp_path: Path, rng: random.Random
) -> None:
    """It was done or not; all there was is there; at worst clusters are leaked."""
    image = create(tmp_path / "disk.qcow2", SIZE, cluster_size=2048, compat=compat)
    qemu_io(image, "write -P 1 0 300k", "write -P 2 1M 300k")
    qemu_img("snapshot", "-c", "one", image)
    one = content(image)
    qemu_io(image, "write -P 3 100k 200k", "write -P 4 2M 100k")
    old = content(image)
    with Recording(image) as recording, tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        name = "two" if operation is create_snapshot else "one"
        operation(disk.state.disks.private, name)  # type: ignore[operator]
        new = disk.pread(0, length=SIZE)
    crashed = tmp_path / "crashed.qcow2"
    for state in _states(recording, rng, 6):
        state.write({image: crashed})
        found = walk(crashed.read_bytes())
        assert not found.problems, f"{state}: {found.problems[:3]}"
        assert not found.copied_wrong or compat == "0.10" or found.incompatible & 1
        with tapcore.open(f"qcow2:{crashed}", readonly=False) as disk:
            assert disk.pread(0, length=SIZE) in (old, new), state
            names = [snapshot.name for snapshot in disk.snapshots()]
            disk.pwrite(SIZE - 512, bytes(512))
        assert names in ([], ["one"], ["one", "two"])
        assert names or operation is delete_snapshot
        assert check_status(repair(crashed)) == 0
        assert qemu_check(crashed) == 0, state
        for name in names:
            with tapcore.open(f"qcow2:{crashed}", readonly=True, snapshot=name) as disk:
                assert disk.pread(0, length=SIZE) == (one if name == "one" else old), state
