"""What the daemon can be asked for, over its control socket."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import attrs

from tapcore.daemon import detaching
from tapcore.daemon.changes import change, forward
from tapcore.daemon.daemon import Daemon
from tapcore.daemon.disks import Disk
from tapcore.daemon.diskverbs import DISK_VERBS, set_level
from tapcore.daemon.facts import facts_of, rows_of
from tapcore.daemon.jsonrpc import INVALID_PARAMS, Call, RpcError
from tapcore.daemon.processes import Process
from tapcore.daemon.spec import DiskSpec, default_name
from tapcore.daemon.verbs import Later, VerbTable
from tapcore.errors import UsageError

ASK_SECONDS: Final = 2.0
"""How long `list` and `stats` wait for a disk process; one that does not answer is said so."""

_OWN: Final = {"open", "close", "list", "stats", "sockets", "control", "log-level", "stop", "noted"}
"""Verbs of a disk process that only the daemon calls."""


def attach(daemon: Daemon, *, spec: DiskSpec) -> Later:
    """Open an image in a process of its own and serve it; answers once clients are served."""
    if not spec.name:
        spec = attrs.evolve(spec, name=_free_name(daemon, spec.image))
    spec = spec.checked()
    later = Later()

    def attached(disk: Disk | None, error: BaseException | None) -> None:
        if disk is None or error is not None:
            later.fail(error or UsageError("was not attached"))
        else:
            later.answer(disk.as_dict())

    daemon.attach(spec).then(attached)
    return later


def _free_name(daemon: Daemon, image: str) -> str:
    name = default_name(image)
    if name not in daemon.disks:
        return name
    return next(f"{name}-{n}" for n in range(2, 1 << 31) if f"{name}-{n}" not in daemon.disks)


def detach(daemon: Daemon, *, name: str, force: bool = False) -> Later:
    """Answer what is in flight, flush and close a disk; with clients only where that is forced."""
    return detaching.detach(daemon, daemon.disk(name), force=force)


def list_disks(daemon: Daemon, *, name: str | None = None) -> Later:
    """The disks that are attached, how each is, and where its clients find it."""
    if name is not None:
        daemon.disk(name)
    processes = [p for p in daemon.processes.all.values() if name is None or name in p.disks]

    def told(found: dict[str, Any]) -> Any:
        rows = {process: rows_of(answer) for process, answer in found.items()}
        chosen = [each for each in daemon.disks.values() if name in (None, each.name)]
        return {"disks": [_row(each, rows) for each in chosen]}

    return _ask_all(processes, "list", told)


def _row(disk: Disk, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the daemon knows, and what the disk's process says of it now."""
    row = disk.as_dict()
    if disk.process is None or disk.state != "serving":
        return row
    found = facts_of(rows.get(disk.process.name, {}).get(disk.name))
    if not found:
        found = {"state": "silent", "reason": "its process does not answer"}
    return {**row, **found}


def stats(daemon: Daemon, *, name: str | None = None) -> Later:
    """What disks have done so far: of one, or of all that are served."""
    chosen = list(daemon.disks.values()) if name is None else [daemon.disk(name)]
    if name is not None and chosen[0].process is None:
        raise UsageError(f"is {chosen[0].state}", image=name)
    later, left, rows = Later(), [1], {}

    def one(disk: Disk, found: Any, error: BaseException | None) -> None:
        if error is None:
            rows[disk.name] = found
        left[0] -= 1
        if not left[0]:
            later.answer({"disks": [rows[each.name] for each in chosen if each.name in rows]})

    for each in chosen:
        if each.process is not None:
            left[0] += 1
            asked = each.process.remote.call("stats", {"name": each.name}, seconds=ASK_SECONDS)
            asked.then(partial(one, each))
    left[0] -= 1
    if not left[0]:
        later.answer({"disks": []})
    return later


def _ask_all(processes: list[Process], verb: str, then: Callable[[dict[str, Any]], Any]) -> Later:
    """Ask several processes at once; `then` makes the result of the answers, by their names."""
    later, left = Later(), [len(processes) + 1]
    found: dict[str, Any] = {}

    def one(process: Process | None, answer: Any, error: BaseException | None) -> None:
        if process is not None and error is None:
            found[process.name] = answer
        left[0] -= 1
        if not left[0]:
            later.answer(then(found))

    for process in processes:
        process.remote.call(verb, {}, seconds=ASK_SECONDS).then(partial(one, process))
    one(None, None, None)
    return later


def reload_drivers(daemon: Daemon) -> Later:
    """Look for drivers again; disks that are attached from now on use what is installed now."""
    before = {_release(row) for row in daemon.nursery.drivers}
    later = Later()

    def told(drivers: Any, error: BaseException | None) -> None:
        if error is not None:
            later.fail(error)
            return
        after = {_release(row) for row in drivers}
        later.answer(
            {
                "drivers": drivers,
                "added": sorted(handle for handle, *_ in after - before),
                "removed": sorted(handle for handle, *_ in before - after),
            }
        )

    daemon.nursery.renew().then(told)
    return later


def _release(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["handle"], row["distribution"] or "", row["version"] or ""


def log_level(daemon: Daemon, *, level: str, name: str | None = None) -> Later | None:
    """What the daemon, or the process of a disk, tells in its log from now on."""
    if name is None:
        set_level(level)
        return None
    return forward(daemon, "log-level", daemon.disk(name), {"level": level})


def version(daemon: Daemon) -> dict[str, Any]:
    """Which version runs, as which process."""
    return {"version": _version(), "pid": os.getpid(), "run_dir": daemon.place.path}


def _version() -> str:
    package = sys.modules["tapcore"]
    return str(package.__version__)


def stop(daemon: Daemon, *, keep_disks: bool = False) -> None:
    """End: disks are answered, flushed and closed, or go on without a daemon."""
    daemon.stop(keep_disks=keep_disks)


_VERBS: Final[Mapping[str, Callable[..., Any]]] = {
    "attach": attach,
    "detach": detach,
    "list": list_disks,
    "stats": stats,
    "log-level": log_level,
    "reload": reload_drivers,
    "version": version,
    "stop": stop,
}

DAEMON_VERBS: Final[VerbTable[Daemon]] = VerbTable(_VERBS)
"""All of them; what else disk processes can do is asked for in the same way, with its `name`."""


def dispatch(daemon: Daemon, call: Call) -> Any:
    """Do what is asked for: a verb of the daemon, or of a disk's process."""
    if call.method in DISK_VERBS and call.method not in _OWN:
        name = call.params.get("name")
        if not isinstance(name, str):
            raise RpcError(INVALID_PARAMS, f"'{call.method}' needs 'name'")
        return change(daemon, call.method, daemon.disk(name), call.params)
    return DAEMON_VERBS.find(call.method)(daemon, call.params)
