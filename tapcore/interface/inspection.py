"""What a driver says of an image from a stranger: what it says it is, and what is suspicious."""

from __future__ import annotations

from typing import Literal

import attrs


@attrs.frozen
class Finding:
    """Something that `inspect` says of an image from a stranger.

    Attributes:
        severity: "danger", "unknown" (what could not be looked at) or "note".
        message: one line.
        code: a word for programs, which never changes; the same for all formats that have the same.
    """

    severity: Literal["note", "unknown", "danger"]
    message: str
    code: str = "other"


@attrs.frozen
class Inspection:
    """What an image says of itself, read without opening anything else.

    Attributes:
        virtual_size: bytes.
        features: the format's features, names for people.
        references: every file that the image names, as (role, name).
        findings: what is suspicious.
    """

    virtual_size: int
    features: tuple[str, ...] = ()
    references: tuple[tuple[str, str], ...] = ()
    findings: tuple[Finding, ...] = ()
