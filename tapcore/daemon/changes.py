"""The daemon's part in changes of a served disk: it knows what to attach after a crash."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import attrs

from tapcore.daemon.brokers import Broker
from tapcore.daemon.daemon import Daemon
from tapcore.daemon.disks import Disk
from tapcore.daemon.facts import has_open, own_files
from tapcore.daemon.jsonrpc import RpcError
from tapcore.daemon.loan import BY_LOAN, Loan
from tapcore.daemon.verbs import Later
from tapcore.errors import IOFailedError, TapError, UsageError

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5
"""Between two looks whether a commit is over."""

ASK_SECONDS: Final = 2.0

_OTHER_IMAGE: Final = {"snapshot-live": "child", "swap": "image"}
"""Verbs after which a disk is another image, and how a broker calls that."""

_GOES_ON: Final = {"beginning", "copying", "finishing"}


def forward(
    daemon: Daemon,
    verb: str,
    disk: Disk,
    params: Mapping[str, Any],
    *,
    seconds: float | None = None,
    descriptors: Sequence[int] = (),
) -> Later:
    """Let the process of a disk do something.

    Args:
        daemon: whose disk it is.
        verb: of the process.
        disk: of the process.
        params: of the verb.
        seconds: as of `Remote.call`.
        descriptors: as there.

    Raises:
        UsageError: it has none now.
    """
    if disk.process is None:
        raise UsageError(f"is {disk.state}: {disk.reason}", image=disk.name)
    return disk.process.remote.call(verb, params, seconds=seconds, descriptors=descriptors)


def change(daemon: Daemon, verb: str, disk: Disk, params: Mapping[str, Any]) -> Later:
    """As `forward`, where the disk may be another image afterwards, or files have to be opened."""
    if verb in BY_LOAN:
        return _change_by_loan(daemon, verb, disk, params)

    def look(result: Any, error: BaseException | None) -> None:
        if error is None:
            _look_at(daemon, disk, result)

    later = forward(daemon, verb, disk, params)
    if verb == "commit-status":
        later.then(look)
    return later


def _change_by_loan(daemon: Daemon, verb: str, disk: Disk, params: Mapping[str, Any]) -> Later:
    """With a broker, which knows from here which files it may open for the disk's process."""
    later = Later()

    def ordered(broker: Broker | None, error: BaseException | None) -> None:
        if broker is None:
            later.fail(error or IOFailedError("no broker"))
            return
        try:
            if daemon.disks.get(disk.name) is not disk:
                raise UsageError("was detached meanwhile", image=disk.name)
            _go_on(daemon, verb, disk, params, broker, later)
        except TapError as exc:
            broker.end()
            later.fail(exc)

    def order(*_: Any) -> None:
        if disk.process is None:
            later.fail(UsageError(f"is {disk.state}: {disk.reason}", image=disk.name))
            return
        try:
            loan = Loan.for_change(verb, disk.spec, params)
            daemon.brokers.order(disk.process.name, loan).then(ordered)
        except OSError as exc:
            later.fail(exc)

    if not disk.committing:
        order()
    else:  # a commit may have ended a moment ago: the loan is to be of what the disk is now
        _ask_for_commit(daemon, disk).then(order)
    return later


def _go_on(
    daemon: Daemon,
    verb: str,
    disk: Disk,
    params: Mapping[str, Any],
    broker: Broker,
    later: Later,
) -> None:
    params = {**params, "lent": True}
    if verb in _OTHER_IMAGE:
        _serve_other_image(daemon, verb, disk, params, broker, later)
    else:
        begun = forward(daemon, verb, disk, params, descriptors=(broker.theirs,))
        if verb == "commit-live":
            begun.then(partial(_commit_begun, daemon, disk, broker))
        begun.then(later.settle)
    broker.give()

    def over(result: Any, error: BaseException | None) -> None:
        if error is not None or verb != "commit-live":
            broker.end()

    later.then(over)


