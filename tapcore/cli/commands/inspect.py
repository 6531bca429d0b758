"""`tapdisk inspect`."""

from __future__ import annotations

import click

from tapcore.cli.eachimage import Answer, each_image
from tapcore.cli.failures import print_error
from tapcore.cli.options import image_argument, json_option, strangers_parents_option, tap_command
from tapcore.cli.output import format_word, print_line, print_pairs, size_with_bytes
from tapcore.cli.sizes import Size
from tapcore.cli.timelimit import ended_after
from tapcore.errors import printable
from tapcore.interface.policy import ReferencePolicy
from tapcore.interface.registry import default_registry
from tapcore.opening.names import RAW_FORMAT, raw_handle
from tapcore.sizes import format_size
from tapcore.tools.admission import Admission
from tapcore.tools.inspect import InspectedImage, inspect_image

HARMLESS, UNKNOWN, AFRAID = 0, 1, 2

_LAST_WORDS = {
    "harmless": "harmless",
    "unknown": "not looked at",
    "danger": "something to be afraid of",
}


@tap_command("inspect")
@image_argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--max-size",
    type=Size(),
    help="A disk, or a file, that is larger is a danger.",
)
@click.option(
    "--formats",
    metavar="HANDLE,...",
    default="",
    help="An image of any other format is a danger ('raw' is one, too).",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Do not look at an image for longer; what is not done by then is not looked at.",
)
@json_option
@strangers_parents_option
def command(
    images: tuple[str, ...],
    max_size: int | None,
    formats: str,
    time_limit: float | None,
    as_json: bool,
    parents: ReferencePolicy,
) -> int:
    """Look at an IMAGE from a stranger, or at several.

    Nothing but each IMAGE is opened, and that for reading. Any file that it names is a danger, but
    in the directories that --parents allows; IMAGE's own is not among them by itself. Exit status:
    0 harmless, 1 not an image, of a format without a driver, or unreadable, 2 something to be
    afraid of; of several images 2 if one is so, else 1 if one is so.
    """
    admission = Admission(max_size, _handles(formats))

    def look(image: str) -> Answer:
        with ended_after(time_limit, image):
            found = admission.judge(inspect_image(image, parents=parents))
        if not as_json:
            _print(found)
        if found.verdict != "unknown":
            return Answer(found.as_dict(), AFRAID if found.dangerous else HARMLESS)
        print_error(f"{printable(image)}: {found.findings[0].message}; not looked at")
        return Answer(found.as_dict(), UNKNOWN)

    return each_image(images, look, as_json=as_json, worst=(AFRAID, UNKNOWN))


def _handles(formats: str) -> frozenset[str]:
    """The handles of `--formats`; a raw disk has that of its driver."""
    words = [word.strip() for word in formats.split(",") if word.strip()]
    registry = default_registry()
    return frozenset(raw_handle(registry) if word == RAW_FORMAT else word for word in words)


def _print(found: InspectedImage) -> None:
    print_pairs(
        [
            ("image", found.image),
            ("format", format_word(found.format)),
            *_virtual_size(found),
            (
                "file size",
                f"{size_with_bytes(found.file_size)}, {format_size(found.disk_size)} used",
            ),
            *([("features", ", ".join(found.features) or "none")] if found.handle else []),
            *[(f"names ({role})", name) for role, name in found.references],
        ]
    )
    if found.handle and not found.references:
        print_line("names no other file")
    for finding in found.findings:
        if finding.severity != "unknown" or found.dangerous:
            label = "DANGER" if finding.severity == "danger" else "note"
            print_line(f"{label}: {finding.message}")
    print_line(_LAST_WORDS[found.verdict])


def _virtual_size(found: InspectedImage) -> list[tuple[str, str]]:
    if found.virtual_size is None:
        return []
    return [("virtual size", size_with_bytes(found.virtual_size))]
