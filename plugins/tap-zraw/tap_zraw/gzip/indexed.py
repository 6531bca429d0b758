"""How a disk in gzip's members is laid out by an index that is kept beside it.

Of each part the index has a checksum: what comes out of a decoder that begins in the middle must be
what came out when all of it was unpacked.
"""

from __future__ import annotations

from array import array

from tap_zraw.beside import Beside, Index
from tap_zraw.forward import PART, ForwardOnly
from tap_zraw.gzip.members import MembersForward
from tap_zraw.gzip.points import FindingForward, Point, Start, pack_points, unpack_points
from tap_zraw.kept import KeptParts
from tap_zraw.layout import Layout
from tap_zraw.packedfile import PackedFile
from tap_zraw.pieces import in_file_order

_KIND = "gzip"


def lay_out_by_points(file: PackedFile, beside: Beside) -> Layout:
    """The layout of an open file; raises as `ForwardOnly.measured`."""
    known = beside.load(_KIND, lambda index: _known(file, index))
    return _found(file, beside) if known is None else known


def _found(file: PackedFile, beside: Beside) -> Layout:
    """By an index that is made now."""
    finder = FindingForward(file)
    kept, checks = KeptParts(PART, spooled=False), array("I")
    made = ForwardOnly.measured(lambda _: finder, file.size, kept, checks)
    made.begin_with(lambda _: MembersForward(file))
    table, windows = pack_points(finder.points)
    tables = {
        "size": made.size.to_bytes(8, "little"),
        "points": table,
        "checks": in_file_order(checks).tobytes(),
        "zeroes": kept.known,
    }
    index = beside.keep(_KIND, tables, windows)
    points = finder.points if index is None else unpack_points(table, index)
    made.go_by([(each.at, Start(file, each)) for each in points], checks, index)
    return made


def _known(file: PackedFile, index: Index) -> Layout:
    """By one that there is."""
    tables = index.tables
    kept, checks = KeptParts(PART, spooled=False, known=tables["zeroes"]), array("I")
    checks.frombytes(tables["checks"])
    made = ForwardOnly.of_one_piece(
        lambda _: MembersForward(file), file.size, int.from_bytes(tables["size"], "little"), kept
    )
    points: list[Point] = unpack_points(tables["points"], index)
    made.go_by([(each.at, Start(file, each)) for each in points], in_file_order(checks), index)
    return made