def _commit_begun(
    daemon: Daemon, disk: Disk, broker: Broker, result: Any, error: BaseException | None
) -> None:
    if error is None:
        disk.broker = broker
        watch_commit(daemon, disk)


def _serve_other_image(
    daemon: Daemon,
    verb: str,
    disk: Disk,
    params: Mapping[str, Any],
    broker: Broker,
    later: Later,
) -> None:
    """The image's name is written down before any request gets to the image."""

    def announced(result: Any, error: BaseException | None) -> None:
        if error is not None:
            later.fail(error)
            return
        follow(daemon, disk, result, broker, _OTHER_IMAGE[verb])
        if disk.process is None:  # it died meanwhile, and comes back
            later.answer(result)
            return
        served = disk.process.remote.call("noted", {"name": disk.name})
        served.then(partial(_served, later, result))

    params = {**params, "announced": True}
    forward(daemon, verb, disk, params, descriptors=(broker.theirs,)).then(announced)


def follow(daemon: Daemon, disk: Disk, told: Any, broker: Broker | None, part: str) -> None:
    """What its process says that a disk is: it is attached with that after a crash.

    Where the process has that open: else it could have any file of the host opened for it.

    Args:
        daemon: whose disk it is.
        disk: that was changed.
        told: what its process says.
        broker: which knows of which files the image consists; None: nobody does.
        part: of the broker's loan.
    """
    image = told.get("image") if isinstance(told, dict) else None
    if image == disk.spec.image or daemon.disks.get(disk.name) is not disk:
        return
    own = None
    if broker is not None:
        broker.hear()
        own = own_files(broker.own.get(part))
    spec = attrs.evolve(disk.spec, image=str(image), own=own)
    if disk.process is None or not has_open(disk.process.pid, spec):
        log.error("%s: its process does not have open what it says it is", disk.name)
        return
    disk.spec = spec
    try:
        daemon.remember()
    except OSError as exc:
        log.error("%s: the new name of its image cannot be kept: %s", disk.name, exc)


def watch_commit(daemon: Daemon, disk: Disk) -> None:
    """Until it is over: where nobody asks, the parent's name has to be written down all the same.

    As long as it is not, the child's is right too: it is emptied before the parent is written.
    """
    disk.committing = True
    daemon.timer.put(LOOK_SECONDS, partial(_look_at_commit, daemon, disk))


def _look_at_commit(daemon: Daemon, disk: Disk) -> None:
    if daemon.disks.get(disk.name) is not disk or not disk.committing:
        return

    def told(result: Any, error: BaseException | None) -> None:
        if disk.committing:
            watch_commit(daemon, disk)

    _ask_for_commit(daemon, disk).then(told)


def _ask_for_commit(daemon: Daemon, disk: Disk) -> Later:
    """How far it is; answered also where nobody knows."""
    later = Later()

    def told(result: Any, error: BaseException | None) -> None:
        if error is None:
            _look_at(daemon, disk, result)
        elif disk.process is None or not isinstance(error, IOFailedError):
            _end_commit(disk)
        later.answer(None)

    if disk.process is None:
        _end_commit(disk)
        later.answer(None)
    else:
        remote = disk.process.remote
        remote.call("commit-status", {"name": disk.name}, seconds=ASK_SECONDS).then(told)
    return later


def _look_at(daemon: Daemon, disk: Disk, result: Any) -> None:
    """What a commit is at: at its end the disk may be another image."""
    if not (isinstance(result, dict) and result.get("phase") in _GOES_ON):
        follow(daemon, disk, result, disk.broker, "parent")
        _end_commit(disk)


def _end_commit(disk: Disk) -> None:
    disk.committing = False
    broker, disk.broker = disk.broker, None
    if broker is not None:
        broker.end()


def _served(later: Later, told: Any, result: Any, error: BaseException | None) -> None:
    if isinstance(error, RpcError):  # else the process has died, and comes back
        later.fail(error)
    else:
        later.answer(told)
