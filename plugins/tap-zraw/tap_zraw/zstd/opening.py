"""How a disk in zstd's frames is laid out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

from tap_zraw.apart import PiecesApart
from tap_zraw.beside import Beside, Index
from tap_zraw.forward import MOST_UNTOLD, PART, ForwardOnly
from tap_zraw.kept import KeptParts
from tap_zraw.layout import LARGEST_PART, Layout
from tap_zraw.packedfile import PackedFile
from tap_zraw.pieces import Pieces
from tap_zraw.zstd.frames import Frame, frames_of
from tap_zraw.zstd.library import FrameForward, library, unpack_frame
from tap_zraw.zstd.seektable import read_seek_table
from tapcore import ImageFormatError, NotSupportedError

_KIND: Final = "zstd"


@attrs.frozen
class Found:
    """The frames of a file.

    Attributes:
        pieces: what they say; those that do not say what they hold with the most that they can.
        untold: numbers of the latter.
        seekable: there is a seek table.
    """

    pieces: Pieces
    untold: list[int]
    seekable: bool


def find_frames(file: PackedFile, *, salvage: bool = False) -> Found:
    """By the seek table, else frame by frame.

    Args:
        file: that holds them.
        salvage: go by what there is up to the first damage.

    Raises:
        ImageFormatError: it is damaged, or something else.
        OSError: as the system says.
    """
    try:
        pieces = read_seek_table(file)
    except ImageFormatError:
        if not salvage:
            raise
        pieces = None
    if pieces is not None:
        return Found(pieces, [], seekable=True)
    pieces, untold = Pieces(), list[int]()
    for frame in _frames(file, salvage=salvage):
        if frame.content is None and frame.most:
            untold += range(len(pieces), len(pieces) + frame.count)
        content = frame.most if frame.content is None else frame.content
        pieces.add(frame.place, frame.length, content, frame.count)
    return Found(pieces, untold, seekable=False)


def _frames(file: PackedFile, *, salvage: bool) -> Iterator[Frame]:
    some = False
    try:
        for frame in frames_of(file):
            yield frame
            some = True
    except ImageFormatError:
        if not salvage or not some:
            raise


def lay_out(
    file: PackedFile, *, salvage: bool, beside: Beside | None = None
) -> tuple[Layout, Found]:
    """The layout of an open file.

    Args:
        file: the one.
        salvage: go by what there is up to the first damage.
        beside: keeps where the frames are, and what they hold.

    Raises:
        ImageFormatError, NotSupportedError: as `find_frames`.
        OSError: as the system says.
    """
    library()
    known = None if beside is None else beside.load(_KIND, _known)
    found = known or find_frames(file, salvage=salvage)
    pieces = found.pieces
    if found.untold:
        if len(pieces) == 1:
            _keep(beside, found)
            return _measured(file, pieces), found
        pieces = _told(file, found)
        found = Found(pieces, [], seekable=False)
    if known is None:
        _keep(beside, found)
    if pieces.largest() <= LARGEST_PART:
        return PiecesApart(file, pieces, unpack_frame), found

    def begin(index: int) -> FrameForward:
        return FrameForward(file, pieces.places[index])

    return ForwardOnly(pieces, begin, KeptParts(PART, spooled=True)), found


def _known(index: Index) -> Found:
    found = Found(Pieces.unpack(index.tables["pieces"]), [], seekable=False)
    index.close()
    return found


def _keep(beside: Beside | None, found: Found) -> None:
    if beside is None:
        return
    if found.seekable:
        beside.needless("the image has a seek table")
    elif len(found.pieces) == 1:
        beside.needless("nobody can begin in the middle of a frame: convert the image")
    elif index := beside.keep(_KIND, {"pieces": found.pieces.pack()}):
        index.close()


def _measured(file: PackedFile, pieces: Pieces) -> Layout:
    place = pieces.places[0]
    kept = KeptParts(PART, spooled=True)
    try:
        return ForwardOnly.measured(lambda _: FrameForward(file, place), file.size, kept)
    except BaseException:
        kept.close()
        raise


def _told(file: PackedFile, found: Found) -> Pieces:
    """The same pieces, after those were unpacked that do not say what they hold."""
    old, untold, new = found.pieces, set(found.untold), Pieces()
    if sum(old.content(index) for index in untold) > MOST_UNTOLD:
        raise NotSupportedError(
            "does not say how large its disk is, and that may be more than "
            f"{MOST_UNTOLD >> 30} GiB: unpack it into a file first"
        )
    for index in range(len(old)):
        content = old.content(index)
        if index in untold:
            forward = FrameForward(file, old.places[index])
            content = sum(map(len, iter(lambda: forward.read(PART), b"")))  # noqa: B023
        new.add(old.places[index], old.lengths[index], content)
    return new
