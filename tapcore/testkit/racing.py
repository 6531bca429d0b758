"""Checks on what is done while something else is under way at the same place."""

from __future__ import annotations

import random
from time import monotonic
from typing import Final

from tapcore.testkit.asked import Asked
from tapcore.testkit.failing import broken
from tapcore.testkit.faults import Faults
from tapcore.testkit.needs import needs
from tapcore.testkit.session import Session
from tapcore.testkit.subject import Subject

_LONE_SECONDS: Final = 0.3
"""For a flush beside a read, which a driver that does one thing after the other answers first."""

_WAIT_SECONDS: Final = 1.0
"""For the write that comes then."""


class RaceChecks(Subject):
    """What is read is held up, while its place is given up and used again."""

    @needs("write", "file")
    def test_a_read_shows_nothing_of_others(self, rng: random.Random) -> None:
        """Its place on the host may be somebody else's before it is read: not while that lasts."""
        image = self.make_image(self.small)
        with (
            self.session(image) as session,
            Faults(*self.host_files(image), rng=rng, late=1.0) as faults,
        ):
            count = max(session.unit, session.dd.cluster_size // 512)  # one read, in one thread
            half = session.sectors // 2 // count * count
            if not half:
                return
            places = count, half
            if self._give_up_what_is_read(session, faults, places, rng, zeroing=True):
                self._give_up_what_is_read(session, faults, places, rng, zeroing=False)

    @staticmethod
    def _give_up_what_is_read(
        session: Session,
        faults: Faults,
        places: tuple[int, int],
        rng: random.Random,
        *,
        zeroing: bool,
    ) -> bool:
        """Whether the driver has done something else while it read."""
        count, half = places
        content, other = rng.randbytes(count * 512), rng.randbytes(count * 512)
        session.write(0, content)
        session.discard(half, count)
        session.flush()
        session.finish()
        faults.hold("read")
        read = session.read(0, count)
        give_up = session.zero if zeroing else session.discard
        give_up(0, count)
        beside = _comes(session, session.flush(), _LONE_SECONDS)
        if beside:
            _comes(session, session.write(half, other), _WAIT_SECONDS)
        faults.release()
        session.finish()
        got = read.read()
        for at in range(0, len(got), 512):
            if got[at : at + 512] not in (content[at : at + 512], bytes(512)):
                broken(
                    f"{read}: sector {at // 512} holds neither what was written there nor zeroes: "
                    "it was given up while it was read, and its place was used again too early"
                )
        return beside


def _comes(session: Session, asked: Asked, seconds: float) -> bool:
    """Let the driver answer a request, but not for ever; whether it has."""
    session.submit()
    until = monotonic() + seconds
    while asked.left and (left := until - monotonic()) > 0:
        session.poll(left)
    return not asked.left
