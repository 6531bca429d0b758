"""CPU time of work whose amount must not follow what an image or a client claims.

Without a bound such work takes minutes, or hours. So a test need not be exact, and allows for a
machine that has much else to do; how long something takes is for the benchmarks to say.
"""

import time
from typing import Final

LENIENT: Final = 8
"""Times what it takes on a quiet machine."""


class CpuTime:
    """What this process uses from now on."""

    def __init__(self) -> None:
        self._began = time.process_time()

    def is_about(self, seconds: float) -> bool:
        """Whether it is so many seconds up to now, or less; much more is too much."""
        return time.process_time() - self._began < LENIENT * seconds
