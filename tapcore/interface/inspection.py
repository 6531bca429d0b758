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


def lost_content(
    thing: str, count: int, consequence: str, *, partly: bool = False, least: bool = False
) -> list[Finding]:
    """What a file is too short for; nothing where the count is 0.

    Args:
        thing: one of those that are missing ("grain table").
        count: of them.
        consequence: what is lost by that.
        partly: a part of each may be there.
        least: not all of the file was looked at, and there may be more.
    """
    if not count:
        return []
    many = f"1 {thing} lies" if count == 1 else f"{'at least ' * least}{count} {thing}s lie"
    how = "past the end of the file, wholly or in part" if partly else "past the end of the file"
    return [Finding("note", f"{many} {how}: {consequence}", "content-lost")]


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
