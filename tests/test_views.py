"""Throw-away views: each reads as its base does but for its own writes, and the base stays."""

import contextlib
import gc
import os
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from drivers.faulty import FaultyImage
from enginebench import REGISTRY, home
from hypothesis import given, settings
from hypothesis import strategies as st

import tapcore
from tapcore import Disk, DiskId, OpenOptions, Registry, Template, UsageError, View
from tapcore.engine import READ, Engine, Request
from tapcore.opening.chain import close_disk, open_disk
from tapcore.views import template as shared
from tapcore.views.space import BLOCK, GRANT, Space, Total
from tapcore.views.store import Room, Store
from tapcore.views.written import Written

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A child and its parent, each with content of its own."""
    tapcore.create_image(f"qcow2:{tmp_path / 'parent.qcow2'}", 4 * MIB)
    with tapcore.open(f"qcow2:{tmp_path / 'parent.qcow2'}", readonly=False) as disk:
        disk.pwrite(0, b"p" * MIB)
    path = tmp_path / "base.qcow2"
    tapcore.create_image(f"qcow2:{path}", None, parent="qcow2:parent.qcow2")
    with tapcore.open(f"qcow2:{path}", readonly=False) as disk:
        disk.pwrite(512 * KIB, b"b" * MIB)
    return path


def content(name: object) -> bytes:
    with tapcore.open(f"qcow2:{name}", readonly=True) as disk:
        return disk.pread(0, length=disk.size)


# ---- what is its own -------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12), st.booleans())),
    st.integers(0, 40),
    st.integers(1, 20),
)
@settings(max_examples=60 * THOROUGH, deadline=None)
def test_a_set_of_sectors(steps: list[tuple[int, int, bool]], start: int, count: int) -> None:
    found, model = Written(), set[int]()
    for at, length, cut in steps:
        if cut:
            found.cut(at)
            model = {each for each in model if each < at}
        else:
            found.add(at, at + length)
            model |= set(range(at, at + length))
    end = start + count
    inside = [each in model for each in range(start, end)]
    assert found.has(start, end) == (all(inside) if len(set(inside)) == 1 else None)
    runs = list(found.runs(start, end))
    assert [own for lo, hi, own in runs for _ in range(lo, hi)] == inside
    assert all(one[2] != other[2] for one, other in pairwise(runs))
    assert len(found) == sum(each in model and each - 1 not in model for each in range(60))


class ViewModel:
    """A view, and the bytes that it has to read as."""

    def __init__(self, view: View, start: bytes, rng: random.Random) -> None:
        self.view, self.start, self.rng = view, start, rng
        self.bytes = bytearray(start)

    def step(self) -> None:
        rng, size = self.rng, len(self.bytes)
        step = rng.choice([1, 512, 4096, 64 * KIB])
        at = rng.randrange(size // step) * step
        length = min(rng.choice([1, 512, 4096, 100_000, MIB]), size - at)
        match rng.randrange(7):
            case 0 | 1 | 2:
                data = rng.randbytes(length)
                self.view.pwrite(at, data)
                self.bytes[at : at + length] = data
            case 3:
                self.view.zero(at, length=length, unmap=rng.random() < 0.5)
                self.bytes[at : at + length] = bytes(length)
            case 4:
                at, length = at & ~4095, max(length & ~4095, 4096)
                self.view.discard(at, length=length)
                self.bytes[at : at + length] = bytes(length)
            case 5:
                size = rng.randrange(2, 12) * 512 * KIB
                self.view.resize(size)
                self.bytes = self.bytes[:size] + bytes(size - len(self.bytes[:size]))
            case 6 if rng.random() < 0.2:
                self.view.reset()
                self.bytes = bytearray(self.start)

    def check(self) -> None:
        size = len(self.bytes)
        assert self.view.size == size
        assert self.view.pread(0, length=size) == self.bytes
        for run in self.view.extents():
            if run.kind == "zero":
                assert not any(self.bytes[run.start : run.end])


@pytest.mark.parametrize("where", ["", "directory"])
@pytest.mark.parametrize("late", [False, True])
def test_views_are_right_whatever_is_done_to_them(
    where: str, late: bool, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several by turns; where `late`, all that could be done at once is done in threads."""
    if late:
        for name in ("write_now", "read_now"):
            monkeypatch.setattr(tapcore.ImageFile, name, lambda *_: None)
        monkeypatch.setattr(tapcore.ImageFile, "write_mapped", lambda *_: False)
    before = base.read_bytes()
    rng = random.Random(f"{where}{late}")
    directory = str(base.parent) if where else ""
    with Template(f"qcow2:{base}", directory=directory) as template:
        models = [ViewModel(template.view(), content(base), rng) for _ in range(3)]
        for _ in range(20 * THOROUGH):
            rng.choice(models).step()
            rng.choice(models).check()
        for model in models:
            model.check()
        assert sorted(path.name for path in base.parent.iterdir()) == ["base.qcow2", "parent.qcow2"]
    assert base.read_bytes() == before


