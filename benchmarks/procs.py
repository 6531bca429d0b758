"""What /proc tells about a server: its CPU time and memory, with all its threads and children."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on (field 3 of proc(5) is item 0)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has ended
        return None
    return text.rpartition(")")[2].split()


def family(pid: int) -> list[int]:
    """PID and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = [pid]
    for member in found:  # grows while it is walked
        found.extend(children.get(member, ()))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of PID, of its threads (also of ended ones) and of its children.

    The kernel adds up the threads in the process's own line, and children that have ended and were
    waited for in its cutime and cstime, so nothing is lost or counted twice between two readings.
    """
    ticks = 0
    for member in family(pid):
        if fields := _stat(member):
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICK


def reset_peak(pid: int) -> None:
    """Start VmHWM anew, so that the next reading is the peak since now."""
    for member in family(pid):
        with contextlib.suppress(OSError):
            Path(f"/proc/{member}/clear_refs").write_text("5")


def peak_rss(pid: int) -> int:
    """Peak resident memory in bytes, summed over the process and its children.

    Without what is mapped of files now: that is the page cache's, which would have it anyway.
    """
    total = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{member}/status").read_text().splitlines()
            found = {line.partition(":")[0]: line.split()[1] for line in lines if "kB" in line}
            total += max(int(found["VmHWM"]) - int(found["RssFile"]), 0) * 1024
    return total


def available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
