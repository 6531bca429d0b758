"""What a request asks for: taken from the private copy of its entry, checked, and in bytes.

Rules of blkback where the reference of blktap leaves open what is refused. Nothing here reads the
ring again; of an indirect request the lists of its segments are copied out once, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from tapcore.ring.grants import Grants
from tapcore.ring.wire import (
    DISCARD_SECURE,
    MAX_INDIRECT_PAGES,
    MAX_SEGMENTS,
    SECTORS_PER_PAGE,
    SEGMENT,
    SEGMENTS_PER_PAGE,
    Op,
    Protocol,
    Status,
)

SHIFT = 9


class RefusedError(Exception):
    """A request that is answered without asking anybody.

    Attributes:
        operation: of the answer.
        status: of the answer.
        length: bytes that it asked for, where that is known; else 0.
    """

    def __init__(self, operation: int, status: Status, why: str, length: int = 0) -> None:
        super().__init__(why)
        self.operation = operation
        self.status = status
        self.length = length


@attrs.frozen
class Run:
    """Bytes that lie together on the disk and in the memory of the grants.

    Attributes:
        offset: of the disk.
        place: in the memory of the grants.
        length: bytes, whole sectors.
    """

    offset: int
    place: int
    length: int


@attrs.frozen
class Asked:
    """A request that is well-formed and possible.

    Attributes:
        id: the front end's.
        operation: READ, WRITE, WRITE_BARRIER, FLUSH_DISKCACHE or DISCARD; so in the answer, too.
        offset: of the disk, bytes.
        length: bytes.
        runs: its content.
    """

    id: int
    operation: int
    offset: int = 0
    length: int = 0
    runs: tuple[Run, ...] = ()


@attrs.frozen
class Limits:
    """What a request may ask for.

    Attributes:
        size: of the disk, bytes.
        read_only: nothing may be written.
        max_indirect: segments of an indirect request; 0: there is none.
    """

    size: int
    read_only: bool
    max_indirect: int


_WRITES = frozenset({Op.WRITE, Op.WRITE_BARRIER, Op.DISCARD})
_MAY_BE_EMPTY = frozenset({Op.WRITE_BARRIER, Op.FLUSH_DISKCACHE})


def asked(entry: bytes, protocol: Protocol, grants: Grants, limits: Limits) -> Asked:
    """What an entry asks for.

    Args:
        entry: a private copy.
        protocol: of the guest.
        grants: its pages.
        limits: of the disk.

    Raises:
        RefusedError: what cannot be.
    """
    operation, number, id, sector = protocol.head.unpack_from(entry)
    if operation == Op.INDIRECT:
        return _indirect(entry, protocol, grants, limits)
    if operation == Op.DISCARD:
        return _discard(entry, protocol, limits)
    if operation > Op.FLUSH_DISKCACHE:
        raise RefusedError(operation, Status.EOPNOTSUPP, f"operation {operation} is not known")
    if number > MAX_SEGMENTS or not (number or operation in _MAY_BE_EMPTY):
        raise RefusedError(operation, Status.ERROR, f"it has {number} segments")
    start = protocol.segments_at
    segments = SEGMENT.iter_unpack(entry[start : start + number * SEGMENT.size])
    return _transfer(id, operation, sector, segments, grants, limits)


def _indirect(entry: bytes, protocol: Protocol, grants: Grants, limits: Limits) -> Asked:
    _, operation, number, id, sector, _, *pages = protocol.indirect.unpack_from(entry)
    if not limits.max_indirect:
        raise RefusedError(operation, Status.EOPNOTSUPP, "there are no indirect requests")
    if operation not in (Op.READ, Op.WRITE):
        raise RefusedError(operation, Status.ERROR, f"operation {operation} is not an indirect one")
    if not 0 < number <= min(limits.max_indirect, MAX_INDIRECT_PAGES * SEGMENTS_PER_PAGE):
        raise RefusedError(operation, Status.ERROR, f"it has {number} segments")
    segments = _listed(number, pages, operation, grants)
    return _transfer(id, operation, sector, segments, grants, limits)


def _listed(
    number: int, pages: list[int], operation: int, grants: Grants
) -> Iterator[tuple[int, int, int]]:
    """The segments that stand in other pages, each of which is copied once."""
    for gref in pages:
        if number <= 0:
            return
        place, count = grants.place(gref), min(number, SEGMENTS_PER_PAGE)
        if place < 0:
            raise RefusedError(operation, Status.ERROR, f"page {gref} is not granted")
        copy = bytes(grants.memory[place : place + count * SEGMENT.size])
        yield from SEGMENT.iter_unpack(copy)
        number -= count


def _discard(entry: bytes, protocol: Protocol, limits: Limits) -> Asked:
    operation, flag, id, sector, count = protocol.discard.unpack_from(entry)
    if flag & DISCARD_SECURE:
        why = "content cannot be discarded securely"
        raise RefusedError(operation, Status.EOPNOTSUPP, why, count << SHIFT)
    _check_range(operation, sector, count, limits)
    return Asked(id, operation, sector << SHIFT, count << SHIFT)


def _transfer(
    id: int,
    operation: int,
    sector: int,
    segments: Iterable[tuple[int, int, int]],
    grants: Grants,
    limits: Limits,
) -> Asked:
    runs = _joined(sector << SHIFT, _parts(operation, segments, grants))
    length = sum(run.length for run in runs)
    if length or operation in _WRITES:
        _check_range(operation, sector, length >> SHIFT, limits)
    return Asked(id, operation, sector << SHIFT, length, runs)


def _parts(
    operation: int, segments: Iterable[tuple[int, int, int]], grants: Grants
) -> Iterator[tuple[int, int]]:
    """Place and length of each segment, in bytes."""
    place = grants.place
    for gref, first, last in segments:
        if not first <= last < SECTORS_PER_PAGE:
            text = f"a segment has sectors {first} to {last} of its page"
            raise RefusedError(operation, Status.ERROR, text)
        at = place(gref)
        if at < 0:
            raise RefusedError(operation, Status.ERROR, f"page {gref} is not granted")
        yield at + (first << SHIFT), (last - first + 1) << SHIFT


def _joined(offset: int, parts: Iterable[tuple[int, int]]) -> tuple[Run, ...]:
    """Runs as long as can be: pages that follow each other in memory are one."""
    runs: list[Run] = []
    start = end = -1
    for place, length in parts:
        if place != end:
            if end > start:
                runs.append(Run(offset, start, end - start))
                offset += end - start
            start = place
        end = place + length
    if end > start:
        runs.append(Run(offset, start, end - start))
    return tuple(runs)


def _check_range(operation: int, sector: int, count: int, limits: Limits) -> None:
    writes = operation in _WRITES or (operation == Op.FLUSH_DISKCACHE and count)
    if writes and limits.read_only:
        raise RefusedError(operation, Status.ERROR, "the disk is read-only", count << SHIFT)
    if (sector + count) << SHIFT > limits.size:
        text = f"{count} sectors from {sector} on end behind the disk"
        raise RefusedError(operation, Status.ERROR, text, count << SHIFT)
