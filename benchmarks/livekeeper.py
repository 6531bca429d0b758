"""A client that knows what its part of a disk holds: behind the part that fio writes, to the end.

It writes, trims, zeroes and reads at random, one request at a time, and goes along with every other
size: what was cut off does not come back, what is new is zeroes.
"""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from knowncontent import KnownContent
from nbd_client import FLUSH, TRIM, WRITE_ZEROES, Client

_UNITS = (512, 512, 4096, 65536)


class Keeper(threading.Thread):
    """See above.

    Args:
        uri: of the disk.
        start: of its part, bytes.
        size: of the disk, bytes.
        rng: for what it does.

    Attributes:
        done: requests.
        trims: of these.
        error: what went wrong.
    """

    def __init__(self, uri: str, start: int, size: int, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self._uri, self._start, self._rng = uri, start, rng
        self._client = Client(uri)
        self._known = KnownContent(size - start)
        self._known.data[:] = self._read(0, size - start)
        self._turn = threading.Lock()
        self._over = threading.Event()
        self.done = self.trims = 0
        self.error = ""

    def run(self) -> None:
        try:
            while not self._over.is_set():
                with self._turn:
                    self._do_something()
                self.done += 1
        except (AssertionError, OSError, EOFError) as exc:
            self.error = f"the keeper: {type(exc).__name__}: {exc}"

    def _do_something(self) -> None:
        rng, client = self._rng, self._client
        size = len(self._known.data)
        unit = rng.choice(_UNITS)
        at = rng.randrange(size) // unit * unit
        length = min(rng.randrange(1, 9) * unit, size - at)
        what = rng.choice(["write", "write", "trim", "zero", "read", "read", "flush"])
        place = self._start + at
        if what == "write":
            content = rng.randbytes(length)
            client.write(place, content)
            self._known.write(at, content)
        elif what == "trim":
            client.call(TRIM, place, length)
            self.trims += 1
            self._known.discard(at, at + length)
        elif what == "zero":
            client.call(WRITE_ZEROES, place, length)
            self._known.zero(at, at + length)
        elif what == "read":
            self._known.compare(at, self._read(at, length))
        else:
            client.call(FLUSH)

    def _read(self, at: int, length: int) -> bytes:
        return self._client.read(self._start + at, length)

    def resized(self, new: int, old: int) -> None:
        """The disk is about to become smaller, or has grown (bytes): clients see that anew."""
        with self._turn:
            self._known.resize(new - self._start)
            if new > old:
                self._client.close()
                self._client = Client(self._uri)
                assert self._client.size == new, (self._client.size, new)
                self._known.compare(old - self._start, self._read(old - self._start, new - old))

    def end(self) -> None:
        """Let it stop, and look at all that it has."""
        self._over.set()
        self.join(120)
        if self.is_alive():
            self.error = "the keeper still waits for an answer"
        elif not self.error:
            try:
                self._known.compare(0, self._read(0, len(self._known.data)))
            except (AssertionError, OSError, EOFError) as exc:
                self.error = f"the keeper: {type(exc).__name__}: {exc}"
        self._client.close()
