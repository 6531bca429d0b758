"""A part of a host file as the content of a reply."""

from __future__ import annotations

import attrs


@attrs.frozen
class FileSpan:
    """Bytes of a reply that are sent from a host file, without passing through this process.

    Attributes:
        fd: of the host file.
        offset: bytes.
        length: bytes.
    """

    fd: int
    offset: int
    length: int
