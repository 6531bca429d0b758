"""What a disk process can be asked for, over its control socket."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Final

import attrs

from tapcore.daemon.confining import Confining
from tapcore.daemon.controlsocket import WithDescriptors
from tapcore.daemon.diskprocess import DiskProcess, ServedDisk
from tapcore.daemon.liveverbs import LIVE_VERBS
from tapcore.daemon.spec import DiskSpec
from tapcore.daemon.verbs import Later, VerbTable
from tapcore.errors import UsageError
from tapcore.metrics.summary import snapshot_as_dict
from tapcore.ring.dump import states_of
from tapcore.tools.sketch import Sketch

LEVELS: Final = ("debug", "info", "warning", "error")


def open_disk(
    process: DiskProcess,
    *,
    spec: DiskSpec,
    sockets: int = 0,
    shared: bool = False,
    confined: bool = True,
    user: str = "",
    page: str = "",
    lent: bool = False,
) -> dict[str, Any]:
    """Open an image and serve it on the listening sockets that come with the call.

    `page` is the file of its counters.
    """
    taken = process.take_descriptors(sockets)
    with process.borrowing(lent):
        disk = process.open(spec.checked(), taken, shared=shared, page=page)
    process.confine(disk, Confining(confined, user, os.path.dirname(page)))
    return {**disk_as_dict(disk), "own": disk.own}


def close_disk(process: DiskProcess, *, name: str, force: bool = False) -> Later:
    """Answer what is in flight, flush and close a disk; with clients only where that is forced."""
    return process.close(name, force=force)


def list_disks(process: DiskProcess) -> dict[str, Any]:
    """The disks of the process, with what each was attached with."""
    disks = [disk_as_dict(disk) for disk in process.disks.values()]
    return {"pid": os.getpid(), "disks": disks}


def disk_as_dict(disk: ServedDisk) -> dict[str, Any]:
    """What there is to tell of a disk that is served."""
    engine = disk.export.engine
    return {
        "name": disk.spec.name,
        "state": disk.state,
        "handle": disk.handle,
        "unrecognised": disk.unrecognised,
        "virtual_size": engine.size,
        "read_only": engine.read_only,
        "clients": disk.server.clients,
        "pid": os.getpid(),
        "spec": disk.spec.as_dict(),
    }


def stats(process: DiskProcess, *, name: str) -> dict[str, Any]:
    """What a disk has done so far."""
    disk = process.disk(name)
    seen = disk.server.counts()
    counted = {} if seen is None else snapshot_as_dict(seen)
    return {
        **counted,
        "name": name,
        "uptime": monotonic() - disk.since,
        "clients": disk.server.clients,
        "in_flight": disk.export.engine.in_flight,
    }


def dump_ring(process: DiskProcess, *, name: str) -> dict[str, Any]:
    """The rings of a disk: shared and private indices, events, slots in use."""
    rings = states_of(process.disk(name).export.disk)
    return {"name": name, "rings": [attrs.asdict(each) for each in rings]}


def map_of(process: DiskProcess, *, name: str) -> Later:
    """What lies where, in cells: bytes of each kind; clients are served meanwhile."""
    disk = process.disk(name)
    if disk.state != "serving":
        raise UsageError(f"is {disk.state}", image=name)
    later = Later()

    def told(found: Sketch | Exception) -> None:
        if isinstance(found, Sketch):
            later.answer({"name": name, **found.as_dict()})
        else:
            later.fail(found)

    process.sketcher.begin(disk.export.disk, told)
    return later


def sockets_of(process: DiskProcess, *, name: str) -> WithDescriptors:
    """The sockets where a disk is served come with the answer: for a daemon that has none."""
    disk = process.disk(name)
    return WithDescriptors({"sockets": len(disk.sockets)}, disk.sockets)


def control_of(process: DiskProcess) -> WithDescriptors:
    """The listening control socket comes with the answer: for a daemon that has none."""
    return WithDescriptors({"sockets": 1}, (process.control_descriptor,))


def log_level(process: DiskProcess, *, level: str) -> None:
    """What the process tells in its log from now on: debug, info, warning or error."""
    set_level(level)


def set_level(level: str) -> None:
    """For the whole process.

    Raises:
        UsageError: there is no such level.
    """
    if level not in LEVELS:
        raise UsageError(f"'level' is one of {', '.join(LEVELS)}")
    logging.getLogger().setLevel(level.upper())


def stop(process: DiskProcess) -> None:
    """Close all disks cleanly, and end."""
    process.stop()


_VERBS: Final[Mapping[str, Callable[..., Any]]] = {
    "open": open_disk,
    "close": close_disk,
    "list": list_disks,
    "stats": stats,
    "dump-ring": dump_ring,
    "map": map_of,
    "sockets": sockets_of,
    "control": control_of,
    "log-level": log_level,
    "stop": stop,
    **LIVE_VERBS,
}

DISK_VERBS: Final[VerbTable[DiskProcess]] = VerbTable(_VERBS)
"""All of them. What else can be done to a disk that is served is added here."""