def test_what_lies_where(base: Path) -> None:
    """Of the view itself, of the base, of its parent."""
    with Template(f"qcow2:{base}") as template, template.view() as view:
        view.pwrite(256 * KIB, b"v" * 64 * KIB)
        view.zero(320 * KIB, length=64 * KIB)
        assert [
            (run.start // KIB, run.length // KIB, run.depth, run.kind, run.present)
            for run in view.extents()
        ] == [
            (0, 256, 2, "data", True),
            (256, 64, 0, "data", True),
            (320, 64, 0, "zero", True),
            (384, 128, 2, "data", True),
            (512, 1024, 1, "data", True),
            (1536, 2560, 2, "zero", False),
        ]


@contextlib.contextmanager
def faulty(image: FaultyImage) -> Iterator[shared.Template]:
    """A template of a driver for tests, for whoever drives the engines."""
    name = str(home("faulty-base") / "faulty-base")
    options = OpenOptions(private={"images": {name: image}}, locking=False)
    disk = open_disk(DiskId(name, "faulty"), REGISTRY, flags=tapcore.TD_RDONLY, options=options)
    template = shared.Template(disk)
    try:
        yield template
    finally:
        for view in list(template.views):
            view.close()
        close_disk(disk)
    assert (image.closes, image.writes, image.violations) == (1, [], [])


def asked(engine: Engine, sector: int, nb_sectors: int) -> Request:
    """A read, submitted."""
    buf = memoryview(bytearray(nb_sectors * 512))
    request = Request(READ, sector * 512, len(buf), buf, lambda req: None)
    engine.submit(request)
    return request


def test_a_base_in_large_units() -> None:
    """A view is written in sectors, its base read in 4 KiB."""
    data = random.Random(1).randbytes(64 * KIB)
    image = FaultyImage(len(data) // 512, sector_size=4096, data=bytearray(data))
    with faulty(image) as template:
        view = Disk(template.view(Room.of()).disk)
        view.pwrite(5 * 512, b"x" * 512)
        wanted = bytearray(data)
        wanted[5 * 512 : 6 * 512] = b"x" * 512
        assert view.pread(0, length=len(data)) == wanted
        assert view.pread(4 * 512, length=3 * 512) == wanted[4 * 512 : 7 * 512]


def test_where_the_base_fails_each_view_is_told() -> None:
    """Its driver knows of one disk, and does not answer when it has failed."""
    image = FaultyImage(64, late=True, reap_faults={0: OSError(5, "reap")})
    with faulty(image) as template:
        engines = [template.view(Room.of()).engine for _ in range(3)]
        reads = [asked(engine, 0, 8) for engine in engines]
        engines[0].turn()  # submits for all
        for engine in engines[1:]:
            engine.turn()
        ((_, dd, sid),) = template.engine.poll_fds()
        template.engine.readable(dd, sid)
        assert [(read.status, read.pending) for read in reads] == [(-5, 0)] * 3
        image.submit_faults = {image.submit_calls: OSError(28, "submit")}
        reads = [asked(engine, 8, 8) for engine in engines]
        engines[1].turn()
        assert [(read.status, read.pending) for read in reads] == [(-28, 0)] * 3
        assert [engine.in_flight for engine in engines] == [0] * 3


# ---- how much it takes -----------------------------------------------------------------------


def test_many_views_of_a_large_template_take_little(tmp_path: Path) -> None:
    """Counted, not timed: memory, descriptors and objects of each, and none that stay."""
    name = f"qcow2:{tmp_path / 'template.qcow2'}"
    tapcore.create_image(name, 10 * GIB)
    with Template(name) as template:
        template.view().close()
        before = _taken()
        views = [template.view() for _ in range(100)]
        memory, descriptors, objects = (
            (now - then) / 100 for now, then in zip(_taken(), before, strict=True)
        )
        assert memory < MIB / 8
        assert descriptors <= 2
        assert objects < 150
        views[50].pwrite(9 * GIB, b"x")
        assert views[51].pread(9 * GIB, length=1) == b"\0"
        while views:
            views.pop().close()
        assert _taken()[1] == before[1]
        assert _taken()[2] < before[2] + 100  # not one for each


def _taken() -> tuple[int, int, int]:
    gc.collect()
    with open("/proc/self/statm") as status:
        memory = int(status.read().split()[1]) * 4096
    return memory, len(os.listdir("/proc/self/fd")), len(gc.get_objects())


def test_a_full_view_says_so_once_and_the_others_go_on(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Template(f"qcow2:{base}", limit=MIB) as template:
        full, other = template.view(), template.view()
        full.pwrite(0, b"a" * MIB)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                full.pwrite(2 * MIB, b"b")
        full.pwrite(512 * KIB, b"c" * 512 * KIB)  # it has room for that already
        full.zero(0, length=512 * KIB)
        full.pwrite(3 * MIB, b"d" * 512 * KIB)  # in what was given back
        assert full.pread(0, length=4 * MIB) == (
            bytes(512 * KIB)
            + b"c" * 512 * KIB
            + content(base)[MIB : 3 * MIB]
            + b"d" * 512 * KIB
            + bytes(512 * KIB)
        )
        other.pwrite(0, b"o" * MIB)
        full.reset()
        full.pwrite(3 * MIB, b"e" * MIB)
    assert [each.getMessage() for each in caplog.records] == [
        f"qcow2:{base}: a view of it is full: writes to it fail"
    ]


def test_what_is_noted_counts_as_space_too(tmp_path: Path) -> None:
    """Zeroes take no blocks, but single ones, each apart, would fill the memory."""
    store = Store(GIB, Room("", 64 * BLOCK, Total(GIB)), "x")
    for number in range(64):
        assert store.may_zero()
        store.note(2 * number, 1)
    assert not store.may_zero()
    assert not store.may_write(GIB // 2, 512)
    store.close()


def test_all_views_together_have_a_limit() -> None:
    total, used = Total(10 * BLOCK), [0, 0]
    one, other = (Space(8 * BLOCK, total, lambda n=n: used[n]) for n in range(2))  # type: ignore[misc]
    assert one.take(0, 6 * BLOCK)
    used[0] = 6 * BLOCK
    assert not other.take(0, 5 * BLOCK)
    assert not one.take(0, 3 * BLOCK)  # above its own
    assert other.take(1, BLOCK)  # two blocks
    used[1] = 2 * BLOCK
    one.give_back()
    assert other.take(8 * BLOCK, 4 * BLOCK)
    assert total.taken <= total.limit


def test_to_ask_what_is_used_is_rare() -> None:
    asked: list[int] = []

    def used() -> int:
        asked.append(0)
        return len(asked) * GRANT

    space = Space(GIB, Total(GIB), used)
    assert all(space.take(number * BLOCK, BLOCK) for number in range(3 * GRANT // BLOCK))
    assert len(asked) <= 3


@pytest.mark.parametrize("fails", [False, True])
def test_a_file_without_a_name(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file system cannot make one at once: nothing is left however we end."""
    real = os.open

    def refuse(path: str, flags: int, *rest: int, **more: int) -> int:
        if fails and flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "no")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    store = Store(MIB, Room.of(str(tmp_path)), "x")
    assert os.readlink(f"/proc/self/fd/{store.file.fd}").endswith("(deleted)")
    assert os.listdir(tmp_path) == []
    store.close()


def test_a_place_that_will_not_do(base: Path) -> None:
    with (
        Template(f"qcow2:{base}", directory=base.parent / "none") as template,
        pytest.raises(UsageError, match="No such file"),
    ):
        template.view()


# ---- reset, commit, keep ---------------------------------------------------------------------


def test_a_commit_goes_into_the_base_alone(base: Path) -> None:
    parent = (base.parent / "parent.qcow2").read_bytes()
    with Template(f"qcow2:{base}", writable=True) as template:
        view, other = template.view(), template.view()
        view.pwrite(100, b"hello")
        view.zero(600 * KIB, length=MIB)
        view.resize(5 * MIB)
        wanted = view.pread(0, length=5 * MIB)
        with pytest.raises(UsageError, match="has other views"):
            view.commit()
        other.close()
        assert view.commit() == 512
        assert template.size == 5 * MIB
        assert view.pread(0, length=5 * MIB) == wanted
        assert not any(run.present and not run.depth for run in view.extents())
    assert content(base) == wanted
    assert (base.parent / "parent.qcow2").read_bytes() == parent


def test_a_template_is_not_written_without_saying_so(base: Path) -> None:
    with Template(f"qcow2:{base}") as template, template.view() as view:
        view.pwrite(0, b"x")
        with pytest.raises(tapcore.ReadOnlyError, match="is no writable template"):
            view.commit()
        assert view.pread(0, length=1) == b"x"


@pytest.mark.parametrize("name", ["qcow2:kept.qcow2", "raw:kept.img", "vmdk:kept.vmdk"])
@pytest.mark.parametrize("size", [3 * MIB, 4 * MIB, 5 * MIB])
def test_a_kept_view(name: str, size: int, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a child of the base where the format has such parents, else whole."""
    monkeypatch.chdir(base.parent)
    with Template("qcow2:base.qcow2") as template:
        view = template.view()
        view.resize(size)
        view.pwrite(MIB, b"own" * 1000)
        view.zero(600 * KIB, length=64 * KIB)
        wanted = view.pread(0, length=size)
        made = view.keep(name)
        with pytest.raises(tapcore.TapError, match="exists already"):
            view.keep(name)
        view.pwrite(0, b"later")
    with tapcore.open(str(made), readonly=True) as disk:
        assert disk.pread(0, length=size) == wanted


def test_a_view_of_memory_cannot_be_kept(tmp_path: Path) -> None:
    with Template("ram:1M") as template, template.view() as view:
        view.pwrite(0, b"x")
        with pytest.raises(UsageError, match="cannot be kept"):
            view.keep(f"raw:{tmp_path / 'kept.img'}")


# ---- its life --------------------------------------------------------------------------------


@pytest.fixture
def template(base: Path) -> Iterator[Template]:
    with Template(f"qcow2:{base}") as template:
        yield template


def test_a_view_after_its_template(template: Template) -> None:
    view = template.view()
    template.close()
    template.close()
    assert view.closed
    with pytest.raises(tapcore.ClosedError):
        view.pread(0, length=1)
    with pytest.raises(tapcore.ClosedError):
        template.view()


def test_a_view_is_a_file_too(template: Template) -> None:
    with template.view() as view:
        view.seek(512 * KIB - 1)
        assert view.read(2) == b"pb"
        assert "1 views" in repr(template)
    assert template.views == ()


def test_the_driver_of_views_is_in_no_table() -> None:
    assert "view" not in Registry()


def test_a_call_that_was_broken_off_ends_all_views(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have images in common, which may be in the middle of something."""
    one, other = template.view(), template.view()

    def broken(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(one._engine._leaf, "read", broken)
        with pytest.raises(KeyboardInterrupt):
            one.pread(0, length=512)
    with pytest.raises(tapcore.BrokenOffError):
        other.pread(0, length=512)
    for view in (one, other):
        with pytest.raises(tapcore.BrokenOffError):
            view.close()
