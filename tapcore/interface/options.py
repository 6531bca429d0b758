"""What a user may choose: how images are opened, and what `-o` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from weakref import WeakSet

import attrs

from tapcore.interface.boundfile import BoundFile
from tapcore.interface.keys import Keys
from tapcore.process.workers import Lane

if TYPE_CHECKING:
    from tapcore.interface.below import Below
    from tapcore.interface.policy import Naming, ReferencePolicy

Opener: TypeAlias = "Callable[[Any, str, str], Below]"
"""Opens an image below one: (that, name, what may be found there)."""

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


@attrs.define(eq=False, repr=False)
class OpenOptions:
    """How the images of one chain are opened.

    Attributes:
        cache: "writeback" through the page cache, "none" with O_DIRECT and Linux AIO.
        references: which files an image may name; None for the default policy.
        locking: take QEMU-compatible locks; False only looks (and must be read-only).
        probed: the handle was guessed from the content, so a raw image refuses writes that
            would make its first sector look like another format.
        filters: that wrap every driver of the chain: each as it was chosen, `NAME[:KEY=VALUE,...]`,
            or itself; of a disk that is open, themselves.
        snapshot: open this internal snapshot, by id or name, instead of the present content;
            read-only, and only of the child: parents are opened without it.
        keys: passphrases of encrypted images.
        metadata_cache: bytes that a driver may spend on the tables of each image; None: its own
            default.
        durable: flushes wait for the disk. False for a new image that is thrown away when the work
            on it is not finished: nobody relies on what it holds until then.
        metadata_only: no content will be read or written (`info`, `check`): a driver opens no file
            that holds nothing but content, and asks for no passphrase.
        facts_only: the image is asked for nothing but what it says of itself (`td_info`,
            `td_other_files`, `td_snapshots`, `td_bitmaps`, its parent's id, and whether that fits):
            a driver may leave out all that reads and writes its content. It is closed as any other.
        parent_only: nothing but the record of the parent will be changed: a driver opens for that
            what it could otherwise only read, where the record can be written.
        bound: the image's file, found and judged before; `open_image_file` opens that one.
        missing: what a read answers where the image has content that its file is too short for:
            "error"; or "zeroes", as QEMU does, for a guest that has to start after a power loss.
            Then a line in the log tells of it, and of other damage, once for each image.
        salvage: what is left of a damaged disk is to be read: where a driver would refuse an image
            because a part of it is lost, it opens the rest, and reads of that part fail.
        workers: the chain's share of the threads, which do for its files what would block.
        named_by: the image that records this one's name, which is no file's; None: the user has
            named it.
        level: images that this one lies below.
        file_opener: opens the image's own file where its name is that of another disk; None of it,
            where it is not.
        opener: opens an image below: for `DiskDriver.open_below`.
        rehearsal: it is opened for reading, to learn which files it would take to open it for
            writing; parents would be read all the same.
        private: what a test or an embedding program wants to pass to its own driver.
        opened: the files that were opened so, as long as they live; of a whole chain.
    """

    cache: CacheMode = "writeback"
    references: ReferencePolicy | None = None
    locking: bool = True
    probed: bool = False
    filters: tuple[Any, ...] = ()
    snapshot: str = ""
    keys: Keys = attrs.field(factory=Keys)
    metadata_cache: int | None = None
    durable: bool = True
    metadata_only: bool = False
    facts_only: bool = False
    parent_only: bool = False
    bound: BoundFile | None = None
    missing: Missing = "error"
    salvage: bool = False
    workers: Lane = attrs.field(factory=Lane, eq=False, repr=False)
    rehearsal: bool = False
    private: Mapping[str, Any] = attrs.field(factory=dict)
    named_by: Naming | None = None
    level: int = 0
    file_opener: Callable[[str, int, OpenOptions], Any] | None = attrs.field(
        default=None, eq=False, repr=False
    )
    opener: Opener | None = attrs.field(default=None, eq=False, repr=False)
    opened: WeakSet[Any] = attrs.field(factory=WeakSet, eq=False, repr=False)
