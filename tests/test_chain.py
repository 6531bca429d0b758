"""Chains: which files an image may name, how parents are opened, and that all is given back."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from drivers.late import MAGIC, Late, LateImage
from enginebench import open_fds

from tapcore import (
    TD_RDONLY,
    DiskId,
    DriverError,
    ImageFormatError,
    ImageOpenError,
    IOFailedError,
    OpenOptions,
    ReferencePolicyError,
    Registry,
    TapError,
    UsageError,
)
from tapcore.constants import MAX_CHAIN_DEPTH, MAX_DISK_SECTORS, VDISK_READONLY
from tapcore.engine import engine_of
from tapcore.errors import printable
from tapcore.interface.models import TdState
from tapcore.interface.policy import ReferencePolicy
from tapcore.opening.chain import close_disk, open_disk

HEAD = MAGIC + b"late\0"


@attrs.define
class World:
    """A directory with images whose content lives in memory, by real path."""

    root: Path
    registry: Registry
    images: dict[str, LateImage] = attrs.field(factory=dict)
    closed: list[LateImage] = attrs.field(factory=list)

    def image(
        self, name: str, parent: str | None = None, handle: str = "late", **fields: object
    ) -> LateImage:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(HEAD)
        image = LateImage(8, **fields)  # type: ignore[arg-type]
        if parent is not None:
            image.parent = DiskId(parent, handle)
        self.images[os.path.realpath(path)] = self.images[str(path)] = image
        return image

    def open(
        self,
        name: str,
        *words: str,
        flags: int = TD_RDONLY,
        handle: str = "late",
        may_probe: bool = True,
        with_parents: bool = True,
    ) -> TdState:
        options = OpenOptions(
            references=ReferencePolicy.from_words(words) if words else None,
            private={"images": self.images, "closed": self.closed},
        )
        return open_disk(
            DiskId(str(self.root / name), handle),
            self.registry,
            flags=flags,
            options=options,
            may_probe=may_probe,
            with_parents=with_parents,
        )

    def names(self, name: str, *words: str) -> list[str]:
        """Open and close; the chain's paths."""
        disk = self.open(name, *words)
        names = [dd.name for dd in disk.disks.chain()]
        close_disk(disk)
        return names

    def refused(self, name: str, *words: str, flags: int = TD_RDONLY) -> str:
        """The one line that refusing it says; everything that was opened is closed again."""
        before = open_fds()
        opens = sum(len(image.opens) for image in set(self.images.values()))
        closes = len(self.closed)
        with pytest.raises(TapError) as caught:
            self.open(name, *words, flags=flags)
        assert open_fds() == before
        opened = sum(len(image.opens) for image in set(self.images.values())) - opens
        assert len(self.closed) - closes == opened
        text = str(caught.value)
        assert text.isprintable(), text
        self.error = caught.value
        return text

    error: TapError = attrs.field(init=False)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    registry = Registry(discover=False)
    registry.register(Late())
    registry.register(Late("other"))
    home = tmp_path / "home"
    home.mkdir()
    made = World(Path(os.path.realpath(home)), registry)
    before = open_fds()
    yield made
    assert open_fds() == before


# ---- the policy ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "named", ["base", "./base", "sub/../base", "sub/deep/base", "odd name", "a:b"]
)
def test_a_parent_in_the_images_directory_tree_is_opened(world: World, named: str) -> None:
    (world.root / "sub").mkdir()
    world.image("child", named)
    world.image(named)
    assert world.names("child") == [
        str(world.root / "child"),
        os.path.realpath(world.root / named),
    ]


def test_an_absolute_name_inside_the_tree_is_fine(world: World) -> None:
    world.image("child", str(world.root / "sub" / "base"))
    world.image("sub/base")
    assert len(world.names("child")) == 2


