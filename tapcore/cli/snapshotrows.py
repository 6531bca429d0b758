"""Snapshots as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from tapcore.sizes import format_size

if TYPE_CHECKING:
    from tapcore.interface.results import Snapshot

COLUMNS: Final = ("ID", "NAME", "VM STATE", "DATE", "VM CLOCK")


def snapshot_rows(snapshots: Iterable[Snapshot]) -> list[tuple[str, ...]]:
    """A row for each; dates are local time."""
    return [
        (
            snapshot.id,
            snapshot.name,
            format_size(snapshot.vm_state_size) if snapshot.vm_state_size else "-",
            _date(snapshot.date_sec),
            _clock(snapshot.vm_clock_nsec),
        )
        for snapshot in snapshots
    ]


def _date(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):  # the image may say anything
        return "-"


def _clock(nanoseconds: int) -> str:
    """Hours, minutes and seconds that a virtual machine has run."""
    seconds, thousandths = divmod(nanoseconds // 1_000_000, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}.{thousandths:03}"
