"""The models of the driver interface: which image, by which driver, open in which chain.

The names are blktap's, so that its literature reads as documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias
from weakref import WeakSet

import attrs

from tapcore.constants import DEFAULT_SECTOR_SIZE, MAX_IOFD, TD_RDONLY
from tapcore.interface.boundfile import BoundFile
from tapcore.interface.keys import Keys
from tapcore.interface.losses import Losses
from tapcore.process.workers import Lane

if TYPE_CHECKING:
    from tapcore.interface.policy import ReferencePolicy

TdCallback: TypeAlias = "Callable[[DiskDriver, int, int, int, int, Any], int]"
"""`cb(dd, res, sector, nb_sectors, id, prv)`: `res` is 0, -errno or BLK_NOT_ALLOCATED.

Returns the number of requests that this answer completed (0 or 1)."""

CacheMode: TypeAlias = Literal["writeback", "none"]
Missing: TypeAlias = Literal["error", "zeroes"]


@attrs.define
class DiskId:
    """Which image, by which driver; what `td_get_parent_id` fills in.

    Attributes:
        name: path as the image records it (not resolved), or as the user gave it.
        drivertype: handle of the driver; empty where none is recorded (then it is probed).
    """

    name: str
    drivertype: str = ""

    def __str__(self) -> str:
        return f"{self.drivertype}:{self.name}" if self.drivertype else self.name


@attrs.frozen
class FormatOption:
    """An option of `td_create` or `td_amend` (`-o KEY=VALUE`).

    Attributes:
        name: the key, spelt as `qemu-img create -o help` spells it.
        help: one line for a person.
        choices: the values allowed; empty for any.
        default: the value when the option is not given.
    """

    name: str
    help: str
    choices: tuple[str, ...] = ()
    default: str = ""


@attrs.frozen
class DiskInfo:
    """A row of the driver table.

    A plugin fills in the first group; discovery adds the rest.

    Attributes:
        handle: the prefix that users type, at most 9 characters as in blktap.
        name: text for people.
        api: the `HOOKS_VERSION` that the plugin was written for.
        single_handler: all disks of this driver share one process.
        use_ioemu: blktap's default backend; always False here, kept for its literature.
        suffixes: file suffixes (".qcow2") that a new image of this format is recognised by.
        file_backed: the image's name is a path in the file system.
        makes_unnamed: `td_create` makes the files of an image with `create_host_file` alone, by
            their final names, and opens them with `open_host_file` or `open_image_file` alone: so
            the core can keep them without a name until they are whole. For other drivers the core
            chooses a name beside the final one.
        create_options: what `-o` takes for a new image.
        amend_options: what `-o` takes for one that exists; `default` says nothing there.
        idnum: position in the table.
        drv: the driver's operations.
        capabilities: what the driver can do, derived from the hooks that it implements.
        distribution: the installed distribution that brought it, and its version.
        error: why the driver cannot be used; empty for a good one.
    """

    handle: str
    name: str
    api: int
    single_handler: bool = False
    use_ioemu: bool = False
    suffixes: tuple[str, ...] = ()
    file_backed: bool = True
    makes_unnamed: bool = False
    create_options: tuple[FormatOption, ...] = ()
    amend_options: tuple[FormatOption, ...] = ()

    idnum: int = -1
    drv: TapDisk | None = None
    capabilities: tuple[str, ...] = ()
    distribution: str = ""
    version: str = ""
    error: str = ""


@attrs.frozen
class TapDisk:
    """A driver's operations, resolved once for each open disk (blktap's `struct tap_disk`).

    Each field is called with the positional arguments of the hook of the same name. Where no
    filter wraps the driver it is the plugin's own function, so that the fast path pays nothing
    for hooks.
    """

    disk_type: str
    implemented: frozenset[str]
    td_open: Callable[..., Any]
    td_queue_read: Callable[..., Any]
    td_queue_write: Callable[..., Any]
    td_submit: Callable[..., Any]
    td_do_callbacks: Callable[..., Any]
    td_close: Callable[..., Any]
    td_get_parent_id: Callable[..., Any]
    td_validate_parent: Callable[..., Any]
    td_probe: Callable[..., Any]
    td_create: Callable[..., Any]
    td_queue_flush: Callable[..., Any]
    td_queue_discard: Callable[..., Any]
    td_queue_write_zeroes: Callable[..., Any]
    td_extents: Callable[..., Any]
    td_info: Callable[..., Any]
    td_other_files: Callable[..., Any]
    td_inspect: Callable[..., Any]
    td_resize: Callable[..., Any]
    td_check: Callable[..., Any]
    td_queue_write_compressed: Callable[..., Any]
    td_snapshots: Callable[..., Any]
    td_snapshot_create: Callable[..., Any]
    td_snapshot_apply: Callable[..., Any]
    td_snapshot_delete: Callable[..., Any]
    td_amend: Callable[..., Any]
    td_set_parent: Callable[..., Any]
    td_before_commit: Callable[..., Any]
    td_make_empty: Callable[..., Any]
    td_bitmaps: Callable[..., Any]
    td_bitmap_ranges: Callable[..., Any]
    td_measure: Callable[..., Any]
    td_stream: Callable[..., Any]


@attrs.define
class OpenOptions:
    """How the images of one chain are opened.

    Attributes:
        cache: "writeback" through the page cache, "none" with O_DIRECT and Linux AIO.
        references: which files an image may name; None for the default policy.
        locking: take QEMU-compatible locks; False only looks (and must be read-only).
        probed: the handle was guessed from the content, so a raw image refuses writes that
            would make its first sector look like another format.
        filters: names of the filters that wrap every driver of the chain.
        snapshot: open this internal snapshot, by id or name, instead of the present content;
            read-only, and only of the child: parents are opened without it.
        keys: passphrases of encrypted images.
        metadata_cache: bytes that a driver may spend on the tables of each image; None: its own
            default.
        durable: flushes wait for the disk. False for a new image that is thrown away when the work
            on it is not finished: nobody relies on what it holds until then.
        metadata_only: no content will be read or written (`info`, `check`): a driver opens no file
            that holds nothing but content, and asks for no passphrase.
        parent_only: nothing but the record of the parent will be changed: a driver opens for that
            what it could otherwise only read, where the record can be written.
        bound: the image's file, found and judged before; `open_image_file` opens that one.
        missing: what a read answers where the image has content that its file is too short for:
            "error"; or "zeroes", as QEMU does, for a guest that has to start after a power loss.
            Then a line in the log tells of it, and of other damage, once for each image.
        salvage: what is left of a damaged disk is to be read: where a driver would refuse an image
            because a part of it is lost, it opens the rest, and reads of that part fail.
        workers: the chain's share of the threads, which do for its files what would block.
        private: what a test or an embedding program wants to pass to its own driver.
        opened: the files that were opened so, as long as they live; of a whole chain.
    """

    cache: CacheMode = "writeback"
    references: ReferencePolicy | None = None
    locking: bool = True
    probed: bool = False
    filters: tuple[str, ...] = ()
    snapshot: str = ""
    keys: Keys = attrs.field(factory=Keys)
    metadata_cache: int | None = None
    durable: bool = True
    metadata_only: bool = False
    parent_only: bool = False
    bound: BoundFile | None = None
    missing: Missing = "error"
    salvage: bool = False
    workers: Lane = attrs.field(factory=Lane, eq=False, repr=False)
    private: Mapping[str, Any] = attrs.field(factory=dict)
    opened: WeakSet[Any] = attrs.field(factory=WeakSet, eq=False, repr=False)


@attrs.define(eq=False)
class DiskDriver:
    """One open image in a chain.

    Attributes:
        early: requests finished inside queue calls since the last submit.
        name: path or argument as opened.
        private: the driver's own.
        flags: `TD_RDONLY` or 0.
        io_fd: descriptors for the core to poll, None for an unused slot.
        drv: the driver's operations.
        td_state: the disk that this image belongs to.
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
    td_state: TdState | None = None
    options: OpenOptions = attrs.field(factory=OpenOptions)
    private: Any = None
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


