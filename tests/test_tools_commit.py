"""`commit` and `rebase`: what reads how afterwards, what is locked, and what a failure leaves."""

import errno
import os
import random
from pathlib import Path

import pytest
from drivers.toy import BLOCK, ToyDriver, change_head, content, fill, head_of

import tapcore
from tapcore import DiskDriver, DiskId, create_image, hookimpl
from tapcore.cli.main import main
from tapcore.interface.access import Access
from tapcore.tools.commit import commit_image
from tapcore.tools.rebase import rebase_image

MIB = 1 << 20
CHANGES = [(3 * BLOCK, b"x" * 5000), (MIB // 2, bytes(2 * BLOCK)), (MIB - 4096, b"end")]


def chain(toys: Path, *, base: str = "base.toy", size: int = MIB, child: int = MIB) -> bytes:
    """A parent full of data and a child on it; returns what the child reads as."""
    create_image(base, size)
    handle = "toy" if base.endswith(".toy") else "aio"
    fill(f"{handle}:{base}", (0, random.Random(1).randbytes(size)))
    create_image("child.toy", child, parent=f"{handle}:{base}")
    fill("toy:child.toy", *[change for change in CHANGES if change[0] < child - 5000])
    with tapcore.open("toy:child.toy", readonly=False) as disk:
        disk.zero(10 * BLOCK, length=20 * BLOCK)
    return content("toy:child.toy")


# ---- commit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["base.toy", "base.img"])
@pytest.mark.parametrize(("size", "child"), [(MIB, MIB), (MIB // 2, MIB), (2 * MIB, MIB)])
def test_both_read_as_the_child_did(toys: Path, base: str, size: int, child: int) -> None:
    wanted = chain(toys, base=base, size=size, child=child)
    with tapcore.open(base, readonly=True) as disk:
        rest = disk.pread(child, length=size)
    done = commit_image("child.toy")
    assert done.parent == DiskId(str(toys / base), "toy" if base == "base.toy" else "aio")
    assert done.emptied
    assert content("toy:child.toy") == wanted
    assert content(base) == wanted + rest
    assert head_of("child.toy")["blocks"] == head_of("child.toy")["zeroes"] == []


def test_zeroes_of_the_child_become_zeroes_of_the_parent(toys: Path) -> None:
    chain(toys)
    commit_image("child.toy")
    assert set(range(10, 30)) <= set(head_of("base.toy")["zeroes"])


def test_a_longer_grandparent_does_not_show_in_a_parent_that_grows(toys: Path) -> None:
    create_image("grand.toy", 2 * MIB)
    fill("toy:grand.toy", (0, b"g" * 2 * MIB))
    create_image("base.toy", MIB, parent="grand.toy")
    create_image("child.toy", 2 * MIB, parent="base.toy")
    fill("toy:child.toy", (0, b"child"))
    wanted = content("toy:child.toy")
    commit_image("child.toy")
    assert content("toy:base.toy") == content("toy:child.toy") == wanted


def test_the_middle_of_a_chain(toys: Path) -> None:
    wanted = chain(toys)
    (toys / "sub").mkdir()
    for name in ("base.toy", "child.toy"):
        os.rename(name, f"sub/{name}")
    create_image("top.toy", MIB, parent="sub/child.toy")
    commit_image("sub/child.toy")
    assert content("toy:top.toy") == wanted
    fill("toy:top.toy", (0, b"top"))
    commit_image("top.toy")
    assert content("toy:sub/child.toy")[:3] == b"top"
    assert content("toy:sub/base.toy")[:3] != b"top"


def test_the_policy_of_the_child_reaches_its_grandparents(
    toys: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    create_image(f"{elsewhere}/grand.toy", MIB)
    (toys / "sub").mkdir()
    create_image("top.toy", MIB)
    create_image("sub/base.toy", MIB, parent="../top.toy")
    create_image("child.toy", MIB, parent="sub/base.toy")
    commit_image("child.toy")  # ../top.toy lies in the child's tree, not in its parent's
    change_head("sub/base.toy", parent=f"{elsewhere}/grand.toy")
    with pytest.raises(tapcore.ReferencePolicyError):
        commit_image("child.toy")


def test_a_parent_in_use_is_left_alone(toys: Path) -> None:
    wanted = chain(toys, base="base.img")
    before = Path("base.img").read_bytes()
    with (
        tapcore.open("aio:base.img", readonly=True),
        pytest.raises(tapcore.ImageLockedError, match="is in use"),
    ):
        commit_image("child.toy")
    assert Path("base.img").read_bytes() == before
    assert content("toy:child.toy") == wanted


def test_a_parent_that_cannot_grow_is_said_before_anything_is_written(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ToyDriver, "td_resize")
    registry = tapcore.Registry()
    registry.register(ToyDriver())
    monkeypatch.setattr("tapcore.interface.registry._default", registry)
    chain(toys, size=MIB // 2)
    before = Path("base.toy").read_bytes()
    with pytest.raises(tapcore.NotSupportedError, match="smaller than its child by 512 KiB"):
        commit_image("child.toy")
    assert Path("base.toy").read_bytes() == before


def test_a_child_that_cannot_be_emptied_keeps_its_data(
    toys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(ToyDriver, "td_make_empty")
    registry = tapcore.Registry()
    registry.register(ToyDriver())
    monkeypatch.setattr("tapcore.interface.registry._default", registry)
    wanted = chain(toys)
    assert main(["commit", "child.toy"]) == 0
    assert "still holds its data" in capsys.readouterr().out
    assert content("toy:base.toy") == content("toy:child.toy") == wanted
    assert head_of("child.toy")["blocks"]


def test_a_failed_write_leaves_the_child_as_it_was(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = chain(toys, base="base.img")

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(tapcore.IOFailedError, match=r"base\.img: write failed: No space left"):
            commit_image("child.toy")
    assert head_of("child.toy")["blocks"]
    assert content("toy:child.toy") == wanted


def test_without_a_parent_there_is_nothing_to_commit_to(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_image("a.toy", MIB)
    assert main(["commit", "a.toy"]) == 1
    assert capsys.readouterr().err == "tapdisk: a.toy: has no parent\n"


def test_a_raw_parent_that_was_guessed_does_not_become_another_format(toys: Path) -> None:
    """A guest that writes a header into its disk must not get it into a file that is probed."""
    chain(toys, base="base.img")
    change_head("child.toy", parent_handle="")
    fill("toy:child.toy", (0, b'{"magic": "TOY"'))
    with pytest.raises(tapcore.IOFailedError, match="not permitted"):
        commit_image("child.toy")
    assert not Path("base.img").read_bytes().startswith(b'{"magic')


def test_a_guessed_parent_with_a_parent_is_refused(toys: Path) -> None:
    create_image("grand.toy", MIB)
    create_image("base.toy", MIB, parent="grand.toy")
    create_image("child.toy", MIB, parent="base.toy")
    change_head("child.toy", parent_handle="")
    with pytest.raises(tapcore.ImageOpenError, match="its own format was only guessed"):
        commit_image("child.toy")


def test_a_parent_that_looks_changed_is_recorded_anew(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A format that knows its parent by a number which changes when the parent is written."""
    told: list[DiskId | None] = []

    class Counting(ToyDriver):
        @hookimpl
        def td_validate_parent(self, dd: DiskDriver, p: DiskDriver, flags: int) -> int:
            return -errno.EINVAL if p.private.writes else 0

        @hookimpl
        def td_set_parent(self, dd: DiskDriver, parent: DiskId | None) -> None:
            told.append(parent)

    registry = tapcore.Registry()
    registry.register(Counting())
    monkeypatch.setattr("tapcore.interface.registry._default", registry)
    chain(toys)
    commit_image("child.toy")
    assert told == [DiskId("base.toy", "toy")]


# ---- rebase ----------------------------------------------------------------------------------


def other_parent(size: int = MIB) -> None:
    """The same as the parent, but for some places."""
    create_image("other.toy", size)
    data = bytearray(content("toy:base.toy").ljust(size, b"\0")[:size])
    data[40 * BLOCK : 41 * BLOCK] = b"o" * BLOCK
    data[44 * BLOCK : 64 * BLOCK] = bytes(20 * BLOCK)
    fill("toy:other.toy", (0, bytes(data)))
    with tapcore.open("toy:other.toy", readonly=False) as disk:
        disk.zero(44 * BLOCK, length=20 * BLOCK)


def test_the_child_reads_as_before_and_holds_only_what_differs(toys: Path) -> None:
    wanted = chain(toys)
    own = set(head_of("child.toy")["blocks"])
    other_parent()
    done = rebase_image("child.toy", "other.toy")
    assert done.parent == DiskId("other.toy", "toy")
    assert content("toy:child.toy") == wanted
    head = head_of("child.toy")
    assert (head["parent"], head["parent_handle"]) == ("other.toy", "toy")
    copied = set(head["blocks"]) - own
    assert copied == set(range(40, 64))  # whole clusters
    assert done.written == len(copied) * BLOCK


@pytest.mark.parametrize("new", [MIB // 4, 2 * MIB])
@pytest.mark.parametrize(("size", "child"), [(MIB, MIB), (MIB // 2, MIB), (2 * MIB, MIB)])
def test_sizes_may_all_differ(toys: Path, size: int, child: int, new: int) -> None:
    wanted = chain(toys, size=size, child=child)
    other_parent(new)
    rebase_image("child.toy", "toy:other.toy")
    assert content("toy:child.toy") == wanted


def test_what_becomes_zero_is_written_as_zeroes(toys: Path) -> None:
    create_image("base.toy", MIB // 2)
    create_image("child.toy", MIB, parent="base.toy")
    create_image("other.toy", MIB)
    fill("toy:other.toy", (0, b"o" * MIB))
    rebase_image("child.toy", "other.toy")
    assert content("toy:child.toy") == bytes(MIB)
    assert head_of("child.toy")["zeroes"] == list(range(MIB // BLOCK))
    assert head_of("child.toy")["blocks"] == []


def test_a_driver_that_leaves_holes_for_zeroes_gets_them_written(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the old parent a hole reads as zeroes; with the new one it would not."""

    class Lazy(ToyDriver):
        @hookimpl
        def td_queue_write_zeroes(self, dd, sector, nb_sectors, may_unmap, cb, id, prv):  # type: ignore[no-untyped-def]
            dd.private.keep(range(sector // 8, -(-(sector + nb_sectors) // 8)))
            return cb(dd, 0, sector, nb_sectors, id, prv)

    registry = tapcore.Registry()
    registry.register(Lazy())
    monkeypatch.setattr("tapcore.interface.registry._default", registry)
    create_image("base.toy", MIB)
    create_image("child.toy", MIB, parent="base.toy")
    create_image("other.toy", MIB)
    fill("toy:other.toy", (BLOCK, b"o" * (MIB - BLOCK)))
    rebase_image("child.toy", "other.toy")
    assert content("toy:child.toy") == bytes(MIB)


def test_to_stand_alone(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = chain(toys, size=MIB // 2)
    own = set(head_of("child.toy")["blocks"])
    assert main(["rebase", "child.toy", "-b", ""]) == 0
    assert capsys.readouterr().out.startswith("the image stands alone; ")
    os.unlink("base.toy")
    assert content("toy:child.toy") == wanted
    assert "parent" not in head_of("child.toy")
    copied = set(head_of("child.toy")["blocks"]) - own
    assert max(copied) == MIB // 2 // BLOCK - 1  # zeroes are left out


def test_an_image_that_stood_alone_gets_a_parent(toys: Path) -> None:
    create_image("base.toy", MIB)
    fill("toy:base.toy", (0, b"b" * MIB))
    create_image("child.toy", MIB)
    fill("toy:child.toy", (0, b"child"))
    wanted = content("toy:child.toy")
    rebase_image("child.toy", "base.toy")
    assert content("toy:child.toy") == wanted


def test_onto_a_grandparent_what_both_share_is_not_read(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_image("grand.toy", MIB)
    fill("toy:grand.toy", (0, b"g" * MIB))
    create_image("base.toy", MIB, parent="grand.toy")
    fill("toy:base.toy", (5 * BLOCK, b"b"))
    create_image("child.toy", MIB, parent="base.toy")
    wanted = content("toy:child.toy")
    read: set[int] = set()
    real = ToyDriver.td_queue_read

    class Watched(ToyDriver):
        @hookimpl
        def td_queue_read(self, dd, sector, nb_sectors, buf, cb, id, prv):  # type: ignore[no-untyped-def]
            read.update(range(sector // 8, (sector + nb_sectors) // 8))
            return real(self, dd, sector, nb_sectors, buf, cb, id, prv)

    registry = tapcore.Registry()
    registry.register(Watched())
    rebase_image("child.toy", f"{toys}/grand.toy", access=Access(registry=registry))
    assert read == {5}
    assert content("toy:child.toy") == wanted


def test_unsafe_only_changes_what_is_recorded(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain(toys)
    own = head_of("child.toy")["blocks"]
    os.rename("base.toy", "moved.toy")
    assert main(["rebase", "child.toy", "-b", "moved.toy"]) == 1
    assert "'base.toy' does not exist" in capsys.readouterr().err
    assert main(["rebase", "--unsafe", "child.toy", "-b", "moved.toy"]) == 0
    assert capsys.readouterr().out == "its parent is toy:moved.toy\n"
    assert head_of("child.toy")["blocks"] == own
    rebase_image("child.toy", "toy:not-there.toy", unsafe=True)
    assert head_of("child.toy")["parent"] == "not-there.toy"
    with pytest.raises(tapcore.UsageError, match="does not exist; write HANDLE:PATH"):
        rebase_image("child.toy", "nothing", unsafe=True)
    rebase_image("child.toy", "", unsafe=True)
    assert "parent" not in head_of("child.toy")


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ("child.toy", "child.toy: cannot be its own parent"),
        ("top.toy", "child.toy: would be its own ancestor"),
        ("ram:64M", "child.toy: a 'ram' disk cannot be a parent"),
        ("nothing", "nothing: No such file or directory"),
        ("toy:rubbish", "rubbish: is not a toy image"),
        ("nope:base.toy", "nope:base.toy: no driver has the handle 'nope'"),
    ],
)
def test_rebase_refuses(
    toys: Path, capsys: pytest.CaptureFixture[str], parent: str, message: str
) -> None:
    chain(toys)
    Path("rubbish").write_bytes(b"rubbish")
    create_image("top.toy", MIB, parent="child.toy")
    before = Path("child.toy").read_bytes()
    assert main(["rebase", "child.toy", "-b", parent]) == 1
    assert capsys.readouterr().err.startswith(f"tapdisk: {message}")
    assert Path("child.toy").read_bytes() == before


def test_a_format_without_parents_is_not_rebased(toys: Path) -> None:
    Path("a.img").write_bytes(bytes(512))
    Path("b.img").write_bytes(bytes(512))
    with pytest.raises(tapcore.NotSupportedError, match="'aio' has no parent that could be"):
        rebase_image("a.img", "b.img")


def test_a_failed_copy_keeps_the_old_parent(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = chain(toys)
    other_parent()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("drivers.toy.Toy.keep", full)
        with pytest.raises(tapcore.IOFailedError, match="No space left"):
            rebase_image("child.toy", "other.toy")
    assert head_of("child.toy")["parent"] == "base.toy"
    assert content("toy:child.toy") == wanted
