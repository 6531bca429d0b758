"""Bitmaps made, changed and removed here are what QEMU makes of the same, also after a crash."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from qcow2bitmaps import Entries, add, assert_same, dirty, flags_by_qemu, listed
from qcow2crashes import THOROUGH, Crashes, Variant, small

import tapcore
from qcow2tools import MIB, assert_clean, create, qemu_img, qemu_io
from tapcore.testkit import NEVER, State, Workload
from tapcore.tools.bitmaps import (
    add_bitmap,
    clear_bitmap,
    enable_bitmap,
    list_bitmaps,
    merge_bitmap,
    remove_bitmap,
)
from tapcore.tools.convert import convert_image


def changed(image: Path, rng: random.Random, size: int) -> None:
    """Some content, written by QEMU, which records it."""
    writes = [
        f"write -q {at} {min(rng.choice((512, 70_144)), size - at)}"
        for at in (rng.randrange(size // 512) * 512 for _ in range(5))
    ]
    qemu_io(image, *writes)


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
def test_changes_in_turn_with_qemu(cluster_size: int, tmp_path: Path, rng: random.Random) -> None:
    """The same is done to two images, by qemu-img and here; each reads what the other wrote."""
    size = 5 * MIB + 512 * rng.randrange(100)
    ours = create(tmp_path / "ours.qcow2", size, cluster_size=cluster_size)
    theirs = tmp_path / "theirs.qcow2"
    shutil.copy(ours, theirs)
    names = ["one", "two", "ünicode", "x" * 600]
    for _ in range(12 * THOROUGH):
        there = [*listed(ours)]
        missing = [name for name in names if name not in there]
        what = rng.choice(("add", "add", "write", "clear", "enable", "disable", "merge", "remove"))
        if what == "add" and missing:
            name, granularity = rng.choice(missing), 1 << rng.randrange(9, 20)
            add_bitmap(str(ours), name, granularity=granularity, enabled=rng.random() < 0.8)
            flags = () if listed(ours)[name].enabled else ("--disable",)
            add(theirs, name, granularity, *flags)
        elif what == "write":
            seed = rng.random()
            for image in (ours, theirs):
                changed(image, random.Random(seed), size)
        elif what == "merge" and len(there) > 1:
            source, name = rng.sample(there, 2)
            merge_bitmap(str(ours), name, source)
            qemu_img("bitmap", "--merge", source, theirs, name)
        elif there and what in ("clear", "enable", "disable", "remove"):
            name = rng.choice(there)
            if what in ("enable", "disable"):
                enable_bitmap(str(ours), name, enabled=what == "enable")
            else:
                {"clear": clear_bitmap, "remove": remove_bitmap}[what](str(ours), name)
            qemu_img("bitmap", f"--{what}", theirs, name)
        assert_clean(ours)
        assert flags_by_qemu(ours) == flags_by_qemu(theirs)
    assert_same(ours, *listed(ours))
    for name in listed(ours):
        assert dirty(ours, name) == dirty(theirs, name)


def test_what_the_size_of_a_bit_is_by_default_is_as_in_qemu(tmp_path: Path) -> None:
    for cluster_size in (512, 4096, 65536, 2 * MIB):
        image = create(tmp_path / f"{cluster_size}.qcow2", 8 * MIB, cluster_size=cluster_size)
        add_bitmap(str(image), "ours")
        qemu_img("bitmap", "--add", image, "theirs")
        ours, theirs = listed(image).values()
        assert ours.granularity == theirs.granularity


def test_an_open_disk_records_in_what_was_added(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 4 * MIB)
    with tapcore.open(f"qcow2:{image}", readonly=False) as disk:
        disk.pwrite(0, b"x" * 512)
        with disk.driver() as dd:
            dd.drv.td_bitmap_add(dd, "one", 4096, True)
        disk.pwrite(MIB, b"x" * 512)
        with disk.driver() as dd:
            dd.drv.td_bitmap_add(dd, "two", 4096, True)
        disk.pwrite(2 * MIB, b"x" * 512)
        with disk.driver() as dd:
            dd.drv.td_bitmap_enable(dd, "one", False)
        disk.pwrite(3 * MIB, b"x" * 512)
    assert dirty(image, "one") == [(MIB, 4096), (2 * MIB, 4096)]
    assert dirty(image, "two") == [(2 * MIB, 4096), (3 * MIB, 4096)]
    assert_same(image, "one", "two")
    assert_clean(image)


def test_a_bitmap_of_another_image_is_merged(tmp_path: Path) -> None:
    one = create(tmp_path / "one.qcow2", 4 * MIB)
    other = create(tmp_path / "other.qcow2", 4 * MIB)
    small_one = create(tmp_path / "small.qcow2", MIB)
    for image in (one, other, small_one):
        add_bitmap(str(image), "b")
    qemu_io(other, "write -q 1M 64k")
    merge_bitmap(str(one), "b", "b", source_image=str(other))
    assert dirty(one, "b") == [(MIB, 65536)]
    with pytest.raises(tapcore.UsageError, match="different sizes"):
        merge_bitmap(str(one), "b", "b", source_image=str(small_one))


def test_what_cannot_be_done_changes_nothing(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 4 * MIB)
    add_bitmap(str(image), "one")
    before = image.read_bytes()
    refusals: list[Callable[[], object]] = [
        lambda: add_bitmap(str(image), "one"),
        lambda: add_bitmap(str(image), "two", granularity=1000),
        lambda: add_bitmap(str(image), "two", granularity=256),
        lambda: add_bitmap(str(image), ""),
        lambda: add_bitmap(str(image), "x" * 1024),
        lambda: remove_bitmap(str(image), "two"),
        lambda: clear_bitmap(str(image), "two"),
        lambda: merge_bitmap(str(image), "two", "one"),
        lambda: merge_bitmap(str(image), "one", "two"),
    ]
    for refused in refusals:
        with pytest.raises(tapcore.UsageError):
            refused()
        assert image.read_bytes() == before
    old = create(tmp_path / "old.qcow2", MIB, compat="0.10")
    with pytest.raises(tapcore.NotSupportedError, match=r"amend compat=1\.1"):
        add_bitmap(str(old), "one")


def test_an_inconsistent_bitmap_can_only_be_removed(tmp_path: Path) -> None:
    image = create(tmp_path / "disk.qcow2", 4 * MIB)
    add(image, "good")
    add(image, "bad")
    entries = Entries(image)
    entries.set(1, flags=3)
    entries.save()
    for refused in (clear_bitmap, enable_bitmap):
        with pytest.raises(tapcore.UsageError, match="inconsistent"):
            refused(str(image), "bad")
    remove_bitmap(str(image), "bad")
    assert [bitmap.name for bitmap in list_bitmaps(str(image))] == ["good"]
    assert_clean(image)


def test_a_directory_that_nobody_kept_up_is_begun_anew(tmp_path: Path) -> None:
    """A program that knows no bitmaps wrote the image: its clusters may be anyone's by now."""
    image = create(tmp_path / "disk.qcow2", 4 * MIB)
    add(image, "old")
    content = bytearray(image.read_bytes())
    content[88:96] = bytes(8)  # autoclear
    image.write_bytes(content)
    add_bitmap(str(image), "new")
    assert [*listed(image)] == ["new"]
    assert_same(image, "new")
    assert json.loads(qemu_img("info", "--output=json", image))["format"] == "qcow2"