@attrs.define(eq=False)
class TdState:
    """One active virtual disk.

    Attributes:
        disks: the chain, child first.
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
    disks: DiskDriver | None = None
    blkif: Blkif | None = None
    ring_info: Any = None
    fd_entry: Any = None
    sector_size: int = DEFAULT_SECTOR_SIZE
    size: int = 0
    info: int = 0
    home: str | None = None
    losses: Losses = attrs.field(factory=Losses)


@attrs.frozen
class Extent:
    """A run of sectors of one image that are stored in one way.

    Attributes:
        sector: first sector.
        nb_sectors: length in sectors, at least 1.
        kind: "data" (readable content), "zero" (reads as zeroes, here), "unallocated" (a hole in
            this image: the parent's content, or zeroes), "compressed" (content, not stored plain).
        fd: descriptor of the open host file for plain data, else None.
        filename: the host file in which the run has its place; empty where it has none. A "zero"
            run may have one (a hole of a raw file).
        offset: where in that file, in bytes.
        allocated: a "zero" extent has space reserved in the host file.
        missing: "data" or "compressed" that is not there: its place lies past the end of the host
            file. It has no `fd`.
    """

    sector: int
    nb_sectors: int
    kind: Literal["data", "zero", "unallocated", "compressed"]
    fd: int | None = None
    filename: str = ""
    offset: int = 0
    allocated: bool = False
    missing: bool = False

    @property
    def end(self) -> int:
        """First sector past the extent."""
        return self.sector + self.nb_sectors


@attrs.frozen
class Finding:
    """Something that `inspect` says of an image from a stranger.

    Attributes:
        severity: "danger", "unknown" (what could not be looked at) or "note".
        message: one line.
        code: a word for programs, which never changes; the same for all formats that have the same.
    """

    severity: Literal["note", "unknown", "danger"]
    message: str
    code: str = "other"


@attrs.frozen
class Inspection:
    """What an image says of itself, read without opening anything else.

    Attributes:
        virtual_size: bytes.
        features: the format's features, names for people.
        references: every file that the image names, as (role, name).
        findings: what is suspicious.
    """

    virtual_size: int
    features: tuple[str, ...] = ()
    references: tuple[tuple[str, str], ...] = ()
    findings: tuple[Finding, ...] = ()


@attrs.define
class CheckResult:
    """What `td_check` found; the counts are those of `qemu-img check`."""

    leaks: int = 0
    leaks_fixed: int = 0
    corruptions: int = 0
    corruptions_fixed: int = 0
    check_errors: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    compressed_clusters: int = 0
    image_end_offset: int = 0
    messages: list[str] = attrs.field(factory=list)


@attrs.frozen
class Snapshot:
    """An internal snapshot: a state of the disk that the image keeps.

    Attributes:
        id: the format's own; unique in the image.
        name: for people; need not be unique.
        date_sec: when it was made, seconds since 1970 UTC.
        date_nsec: and nanoseconds.
        vm_state_size: bytes of a virtual machine's state kept with it; 0: none.
        vm_clock_nsec: nanoseconds that the machine had run.
        disk_size: bytes that the disk had; None where it is not recorded.
        icount: instructions that the machine had run; None where it is not recorded.
    """

    id: str
    name: str
    date_sec: int = 0
    date_nsec: int = 0
    vm_state_size: int = 0
    vm_clock_nsec: int = 0
    disk_size: int | None = None
    icount: int | None = None


@attrs.frozen
class Bitmap:
    """A persistent bitmap: which parts of the disk changed since some moment.

    Attributes:
        name: unique in the image.
        granularity: bytes that one bit stands for.
        enabled: writes are being recorded in it.
        inconsistent: it was not saved properly, and says nothing.
    """

    name: str
    granularity: int
    enabled: bool
    inconsistent: bool = False


@attrs.frozen
class Measurement:
    """Bytes that a new image would take.

    Attributes:
        required: for the content as it is.
        fully_allocated: if every byte of the disk were written.
        bitmaps: for its persistent bitmaps, not counted above.
    """

    required: int
    fully_allocated: int
    bitmaps: int = 0
