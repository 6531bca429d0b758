"""`tapdisk inspect`."""

from __future__ import annotations

from tapcore.cli.options import image_argument, json_option, parents_option, tap_command
from tapcore.cli.output import print_json, print_line, print_pairs, size_with_bytes
from tapcore.errors import ImageFormatError
from tapcore.interface.policy import ReferencePolicy
from tapcore.sizes import format_size
from tapcore.tools.inspect import InspectedImage, inspect_image

HARMLESS, AFRAID = 0, 2

_LAST_WORDS = {
    "harmless": "harmless",
    "unknown": "not looked at",
    "danger": "something to be afraid of",
}


@tap_command("inspect")
@image_argument()
@json_option
@parents_option
def command(image: str, as_json: bool, references: ReferencePolicy) -> int:
    """Look at an IMAGE from a stranger.

    Nothing but IMAGE is opened, and that for reading. Any file that it names is a danger, but in
    the directories that --parents allows; IMAGE's own is not among them by itself. Exit status:
    0 harmless, 1 not an image, of a format without a driver, or unreadable, 2 something to be
    afraid of.
    """
    found = inspect_image(image, references=references)
    if as_json:
        print_json(found.as_dict())
    else:
        _print(found)
    if found.verdict == "unknown":
        raise ImageFormatError(f"{found.findings[0].message}; not looked at", image=image)
    return AFRAID if found.dangerous else HARMLESS


def _print(found: InspectedImage) -> None:
    print_pairs(
        [
            ("image", found.image),
            ("format", found.format),
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
