"""A question asked of one image or of several: the answers, and one exit status."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import click

from tapcore.cli.failures import one_line, report
from tapcore.cli.options import session_of
from tapcore.cli.output import print_json, print_line

FAILED: Final = 1


class Answer(NamedTuple):
    """What was found in one image.

    Attributes:
        value: for `--json`.
        status: the exit status that one image alone would give.
    """

    value: Any = None
    status: int = 0


def each_image(
    images: Sequence[str],
    look: Callable[[str], Answer],
    *,
    as_json: bool,
    worst: Sequence[int] = (1, 2, 3),
    headings: bool = False,
    quiet: bool = False,
) -> int:
    """Look at each image; one that cannot be looked at does not keep the others from it.

    Args:
        images: as the user named them, one at least.
        look: prints what it finds, unless JSON is asked for.
        as_json: print the values: the one of a single image, else an array.
        worst: exit statuses, the one that says most first.
        headings: what `look` prints does not name the image: its name goes before it.
        quiet: `look` prints nothing.

    Returns:
        The exit status.
    """
    if len(images) == 1:
        answer = look(images[0])
        if as_json:
            print_json(answer.value)
        return answer.status
    session = session_of(click.get_current_context())
    session.as_json = False  # an error is one of the answers
    found: list[Answer] = []
    for image in images:
        if found and not (as_json or quiet):
            print_line()
        if headings and not as_json:
            print_line(f"{image}:")
        try:
            found.append(_named(image, look(image)))
        except Exception as exc:
            status = report(exc, session)
            found.append(Answer({"image": image, "error": one_line(exc)}, status))
    if as_json:
        print_json([answer.value for answer in found])
    statuses = {answer.status for answer in found}
    return next((status for status in worst if status in statuses), 0)


def _named(image: str, answer: Answer) -> Answer:
    """An answer among others says whose it is."""
    value = answer.value
    if not isinstance(value, dict) or "image" in value:
        return answer
    return answer._replace(value={"image": image, **value})
