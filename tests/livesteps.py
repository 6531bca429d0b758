"""A server, its client and its live changes in one thread: each batch of the loop is one call.

What the client asks for is kept in a model; whatever is read has to be what the model says, at each
step of a change.
"""

import contextlib
import random
import threading
from collections.abc import Callable
from typing import Any

import attrs
from knowncontent import SECTOR, KnownContent
from nbd_client import FLUSH, READ, TRIM, WRITE, WRITE_ZEROES, Client, request

from tapcore import TapError
from tapcore.live import Live
from tapcore.nbd.server import NbdServer

PATIENCE = 3000  # batches
SENT_AT_ONCE = 96 << 10


@attrs.define
class Asked:
    """A request that is not answered yet."""

    command: int
    start: int
    end: int
    content: bytes


class Change:
    """A live change that was begun: its end is noted here."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}
        self.error: TapError | None = None
        self.over = False

    def done(self, result: Any, error: TapError | None) -> None:
        self.result, self.error, self.over = result or {}, error, True

    def told(self, result: Any, error: TapError | None) -> None:
        """Of a beginning: only that it has failed is an end."""
        if error is not None:
            self.done(result, error)


class Stepped:
    """A served disk and what it has to hold.

    Args:
        server: not running.
        live: of it.
        size: of the disk.
        rng: for what is written.
    """

    def __init__(self, server: NbdServer, live: Live, size: int, rng: random.Random) -> None:
        self.server, self.live, self.rng = server, live, rng
        self.known = KnownContent(size)
        self.asked: dict[int, Asked] = {}
        self._out = bytearray()
        self._cookie = 0
        self.client = self._connected()

    def _connected(self) -> Client:
        found: list[Client] = []
        thread = threading.Thread(
            target=lambda: found.append(Client(self.server.uris()[0], structured=False))
        )
        thread.start()
        while thread.is_alive():
            self.server.loop.run_once(0.01)
        found[0].sock.setblocking(False)
        return found[0]

    # ---- steps ------------------------------------------------------------------------------

    def step(self, seconds: float = 0.05) -> None:
        """One batch of the loop, and what the client gets of it."""
        if self._out:
            self._send()
        self.server.loop.run_once(0.001 if self._out else seconds)
        try:
            while self.client.receive():
                pass
        except BlockingIOError:
            pass
        answers = self.client.parser.answers
        while done := [each for each in self.asked if answers[each].done]:
            self._answered(self.asked.pop(done[0]), done[0])

    def until(self, wanted: Callable[[], object]) -> None:
        """So many batches as it takes."""
        for _ in range(PATIENCE):
            if wanted():
                return
            self.step()
        raise AssertionError("it does not come to its end")

    def answered(self) -> None:
        """Wait for all answers."""
        self.until(lambda: not self.asked)

    # ---- requests ---------------------------------------------------------------------------

    def ask(self, command: int, start: int, length: int) -> None:
        """Send a request; its range may not be that of another one under way."""
        content = self.rng.randbytes(length) if command == WRITE else b""
        self._cookie += 1
        self.client.parser.expect(command, self._cookie, start, length)
        self._out += request(command, self._cookie, start, length, payload=content)
        self.asked[self._cookie] = Asked(command, start, start + length, content)

    def _send(self) -> None:
        """A part of what is to be sent: long writes are under way for several batches."""
        with contextlib.suppress(BlockingIOError):
            sent = self.client.sock.send(self._out[:SENT_AT_ONCE])
            del self._out[:sent]

    def ask_something(self) -> None:
        """A request at random, beside those under way."""
        command = self.rng.choice([WRITE, WRITE, WRITE, WRITE_ZEROES, TRIM, READ, FLUSH])
        start, length = self._range()
        if command == FLUSH:
            start = length = 0
        if any(each.start < start + length and start < each.end for each in self.asked.values()):
            return
        self.ask(command, start, length)

    def _range(self) -> tuple[int, int]:
        size = len(self.model)
        unit = self.rng.choice([1, SECTOR, 4096, 65536])
        start = self.rng.randrange(size) // unit * unit
        length = self.rng.randrange(1, 9) * unit
        return start, min(length, size - start)

    def _answered(self, asked: Asked, cookie: int) -> None:
        answer = self.client.parser.answers.pop(cookie)
        assert not answer.error, (asked.command, answer.error)
        start, end = asked.start, asked.end
        if asked.command == WRITE:
            self.known.write(start, asked.content)
        elif asked.command == WRITE_ZEROES:
            self.known.zero(start, end)
        elif asked.command == TRIM:
            self.known.discard(start, end)
        elif asked.command == READ:
            self.known.compare(start, answer.content(start, end - start))

    @property
    def model(self) -> bytearray:
        """What it has to hold."""
        return self.known.data

    def begin(self) -> None:
        """What it holds before anything is written is what it has to hold."""
        self._cookie += 1
        size = len(self.model)
        self.client.parser.expect(READ, self._cookie, 0, size)
        self._out += request(READ, self._cookie, 0, size)
        answer = self.client.parser.answers[self._cookie]
        self.until(lambda: answer.done)
        self.known.data[:] = answer.content(0, size)

    def check(self) -> None:
        """The whole content."""
        self.answered()
        self.ask(READ, 0, len(self.model))
        self.answered()

    # ---- changes ----------------------------------------------------------------------------

    def change(self, begin: Callable[[Change], object], *, busy: int = 0) -> Change:
        """Begin a change, and do something at random in each batch until its end.

        Args:
            begin: with the change that is to be told of its end.
            busy: requests at most that are under way meanwhile.
        """
        change = Change()
        begin(change)
        for _ in range(PATIENCE):
            if change.over:
                return change
            if len(self.asked) < busy:
                self.ask_something()
            self.step()
        raise AssertionError("the change does not come to its end")

    def close(self) -> None:
        """Stop, as by a signal."""
        self.client.close()
        self.server.stop()
        self.server.run()
