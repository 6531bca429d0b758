"""A crash at any moment leaves at worst leaked clusters, and everything that was flushed.

Random work is recorded write by write; then the image is looked at as after a crash: after every
few writes in their order, and with anything lost, or torn, that no fdatasync had covered.
"""

import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
from nbd_client import FLUSH, TRIM, WRITE, WRITE_ZEROES, Client
from qcow2crashes import Crashes, Variant, judge, small
from served import TAPDISK

import tapcore
from peers import peer
from qcow2tools import MIB, assert_clean, checked, create, run
from qcow2walk import walk
from tapcore.engine import WRITE_COMPRESSED
from tapcore.testkit import NEVER, State, Workload
from tapcore.tools.check import check_image

VARIANTS = [
    Variant("default", {}),
    Variant("default-with-parent", {}, parent=True),
    small("cluster-512", {"cluster_size": 512}),
    small("cluster-4096", {"cluster_size": 4096}, size=5 * MIB),
    # a block counts 32 KiB, and a table of one cluster has 64 of them: it is nearly full
    small(
        "refcount-table-grows",
        {"cluster_size": 512, "refcount_bits": 64},
        size=4 * MIB,
        filled=1900 << 10,
    ),
    small("refcount-1", {"cluster_size": 4096, "refcount_bits": 1}),
    Variant("extended", {"extended_l2": "on"}),
    small("extended-with-parent", {"extended_l2": "on", "cluster_size": 16384}, parent=True),
    small("lazy", {"lazy_refcounts": "on", "cluster_size": 4096}),
    small("data-file", {"data_file": "disk.data"}, size=4 * MIB),
    small("data-file-raw", {"data_file": "disk.data", "data_file_raw": "on"}, size=4 * MIB),
    small("v2", {"compat": "0.10", "cluster_size": 4096}),
    small("direct", {"cluster_size": 4096}, cache="none"),
    small("late", {"cluster_size": 4096}, late=True),
    small("late-with-parent", {"cluster_size": 8192}, late=True, parent=True),
    small("over-compressed", {"cluster_size": 16384}, compressed=True),
    small("over-a-snapshot", {"cluster_size": 2048}, snapshot=True),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_crash_at_any_moment(variant: Variant, tmp_path: Path, rng: random.Random) -> None:
    crashes = Crashes(variant, tmp_path, rng)
    crashes.record()
    assert len(crashes.recording.barriers) > 5
    crashes.look_everywhere()


# ---- what changes more than content -------------------------------------------------------------


@attrs.define
class Snapshots:
    """Snapshots that come and go during the work.

    Attributes:
        work: beside which that is done.
        made: name: (content of the windows, begun, done) of each that was ever made.
        gone: name: the moment at which deleting it began.
    """

    work: Workload | None = None
    made: dict[str, tuple[dict[int, bytes], int, int]] = attrs.field(factory=dict)
    gone: dict[str, int] = attrs.field(factory=dict)

    def change(self, work: Workload) -> None:
        """Make one, or apply or delete one of those that there are."""
        self.work = work
        dd = work.disk.state.disks
        there = [name for name in self.made if name not in self.gone]
        what = work.rng.choice(("create", "create", "apply", "delete"))
        if what == "create" and len(there) < 3:
            name = f"s{len(self.made)}"
            content, began = work.content, work.recording.now()
            dd.drv.td_snapshot_create(dd, name)
            self.made[name] = content, began, work.recording.now()
        elif there and what != "create":
            name = work.rng.choice(there)
            began = work.recording.now()
            getattr(dd.drv, f"td_snapshot_{what}")(dd, name)
            if what == "apply":
                work.replaced(self.made[name][0], began)
            else:
                self.gone[name] = began

    def look(self, image: Path, state: State) -> None:
        """Those are there that must be, and show what they hold."""
        with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
            there = {snapshot.name for snapshot in disk.snapshots()}
        for name, (content, began, done) in self.made.items():
            if done <= state.moment < self.gone.get(name, NEVER):
                assert name in there, f"{state}: snapshot {name} is lost"
            if name not in there:
                continue
            assert began <= state.moment, f"{state}: snapshot {name} comes too early"
            with tapcore.open(f"qcow2:{image}", readonly=True, snapshot=name) as disk:
                for offset, want in content.items():
                    got = disk.pread(offset, length=len(want))
                    assert got == want, f"{state}: snapshot {name} shows something else"


CHANGED = [
    small("512", {"cluster_size": 512, "refcount_bits": 8}, size=MIB, batches=60, states=16),
    small("4096", {"cluster_size": 4096}, batches=60, states=16),
    small("v2", {"cluster_size": 2048, "compat": "0.10"}, batches=60, states=16),
    small("extended", {"cluster_size": 16384, "extended_l2": "on"}, batches=60, states=16),
    small("lazy", {"cluster_size": 4096, "lazy_refcounts": "on"}, batches=60, states=16),
]


@pytest.mark.parametrize("variant", CHANGED, ids=lambda variant: variant.name)
def test_a_crash_while_snapshots_come_and_go(
    variant: Variant, tmp_path: Path, rng: random.Random
) -> None:
    if "compat" in variant.options:
        variant = attrs.evolve(variant, flags_lag=True)
    crashes = Crashes(variant, tmp_path, rng)
    snapshots = Snapshots()
    crashes.record(snapshots.change)
    crashes.look_everywhere(lambda state: snapshots.look(crashes.copy, state))


@pytest.mark.parametrize("variant", CHANGED, ids=lambda variant: variant.name)
def test_a_crash_while_the_size_changes(
    variant: Variant, tmp_path: Path, rng: random.Random
) -> None:
    """The L1 table grows, and moves; what lies past a smaller end is given back."""
    crashes = Crashes(variant, tmp_path, rng)
    sizes = {variant.size}

    def change(work: Workload) -> None:
        size = variant.size + rng.choice((0, 512, MIB, 64 * MIB, 700 * MIB)) + rng.choice((0, 512))
        sizes.add(size)
        work.disk.resize(size)
        if size > variant.size:
            at = rng.randrange(variant.size, size) & -512
            work.disk.pwrite(at, rng.randbytes(min(70_000, size - at)))

    def look(state: State) -> None:
        with tapcore.open(f"qcow2:{crashes.copy}", readonly=True) as disk:
            assert disk.size in sizes

    crashes.record(change)
    crashes.look_everywhere(look)


NARROW = small("refcount-2", {"cluster_size": 4096, "refcount_bits": 2}, batches=60, states=16)


@pytest.mark.parametrize("variant", [*CHANGED, NARROW], ids=lambda variant: variant.name)
def test_a_crash_while_compressed_clusters_are_written(
    variant: Variant, tmp_path: Path, rng: random.Random
) -> None:
    """They share host clusters, and are overwritten, zeroed and discarded."""
    crashes = Crashes(variant, tmp_path, rng)

    def change(work: Workload) -> None:
        dd = work.disk.state.disks
        for _ in range(3):
            at = rng.randrange(variant.size // dd.cluster_size) * dd.cluster_size
            length = min(rng.choice((1, 2, 9)) * dd.cluster_size, variant.size - at)
            work.write(WRITE_COMPRESSED, at, (rng.randbytes(64) * (length // 64))[:length])

    crashes.record(change)
    crashes.look_everywhere()


# ---- the judge ----------------------------------------------------------------------------------


def test_the_walker_finds_what_qemu_img_check_finds(tmp_path: Path, rng: random.Random) -> None:
    """The judge of all these states is judged: by damage done to refcounts and tables."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        for _ in range(20):
            disk.pwrite(rng.randrange(MIB - 9000), rng.randbytes(9000))
    good = image.read_bytes()
    tables = [p for p in walk(good).places if p.name.startswith(("L2 table", "refcount block"))]
    for _ in range(25):
        bad = bytearray(good)
        table = rng.choice(tables)
        at = table.offset + rng.randrange(200) * 8
        bad[at : at + 8] = rng.choice(
            (bytes(8), rng.choice(tables).offset.to_bytes(8, "big"), b"\0" * 7 + b"\1")
        )
        image.write_bytes(bad)
        said = checked(image)
        found = walk(bytes(bad))
        assert bool(found.problems or found.copied_wrong) == bool(said.get("corruptions")), said
        if not said.get("corruptions"):
            assert found.leaks == said.get("leaks", 0)


# ---- the process is killed ---------------------------------------------------------------------


def _load(client: Client, rng: random.Random, size: int) -> dict[int, bytes]:
    """Write, now and then flush, and kill nothing yet: what was flushed, by sector."""
    written: dict[int, bytes] = {}
    safe: dict[int, bytes] = {}
    for _ in range(rng.randint(10, 120)):
        at = rng.randrange(size // 512 - 300)
        content = rng.randbytes(rng.choice((1, 8, 128, 300)) * 512)
        client.call(WRITE, at * 512, len(content), payload=content)
        for n in range(len(content) // 512):
            written[at + n] = content[n * 512 : (n + 1) * 512]
            safe.pop(at + n, None)
        if rng.random() < 0.2:
            client.call(FLUSH)
            safe |= written
    return safe


@pytest.mark.parametrize("options", [{}, {"lazy_refcounts": "on", "cluster_size": 4096}])
def test_a_server_is_killed_while_it_writes(
    options: dict[str, Any], tmp_path: Path, rng: random.Random
) -> None:
    """What it had handed to the kernel is there, in an order without which this would fail."""
    size = 64 * MIB
    image = create(tmp_path / "disk.qcow2", size, **options)
    for round_number in range(4):
        process = subprocess.Popen(
            [TAPDISK, "serve", f"qcow2:{image}", "--socket", tmp_path / f"{round_number}.sock"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout:
            uri = process.stdout.readline().strip()
            with Client(uri) as client:
                safe = _load(client, rng, size)
                for _ in range(50):  # without waiting for the answers
                    at = rng.randrange(size // 512 - 300) * 512
                    command = rng.choice((WRITE, WRITE, WRITE_ZEROES, TRIM, FLUSH))
                    length = 0 if command == FLUSH else rng.choice((1, 8, 300)) * 512
                    payload = rng.randbytes(length) if command == WRITE else b""
                    at = 0 if command == FLUSH else at
                    client.send(command, at, length, payload=payload)
                    for n in range(length // 512):
                        safe.pop(at // 512 + n, None)
                process.send_signal(signal.SIGKILL)
                process.wait(10)
        found, problems = judge(image.read_bytes())
        assert not problems
        with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
            for sector, content in safe.items():
                assert disk.pread(sector * 512, length=512) == content, sector
        if found.incompatible & 1:
            checked(image, "-r", "all")
        said = checked(image)
        assert not said.get("corruptions"), said
    run("qemu-io", "-f", "qcow2", "-c", "read 0 64M", image)


@pytest.mark.parametrize("options", [{}, {"extended_l2": "on"}, {"cluster_size": 4096}])
def test_a_server_is_killed_under_load(
    options: dict[str, Any], tmp_path: Path, rng: random.Random
) -> None:
    """fio writes, trims and syncs with two jobs; whatever it had come to, nothing is corrupt."""
    image = create(tmp_path / "disk.qcow2", 256 * MIB, **options)
    with subprocess.Popen(
        [TAPDISK, "serve", f"qcow2:{image}", "--socket", tmp_path / "socket"],
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        uri = server.stdout.readline().strip()
        words = [
            "--name=load",
            "--ioengine=nbd",
            f"--uri={uri}",
            "--rw=randtrimwrite",
            "--bs=4k-64k",
        ]
        words += ["--bsrange=4k-256k", "--iodepth=16", "--numjobs=2", "--fsync=40", "--time_based"]
        words += ["--runtime=30", "--size=200m", "--thread"]
        with subprocess.Popen(
            [peer("fio"), *words],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as load:
            deadline = time.monotonic() + 60
            while image.stat().st_blocks < 8 << 11 and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(rng.random() / 4)
            server.send_signal(signal.SIGKILL)
            load.wait(60)
    assert image.stat().st_blocks >= 8 << 11, "there was no load"
    found, problems = judge(image.read_bytes())
    assert not problems, problems[:5]
    said = checked(image)
    assert not said.get("corruptions"), said
    assert said.get("leaks", 0) == found.leaks
    check_image(f"qcow2:{image}", repair="leaks")
    assert_clean(image)
