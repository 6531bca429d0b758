"""Block status: the extents of a chain in the words of `base:allocation`."""

from __future__ import annotations

from typing import Final

from tapcore.engine import chain_extents
from tapcore.interface.models import DiskDriver
from tapcore.nbd import constants as nbd

MAX_RUNS: Final = 4096
"""Runs in one reply; a client asks again for the rest."""


def block_status(
    dd: DiskDriver, offset: int, length: int, *, only_one: bool = False
) -> list[tuple[int, int]]:
    """The runs of a range, from its start on.

    Args:
        dd: the child.
        offset: bytes.
        length: bytes, at least 1.
        only_one: the client wants a single run (NBD_CMD_FLAG_REQ_ONE).

    Returns:
        (length in bytes, `STATE_*` bits), at least one; together at most `length`.
    """
    runs: list[tuple[int, int]] = []
    for extent in chain_extents(dd, offset, length):
        state = 0
        if extent.kind == "zero":
            state = nbd.STATE_ZERO if extent.allocated else nbd.STATE_ZERO | nbd.STATE_HOLE
        if runs and runs[-1][1] == state:
            runs[-1] = (runs[-1][0] + extent.length, state)
            continue
        if len(runs) == (1 if only_one else MAX_RUNS):
            break
        runs.append((extent.length, state))
    return runs
