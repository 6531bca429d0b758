"""The daemon's part in changes of a served disk: it knows what to attach after a crash."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import attrs

from tapcore.daemon.daemon import Daemon
from tapcore.daemon.disks import Disk
from tapcore.daemon.facts import has_open
from tapcore.daemon.jsonrpc import RpcError
from tapcore.daemon.verbs import Later
from tapcore.errors import UsageError

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5
"""Between two looks whether a commit is over."""

ASK_SECONDS: Final = 2.0

_OTHER_IMAGE: Final = {"snapshot-live", "swap"}
"""Verbs after which a disk is another image."""

_GOES_ON: Final = {"beginning", "copying", "finishing"}


def forward(
    daemon: Daemon,
    verb: str,
    disk: Disk,
    params: Mapping[str, Any],
    *,
    seconds: float | None = None,
) -> Later:
    """Let the process of a disk do something.

    Args:
        daemon: whose disk it is.
        verb: of the process.
        disk: of the process.
        params: of the verb.
        seconds: as of `Remote.call`.

    Raises:
        UsageError: it has none now.
    """
    if disk.process is None:
        raise UsageError(f"is {disk.state}: {disk.reason}", image=disk.name)
    return disk.process.remote.call(verb, params, seconds=seconds)


def change(daemon: Daemon, verb: str, disk: Disk, params: Mapping[str, Any]) -> Later:
    """As `forward`, where the disk may be another image afterwards."""
    if verb in _OTHER_IMAGE:
        return _serve_other_image(daemon, verb, disk, params)
    later = Later()

    def done(result: Any, error: BaseException | None) -> None:
        if error is not None:
            later.fail(error)
            return
        if verb == "commit-live":
            daemon.timer.put(LOOK_SECONDS, partial(_look_at_commit, daemon, disk))
        elif verb == "commit-status":
            follow(daemon, disk, result)
        later.answer(result)

    forward(daemon, verb, disk, params).then(done)
    return later


def _serve_other_image(daemon: Daemon, verb: str, disk: Disk, params: Mapping[str, Any]) -> Later:
    """The image's name is written down before any request gets to the image."""
    later = Later()

    def announced(result: Any, error: BaseException | None) -> None:
        if error is not None:
            later.fail(error)
            return
        follow(daemon, disk, result)
        if disk.process is None:  # it died meanwhile, and comes back
            later.answer(result)
            return
        served = disk.process.remote.call("noted", {"name": disk.name})
        served.then(partial(_served, later, result))

    forward(daemon, verb, disk, {**params, "announced": True}).then(announced)
    return later


def follow(daemon: Daemon, disk: Disk, told: Any) -> None:
    """What its process says that a disk is: it is attached with that after a crash.

    Where the process has that open: else it could have any file of the host opened for it.
    """
    image = told.get("image") if isinstance(told, dict) else None
    if image == disk.spec.image or daemon.disks.get(disk.name) is not disk:
        return
    spec = attrs.evolve(disk.spec, image=str(image))
    if disk.process is None or not has_open(disk.process.pid, spec):
        log.error("%s: its process does not have open what it says it is", disk.name)
        return
    disk.spec = spec
    try:
        daemon.remember()
    except OSError as exc:
        log.error("%s: the new name of its image cannot be kept: %s", disk.name, exc)


def _look_at_commit(daemon: Daemon, disk: Disk) -> None:
    """Until it is over: where nobody asks, the parent's name has to be written down all the same.

    As long as it is not, the child's is right too: it is emptied before the parent is written.
    """
    if daemon.disks.get(disk.name) is not disk or disk.process is None:
        return

    def told(result: Any, error: BaseException | None) -> None:
        if error is not None:
            return
        if isinstance(result, dict) and result.get("phase") in _GOES_ON:
            daemon.timer.put(LOOK_SECONDS, partial(_look_at_commit, daemon, disk))
        else:
            follow(daemon, disk, result)

    asked = disk.process.remote.call("commit-status", {"name": disk.name}, seconds=ASK_SECONDS)
    asked.then(told)


def _served(later: Later, told: Any, result: Any, error: BaseException | None) -> None:
    if isinstance(error, RpcError):  # else the process has died, and comes back
        later.fail(error)
    else:
        later.answer(told)
