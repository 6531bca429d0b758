"""Releases of drivers that are known to lose data, or to harm in another way: they are not loaded.

An entry stays as long as somebody may have that release. Who needs it all the same sets it up with
another version of its distribution: there is no option against this list.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapcore.interface.badrelease import BadRelease


KNOWN_BAD: tuple[BadRelease, ...] = ()
"""None so far. docs/compatibility.md says how one gets here."""


def reason(distribution: str, version: str) -> str:
    """Why a release must not be used; "" where nothing is known against it.

    Args:
        distribution: its name.
        version: of the release.
    """
    name = re.sub(r"[-_.]+", "-", distribution).lower()
    for bad in KNOWN_BAD:
        if bad.distribution == name and _numbers(version) < _numbers(bad.below):
            return f"{distribution} {version} is known to be bad: {bad.reason}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    """Its release numbers, for comparing; what follows them (`rc1`, `+local`) does not count."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version.strip())
    numbers = [int(part) for part in found[1].split(".")] if found else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
