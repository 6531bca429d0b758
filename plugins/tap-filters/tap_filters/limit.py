"""`limit`: a disk that does only so much a second."""

from __future__ import annotations

from time import monotonic

from tap_filters.operations import Operations
from tapcore import Filter, FilterCall, FilterSeconds, FilterSize


class Meter:
    """So much a second, and after a pause as much at once as `burst` seconds bring.

    Args:
        rate: units a second.
        burst: seconds.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._paid_until = 0.0  # up to then all that it brings is spent

    def wait(self, amount: float, now: float) -> float:
        """Take some; returns how long (seconds) whoever wants it has to wait."""
        spent = max(self._paid_until, now)
        self._paid_until = spent + amount / self._rate
        return max(spent - self._burst - now, 0.0)


class Limit(Filter):
    """Requests wait until the disk may do them. They stay in order.

    Args:
        bytes: of content that is read or written, a second.
        ops: operations a second.
        burst: after a pause as much is done at once as these seconds bring.
        op: which operations count and wait; flushes do neither, unless they are named.
        parents: requests to the parents of the disk's image count, too.
    """

    title = "so many bytes and operations a second"

    def __init__(
        self,
        *,
        bytes: FilterSize | None = None,
        ops: float | None = None,
        burst: FilterSeconds = 0.1,
        op: Operations = frozenset({"read", "write", "compressed", "zero", "discard"}),
        parents: bool = False,
    ) -> None:
        if bytes is None and ops is None:
            raise ValueError("needs bytes or ops")
        if (bytes is not None and bytes <= 0) or (ops is not None and not 0 < ops < float("inf")):
            raise ValueError("a limit has to be more than 0")
        self._bytes = None if bytes is None else Meter(bytes, burst)
        self._ops = None if ops is None else Meter(ops, burst)
        self._operations = op
        self._parents = parents

    def request(self, call: FilterCall) -> None:
        """Let it wait."""
        if call.op not in self._operations or not (call.of_disk or self._parents):
            call.go_on()
            return
        now = monotonic()
        wait = 0.0 if self._ops is None else self._ops.wait(1, now)
        if self._bytes is not None and call.buf is not None:
            wait = max(wait, self._bytes.wait(call.length, now))
        call.go_on(after=wait, in_order=True)
