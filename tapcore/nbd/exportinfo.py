"""What a handshake tells about an export, where it finds it, and what it agrees on.

In quotation marks are section titles of doc/proto.md (NetworkBlockDevice/nbd).
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from tapcore.nbd import constants as wire


@attrs.frozen
class ExportInfo:
    """What the handshake tells about one export; sizes are bytes ("Size constraints")."""

    name: str
    size: int
    transmission_flags: int
    description: str = ""
    block_min: int = wire.DEFAULT_BLOCK_MIN
    block_preferred: int = wire.DEFAULT_BLOCK_PREFERRED
    block_max: int = wire.DEFAULT_BLOCK_MAX
    contexts: tuple[str, ...] = (wire.BASE_ALLOCATION,)

    def __attrs_post_init__(self) -> None:
        """Refuse with ValueError what may not be sent, before there is a client to send it to."""
        for text in (self.name, self.description, *self.contexts):
            if len(text.encode()) > wire.MAX_STRING or "\0" in text:
                raise ValueError(f"{text[:64]!r} has a NUL or over {wire.MAX_STRING} bytes")
        if not (0 <= self.size < 1 << 64 and 0 <= self.transmission_flags < 1 << 16):
            raise ValueError(f"size {self.size} or flags {self.transmission_flags} out of range")
        low, preferred, high = self.block_min, self.block_preferred, self.block_max
        smallest = max(low, wire.SMALLEST_BLOCK_PREFERRED)
        in_order = 1 <= low <= wire.LARGEST_BLOCK_MIN and smallest <= preferred <= high < 1 << 32
        if not in_order or low & (low - 1) or preferred & (preferred - 1):
            raise ValueError(f"block sizes {low}, {preferred}, {high} are not allowed")


class ExportCatalog(Protocol):
    """Where the handshake looks exports up. Both are answered from memory and do not raise."""

    def list_exports(self) -> Sequence[ExportInfo]:
        """Every export, as LIST tells them."""

    def find_export(self, name: str) -> ExportInfo | None:
        """The export of that name; "" asks for the default one."""


@attrs.frozen
class Negotiated:
    """What was agreed when transmission starts.

    `transmission_flags` is what the client was told, which may be less than the export's own;
    `contexts` is context id -> name, empty unless SET_META_CONTEXT chose some for this export.
    Extended headers, where they were agreed on, take the place of structured replies.
    """

    export: ExportInfo
    transmission_flags: int
    structured_replies: bool
    contexts: Mapping[int, str]
    extended_headers: bool = False
