"""A crash at any moment leaves at worst leaked clusters, and everything that was flushed.

Random work is recorded write by write; then the image is looked at as after a crash: after every
few writes in their order, and with anything lost, or torn, that no fdatasync had covered.

`TAPCORE_THOROUGH=10` looks at ten times as many states.
"""

import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import attrs
import pytest
from nbd_client import FLUSH, TRIM, WRITE, WRITE_ZEROES, Client
from served import TAPDISK

import tapcore
from crashrecorder import Recording, State
from crashworkload import Workload
from qcow2tools import MIB, checked, create, qemu_img, run, source_content
from qcow2walk import Walk, walk

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


@attrs.frozen
class Variant:
    """A kind of image, and what is done to it.

    Attributes:
        name: of the test.
        options: of `qemu-img create`.
        size: of the disk, bytes.
        windows: where the work is done: (offset, length) in bytes.
        parent: over a raw parent with content, shorter than the disk.
        compressed: begins with compressed clusters.
        snapshot: begins with a snapshot of some content.
        filled: bytes of the disk that have content to begin with.
        largest: bytes of a request at most.
        batches: of requests.
        states: that are looked at.
    """

    name: str
    options: dict[str, object]
    size: int = 2 << 30
    windows: tuple[tuple[int, int], ...] = ((0, MIB), ((512 << 20) - (512 << 10), MIB), (MIB, MIB))
    parent: bool = False
    compressed: bool = False
    snapshot: bool = False
    filled: int = 0
    largest: int = 256 << 10
    batches: int = 50
    states: int = 70


def _small(name: str, options: dict[str, object], size: int = 2 * MIB, **more: object) -> Variant:
    """All of a small disk is worked on."""
    largest = {"largest": 64 << 10} | more
    return Variant(name, options, size, ((0, size),), **largest)  # type: ignore[arg-type]


VARIANTS = [
    Variant("default", {}),
    Variant("default-with-parent", {}, parent=True),
    _small("cluster-512", {"cluster_size": 512}),
    _small("cluster-4096", {"cluster_size": 4096}, size=5 * MIB),
    # a block counts 32 KiB, and a table of one cluster has 64 of them: it is nearly full
    _small(
        "refcount-table-grows",
        {"cluster_size": 512, "refcount_bits": 64},
        size=4 * MIB,
        filled=1900 << 10,
    ),
    _small("refcount-1", {"cluster_size": 4096, "refcount_bits": 1}),
    Variant("extended", {"extended_l2": "on"}),
    _small("extended-with-parent", {"extended_l2": "on", "cluster_size": 16384}, parent=True),
    _small("lazy", {"lazy_refcounts": "on", "cluster_size": 4096}),
    _small("data-file", {"data_file": "disk.data"}, size=4 * MIB),
    _small("data-file-raw", {"data_file": "disk.data", "data_file_raw": "on"}, size=4 * MIB),
    _small("v2", {"compat": "0.10", "cluster_size": 4096}),
    _small("over-compressed", {"cluster_size": 16384}, compressed=True),
    _small("over-a-snapshot", {"cluster_size": 2048}, snapshot=True),
]


