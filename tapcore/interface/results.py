"""What drivers say of an image: what is wrong with it, what it keeps, how large one would be."""

from __future__ import annotations

import attrs


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
