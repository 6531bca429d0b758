"""The lane of a disk: true about where content lies, and absent where anything is in its way.

What the lane hands out is compared with what the engine reads. Whether a range is in the lane is
asked, never timed.
"""

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

import tapcore
from hostfs import mounted
from peers import missing
from tapcore.engine.lane import LONG, Lane
from tapcore.files.mapping import content_of, is_mapped
from tapcore.files.windowbudget import BUDGET
from tapcore.tools.check import check_image, check_status

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
FORMATS: list[tuple[str, dict[str, str]]] = [
    ("aio", {}),
    ("sync", {}),
    ("qcow", {}),
    ("qcow2", {}),
    ("qcow2", {"cluster_size": "4K"}),
    ("qcow2", {"extended_l2": "on"}),
    ("qcow2", {"data_file": "data"}),
    ("vmdk", {}),
    ("vmdk", {"subformat": "monolithicFlat"}),
    ("vmdk", {"subformat": "twoGbMaxExtentSparse"}),
    ("vhd", {}),
    ("vhd", {"subformat": "fixed"}),
]


@attrs.define
class Opened:
    """An open disk and its lane."""

    disk: tapcore.Disk

    @property
    def lane(self) -> Lane:
        lane = self.disk._engine.lane
        lane.begin()
        return lane

    def warm(self) -> None:
        """Let everything lie in the page cache, tables in memory, and nothing be old news."""
        for at in range(0, self.disk.size, MIB):
            self.disk.pread(at, length=min(MIB, self.disk.size - at))
        for at in range(0, self.disk.size, 64 * KIB):
            self.disk.pread(at, length=min(4096, self.disk.size - at))
        self.lane.failed()  # what is known of the files is looked at again

    def reads(self, offset: int = 0, length: int = 4096) -> bytes | None:
        """What the lane shows there; None: it is not in the lane."""
        view = self.lane.to_read(offset, length)
        if view is None:
            return None
        return content_of(view) if is_mapped(view) else bytes(view)

    def writes(self, offset: int, content: bytes) -> bool:
        """Write there by way of the lane; False: it is not in the lane."""
        return self.lane.write(offset, memoryview(content)) == 0

    def takes(self, offset: int = 0, length: int = 4096) -> bool:
        """Whether it can be written by way of the lane; it is, with what lies there."""
        inside = 0 <= offset <= self.disk.size - length
        content = self.disk.pread(offset, length=length) if inside else bytes(length)
        return self.writes(offset, content)


@contextmanager
def opened(name: str, **options: Any) -> Iterator[Opened]:
    with tapcore.open(name, **{"readonly": False, **options}) as disk:
        yield Opened(disk)
    assert not BUDGET._open


def created(
    folder: Path, handle: str, options: dict[str, str] | None = None, content: bytes = b""
) -> str:
    """An image, full of random content, or of what is given."""
    name = f"{handle}:{folder / f'disk.{handle}'}"
    options = {
        key: str(folder / value) if key == "data_file" else value
        for key, value in (options or {}).items()
    }
    tapcore.create_image(name, SIZE, options=options)
    with tapcore.open(name, readonly=False) as disk:
        disk.pwrite(0, content or random.Random(4).randbytes(SIZE))
    return name


