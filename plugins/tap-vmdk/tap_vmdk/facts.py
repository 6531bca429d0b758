"""What an image's own file says: what it is, and what its descriptor names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tap_vmdk.descriptor.place import DescriptorPlace
from tap_vmdk.descriptor.text import Descriptor
from tap_vmdk.sparse.header import SparseHeader
from tapcore import ImageFile


class KnownPart(Protocol):
    """What is told of a part of a disk."""

    @property
    def cluster(self) -> int:
        """Bytes in which space is taken; 0 where that does not matter."""

    def describe(self) -> dict[str, Any]:
        """For `info`."""


class Facts:
    """An image, as far as its own file tells.

    Args:
        file: the file that the image is named by.
        descriptor: None for a sparse file that has none.
        place: where the descriptor is.
        subformat: for people, and for `info`.
        header: of the file, where it is a hosted sparse file.

    Attributes:
        file: as given.
        descriptor: as given.
        place: as given.
        subformat: as given.
        header: as given.
        parts: that the disk consists of, as far as they are known.
        sectors: of the disk.
    """

    parts: Sequence[KnownPart]

    def __init__(
        self,
        file: ImageFile,
        descriptor: Descriptor | None,
        place: DescriptorPlace | None,
        subformat: str,
        header: SparseHeader | None = None,
    ) -> None:
        self.file = file
        self.descriptor = descriptor
        self.place = place
        self.subformat = subformat
        self.header = header
        self.parts = ()
        self.sectors = 0

    def close(self) -> None:
        """Release what is open."""
        self.file.close()
