"""Moving blocks to other places, and dropping them, so that a crash at any moment loses nothing.

Blocks are copied to places that nothing lies in; then the map is changed, entry by entry, each of
which names the old place or the new one; then, where that is wanted, the file is cut.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import groupby
from typing import Final

from tap_vdi.blockmap import CODING, PAGE_SHIFT, ZERO, page_place
from tap_vdi.header import STORED_AT, Header
from tapcore import ImageFile

_PIECE: Final = 64 << 10
"""Bytes that are copied at once; of zeroes they become a hole."""

Change = tuple[int, int]
"""A block, and what the map is to say of it."""


def copy_place(header: Header, file: ImageFile, source: int, target: int) -> None:
    """Copy a block, with what lies before it, to a place that nothing lies in.

    Raises:
        OSError: as the system says.
    """
    start = header.data_at + source * header.place_bytes
    there = header.data_at + target * header.place_bytes
    for at in range(0, header.place_bytes, _PIECE):
        length = min(_PIECE, header.place_bytes - at)
        content = file.read_metadata(start + at, length)
        if any(content):
            file.write_metadata(there + at, content)
            continue
        file.truncate_up(there + at + length)
        if res := file.zero_blocking(there + at, length, True):
            raise OSError(-res, os.strerror(-res))


def move(header: Header, file: ImageFile, moves: list[tuple[int, int, int]], stored: int) -> None:
    """Give blocks other places.

    Args:
        header: of the image.
        file: it; all of it is on disk when this returns.
        moves: blocks, each with its place and the new one, in the order of the disk.
        stored: how many places are given out then.

    Raises:
        OSError: as the system says; the image is as it was, or some of them are moved.
    """
    if not moves:
        return
    for _, source, target in moves:
        copy_place(header, file, source, target)
    record_stored(file, stored)
    change(header, file, ((block, target) for block, _, target in moves))


def drop(header: Header, file: ImageFile, blocks: list[int]) -> None:
    """Let blocks, in the order of the disk, be zeroes without a place; raises as `move`."""
    if blocks:
        change(header, file, ((block, ZERO) for block in blocks))


def change(header: Header, file: ImageFile, changes: Iterable[Change]) -> None:
    """Change entries of the map, in their order, on disk when this returns."""
    for index, group in groupby(changes, lambda each: each[0] >> PAGE_SHIFT):
        place, length = page_place(header, index)
        entries = CODING.decode(file.read_metadata(place, length))
        for block, entry in group:
            entries[block - (index << PAGE_SHIFT)] = entry
        file.write_metadata(place, CODING.encode(entries))
    file.make_safe()


def record_stored(file: ImageFile, stored: int) -> None:
    """Let the header say how many places are given out, on disk when this returns."""
    file.write_metadata(STORED_AT, stored.to_bytes(4, "little"))
    file.make_safe()


def cut(header: Header, file: ImageFile, stored: int) -> None:
    """Let a file end behind so many places, all that are in use.

    Raises:
        OSError: as the system says.
    """
    record_stored(file, stored)
    end = header.data_at + stored * header.place_bytes
    if file.size > end:
        file.resize(end)
        file.make_safe()
