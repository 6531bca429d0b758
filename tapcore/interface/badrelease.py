"""A row of the table of bad releases, which `knownbad` has."""

from __future__ import annotations

import attrs


@attrs.frozen
class BadRelease:
    """A release of a distribution.

    Attributes:
        distribution: its name, as `pip` shows it.
        below: versions before this one are bad: "0.2.1".
        reason: why, and what to do, for people.
    """

    distribution: str
    below: str
    reason: str