@pytest.mark.parametrize("how", ["..", "absolute", "symlink", "symlinked directory"])
def test_a_parent_outside_is_refused_and_the_text_says_what_would_allow_it(
    world: World, how: str
) -> None:
    outside = world.root.parent / "outside"
    outside.mkdir()
    world.image("../outside/base")
    named = {
        "..": "../outside/base",
        "absolute": str(outside / "base"),
        "symlink": "link",
        "symlinked directory": "dir/base",
    }[how]
    (world.root / "link").symlink_to(outside / "base")
    (world.root / "dir").symlink_to(outside)
    child = world.image("child", named)
    text = world.refused("child")
    assert isinstance(world.error, ReferencePolicyError)
    assert world.error.errno == errno.EPERM
    assert text.startswith(f"{world.root / 'child'}: names the file '{named}' outside")
    assert f"--parents {outside} would allow it" in text
    assert child.opens == [TD_RDONLY]
    assert len(world.names("child", str(outside))) == 2
    assert len(world.names("child", str(world.root / "sub"), str(outside))) == 2
    assert len(world.names("child", "any")) == 2
    assert "--parents" in world.refused("child", str(world.root / "sub"))


def test_a_directory_whose_name_only_begins_alike_is_outside(world: World) -> None:
    (world.root.parent / "home2").mkdir()
    world.image("../home2/base")
    world.image("child", "../home2/base")
    assert "outside its directory" in world.refused("child")


def test_none_forbids_even_the_neighbour(world: World) -> None:
    world.image("child", "base")
    world.image("base")
    assert "--parents none forbids all" in world.refused("child", "none")


def test_names_are_relative_to_the_image_that_names_but_the_users_image_is_the_tree(
    world: World,
) -> None:
    world.image("child", "sub/middle")
    world.image("sub/middle", "../base")
    world.image("base")
    assert world.names("child")[2] == str(world.root / "base")
    world.image("sub/leaf", "middle")
    assert "outside its directory" in world.refused("sub/leaf")


def test_an_image_behind_a_symlink_lies_where_the_link_leads(world: World) -> None:
    world.image("sub/child", "base")
    world.image("sub/base")
    link = world.root / "link"
    link.symlink_to("sub/child")
    world.images[str(link)] = world.images[str(world.root / "sub/child")]
    assert len(world.names("link")) == 2


@pytest.mark.parametrize(
    "named",
    [
        "nbd://host/export",
        "nbd:unix:/tmp/socket",
        'json:{"driver":"nbd"}',
        "file:base",
        "http://host/x",
        "fat:rw:/etc",
        "a+b-c.d:x",
    ],
)
@pytest.mark.parametrize("words", [(), ("any",)], ids=["default", "any"])
def test_urls_and_json_are_never_followed(world: World, named: str, words: tuple[str, ...]) -> None:
    world.image("child", named)
    world.image("base")
    assert "not a plain file name; it is never followed" in world.refused("child", *words)


@pytest.mark.parametrize("named", ["", "a\0b"])
def test_impossible_names_are_refused(world: World, named: str) -> None:
    world.image("child", named)
    assert "impossible name" in world.refused("child", "any")


@pytest.mark.parametrize(
    "named",
    ["missing", "x" * 5000, "\x1b[31mred\r\nsecond line", "sub/" * 3000, "caf\udce9", "dangling"],
    ids=["missing", "long", "control", "deep", "bytes", "dangling"],
)
def test_a_missing_parent_is_one_printable_line(world: World, named: str) -> None:
    (world.root / "dangling").symlink_to("nowhere")
    world.image("child", named)
    text = world.refused("child")
    assert "does not exist" in text
    assert world.error.errno == errno.ENOENT
    assert len(text) < 500 + len(str(world.root))


@pytest.mark.parametrize("grandparent", [None, "missing"])
def test_a_parents_name_from_a_stranger_cannot_draw_on_the_terminal(
    world: World, grandparent: str | None
) -> None:
    odd = "\x1b[2Jbase\nfake line"
    world.image("child", odd)
    base = world.image(odd, grandparent)
    if grandparent is None:
        base.open_error = OSError(errno.EIO, "")
    world.refused("child")  # looks whether it is printable
    world.images[str(world.root / "child")].validate = -errno.EINVAL
    base.open_error = None
    world.refused("child")
    base.parent = DiskId(odd, "late")
    world.images[str(world.root / "child")].validate = 0
    world.refused("child")