@pytest.fixture(autouse=True)
def _mapped(tmp_path: Path) -> None:
    """Nothing here means anything on a file system that is not mapped."""
    (tmp_path / "probe").write_bytes(bytes(8192))
    with tapcore.open(f"aio:{tmp_path / 'probe'}", readonly=False) as disk:
        opened = Opened(disk)
        opened.warm()
        if opened.reads() is None:
            missing(f"{tmp_path} lies on a file system that is not mapped")
    os.unlink(tmp_path / "probe")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes no write wait."""
    monkeypatch.setattr("tapcore.files.imagefile.SLOW_WRITE_SECONDS", float("inf"))


# ---- it tells the truth --------------------------------------------------------------------


@pytest.mark.parametrize(("handle", "options"), FORMATS, ids=str)
def test_it_shows_what_the_engine_reads(
    handle: str, options: dict[str, str], tmp_path: Path, rng: random.Random
) -> None:
    with opened(created(tmp_path, handle, options)) as image:
        image.warm()
        inside = 0
        for _ in range(300):
            length = rng.choice([512, 4096, 4096, 8 * KIB, 64 * KIB])
            offset = rng.randrange(0, SIZE - length + 1, 512)
            shown = image.reads(offset, length)
            inside += shown is not None
            assert shown in (None, image.disk.pread(offset, length=length))
        assert inside > 100


@pytest.mark.parametrize(("handle", "options"), FORMATS, ids=str)
def test_what_is_written_there_is_what_the_disk_holds(
    handle: str, options: dict[str, str], tmp_path: Path, rng: random.Random
) -> None:
    """Beside writes, zeroes, discards and flushes of the engine."""
    name = created(tmp_path, handle, options)
    with opened(name) as image:
        model = bytearray(image.disk.pread(0, length=SIZE))
        image.disk.pwrite(0, model[:512])  # the first change, which prepares for others
        image.warm()
        inside = 0
        for step in range(400):
            length = rng.choice([512, 4096, 4096, 8 * KIB])
            offset = rng.randrange(0, SIZE - length + 1, 512)
            content = rng.randbytes(length)
            match rng.randrange(12):
                case 0:
                    image.disk.pwrite(offset, content)
                case 1:
                    content = bytes(length)
                    image.disk.zero(offset, length=length)
                case 2:
                    image.disk.flush()
                    continue
                case 3:
                    image.disk.discard(offset, length=length)
                    content = image.disk.pread(offset, length=length)
                case _:
                    if not image.writes(offset, content):
                        continue
                    inside += 1
            model[offset : offset + length] = content
            shown = image.reads(offset, length)
            assert shown in (None, content), step
        assert inside > 50
        assert image.disk.pread(0, length=SIZE) == model
    with tapcore.open(name, readonly=True) as disk:
        assert disk.pread(0, length=SIZE) == model
    if handle in ("qcow2", "vmdk"):
        assert not check_status(check_image(name))


def test_through_a_chain(tmp_path: Path) -> None:
    """What lies in a parent is in the lane; what lies nowhere is zeroes without a file."""
    base = f"qcow2:{tmp_path / 'base.qcow2'}"
    tapcore.create_image(base, 2 * MIB)
    with tapcore.open(base, readonly=False) as disk:
        disk.pwrite(0, b"b" * MIB)
    vmdk = f"vmdk:{tmp_path / 'base.vmdk'}"
    tapcore.create_image(vmdk, SIZE)
    with tapcore.open(vmdk, readonly=False) as disk:
        disk.pwrite(0, b"b" * MIB)
    for handle, parent in (("qcow2", base), ("vmdk", vmdk)):
        child = f"{handle}:{tmp_path / 'child'}.{handle}"
        tapcore.create_image(child, SIZE, parent=parent)
        with opened(child) as image:
            image.disk.pwrite(64 * KIB, b"c" * 64 * KIB)
            image.warm()
            assert image.reads(0) == b"b" * 4096
            assert image.reads(64 * KIB) == b"c" * 4096
            assert image.reads(128 * KIB) == b"b" * 4096
            assert image.reads(MIB + 64 * KIB) == bytes(4096)
            view = image.lane.to_read(MIB + 64 * KIB, 4096)
            assert view is not None
            assert not is_mapped(view)
            # behind the end of a shorter parent, where the engine knows what to do
            assert image.reads(2 * MIB - 2048) in (None, bytes(4096))
            assert image.reads(3 * MIB) == (None if handle == "qcow2" else bytes(4096))
            assert not image.takes(0)  # it would have to be copied first
            assert image.takes(64 * KIB)


# ---- where there is none -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"), [(1, 4096), (0, 100), (511, 512), (SIZE, 512), (SIZE - 512, 1024)]
)
def test_neither_parts_of_sectors_nor_past_the_end(
    offset: int, length: int, tmp_path: Path
) -> None:
    with opened(created(tmp_path, "aio")) as image:
        image.warm()
        assert image.reads(offset, length) is None
        assert not image.takes(offset, length)


def test_not_with_direct_io(tmp_path: Path) -> None:
    with opened(created(tmp_path, "aio"), cache="none") as image:
        image.warm()
        assert not image.lane.reads
        assert not image.lane.writes
        assert (image.reads(), image.takes()) == (None, False)


def test_not_for_who_salvages(tmp_path: Path) -> None:
    with opened(created(tmp_path, "qcow2"), salvage=True, readonly=True) as image:
        assert not image.lane.reads


def test_not_under_a_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tapcore.interface import registry

    class Around:
        """Sees everything, and changes nothing."""

    monkeypatch.setitem(registry.default_registry()._known_filters, "around", Around())
    with opened(created(tmp_path, "aio"), filters=["around"]) as image:
        assert (image.lane.reads, image.lane.writes) == (False, False)


def test_nothing_is_written_to_a_disk_that_is_only_read(tmp_path: Path) -> None:
    with opened(created(tmp_path, "aio"), readonly=True) as image:
        image.warm()
        assert image.reads() is not None
        assert not image.lane.writes
        assert not image.takes()


def test_not_in_a_range_that_somebody_holds(tmp_path: Path) -> None:
    """Who reads, changes and writes a sector must not lose what is written meanwhile."""
    with opened(created(tmp_path, "aio")) as image:
        image.warm()
        hold = image.disk._engine.order.hold(64, 65)
        assert image.reads(64 * 512) is not None
        assert not image.takes(64 * 512)
        assert not image.takes(0)  # nor anywhere else: it is for a moment
        image.disk._engine.order.release(hold)
        assert image.takes(64 * 512)


class Anything:
    """A guard to which everything looks well."""

    head, tail = 68 * KIB, 1024

    def reason(self, head: bytes, tail: bytes, size: int) -> str:
        return ""


def test_not_at_the_ends_of_a_disk_that_was_probed(tmp_path: Path) -> None:
    """Written so that it looks like another format, it would be opened as that."""
    with opened(created(tmp_path, "aio")) as image:
        image.warm()
        image.disk._engine.guard = Anything()
        image.disk._engine.refresh()
        assert image.reads(0) is not None
        assert not image.takes(0)
        assert not image.takes(64 * KIB)
        assert not image.takes(SIZE - 4096)
        assert image.takes(MIB)


def test_copy_on_read_goes_by_way_of_the_engine(tmp_path: Path) -> None:
    base, child = created(tmp_path, "aio"), f"qcow2:{tmp_path / 'child'}"
    tapcore.create_image(child, SIZE, parent=base)
    with opened(child, copy_on_read=True) as image:
        assert image.reads(MIB) is None
        image.disk.pread(MIB, length=64 * KIB)
        assert image.reads(MIB) is not None  # it is the child's by now
        assert image.reads(2 * MIB) is None


def test_neither_encrypted_nor_compressed(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    name = f"qcow2:{tmp_path / 'encrypted'}"
    options = {"encrypt.format": "luks", "encrypt.key-file": str(key)}
    tapcore.create_image(name, SIZE, options=options)
    with opened(name, keys=b"secret") as image:
        image.disk.pwrite(0, b"s" * MIB)
        image.warm()
        assert (image.reads(), image.takes()) == (None, False)
    name = f"qcow2:{tmp_path / 'compressed'}"
    tapcore.create_image(name, SIZE)
    with opened(name) as image:
        image.disk.write_compressed(0, b"s" * MIB)
        image.disk.pwrite(2 * MIB, b"t" * 64 * KIB)
        image.warm()
        assert (image.reads(), image.takes()) == (None, False)
        assert (image.reads(2 * MIB), image.takes(2 * MIB)) == (b"t" * 4096, True)


def test_not_into_a_cluster_that_a_snapshot_shares(tmp_path: Path) -> None:
    name = created(tmp_path, "qcow2")
    with opened(name) as image:
        image.disk.pwrite(0, b"1" * 4096)
        image.warm()
        assert image.takes(0)
        leaf = image.disk._leaf
        leaf.drv.td_snapshot_create(leaf, "s")
        image.warm()
        assert image.reads(0) == b"1" * 4096
        assert not image.takes(0)
        image.disk.pwrite(0, b"2" * 4096)  # copied by that
        image.warm()
        assert image.writes(0, b"3" * 4096)
        assert image.reads(0) == b"3" * 4096
    with tapcore.open(name, snapshot="s", readonly=True) as disk:
        assert disk.pread(0, length=4096) == b"1" * 4096


@pytest.mark.parametrize("handle", ["qcow", "qcow2", "vmdk", "vhd"])
def test_not_where_nothing_is_allocated(handle: str, tmp_path: Path) -> None:
    name = f"{handle}:{tmp_path / 'disk'}"
    tapcore.create_image(name, SIZE)
    with opened(name) as image:
        assert not image.takes(0)
        image.disk.pwrite(0, b"x" * 64 * KIB)
        image.warm()
        assert image.takes(0)
        assert not image.takes(2 * MIB)
        assert image.reads(3 * MIB) in (None, bytes(4096))


def test_not_before_the_first_change_was_prepared(tmp_path: Path) -> None:
    """An image says that it is in use before it changes."""
    with opened(created(tmp_path, "qcow2")) as image:
        image.warm()
        assert image.reads(0) is not None
        assert not image.takes(0)


def test_not_while_a_cluster_is_busy(tmp_path: Path) -> None:
    with opened(created(tmp_path, "qcow2")) as image:
        image.disk.pwrite(0, b"x" * 4096)
        image.warm()
        assert image.takes(MIB)
        private = image.disk._leaf.private
        private.busy[7] = [object()]
        assert not image.takes(MIB)
        private.busy.clear()


def test_not_while_a_bitmap_has_to_be_told(tmp_path: Path) -> None:
    if os.system("qemu-img --version > /dev/null 2>&1"):
        missing("there is no qemu-img")
    name = created(tmp_path, "qcow2")
    path = name.partition(":")[2]
    assert not os.system(f"qemu-img bitmap --add --enable {path} b")
    with opened(name) as image:
        image.disk.pwrite(0, b"x" * 4096)
        image.warm()
        assert image.reads(0) is not None
        assert not image.takes(0)


def test_a_long_read_with_a_hole_in_it_is_left_to_the_engine(tmp_path: Path) -> None:
    """Which tells the client so."""
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.write(b"d" * MIB)
        file.truncate(SIZE)
    with opened(f"aio:{path}") as image:
        image.warm()
        assert image.reads(0, LONG) == b"d" * LONG
        assert image.reads(MIB - 4096, LONG) is None
        assert image.reads(2 * MIB, LONG) is None


def test_what_cannot_be_written_at_once_is_the_engine_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel holds writers up, the disk is full, or the call was cut short."""
    with opened(created(tmp_path, "aio")) as image:
        assert image.writes(0, b"1" * 4096)
        monkeypatch.setattr(tapcore.ImageFile, "write_mapped", lambda *_: False)
        for answer in (None, -errno.ENOSPC, -errno.EIO):
            monkeypatch.setattr(tapcore.ImageFile, "write_now", lambda *_, res=answer: res)
            assert not image.writes(0, b"2" * 4096)


