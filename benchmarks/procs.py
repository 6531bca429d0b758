"""What /proc tells about a server: CPU time, context switches and memory, of all its threads and
children."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

_HOW = ("voluntary", "nonvoluntary")
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


def _numbers(status: Path) -> dict[str, int]:
    """The numbers of a `status` file by name; memory in KiB."""
    try:
        lines = status.read_text().splitlines()
    except OSError:  # it has ended
        return {}
    words = [(name, rest.split()) for name, _, rest in (line.partition(":") for line in lines)]
    return {name: int(rest[0]) for name, rest in words if rest and rest[0].isdigit()}


def peak_rss(pid: int) -> int:
    """Peak resident memory in bytes, summed over the process and its children.

    Without what is mapped of files now: that is the page cache's, which would have it anyway.
    """
    total = 0
    for member in family(pid):
        found = _numbers(Path(f"/proc/{member}/status"))
        total += max(found.get("VmHWM", 0) - found.get("RssFile", 0), 0) << 10
    return total


@dataclass
class Watch:
    """Looks at a process now and then: `look`.

    The kernel keeps neither the largest anonymous memory nor what ended threads have waited, so
    what lies between two looks is not seen.

    Attributes:
        anonymous: the most bytes of anonymous memory at any look. The page cache, which would have
            its files anyway, is none of it.
    """

    pid: int
    anonymous: int = 0
    _before: dict[str, int] = field(default_factory=dict)
    _switches: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.look()
        self._before = dict(self._switches)

    def look(self) -> None:
        """See what there is now."""
        anonymous = 0
        for member in family(self.pid):
            anonymous += _numbers(Path(f"/proc/{member}/status")).get("RssAnon", 0) << 10
            with contextlib.suppress(OSError):  # it has ended
                for thread in os.listdir(f"/proc/{member}/task"):
                    found = _numbers(Path(f"/proc/{member}/task/{thread}/status"))
                    count = sum(found.get(f"{how}_ctxt_switches", 0) for how in _HOW)
                    self._switches[thread] = max(count, self._switches.get(thread, 0))
        self.anonymous = max(self.anonymous, anonymous)

    @property
    def switches(self) -> int:
        """How often its threads have given up a processor since the watch began."""
        return sum(self._switches.values()) - sum(self._before.values())


def available_memory() -> int:
    """Bytes."""
    return _numbers(Path("/proc/meminfo")).get("MemAvailable", 0) << 10