def test_text_from_an_image_is_short_and_printable() -> None:
    assert printable("plain") == "plain"
    assert printable("a\nb\x1b\udce9") == "a\\x0ab\\x1b\\xe9"
    assert len(printable("x" * 1000)) == 200


# ---- the chain -----------------------------------------------------------------------------


def chain_of(world: World, depth: int) -> None:
    for n in range(depth):
        world.image(f"n{n}", f"n{n + 1}" if n + 1 < depth else None)


def test_a_chain_may_be_as_deep_as_the_limit_and_no_deeper(world: World) -> None:
    chain_of(world, MAX_CHAIN_DEPTH)
    assert len(world.names("n0")) == MAX_CHAIN_DEPTH
    chain_of(world, MAX_CHAIN_DEPTH + 1)
    assert f"more than {MAX_CHAIN_DEPTH} images" in world.refused("n0")


@pytest.mark.parametrize("length", [1, 2, 5])
def test_an_image_that_is_its_own_ancestor_is_refused(world: World, length: int) -> None:
    chain_of(world, length)
    world.images[str(world.root / f"n{length - 1}")].parent = DiskId("n0", "late")
    assert "is its own ancestor" in world.refused("n0")
    assert isinstance(world.error, ImageFormatError)
    assert world.error.errno == errno.ELOOP


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_cycle_through_another_name_is_a_cycle(
    world: World, link: Callable[[str, str], None]
) -> None:
    chain_of(world, 2)
    link(str(world.root / "n0"), str(world.root / "alias"))
    world.images[str(world.root / "n1")].parent = DiskId("alias", "late")
    assert "is its own ancestor" in world.refused("n0")


def test_parents_are_opened_read_only_and_closed_once_child_first(world: World) -> None:
    chain_of(world, 4)
    disk = world.open("n0", flags=0)
    images = [world.images[str(world.root / f"n{n}")] for n in range(4)]
    assert [image.opens for image in images] == [[0], [TD_RDONLY], [TD_RDONLY], [TD_RDONLY]]
    assert not disk.info & VDISK_READONLY
    close_disk(disk)
    assert world.closed == images
    close_disk(disk)
    assert world.closed == images


def test_a_disk_takes_its_size_from_the_child_and_says_that_it_is_read_only(world: World) -> None:
    world.image("child", "base", sector_size=1024)
    world.image("base").size = 100
    disk = world.open("child")
    assert (disk.size, disk.sector_size) == (8, 1024)
    assert disk.info & VDISK_READONLY
    assert engine_of(disk).read_only
    close_disk(disk)


@pytest.mark.parametrize(
    ("failing", "how"),
    [
        (failing, how)
        for failing in range(4)
        for how in ("open", "parent id", "validate", "errno", "size", "unit")
        if (failing, how) != (3, "validate")  # the last one has no parent to be validated
    ],
)
def test_a_failed_open_gives_everything_back_and_names_the_image(
    world: World, failing: int, how: str
) -> None:
    chain_of(world, 4)
    image = world.images[str(world.root / f"n{failing}")]
    if how == "open":
        image.open_error = OSError(errno.EACCES, "no")
    elif how == "parent id":
        image.parent = ImageFormatError("its header is nonsense")
    elif how == "validate":
        image.validate = -errno.EINVAL
    elif how == "errno":
        image.parent = -errno.EIO
    elif how == "size":
        image.size = MAX_DISK_SECTORS + 1
    else:
        image.sector_size = 1000
    text = world.refused("n0")
    opened = [world.images[str(world.root / f"n{n}")] for n in range(4)]
    in_order = [image for image in opened if image in world.closed]
    assert [world.closed.count(image) for image in in_order] == [1] * len(in_order)
    if how in ("size", "unit"):
        assert isinstance(world.error, DriverError)
        assert world.closed[0] is image  # it is in no chain yet
    else:
        assert world.closed == in_order
    assert f"n{failing}" in text
    if how == "open":
        assert world.error.errno == errno.EACCES
        assert "Permission denied" in text


