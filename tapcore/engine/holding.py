"""A disk at rest: front ends take no requests for a while, and keep their clients."""

from __future__ import annotations

from collections.abc import Callable


class Holding:
    """The part of an engine that front ends ask before they take requests.

    Attributes:
        held: front ends take no new requests; those taken are answered. See `hold`.
        on_hold: each front end's, called when `held` has changed.
    """

    held: bool
    on_hold: list[Callable[[], object]]

    def hold(self) -> None:
        """Have front ends take no new requests, until `release`.

        They keep their clients, and what those send meanwhile waits where it is.
        """
        self.held = True
        self._tell_front_ends()

    def release(self) -> None:
        """Have front ends go on, with what has waited first."""
        self.held = False
        self._tell_front_ends()

    def _tell_front_ends(self) -> None:
        for call in self.on_hold:
            call()
