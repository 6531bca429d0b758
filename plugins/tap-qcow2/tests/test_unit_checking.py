"""What `check` finds in damaged images: the same as `qemu-img check`, and in bounded memory."""

import json
import os
import random
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cputime import LENIENT, CpuTime

import tapcore
from peers import peer
from qcow2tools import MIB, SECRET, create, image_options, qemu_img, qemu_io
from qcow2walk import COPIED, walk
from qcow2wrecks import DAMAGES, LAYOUTS, SIZE, Layout, Wreck
from tap_qcow2.check.referencecounts import Counts
from tap_qcow2.ondisk.entries import runs
from tapcore.tools.check import Repair, check_image, check_status

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)

COUNTERS = (
    "leaks",
    "corruptions",
    "total_clusters",
    "allocated_clusters",
    "compressed_clusters",
    "image_end_offset",
)


def ours(image: Path, repair: Repair = "") -> tuple[int, dict[str, int], list[str]]:
    """Exit status, counters, messages; status 1 where it could not be checked."""
    try:
        found = check_image(f"qcow2:{image}", repair=repair)
    except tapcore.TapError as exc:
        return 1, {}, [str(exc)]
    return check_status(found), {name: getattr(found, name) for name in COUNTERS}, found.messages


def theirs(image: Path, *flags: str) -> tuple[int, dict[str, int], str]:
    """The same from `qemu-img check`."""
    named = () if "--image-opts" in flags else ("-f", "qcow2", image.name)
    words = [peer("qemu-img"), "check", "--output=json", *flags, *named]
    done = subprocess.run(
        words, cwd=image.parent, capture_output=True, text=True, timeout=60, check=False
    )
    found: dict[str, Any] = {}
    if "{" in done.stdout:
        found = json.loads(done.stdout[done.stdout.index("{") :])
    counters = {name: found.get(name.replace("_", "-"), 0) for name in COUNTERS}
    return done.returncode, counters, done.stderr


STRICTER = ("v2", "extended", "extended-compressed")
"""Layouts in which bit 0 of an L2 entry is reserved. QEMU reads zero clusters of version 2 as
damage, and does not look at the bit in extended entries; here it is counted as an error in both."""

GARBAGE = ("l1-unaligned", "l1-on", "l1-to", "l1-anywhere", "truncated")
"""Damage that makes an L2 table of what is none: all bits occur in its entries."""


def comparable(layout: Layout, damages: list[str], counters: dict[str, int]) -> dict[str, int]:
    """What must be the same as QEMU's."""
    if layout.name in STRICTER and any(name.startswith(GARBAGE) for name in damages):
        return {}
    if "extended" in layout.name and any(name.endswith("compressed") for name in damages):
        # the cluster of a compressed entry with a bitmap is not called leaked here: it can be read
        return {"corruptions": counters["corruptions"]}
    return counters


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_damage_is_found_as_qemu_finds_it(
    layout: Layout, tmp_path: Path, rng: random.Random
) -> None:
    image = layout.make(tmp_path, rng)
    good = image.read_bytes()
    assert ours(image)[:2] == theirs(image)[:2]
    for number in range(6 * THOROUGH):
        names = rng.sample(sorted(DAMAGES), 1 + (number % 5 == 4))
        wreck = Wreck(bytearray(good), rng)
        done = [name for name in names if DAMAGES[name](wreck)]
        image.write_bytes(wreck.content)
        status, counters, messages = ours(image)
        want, wanted, said = theirs(image)
        if (
            want == 1 or not done
        ):  # QEMU gives no answer, where bitmaps cannot be loaded for instance
            continue
        case = f"{done}: {messages}, QEMU: {said}"
        ends = ("past the end of the data file", "is cut by the end of the file")
        if any(end in line for line in messages for end in ends):
            # QEMU does not look how long the data file is, and takes zeroes for half a table
            assert status == 2, case
            assert counters["corruptions"] > wanted["corruptions"], case
            assert counters["leaks"] == wanted["leaks"], case
            continue
        assert status == want, case
        assert comparable(layout, done, counters) == comparable(layout, done, wanted), case
        assert bool(messages) == bool(status), case


