"""The file that was allowed is the file that is opened, whatever becomes of its name in between.

A name in an image leads to a file inside; at the worst moment, and in a race, it is made to lead to
one outside. That one is never read, and never written.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tapcore
from tapcore.interface.boundfile import BoundFile
from tapcore.opening import binding
from tapcore.opening.binding import bind, bind_real
from tapcore.opening.ownopening import OpenedByItself
from tapcore.tools.commit import commit_image
from tapcore.tools.rebase import rebase_image

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)
SIZE = 1 << 20
SECRET = b"outside: never to be seen" * 20
OURS = b"inside: what was allowed.." * 20


def image_with(name: str, content: bytes) -> None:
    tapcore.create_image(name, SIZE)
    with tapcore.open(name, readonly=False) as disk:
        disk.pwrite(0, content)


class World:
    """A folder that may be read, one that may not, and a name that leads from one to the other."""

    def __init__(self, root: Path, kind: str, way: str) -> None:
        self.home, self.outside = root / "home", root / "outside"
        for folder in (self.home / "real", self.outside):
            folder.mkdir(parents=True)
        self.kind = kind
        handle = "qcow2" if kind == "parent" else "aio"
        image_with(f"{handle}:{self.home}/real/file", OURS)
        image_with(f"{handle}:{self.outside}/file", SECRET)
        if way == "file":
            self.link, named = self.home / "file", "file"
            self._inside, self._outside = "real/file", str(self.outside / "file")
        else:
            self.link, named = self.home / "folder", "folder/file"
            self._inside, self._outside = "real", str(self.outside)
        self.link.symlink_to(self._inside)
        self.image = str(self.home / "image")
        self._make(named)

    def _make(self, named: str) -> None:
        if self.kind == "parent":
            tapcore.create_image(f"qcow2:{self.image}", SIZE, parent=f"qcow2:{named}")
            with tapcore.open(f"qcow2:{self.image}", readonly=False) as disk:
                disk.pwrite(SIZE // 2, b"the child's")
        elif self.kind == "data":
            options = {"data_file": f"{self.home}/{named}"}
            tapcore.create_image(f"qcow2:{self.image}", SIZE, options=options, force=True)
            with tapcore.open(f"qcow2:{self.image}", readonly=False) as disk:
                disk.pwrite(0, OURS)
        else:
            Path(self.image).write_text(
                "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
                f'createType="monolithicFlat"\nRW {SIZE // 512} FLAT "{named}" 0\n'
                'ddb.adapterType = "ide"\nddb.geometry.cylinders = "2"\n'
                'ddb.geometry.heads = "16"\nddb.geometry.sectors = "63"\n'
            )

    @property
    def name(self) -> str:
        return f"vmdk:{self.image}" if self.kind == "extent" else f"qcow2:{self.image}"

    def lead(self, where: str) -> None:
        """Let the name lead inside, or outside, from one moment to the next."""
        between = f"{self.link}.new"
        os.symlink(self._outside if where == "outside" else self._inside, between)
        os.rename(between, self.link)


@pytest.fixture(params=["parent", "data", "extent"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["file", "folder"])
def world(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> World:
    return World(tmp_path, kind, request.param)


@contextlib.contextmanager
def swapped(world: World, moment: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The name leads outside from a moment on: after its place was judged, or the file found."""
    done: list[str] = []

    def find(real: str, path: str) -> BoundFile:
        if moment == "judged" and not done:
            done.append(moment)
            world.lead("outside")
        found = bind_real(real, path)
        if moment == "found":
            done.append(moment)
            world.lead("outside")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(binding, "bind_real", find)
        yield done
    assert done


