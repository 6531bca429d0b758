"""The hooks that look after an image's metadata: checked, changed in place, kept as snapshots.

Nothing is in flight when they are called, and they may block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, Generic

from tapcore.interface.hooks.table import D, hook, not_supported

if TYPE_CHECKING:
    from tapcore.interface.options import DiskId
    from tapcore.interface.results import Bitmap, CheckResult, Snapshot

_NO_SNAPSHOTS: Final = "{format} has no internal snapshots"
_NO_BITMAPS: Final = "{format} has no bitmaps"


class ChangeHooks(Generic[D]):
    """What is done to an image as a whole."""

    __slots__ = ()

    @staticmethod
    @hook(
        "not supported: an image has one size for life",
        capability="resize",
        lack="{format} cannot be resized",
    )
    def td_resize(dd: D, size: int) -> None:
        """Change the virtual size; new sectors read as zeroes.

        Args:
            dd: the image, open for writing, with nothing in flight.
            size: new size in bytes, a multiple of 512. The hook sets `dd.size`.
        """
        raise not_supported("td_resize")

    @staticmethod
    @hook(
        "not supported: there is no metadata to check",
        capability="check",
        lack="{format} has no metadata to check",
    )
    def td_check(dd: D, repair: str) -> CheckResult:
        """Check the consistency of the format's metadata.

        Args:
            dd: the image; open for writing where `repair` is not empty.
            repair: "", "leaks" or "all".
        """
        raise not_supported("td_check")

    @staticmethod
    @hook(
        "not supported",
        capability="amend",
        lack="{format} has nothing that can be changed in place",
    )
    def td_amend(dd: D, options: Mapping[str, str]) -> None:
        """Change options of an image that exists, in place; the content stays.

        Args:
            dd: the image, open for writing, with nothing in flight.
            options: from `-o`, only names that the driver's `amend_options` has.

        Raises:
            OSError, TapError: the image is as it was, or changed in part and consistent.
        """
        raise not_supported("td_amend")

    @staticmethod
    @hook("not supported", capability="rebase", lack="{format} has no parent that could be changed")
    def td_set_parent(dd: D, parent: DiskId | None) -> None:
        """Change what is recorded of the parent, on disk when this returns. Moves no content.

        Args:
            dd: the image, open for writing, with nothing in flight; `dd.next` is the parent that
                was recorded until now, where it was opened.
            parent: what is to be recorded, exactly so; None: the image stands alone.
        """
        raise not_supported("td_set_parent")

    @staticmethod
    @hook("nothing is recorded that a changed parent would not fit")
    def td_before_commit(dd: D, p: D) -> None:
        """An image's content is about to be written into its parent, and stays in it meanwhile.

        For a format that tells a changed parent by something recorded in the child: from now on,
        and at every moment of this call, the child takes the parent for its own, whatever is
        written to it; other children of the parent do not. On disk when this returns.

        Args:
            dd: the child, open for writing, alone.
            p: its parent, open for writing, and not changed yet.

        Raises:
            OSError, TapError: nothing is committed; both are right.
        """

    @staticmethod
    @hook("not supported", lack="images of {format} cannot be emptied")
    def td_make_empty(dd: D) -> None:
        """Forget all content: every sector becomes a hole, and shows the parent.

        Size and parent stay.

        Args:
            dd: the image, open for writing, with nothing in flight.
        """
        raise not_supported("td_make_empty")

    @staticmethod
    @hook("there are none", capability="snapshots", lack=_NO_SNAPSHOTS)
    def td_snapshots(dd: D) -> list[Snapshot]:
        """The internal snapshots of the image, in its own order."""
        return []

    @staticmethod
    @hook("not supported", lack=_NO_SNAPSHOTS)
    def td_snapshot_create(dd: D, name: str) -> Snapshot:
        """Keep the present content as a snapshot; it is on disk when this returns.

        Args:
            dd: the image, open for writing, with nothing in flight.
            name: for people, not empty; no snapshot of the image has it as its name or id.

        Raises:
            OSError, TapError: no snapshot was made.
        """
        raise not_supported("td_snapshot_create")

    @staticmethod
    @hook("not supported", lack=_NO_SNAPSHOTS)
    def td_snapshot_apply(dd: D, name: str) -> None:
        """Make the disk's content that of a snapshot, which stays; sets `dd.size` if that differs.

        Args:
            dd: the image, open for writing, with nothing in flight.
            name: of one of `td_snapshots`: its id, or where no id is so, its name.
        """
        raise not_supported("td_snapshot_apply")

    @staticmethod
    @hook("not supported", lack=_NO_SNAPSHOTS)
    def td_snapshot_delete(dd: D, name: str) -> None:
        """Forget a snapshot, and give back what only it used; arguments as `td_snapshot_apply`."""
        raise not_supported("td_snapshot_delete")

    @staticmethod
    @hook("there are none", capability="bitmaps")
    def td_bitmaps(dd: D) -> list[Bitmap]:
        """The persistent bitmaps of the image."""
        return []

    @staticmethod
    @hook("not supported", lack=_NO_BITMAPS)
    def td_bitmap_ranges(dd: D, name: str) -> Iterable[tuple[int, int]]:
        """What a bitmap calls changed: (start, length) in bytes, in order, neighbours joined.

        Args:
            dd: the image.
            name: of one of `td_bitmaps` that is not inconsistent.
        """
        raise not_supported("td_bitmap_ranges")

    @staticmethod
    @hook("not supported", lack=_NO_BITMAPS)
    def td_bitmap_add(dd: D, name: str, granularity: int, enabled: bool) -> None:
        """A new persistent bitmap, which calls nothing changed; it is on disk when this returns.

        Args:
            dd: the image, open for writing, with nothing in flight.
            name: not empty; no bitmap of the image has it.
            granularity: bytes that one bit stands for, a power of two; 0: the format's own choice.
            enabled: what is written from now on is recorded in it.

        Raises:
            OSError, TapError: there is no such bitmap.
        """
        raise not_supported("td_bitmap_add")

    @staticmethod
    @hook("not supported", lack=_NO_BITMAPS)
    def td_bitmap_remove(dd: D, name: str) -> None:
        """Forget a bitmap.

        Args:
            dd: the image, open for writing, with nothing in flight.
            name: of one of `td_bitmaps`, which may be inconsistent.
        """
        raise not_supported("td_bitmap_remove")

    @staticmethod
    @hook("not supported", lack=_NO_BITMAPS)
    def td_bitmap_clear(dd: D, name: str) -> None:
        """Let a bitmap call nothing changed any more.

        Args:
            dd: the image, open for writing, with nothing in flight.
            name: of one of `td_bitmaps` that is not inconsistent.
        """
        raise not_supported("td_bitmap_clear")

    @staticmethod
    @hook("not supported", lack=_NO_BITMAPS)
    def td_bitmap_enable(dd: D, name: str, enabled: bool) -> None:
        """Record in a bitmap from now on, or record no more; arguments as `td_bitmap_clear`."""
        raise not_supported("td_bitmap_enable")

    @staticmethod
    @hook("not supported", lack=_NO_BITMAPS)
    def td_bitmap_merge(dd: D, name: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Let a bitmap call more changed.

        Args:
            dd: the image, open for writing, with nothing in flight.
            name: of one of `td_bitmaps` that is not inconsistent.
            ranges: (start, length) in bytes, in order, inside the disk.
        """
        raise not_supported("td_bitmap_merge")