def test_a_truncated_file_is_checked(tmp_path: Path, rng: random.Random) -> None:
    """Where even the L1 table, or the refcount table, is not there any more."""
    image = create(tmp_path / "disk.qcow2", SIZE, cluster_size=512)
    qemu_io(image, "write 0 500k")
    size = image.stat().st_size
    for length in (1024, 1536, 4096, size // 2, size - 100):
        with open(image, "r+b") as file:
            file.truncate(length)
        status, counters, messages = ours(image)
        want, wanted, said = theirs(image)
        assert status == want == 2, (messages, said)
        assert counters["corruptions"] == wanted["corruptions"], (messages, said)
        assert status == check_status(check_image(f"qcow2:{image}"))


def test_an_encryption_header_is_counted(tmp_path: Path) -> None:
    """No key is asked for."""
    image = create(tmp_path / "disk.qcow2", MIB, encrypt_format="luks", cluster_size=4096)
    opened = (*SECRET, "--image-opts", image_options(image))
    assert ours(image)[:2] == theirs(image, *opened)[:2]
    assert ours(image)[0] == 0
    content = bytearray(image.read_bytes())
    at = next(at for kind, at, _ in walk(bytes(content)).extensions if kind == 0x0537BE77)
    struct.pack_into(">Q", content, at, len(content) + 4096)
    image.write_bytes(content)
    status, counters, messages = ours(image)
    assert status == 2
    assert counters["corruptions"] == 1
    assert "encryption header" in messages[0]


def test_snapshot_tables(tmp_path: Path) -> None:
    """An entry too short for version 3, and L1 tables where none can be."""
    image = create(tmp_path / "disk.qcow2", MIB, compat="0.10", cluster_size=4096)
    qemu_io(image, "write 0 100k")
    qemu_img("snapshot", "-c", "one", image)
    good = bytearray(image.read_bytes())
    table = walk(bytes(good)).snapshots_offset
    for offset, form, value in ((0, ">Q", 512), (0, ">Q", 1 << 40), (8, ">I", 1 << 30)):
        content = bytearray(good)
        struct.pack_into(form, content, table + offset, value)
        image.write_bytes(content)
        status, counters, messages = ours(image)
        want, wanted, said = theirs(image)
        assert status == want == 2, (messages, said)
        assert counters == wanted, (messages, said)
    content = bytearray(good)
    struct.pack_into(">I", content, table + 36, 2000)  # extra data
    image.write_bytes(content)
    assert ours(image)[0] == theirs(image)[0] == 1
    struct.pack_into(">I", content, table + 36, 0)
    name = bytes(content[table + 40 + 24 :][:4])
    content[table + 40 : table + 44] = name
    struct.pack_into(">I", content, 4, 3)
    struct.pack_into(">QQQII", content, 72, 0, 0, 0, 4, 104)
    image.write_bytes(content)
    status, counters, messages = ours(image)
    want, wanted, said = theirs(image)
    assert status == want == 2, (messages, said)
    assert counters["corruptions"] == wanted["corruptions"] == 1, (messages, said)
    assert "incomplete" in messages[0]


def test_one_line_for_each_finding_but_not_for_a_million(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", SIZE, cluster_size=512)
    qemu_io(image, "write 0 500k")
    content = bytearray(image.read_bytes())
    for place in walk(bytes(content)).places:
        if place.name.startswith("refcount block"):
            content[place.offset : place.offset + place.length] = bytes(place.length)
    image.write_bytes(content)
    found = check_image(f"qcow2:{image}")
    assert found.corruptions > 1000
    assert len(found.messages) == 101
    assert found.messages[-1] == f"... and {_findings(found.corruptions, found.messages)} more"
    assert all(len(message) < 200 and "disk.qcow2" not in message for message in found.messages)


def _findings(corruptions: int, messages: list[str]) -> int:
    """How many there are without a line: at least those clusters that have none."""
    left = int(messages[-1].split()[2])
    assert 0 < left < corruptions
    return left


# ---- hostile images ---------------------------------------------------------------------------


def hostile(
    image: Path, bits: int, l1: list[int], tables: dict[int, bytes], size: int, end: int
) -> Path:
    """An image of version 3 with given tables in a sparse file.

    Args:
        image: the new file.
        bits: log2 of the cluster size.
        l1: entries.
        tables: offset: content.
        size: of the disk, bytes.
        end: of the file, bytes.
    """
    cluster = 1 << bits
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        3,
        0,
        0,
        bits,
        size,
        0,
        len(l1),
        3 * cluster,
        cluster,
        1,
        0,
        0,
    )
    head += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    with open(image, "wb") as file:
        file.write(head)
        file.seek(cluster)
        file.write(struct.pack(">Q", 2 * cluster))
        file.seek(3 * cluster)
        file.write(struct.pack(f">{len(l1)}Q", *l1))
        for offset, content in tables.items():
            file.seek(offset)
            file.write(content)
        file.truncate(end)
    return image


def bounded(image: Path, seconds: float, mebibytes: int) -> tapcore.CheckResult:
    """Check in a process of its own, to see how much memory and time that takes."""
    code = (
        "import sys, json; from tapcore.tools.check import *; "
        "r = check_image('qcow2:' + sys.argv[1]); "
        "print(json.dumps([check_as_dict(r), r.messages[:5]]))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{_PEAK}", str(image)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    answer, peak = done.stdout.splitlines()
    assert int(peak) < mebibytes << 10, f"{int(peak) >> 10} MiB"
    assert after.ru_utime - before.ru_utime < LENIENT * seconds
    counters, messages = json.loads(answer)
    return tapcore.CheckResult(**counters, messages=messages)


_PEAK = "print(next(line for line in open('/proc/self/status') if 'VmHWM' in line).split()[1])"
"""KiB; unlike `ru_maxrss` without those of the process before exec."""


def test_references_that_lie_far_apart(tmp_path: Path) -> None:
    """Each in a page of its own, in a file of some terabytes that is nearly all hole."""
    cluster = 128 << 10
    count = cluster // 8
    end = 15 << 40
    step = end // count // cluster * cluster
    entries = [COPIED | (number * step + 8 * cluster) for number in range(count)]
    table = struct.pack(f">{count}Q", *entries)
    image = hostile(
        tmp_path / "disk.qcow2", 17, [COPIED | 4 * cluster], {4 * cluster: table}, 2 << 30, end
    )
    found = bounded(image, 8, 150)
    assert found.allocated_clusters == count
    assert found.corruptions
    assert not found.check_errors


def test_an_l1_table_that_leads_to_one_l2_table_very_often(tmp_path: Path) -> None:
    """A million times; that table is full, too."""
    cluster = 2 << 20
    count = cluster // 8
    table = struct.pack(">Q", COPIED | 32 * cluster) * count
    l1 = [COPIED | 30 * cluster] * (1 << 20)
    image = hostile(tmp_path / "disk.qcow2", 21, l1, {30 * cluster: table}, 1 << 40, 40 * cluster)
    found = bounded(image, 6, 250)
    assert found.allocated_clusters == len(l1) * count
    assert found.corruptions > len(l1) * count


def test_l2_tables_without_number_in_a_hole(tmp_path: Path) -> None:
    cluster = 64 << 10
    l1 = [COPIED | (number + 600) * cluster for number in range(200_000)]
    image = hostile(tmp_path / "disk.qcow2", 16, l1, {}, 1 << 40, (1 << 20) * cluster)
    found = bounded(image, 8, 250)
    assert found.corruptions >= len(l1)


def test_snapshots_whose_l1_tables_overlap(tmp_path: Path) -> None:
    """Sixty thousand of them, each of 16 MiB: that is given up, not looked at."""
    cluster, number = 512, 60_000
    image = hostile(tmp_path / "disk.qcow2", 9, [], {}, 0, cluster)
    l1 = struct.pack(">Q", 1 << 40) * (2 << 20)
    start = 64 << 10
    table = b"".join(
        struct.pack(">QIHHIIQII", start + n * cluster, 2 << 20, 0, 0, 0, 0, 0, 0, 0)
        for n in range(number)
    )
    with open(image, "r+b") as file:
        file.seek(60)
        file.write(struct.pack(">IQ", number, 64 << 20))
        file.seek(start)
        file.write(l1)
        file.seek(64 << 20)
        file.write(table)
    spent = CpuTime()
    found = check_image(f"qcow2:{image}")
    assert spent.is_about(10)
    assert found.check_errors == 1
    assert "overlap" in found.messages[-1] or "more" in found.messages[-1]


def test_a_refcount_table_that_names_one_block_very_often(tmp_path: Path) -> None:
    cluster = 2 << 20
    image = hostile(tmp_path / "disk.qcow2", 21, [], {2 * cluster: b"\1" * cluster}, 0, 4 * cluster)
    with open(image, "r+b") as file:
        file.seek(56)
        file.write(struct.pack(">I", 2))
        file.seek(8 * cluster)
        file.write(struct.pack(">Q", 2 * cluster) * (2 * cluster // 8))
        file.seek(48)
        file.write(struct.pack(">Q", 8 * cluster))
        file.truncate(2 << 40)
    found = bounded(image, 8, 250)
    assert found.corruptions >= 2 * cluster // 8 - 1


# ---- parts --------------------------------------------------------------------------------------


def test_counts_beyond_a_byte() -> None:
    counts = Counts(12)
    for _ in range(300):
        counts.add(5, 3)
    counts.add_each([6, 6, 100_000], 2)
    assert [counts.get(n) for n in (4, 5, 6, 7, 8, 100_000)] == [0, 300, 304, 300, 0, 2]
    counts.add(5, 3, -300)
    assert [counts.get(n) for n in (5, 6, 7)] == [0, 4, 0]
    counts.add(3, 1)
    assert counts.ones(0, 50_000) == 1
    assert counts.end() == 100_001
    assert not counts.all_single()


@pytest.mark.parametrize("order", range(7))
def test_counts_as_a_refcount_block(order: int, rng: random.Random) -> None:
    """What does not fit stays at the most; a block of zeroes is one without pages."""
    counts = Counts(11)
    most = (1 << (1 << order)) - 1
    values = {rng.randrange(2048): rng.choice((1, 2, 3, 200, 300)) for _ in range(300)}
    for cluster, value in values.items():
        counts.add(cluster, 1, value)
    block = counts.block(0, 11, order, counts.by_block(11).get(0, []))
    bits = 1 << order
    got = {}
    for cluster in range(2048):
        if bits >= 8:
            value = int.from_bytes(block[cluster * bits // 8 : (cluster + 1) * bits // 8], "big")
        else:
            value = block[cluster * bits // 8] >> cluster * bits % 8 & most
        if value:
            got[cluster] = value
    assert got == {cluster: min(value, most) for cluster, value in values.items()}
    assert counts.block(1, 11, order, []) == bytes(len(block))


def test_runs_of_entries() -> None:
    assert runs([], 8) == []
    assert runs([5], 8) == [(5, 1)]
    assert runs([8, 16, 24, 64, 72, 8, 8], 8) == [(8, 3), (64, 2), (8, 1), (8, 1)]