@pytest.mark.parametrize("target", ["copy.qcow2", "copy-512.qcow2"])
def test_a_copy_has_the_bitmaps_too(target: str, tmp_path: Path, rng: random.Random) -> None:
    image = create(tmp_path / "disk.qcow2", 4 * MIB)
    add(image, "one", 4096)
    add(image, "two")
    qemu_img("bitmap", "--disable", image, "two")
    changed(image, rng, 4 * MIB)
    options = {"cluster_size": "512"} if "512" in target else {}
    copy = tmp_path / target
    convert_image(str(image), str(copy), options=options, bitmaps=True)
    assert listed(copy) == listed(image)
    for name in ("one", "two"):
        assert dirty(copy, name) == dirty(image, name)
    assert_same(copy, "one", "two")
    assert_clean(copy)
    with pytest.raises(tapcore.TapError, match="no bitmaps"):
        convert_image(str(image), str(tmp_path / "copy.vmdk"), bitmaps=True)
    assert not (tmp_path / "copy.vmdk").exists()


# ---- crashes ---------------------------------------------------------------------------------


@attrs.define
class Bitmaps:
    """Bitmaps that come and go during the work.

    Attributes:
        made: name: the moment at which it was there.
        gone: name: the moment at which removing it began.
    """

    made: dict[str, int] = attrs.field(factory=dict)
    gone: dict[str, int] = attrs.field(factory=dict)

    def change(self, work: Workload) -> None:
        """One change."""
        dd = work.disk.state.disks
        there = [name for name in self.made if name not in self.gone]
        what = work.rng.choice(("add", "add", "clear", "enable", "merge", "remove"))
        if what == "add" and len(there) < 4:
            name = f"b{len(self.made)}"
            dd.drv.td_bitmap_add(dd, name, 1 << work.rng.randrange(9, 17), work.rng.random() < 0.7)
            self.made[name] = work.recording.now()
        elif there and what != "add":
            name = work.rng.choice(there)
            if what == "remove":
                self.gone[name] = work.recording.now()
                dd.drv.td_bitmap_remove(dd, name)
            elif what == "clear":
                dd.drv.td_bitmap_clear(dd, name)
            elif what == "enable":
                dd.drv.td_bitmap_enable(dd, name, work.rng.random() < 0.5)
            else:
                dd.drv.td_bitmap_merge(dd, name, [(work.rng.randrange(64) * 512, 70_144)])

    def look(self, image: Path, state: State) -> None:
        """Those are there that must be, and can be read, or say that they cannot."""
        with tapcore.open(f"qcow2:{image}", readonly=True) as disk:
            there = {bitmap.name: bitmap for bitmap in disk.bitmaps()}
            for name, bitmap in there.items():
                if not bitmap.inconsistent:
                    disk.bitmap_ranges(name)
        for name, done in self.made.items():
            if done <= state.moment < self.gone.get(name, NEVER):
                assert name in there, f"{state}: bitmap {name} is lost"


@pytest.mark.parametrize(
    "variant",
    [
        small("512", {"cluster_size": 512, "refcount_bits": 8}, size=MIB, batches=50, states=14),
        small("4096", {"cluster_size": 4096}, batches=50, states=14),
        small("lazy", {"cluster_size": 4096, "lazy_refcounts": "on"}, batches=50, states=14),
    ],
    ids=lambda variant: variant.name,
)
def test_a_crash_while_bitmaps_come_and_go(
    variant: Variant, tmp_path: Path, rng: random.Random
) -> None:
    crashes = Crashes(variant, tmp_path, rng)
    bitmaps = Bitmaps()
    crashes.record(bitmaps.change)
    crashes.look_everywhere(lambda state: bitmaps.look(crashes.copy, state))
