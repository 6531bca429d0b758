"""A filter around one image: its calls on their way to the driver, and the answers back.

To the engine it is a driver, and keeps a driver's word: each sector is answered once, and what a
driver fails to take, submit or reap is failed here, so that the filter sees those answers too. To
the driver it is the engine.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tapcore.errors import TapError, describe, errno_of
from tapcore.interface.damage import content_damaged
from tapcore.interface.filters.call import Call, Operation
from tapcore.interface.filters.filter import Filter
from tapcore.interface.filters.queues import HOOK_OF, Queues
from tapcore.interface.models import DiskDriver, TdCallback

if TYPE_CHECKING:
    from tapcore.process.timer import Timer

log = logging.getLogger(__name__)

Calls: TypeAlias = Mapping[str, Callable[..., Any]]
"""A function for each hook."""

_BUSY_SECONDS: Final = 0.002
"""After which a driver that is full is asked again, at the latest."""

_Key: TypeAlias = "tuple[int, int, int, int]"


class FilterAround(Queues):
    """See above.

    Args:
        plugin: the filter.
        below: the hooks of what it is around: the driver, or another filter around it.

    Attributes:
        hooks: those that take the place of `below`'s.
    """

    def __init__(self, plugin: Filter, below: Calls) -> None:
        self._filter = plugin
        self._below = below
        self._queues = {op: below[hook] for op, hook in HOOK_OF.items()}
        self._timer: Timer | None = None
        self._slot = -1
        self._closing = False
        self._inside = 0  # a queue hook's call, in which -EBUSY can be returned
        self._asked: Call | None = None  # the filter is asked what to do with it
        self._taken: dict[Call, None] = {}  # by the driver since the last submit, in order
        self._submitted: dict[Call, None] = {}
        self._waiting: deque[Call] = deque()  # for a driver that is full
        self._line: deque[Call] = deque()  # in order, with a moment in the timer for each
        self._refused: dict[_Key, Call] = {}  # who asked will ask again
        self.hooks: Calls = {
            "td_open": self._open,
            "td_close": self._close,
            **self._queue_hooks(),
            "td_submit": self._submit,
            "td_do_callbacks": self._do_callbacks,
        }

    # ---- open, close ------------------------------------------------------------------------

    def _open(self, dd: DiskDriver[Any], name: str, flags: int) -> Any:
        from tapcore.process.timer import Timer

        result = self._below["td_open"](dd, name, flags)
        try:
            self._timer = Timer()
            dd.options.opened.add(self._timer)
            self._slot = len(dd.io_fd)
            dd.io_fd.append(self._timer.fd)
            self._filter.opened(dd)
        except BaseException:
            self._let_go(dd)
            self._below["td_close"](dd)
            raise
        return result

    def _close(self, dd: DiskDriver[Any]) -> None:
        self._closing = True  # nothing is delayed any more
        try:
            self._run_late(dd)
            self._below["td_close"](dd)
            self._run_late(dd)
        finally:
            self._let_go(dd)
            self._filter.closed(dd)

    def _run_late(self, dd: DiskDriver[Any]) -> None:
        if self._timer is not None:
            self._timer.run_due(all_of_it=True)
            if self._taken:
                self._submit(dd)

    def _let_go(self, dd: DiskDriver[Any]) -> None:
        if self._timer is not None:
            dd.io_fd[self._slot] = None
            self._timer.abandon()
            self._timer = None

    # ---- requests, from who asks ------------------------------------------------------------

    def _queue(
        self,
        op: Operation,
        dd: DiskDriver[Any],
        sector: int,
        nb_sectors: int,
        buf: memoryview | None,
        may_unmap: bool,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        key = (_address(prv), sector, nb_sectors, _address(buf))
        call = self._refused.pop(key, None)
        self._inside += 1
        try:
            if call is None:
                call = Call(self, op, dd, sector, nb_sectors, buf, may_unmap, cb, id, prv)
                busy = self._ask(call)
            else:
                call.cb, call.id = cb, id
                busy = self._send(call)
        finally:
            self._inside -= 1
        if busy:
            self._refused[key] = call
            return -errno.EBUSY
        return 0

    def _ask(self, call: Call) -> bool:
        """Ask the filter; True: it wants to go on at once, and the driver is full."""
        outer, self._asked = self._asked, call
        try:
            self._filter.request(call)
        except Exception as exc:
            self._filter_failed(call, exc)
        finally:
            busy, self._asked = self._asked is not call, outer
        return busy

    def _filter_failed(self, call: Call, exc: Exception) -> None:
        _tell_of_bug(self._filter, exc)
        if call.owed == (call.nb_sectors or 1) and not call.under_way:
            self.give(call, -errno_of(exc), call.sector, call.nb_sectors, 0.0)

    # ---- to the driver ----------------------------------------------------------------------

    def pass_on(self, call: Call, after: float, in_order: bool) -> None:
        """Hand it to the driver, so many seconds from now, and behind others that are in order."""
        call.under_way = True
        if (
            in_order
            and self._timer is not None
            and (self._line or (after > 0 and not self._closing))
        ):
            self._line.append(call)
            self._timer.put(after, self._send_first)  # which may come for one behind it, too
        elif after > 0 and self._timer is not None and not self._closing:
            self._timer.put(after, partial(self._send_late, call))
        elif call is self._asked:
            if self._send(call):
                call.under_way = False
                self._asked = None
        else:
            self._send_late(call)

    def _send_first(self) -> None:
        """It is time for one of those that are in order: the first."""
        self._send_late(self._line.popleft())

    def _send_late(self, call: Call) -> None:
        """Who asked was told that it was taken, so it waits here where the driver is full."""
        if self._send(call):
            self._wait(call)
        elif not self._inside and self._timer is not None:
            self._timer.put(0.0, _nothing)  # somebody has to submit it

    def _wait(self, call: Call) -> None:
        if not self._waiting and self._timer is not None:
            self._timer.put(_BUSY_SECONDS, self._retry)
        self._waiting.append(call)

    def _retry(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            if self._send(call):  # and so are all behind it
                self._wait(call)

    def _send(self, call: Call) -> bool:
        """Queue it; True: the driver is full, and nothing was taken."""
        if self._waiting:
            return True
        call.under_way = True
        call.unanswered = call.nb_sectors or 1
        self._taken[call] = None
        try:
            res = self._queue_below(call)
        except Exception as exc:
            self._driver_failed(call, exc)
            return False
        if res == -errno.EBUSY and call.unanswered == (call.nb_sectors or 1):
            self._taken.pop(call, None)
            return True
        if res is not None and res < 0:  # a driver may return nothing at all
            self._fail(call, res)
        return False

    def _queue_below(self, call: Call) -> Any:
        queue, cb = self._queues[call.op], self._answered
        if call.op == "flush":
            return queue(call.dd, cb, call.id, call)
        if call.op == "discard":
            return queue(call.dd, call.sector, call.nb_sectors, cb, call.id, call)
        what = call.may_unmap if call.op == "zero" else call.sent
        return queue(call.dd, call.sector, call.nb_sectors, what, cb, call.id, call)

    def _driver_failed(self, call: Call, exc: Exception) -> None:
        if isinstance(exc, TapError) and call.op != "zero":
            content_damaged(call.dd, call.sector, call.nb_sectors, exc.message)
        elif not isinstance(exc, TapError | OSError):
            log.exception("%s: %s failed", call.dd.name, call.op)
        self._fail(call, -errno_of(exc))

    def _fail(self, call: Call, res: int) -> None:
        """What the driver has not answered of it, it never will."""
        left = call.unanswered
        if left > 0:
            self._answered(call.dd, res, call.sector, left if call.nb_sectors else 0, 0, call)

    # ---- and back ---------------------------------------------------------------------------

    def _answered(
        self, dd: DiskDriver[Any], res: int, sector: int, nb_sectors: int, id: int, call: Call
    ) -> int:
        """The callback given to the driver."""
        call.unanswered -= nb_sectors if call.nb_sectors else 1
        if call.unanswered <= 0:
            call.under_way = False
            self._taken.pop(call, None)
            self._submitted.pop(call, None)
        owed = call.owed
        try:
            self._filter.answered(call, res, sector, nb_sectors)
        except Exception as exc:
            _tell_of_bug(self._filter, exc)
            if call.owed == owed and not call.under_way:
                self.give(call, -errno_of(exc), sector, nb_sectors, 0.0)
        return 0

    def give(self, call: Call, res: int, sector: int, nb_sectors: int, after: float) -> None:
        """Hand an answer to who asked, so many seconds from now."""
        call.owed -= nb_sectors if call.nb_sectors else 1
        if after > 0 and self._timer is not None and not self._closing:
            give = partial(call.cb, call.dd, res, sector, nb_sectors, call.id, call.prv)
            self._timer.put(after, give)
        else:
            call.cb(call.dd, res, sector, nb_sectors, call.id, call.prv)

    # ---- batches ----------------------------------------------------------------------------

    def _submit(self, dd: DiskDriver[Any]) -> int:
        self._inside += 1
        try:
            self._hand_in(dd)
            while self._taken:  # answers may have made the filter ask for more
                self._hand_in(dd)
        finally:
            self._inside -= 1
        return 0

    def _hand_in(self, dd: DiskDriver[Any]) -> None:
        batch, self._taken = self._taken, {}
        self._submitted.update(batch)
        try:
            self._below["td_submit"](dd)
        except Exception as exc:
            _log_failure(dd, "submit failed", exc)
            for call in batch:
                self._fail(call, -errno_of(exc))

    def _do_callbacks(self, dd: DiskDriver[Any], sid: int) -> int:
        self._inside += 1
        try:
            if sid == self._slot:
                if self._timer is not None:
                    self._timer.run_due()
            else:
                self._reap(dd, sid)
            if self._waiting:
                self._retry()
        finally:
            self._inside -= 1
        if self._taken:
            self._submit(dd)
        return 0

    def _reap(self, dd: DiskDriver[Any], sid: int) -> None:
        try:
            self._below["td_do_callbacks"](dd, sid)
        except (InterruptedError, BlockingIOError):
            raise
        except Exception as exc:
            _log_failure(dd, "the driver failed to reap", exc)
            for call in list(self._submitted):
                self._fail(call, -errno_of(exc))


_address: Final = id
"""The builtin, where an argument has its name."""


def _nothing() -> None:
    """Only to be woken."""


def _tell_of_bug(plugin: Filter, exc: Exception) -> None:
    """Nobody but the log hears of what an author did not mean to raise."""
    if not isinstance(exc, TapError | OSError):
        log.error("a bug in the filter %s: %s", type(plugin).__name__, describe(exc))
        log.debug("where that was", exc_info=exc)


def _log_failure(dd: DiskDriver[Any], what: str, exc: Exception) -> None:
    if isinstance(exc, TapError | OSError):
        log.error("%s: %s: %s", dd.name, what, describe(exc))
    else:
        log.exception("%s: %s", dd.name, what)
