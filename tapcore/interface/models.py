"""The models of the driver interface: which image, by which driver, open in which chain.

The names are blktap's, so that its literature reads as documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias

import attrs

from tapcore.constants import DEFAULT_SECTOR_SIZE, MAX_IOFD, TD_RDONLY
from tapcore.errors import NotSupportedError
from tapcore.interface.hooks import HOOKS, ChangeHooks, ImageHooks, RequestHooks, lack_of
from tapcore.interface.losses import Losses
from tapcore.interface.options import DiskId, OpenOptions

if TYPE_CHECKING:  # nothing that has to be installed: type checkers know it
    from typing_extensions import TypeVar

    from tapcore.interface.below import Below

    Private = TypeVar("Private", default=Any)
else:
    from typing import TypeVar

    Private = TypeVar("Private")

TdCallback: TypeAlias = "Callable[[DiskDriver, int, int, int, int, Any], int]"
"""`cb(dd, res, sector, nb_sectors, id, prv)`: `res` is 0, -errno or BLK_NOT_ALLOCATED.

Returns the number of requests that this answer completed (0 or 1)."""


@attrs.define(eq=False, repr=False)
class DiskDriver(Generic[Private]):
    """One open image in a chain.

    A driver that says what its `private` is (`DiskDriver[Image]`) has it checked.

    Attributes:
        early: requests finished inside queue calls since the last submit.
        name: path or argument as opened.
        private: the driver's own.
        flags: `TD_RDONLY` or 0.
        io_fd: descriptors for the core to poll, None for an unused slot.
        drv: the driver's operations.
        td_state: the disk that this image belongs to; one of its own, where none is given.
        next: the parent, None at the end of the chain.
        size: of this image, in sectors.
        sector_size: bytes; reads and writes reach the driver in whole multiples of it (its last
            one may be cut by the end of the image). At least 512, a power of two.
        cluster_size: bytes; the format's unit of allocation, in which it is best read and written
            (and compressed); a multiple of 512. 0: `sector_size`.
        info: `VDISK_*` bits.
        options: how to open.
    """

    name: str
    drv: TapDisk
    flags: int = 0
    td_state: TdState = attrs.field(
        default=attrs.Factory(lambda dd: TdState(DiskId(dd.name, "")), takes_self=True)
    )
    options: OpenOptions = attrs.field(factory=OpenOptions)
    private: Private = attrs.field(default=None)
    io_fd: list[int | None] = attrs.field(factory=lambda: [None] * MAX_IOFD)
    next: DiskDriver | None = None
    early: int = 0
    size: int = 0
    sector_size: int = DEFAULT_SECTOR_SIZE
    cluster_size: int = 0
    info: int = 0

    @property
    def read_only(self) -> bool:
        """Whether the image was opened with `TD_RDONLY`."""
        return bool(self.flags & TD_RDONLY)

    def open_below(self, name: str, *, expected: str = "") -> Below:
        """Open another image, which this one lies on: for `td_open`.

        It is opened for writing where this one is, in the same cache mode, with the same keys, and
        under the same policy: where this image's name was recorded by an image, so was that.

        Args:
            name: `[HANDLE:]PATH`.
            expected: the code of a raw disk's content (docs/foreign.md) that nobody has to be
                warned of: "luks".

        Returns:
            The image, with its parents; the driver's to close. Its answers come by its descriptor.

        Raises:
            TapError: it cannot be opened, or is not allowed.
        """
        if self.options.opener is None:
            raise NotSupportedError("no image can be opened below one that the core did not open")
        return self.options.opener(self, name, expected)

    def chain(self) -> Iterator[DiskDriver]:
        """This image, its parent, and so on."""
        dd: DiskDriver | None = self
        while dd is not None:
            yield dd
            dd = dd.next


class Blkif(Protocol):
    """What a driver may ask of the engine that serves its disk (`dd.td_state.blkif`)."""

    def read_below(
        self, dd: DiskDriver, sector: int, buf: memoryview, done: Callable[[Any], object]
    ) -> None:
        """Read what the parents of an image hold: for a driver that copies before it writes.

        Args:
            dd: the image whose parent is read.
            sector: first sector.
            buf: whole sectors, to be filled; zeroes where no parent holds them.
            done: called with the request when it is finished; its `status` is 0 or -errno.
        """

    def before_giving_up(self) -> None:
        """Places in a host file of the disk may hold other content soon: let go of them."""

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Let the disk's images work: for a hook that may block, and has queued something.

        Args:
            done: asked again after each answer; this returns when it holds.
        """


