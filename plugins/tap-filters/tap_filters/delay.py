"""`delay`: a disk that is slow."""

from __future__ import annotations

import random

from tapcore import Filter, FilterCall, FilterSeconds


class Delay(Filter):
    """Requests reach the driver later.

    Args:
        read: seconds for each read.
        write: for each write, compressed ones too.
        flush: for each flush.
        discard: for each discard.
        zero: for each write of zeroes.
        jitter: up to so many seconds more, by chance, for each request that is delayed.
        seed: of chance.
        parents: requests to the parents of the disk's image are delayed, too.
    """

    title = "requests reach the driver later"

    def __init__(
        self,
        *,
        read: FilterSeconds = 0.0,
        write: FilterSeconds = 0.0,
        flush: FilterSeconds = 0.0,
        discard: FilterSeconds = 0.0,
        zero: FilterSeconds = 0.0,
        jitter: FilterSeconds = 0.0,
        seed: int = 0,
        parents: bool = False,
    ) -> None:
        self._seconds = {
            "read": read,
            "write": write,
            "compressed": write,
            "flush": flush,
            "discard": discard,
            "zero": zero,
        }
        if not any(self._seconds.values()):
            raise ValueError("nothing is to be delayed")
        self._jitter = jitter
        self._chance = random.Random(seed)
        self._parents = parents

    def request(self, call: FilterCall) -> None:
        """Let it wait."""
        seconds = self._seconds[call.op]
        if not seconds or not (call.of_disk or self._parents):
            call.go_on()
            return
        if self._jitter:
            seconds += self._chance.random() * self._jitter
        call.go_on(after=seconds)