def test_a_resized_disk_has_another_lane(tmp_path: Path) -> None:
    with opened(created(tmp_path, "aio")) as image:
        image.warm()
        image.disk.resize(2 * MIB)
        assert image.reads(2 * MIB) is None
        assert image.reads(MIB) is not None
        image.disk.resize(8 * MIB)
        assert image.reads(MIB) is not None
        assert image.writes(4 * MIB, b"n" * 4096)


def test_a_file_that_shrinks_is_told_once_and_not_read_any_more(tmp_path: Path) -> None:
    name = created(tmp_path, "aio")
    with opened(name) as image:
        image.warm()
        lane = image.lane
        assert lane.holds()
        assert image.reads(0) is not None
        assert lane.holds()
        kept = image.reads(MIB)
        assert kept is not None
        os.truncate(name.partition(":")[2], 2 * MIB + 100)
        assert not lane.holds()
        assert lane.losses == 1
        assert lane.holds()
        assert image.reads(0) is None


def test_on_a_file_system_that_is_not_mapped(tmp_path: Path) -> None:
    with mounted("ramfs", tmp_path / "fs") as where, opened(created(where, "aio")) as image:
        image.warm()
        assert image.reads() is None
        assert image.writes(0, b"w" * 4096)  # which needs no mapping
        assert image.disk.pread(0, length=4096) == b"w" * 4096
