"""How both sides come together over a Unix socket: what xenstore does for a guest of Xen.

Each says one JSON object in one line: the back end what the disk is, the front end what its ring is
(with the descriptors), the back end whether that is good. The names of the fields are those of
Xen's nodes. docs/ring.md has the whole of it.
"""

from __future__ import annotations

import json
from typing import Any, Final

import attrs

from tapcore.ring.wire import (
    MAX_INDIRECT_PAGES,
    PAGE,
    PROTOCOLS,
    SEGMENTS_PER_PAGE,
    X86_64,
    Protocol,
)

VERSION: Final = 1

MAX_LINE: Final = 4096
"""Bytes of a line, its end included."""

DESCRIPTORS: Final = 3
"""That come with the front end's line: memory, the eventfd of requests, the eventfd of answers."""

MAX_RING_ORDER: Final = 4
"""A ring has 2**4 pages at most."""

MAX_DATA_PAGES: Final = 16384
"""64 MiB."""

_VERSION_FIELD: Final = "tapcore-ring"


class HandshakeError(Exception):
    """The other side said what cannot be, or that it cannot be."""


def _field(name: str, default: Any = attrs.NOTHING) -> Any:
    return attrs.field(default=default, metadata={"name": name})


@attrs.frozen
class Offer:
    """What the back end says of its disk.

    Attributes:
        sectors: its size; they have 512 bytes.
        sector_size: bytes; requests should be whole multiples.
        info: VDISK_* bits.
        mode: "r" or "w".
        flush: FLUSH_DISKCACHE is known.
        barrier: WRITE_BARRIER is known.
        discard: DISCARD is known.
        discard_granularity: bytes.
        max_indirect: segments of an indirect request; 0: there are none.
        max_order: binary logarithm of the pages of a ring, at most.
        max_data_pages: beside the ring, at most.
    """

    sectors: int = _field("sectors")
    sector_size: int = _field("sector-size")
    info: int = _field("info")
    mode: str = _field("mode")
    flush: int = _field("feature-flush-cache")
    barrier: int = _field("feature-barrier")
    discard: int = _field("feature-discard")
    discard_granularity: int = _field("discard-granularity")
    max_indirect: int = _field("feature-max-indirect-segments")
    max_order: int = _field("max-ring-page-order", MAX_RING_ORDER)
    max_data_pages: int = _field("max-data-pages", MAX_DATA_PAGES)

    @property
    def read_only(self) -> bool:
        """Whether the front end may only read."""
        return self.mode != "w"

    def __attrs_post_init__(self) -> None:
        counts = (self.sectors, self.sector_size, self.discard_granularity, self.max_indirect)
        if min(counts) < 0 or self.max_order < 0 or self.max_data_pages < 1:
            raise HandshakeError("a number is negative")
        if self.max_indirect > MAX_INDIRECT_PAGES * SEGMENTS_PER_PAGE:
            raise HandshakeError(f"{self.max_indirect} indirect segments are too many")


@attrs.frozen
class Choice:
    """What the front end says of its ring.

    Attributes:
        protocol_name: how it lays out requests.
        order: binary logarithm of the pages of the ring.
        data_pages: that follow them in the memory, and are granted by their numbers.
    """

    protocol_name: str = _field("protocol", X86_64.name)
    order: int = _field("ring-page-order", 0)
    data_pages: int = _field("data-pages", 352)

    def __attrs_post_init__(self) -> None:
        if self.protocol_name not in PROTOCOLS:
            raise HandshakeError(f"the protocol {self.protocol_name!r} is not known")
        if not 0 <= self.order <= MAX_RING_ORDER:
            raise HandshakeError(f"a ring has 2**{MAX_RING_ORDER} pages at most")
        if not 0 < self.data_pages <= MAX_DATA_PAGES:
            raise HandshakeError(f"there are 1 to {MAX_DATA_PAGES} data pages")

    @property
    def protocol(self) -> Protocol:
        """How requests and answers are laid out."""
        return PROTOCOLS[self.protocol_name]

    @property
    def ring_bytes(self) -> int:
        """Of the ring."""
        return PAGE << self.order

    @property
    def length(self) -> int:
        """Bytes of all the memory."""
        return self.ring_bytes + self.data_pages * PAGE


@attrs.frozen
class Verdict:
    """What the back end says of that.

    Attributes:
        state: "connected", or else why not.
    """

    state: str = _field("state")


CONNECTED: Final = Verdict("connected")


def line_of(said: Offer | Choice | Verdict) -> bytes:
    """What one side says, as it is sent."""
    fields = {_VERSION_FIELD: VERSION}
    for field in attrs.fields(type(said)):
        fields[field.metadata["name"]] = getattr(said, field.name)
    return json.dumps(fields).encode() + b"\n"


def _parsed(line: bytes, kind: type) -> Any:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise HandshakeError("the line is not JSON") from None
    if not isinstance(found, dict) or found.get(_VERSION_FIELD) != VERSION:
        raise HandshakeError(f"the line is not of version {VERSION} of this protocol")
    values = {}
    for field in attrs.fields(kind):
        name = field.metadata["name"]
        if name not in found and field.default is not attrs.NOTHING:
            continue
        value = found.get(name)
        if type(value).__name__ != field.type:
            raise HandshakeError(f"{name} is not there, or of the wrong kind")
        values[field.name] = value
    return kind(**values)


def offer_of(line: bytes) -> Offer:
    """The back end's first line.

    Raises:
        HandshakeError: it is none.
    """
    offer: Offer = _parsed(line, Offer)
    return offer


def choice_of(line: bytes) -> Choice:
    """The front end's line.

    Raises:
        HandshakeError: it is none, or asks for what there is not.
    """
    choice: Choice = _parsed(line, Choice)
    return choice


def check_verdict(line: bytes) -> None:
    """The back end's second line.

    Raises:
        HandshakeError: the back end does not want the ring; the text says why.
    """
    verdict: Verdict = _parsed(line, Verdict)
    if verdict != CONNECTED:
        raise HandshakeError(verdict.state)