def test_the_reason_that_a_driver_gives_for_an_unfit_parent_is_told(world: World) -> None:
    child = world.image("child", "base")
    world.image("base")
    child.validate = ImageFormatError("the parent has been changed")
    assert world.refused("child") == f"{world.root / 'child'}: the parent has been changed"
    child.validate = -errno.EINVAL
    assert f"its parent {world.root / 'base'} does not fit" in world.refused("child")


def test_a_close_that_fails_closes_the_others_and_says_so(world: World) -> None:
    chain_of(world, 3)
    for n in (1, 2):
        world.images[str(world.root / f"n{n}")].close_error = OSError(errno.EIO, f"n{n}")
    disk = world.open("n0")
    with pytest.raises(IOFailedError) as caught:
        close_disk(disk)
    assert (caught.value.image, caught.value.errno) == (str(world.root / "n1"), errno.EIO)
    assert len(world.closed) == 3
    assert "names the file" in world.refused("n0", "none")  # the first error is the one told


def test_a_close_that_fails_does_not_hide_what_was_wrong_with_the_image(world: World) -> None:
    image = world.image("disk")
    image.sector_size = 1000
    image.close_error = OSError(errno.EIO, "")
    assert "impossible sector size of 1000" in world.refused("disk")


def test_the_child_can_be_opened_alone(world: World) -> None:
    world.image("child", "missing")
    disk = world.open("child", with_parents=False)
    assert disk.disks.next is None
    close_disk(disk)


# ---- handles -------------------------------------------------------------------------------


def test_a_parent_is_opened_as_what_its_child_recorded(world: World) -> None:
    world.image("child", "base", handle="other")
    world.image("base")  # its content says late
    disk = world.open("child")
    assert [dd.drv.disk_type for dd in disk.disks.chain()] == ["late", "other"]
    close_disk(disk)


def test_a_recorded_format_without_driver_is_said(world: World) -> None:
    world.image("child", "base", handle="v\x1bmdk")
    world.image("base")
    assert "of the format 'v\\x1bmdk', for which no driver is installed" in world.refused("child")


def test_a_parent_that_is_no_file_is_refused(world: World) -> None:
    class Nowhere(Late):
        def __init__(self) -> None:
            super().__init__("nowhere")
            self.disk_info = self.disk_info._replace(file_backed=False)

    world.registry.register(Nowhere())
    world.image("child", "base", handle="nowhere")
    world.image("base")
    assert "which is not a file" in world.refused("child")


def test_a_parent_without_recorded_format_is_probed(world: World) -> None:
    world.image("child", "base", handle="")
    world.image("base")
    disk = world.open("child")
    assert [dd.drv.disk_type for dd in disk.disks.chain()] == ["late", "late"]
    close_disk(disk)


def test_what_was_probed_may_not_name_a_parent_of_its_own(world: World) -> None:
    world.image("child", "middle", handle="")
    world.image("middle", "base")
    world.image("base")
    text = world.refused("child")
    assert text.startswith(str(world.root / "middle"))
    assert "only guessed" in text
    world.image("child", "middle", handle="late")
    assert len(world.names("child")) == 3


def test_a_parent_that_no_driver_recognises_is_raw_or_an_error(world: World) -> None:
    world.image("child", "base", handle="")
    world.image("base")
    (world.root / "base").write_bytes(b"nothing known")
    assert "no driver for raw files is installed" in world.refused("child")


def test_the_users_own_image_may_be_probed_for_reading_and_have_parents(world: World) -> None:
    world.image("child", "base")
    world.image("base")
    disk = world.open("child", handle="")
    assert disk.image.drivertype == "late"
    close_disk(disk)
    with pytest.raises(UsageError, match="write HANDLE:PATH"):
        world.open("child", handle="", may_probe=False)


def test_a_format_that_is_only_read_is_refused_for_writing_before_it_is_opened(
    world: World,
) -> None:
    from drivers.broken import Tiny

    world.registry.register(Tiny("tiny"))
    with pytest.raises(ImageOpenError, match="can only be read"):
        open_disk(DiskId("x", "tiny"), world.registry)
    close_disk(open_disk(DiskId("x", "tiny"), world.registry, flags=TD_RDONLY))