@pytest.mark.parametrize("moment", ["judged", "found"])
def test_a_copy_never_holds_what_lies_outside(
    world: World, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.img"
    with swapped(world, moment, monkeypatch), contextlib.suppress(tapcore.TapError):
        tapcore.convert_image(world.name, copy)
    if copy.exists():
        assert copy.read_bytes()[: len(OURS)] == OURS
    with pytest.raises(tapcore.ReferencePolicyError):  # the name leads outside by now
        tapcore.open(world.name, readonly=True)


@pytest.mark.parametrize("moment", ["judged", "found"])
def test_what_was_found_inside_is_what_is_read(
    world: World, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with swapped(world, moment, monkeypatch), contextlib.suppress(tapcore.TapError):
        with tapcore.open(world.name, readonly=True) as disk:
            assert disk.pread(0, length=len(OURS)) == OURS
        return
    assert moment == "judged"  # a refusal is right where it was not found yet


@pytest.mark.parametrize("kind", ["parent"], indirect=True)
@pytest.mark.parametrize("moment", ["judged", "found"])
def test_commit_writes_into_the_parent_that_was_allowed(
    world: World, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = (world.outside / "file").read_bytes()
    with swapped(world, moment, monkeypatch), contextlib.suppress(tapcore.TapError):
        commit_image(world.name)
    assert (world.outside / "file").read_bytes() == secret


@pytest.mark.parametrize("kind", ["parent"], indirect=True)
@pytest.mark.parametrize("moment", ["judged", "found"])
def test_rebase_copies_nothing_from_outside(
    world: World, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with swapped(world, moment, monkeypatch), contextlib.suppress(tapcore.TapError):
        rebase_image(world.name, "")
    assert SECRET not in Path(world.image).read_bytes()


@pytest.mark.parametrize("kind", ["parent"], indirect=True)
def test_the_image_that_is_swapped_itself_gets_no_other_folder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own folder is where the opened file lies, not where its name leads afterwards."""
    user = world.home.parent / "named-by-the-user"
    user.symlink_to(world.image)
    world.lead("outside")
    real_open = BoundFile.open

    def lead_away(self: BoundFile, flags: int) -> int:
        fd = real_open(self, flags)
        user.unlink(missing_ok=True)
        user.symlink_to(world.outside / "file")
        return fd

    monkeypatch.setattr(BoundFile, "open", lead_away)
    with pytest.raises(tapcore.ReferencePolicyError):
        tapcore.open(f"qcow2:{user}", readonly=True)


def test_a_driver_that_opens_the_path_itself_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.write_bytes(OURS)
    outside.write_bytes(SECRET)
    bound = bind_real(str(inside), str(inside))
    for opened, another in ((inside, False), (outside, True)):
        watch = OpenedByItself(bound)
        with opened.open("rb"):
            assert watch.another_file() == another
    os.replace(outside, inside)
    assert OpenedByItself(bound).another_file()
    bound.let_go()


def test_a_file_without_a_name_has_no_folder(tmp_path: Path) -> None:
    """An image that was deleted, or lies in memory only, names nothing: "/" is not its folder."""
    fd = os.memfd_create("image")
    try:
        found = bind(f"/proc/self/fd/{fd}")
        assert found.home == ""
        found.let_go()
        tapcore.create_image(f"qcow2:{tmp_path}/child", SIZE, options={})
        base = tmp_path / "base.qcow2"
        image_with(f"qcow2:{base}", SECRET)
        tapcore.create_image(f"qcow2:{tmp_path}/child", None, parent=f"qcow2:{base}", force=True)
        os.write(fd, (tmp_path / "child").read_bytes())
        with pytest.raises(tapcore.ReferencePolicyError):
            tapcore.open(f"qcow2:/proc/self/fd/{fd}", readonly=True)
        tapcore.open(f"qcow2:/proc/self/fd/{fd}", readonly=True, parents=tmp_path).close()
    finally:
        os.close(fd)


def test_links_at_a_judged_place_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "folder/link").symlink_to("file")
    bind_real(f"{tmp_path}/folder/file", "x").let_go()
    for place in ("link/file", "folder/link"):
        with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
            bind_real(f"{tmp_path}/{place}", "x")


# ---- a race ------------------------------------------------------------------------------------

SWAPPER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
one, other = (arg.encode() for arg in sys.argv[1:])
print("ready", flush=True)
while True:
    if libc.renameat2(-100, one, -100, other, 2):
        sys.exit(1)
"""


@contextlib.contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    """A process that exchanges two names as fast as it can."""
    command = [sys.executable, "-c", SWAPPER, str(one), str(other)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as swapper:
        try:
            assert swapper.stdout is not None
            assert swapper.stdout.readline() == b"ready\n"
            yield
        finally:
            swapper.kill()


def test_in_a_race_nothing_from_outside_is_copied(world: World, tmp_path: Path) -> None:
    other = world.link.with_name("other")
    other.symlink_to(world._outside)
    copy = tmp_path / "copy.img"
    counts = dict.fromkeys(("copied", "refused", "leaked"), 0)
    with swapping(world.link, other):
        for _ in range(5 * THOROUGH):
            try:
                tapcore.convert_image(world.name, copy, force=True)
            except tapcore.TapError:
                counts["refused"] += 1
                continue
            head = copy.read_bytes()[: len(OURS)]
            counts["copied" if head == OURS else "leaked"] += 1
    print(world.kind, counts)
    assert counts["leaked"] == 0