@attrs.define(eq=False, repr=False)
class TdState:
    """One active virtual disk.

    Attributes:
        disks: the chain, child first. It is set before anybody but `open_disk` sees the disk.
        closed: the images have been closed.
        blkif: the engine that keeps the disk's requests.
        image: the image as the user named it.
        ring_info: the shared-memory ring's front end, where one serves the disk.
        fd_entry: the poll set's entry, where a loop has one.
        sector_size: bytes, the child's.
        size: in sectors, the child's.
        info: `VDISK_*` bits, the child's, `VDISK_READONLY` added by the core.
        home: the directory in which the child's file lies, links resolved, in whose tree the files
            that it names may lie; empty: none; None: as its name leads there.
        losses: what drivers found that they cannot read.
    """

    image: DiskId
    disks: DiskDriver = attrs.field(default=None)
    blkif: Blkif | None = None
    ring_info: Any = None
    fd_entry: Any = None
    sector_size: int = DEFAULT_SECTOR_SIZE
    size: int = 0
    info: int = 0
    home: str | None = None
    losses: Losses = attrs.field(factory=Losses)
    closed: bool = False


class Hooks(
    RequestHooks[DiskDriver[Private]],
    ImageHooks[DiskDriver[Private]],
    ChangeHooks[DiskDriver[Private]],
    Generic[Private],
):
    """All hooks, with their signatures and their defaults.

    A driver's function is marked with one of them, `@implements(Hooks.td_open)`, and a type checker
    compares the two. A driver that is a class may derive from `Hooks[what its private is]`; what it
    has to say is still marked: the rest does not count as implemented.
    """

    __slots__ = ()


class TapDisk(Hooks[Any]):
    """A driver's operations, resolved once for each open disk (blktap's `struct tap_disk`).

    Each hook is here the function to be called, with the hook's positional arguments. Where no
    filter wraps the driver it is the plugin's own, so that the fast path pays nothing for hooks.

    Args:
        disk_type: the driver's handle.
        implemented: names of the hooks that it has itself.
        calls: a function for each hook, by name.
    """

    __slots__ = ("disk_type", "implemented", *HOOKS)
    disk_type: str
    implemented: frozenset[str]

    def __init__(
        self,
        disk_type: str,
        implemented: Iterable[str],
        calls: Mapping[str, Callable[..., Any]],
    ) -> None:
        self.disk_type = disk_type
        self.implemented = frozenset(implemented)
        for name in HOOKS:
            setattr(self, name, calls[name])

    def require(self, hook: str, image: str, *, option: str = "") -> None:
        """Stop where the driver lacks a hook that is needed.

        Args:
            hook: its name.
            image: for which it is needed, for the error.
            option: that asks for it, of the command line.

        Raises:
            NotSupportedError: what the format cannot do.
        """
        if hook not in self.implemented:
            text = lack_of(hook, self.disk_type)
            raise NotSupportedError(f"{text} ({option})" if option else text, image=image)


class LateTapDisk(TapDisk):
    """Operations of a driver that is loaded when the first of its hooks is wanted.

    Args:
        disk_type: the driver's handle.
        implemented: hooks that it says it has.
        load: gives the operations; raises TapError where the driver cannot be used.
    """

    __slots__ = ("_load",)

    def __init__(
        self, disk_type: str, implemented: Iterable[str], load: Callable[[], TapDisk]
    ) -> None:
        self.disk_type = disk_type
        self.implemented = frozenset(implemented)
        self._load = load

    def __getattr__(self, name: str) -> Any:
        """A hook that is not here yet; the others come with it."""
        if name not in HOOKS:
            raise AttributeError(f"no hook is named {name}")
        loaded = self._load()
        for hook in HOOKS:
            setattr(self, hook, getattr(loaded, hook))
        return getattr(loaded, name)