@attrs.define(slots=False)
class Crashes:
    """One image of a variant in a folder, its recorded history, and a folder for copies of it."""

    variant: Variant
    home: Path
    rng: random.Random
    below: bytes | None = None

    def __attrs_post_init__(self) -> None:
        variant, self.image = self.variant, self.home / "disk.qcow2"
        self.crashed = self.home / "crashed"
        self.crashed.mkdir()
        self.copy = self.crashed / "disk.qcow2"
        self.files = [self.image]
        if variant.parent:
            self.below = source_content(self.rng, variant.size * 3 // 4 if self._is_small else MIB)
            (self.home / "parent.raw").write_bytes(self.below)
            shutil.copy(self.home / "parent.raw", self.crashed)
            create(self.image, variant.size, parent="parent.raw", form="raw", **variant.options)
        elif variant.compressed:
            raw = self.home / "source.raw"
            raw.write_bytes(source_content(self.rng, variant.size))
            options = [f"-o{name}={value}" for name, value in variant.options.items()]
            qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", *options, raw, self.image)
        else:
            create(self.image, variant.size, **variant.options)
        if "data_file" in variant.options:
            self.files.append(self.home / "disk.data")
        if variant.filled:
            with tapcore.open(f"qcow2:{self.image}") as disk:
                disk.pwrite(0, self.rng.randbytes(variant.filled))
        if variant.snapshot:
            with tapcore.open(f"qcow2:{self.image}") as disk:
                for offset, length in variant.windows:
                    disk.pwrite(offset, self.rng.randbytes(length * 2 // 3))
            qemu_img("snapshot", "-c", "before", self.image)

    @property
    def _is_small(self) -> bool:
        return len(self.variant.windows) == 1

    def work(self) -> Workload:
        """Do, and record."""
        variant = self.variant
        with (
            Recording(*self.files) as self.recording,
            tapcore.open(f"qcow2:{self.image}") as disk,
        ):
            work = Workload(
                disk, self.recording, self.rng, variant.windows, self.below, variant.largest
            )
            work.run(variant.batches)
        self.moment = self.recording.now()
        return work

    def restore(self, state: State) -> bytes:
        """The files after a crash, in the folder for that; the image's content."""
        state.write({path: self.crashed / path.name for path in self.files})
        return bytes(state.contents[os.path.realpath(self.image)])


def _judge(content: bytes) -> tuple[Walk, list[str]]:
    """What is wrong with an image's metadata; refcounts are not, where the dirty bit is set."""
    found = walk(content)
    problems = found.problems + found.copied_wrong
    if found.incompatible & 1:
        problems = [each for each in found.problems if "refcount of" not in each]
    return found, problems


def _windows_wrong(work: Workload, moment: int, disk: tapcore.Disk) -> str:
    for offset, length in work.windows:
        if wrong := work.wrong(moment, offset, disk.pread(offset, length)):
            return wrong
    return ""


def _by_qemu_wrong(work: Workload, moment: int, image: Path) -> str:
    raw = image.with_suffix(".by-qemu")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    with open(raw, "rb") as file:
        for offset, length in work.windows:
            file.seek(offset)
            if wrong := work.wrong(moment, offset, file.read(length)):
                return wrong
    raw.unlink()
    return ""


def _look(crashes: Crashes, work: Workload, state: State) -> Walk:
    """The quick part, done to every state: structure, and content as tapcore reads it."""
    found, problems = _judge(crashes.restore(state))
    assert not problems, f"{state}: {problems[:5]}"
    with tapcore.open(f"qcow2:{crashes.copy}", readonly=True) as disk:
        wrong = _windows_wrong(work, state.moment, disk)
    assert not wrong, f"{state}: {wrong}"
    return found


def _look_by_qemu(crashes: Crashes, work: Workload, state: State, found: Walk) -> None:
    """The slow part: QEMU checks and reads it."""
    image = crashes.copy
    if found.incompatible & 1:
        shutil.copy(image, image.with_suffix(".dirty"))
        checked(image, "-r", "all")
    said = checked(image)
    assert not said.get("corruptions"), f"{state}: {said}"
    assert not said["check-errors"], f"{state}: {said}"
    if not found.incompatible & 1:
        assert said.get("leaks", 0) == found.leaks, f"{state}: {said}"
    wrong = _by_qemu_wrong(work, state.moment, image)
    assert not wrong, f"{state}, as QEMU reads it: {wrong}"
    if found.incompatible & 1:
        shutil.move(image.with_suffix(".dirty"), image)


def _go_on(crashes: Crashes, work: Workload, state: State) -> None:
    """Life after the crash: it opens for writing, is written, closed, checked and repaired."""
    image = crashes.copy
    rng = random.Random(state.moment)
    with tapcore.open(f"qcow2:{image}") as disk:
        wrong = _windows_wrong(work, state.moment, disk)
        assert not wrong, f"{state}, opened for writing: {wrong}"
        for _ in range(10):
            offset, length = rng.choice(work.windows)
            at = offset + rng.randrange(length // 512) * 512
            disk.pwrite(at, rng.randbytes(min(40 << 10, offset + length - at)))
        want = [disk.pread(offset, length) for offset, length in work.windows]
    found, problems = _judge(image.read_bytes())
    assert not problems, f"{state}, gone on with: {problems[:5]}"
    assert not found.incompatible & 1, "the dirty bit is still set"
    run_tapdisk("check", "--repair", "leaks", image)
    said = checked(image)
    assert not said.get("leaks"), f"{state}: {said}"
    assert not said.get("corruptions"), f"{state}: {said}"
    with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
        assert [disk.pread(offset, length) for offset, length in work.windows] == want


def run_tapdisk(*words: object) -> str:
    """`tapdisk`, which has to succeed."""
    done = subprocess.run(
        [TAPDISK, *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_crash_at_any_moment(variant: Variant, tmp_path: Path, rng: random.Random) -> None:
    crashes = Crashes(variant, tmp_path, rng)
    work = crashes.work()
    recording = crashes.recording
    assert len(recording.barriers) > 5
    count = variant.states * THOROUGH
    step = max(len(recording.changes) // count, 1)
    slow = max(count // 6, 1)
    number = 0
    for states in (recording.prefixes(step), recording.states(rng, count)):
        for state in states:
            found = _look(crashes, work, state)
            number += 1
            if number % slow == 0:
                _look_by_qemu(crashes, work, state, found)
                _go_on(crashes, work, state)
    last = State(crashes.moment, {path: Path(path).read_bytes() for path in recording.before})
    found = _look(crashes, work, last)
    assert not found.leaks, "leaks after a clean close"
    _look_by_qemu(crashes, work, last, found)


def test_the_walker_finds_what_qemu_img_check_finds(tmp_path: Path, rng: random.Random) -> None:
    """The judge of all these states is judged: by damage done to refcounts and tables."""
    image = create(tmp_path / "disk.qcow2", MIB, cluster_size=4096)
    with tapcore.open(f"qcow2:{image}") as disk:
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
    options: dict[str, object], tmp_path: Path, rng: random.Random
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
        found, problems = _judge(image.read_bytes())
        assert not problems
        with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
            for sector, content in safe.items():
                assert disk.pread(sector * 512, 512) == content, sector
        if found.incompatible & 1:
            checked(image, "-r", "all")
        said = checked(image)
        assert not said.get("corruptions"), said
    run("qemu-io", "-f", "qcow2", "-c", "read 0 64M", image)
