"""All about one driver, on a terminal: `tapdisk formats --long`."""

from __future__ import annotations

from tapcore.cli.output import print_json, print_line, print_pairs
from tapcore.tools.formatdetails import FormatDetails, describe_magic, format_details


def print_details(handle: str, *, as_json: bool) -> None:
    """Print what is known of a driver.

    Args:
        handle: of the driver, which is loaded.
        as_json: for a program.
    """
    details = format_details(handle)
    if as_json:
        print_json(details.as_dict())
    else:
        _print_text(details)


def _print_text(details: FormatDetails) -> None:
    info = details.info
    how = "read without loading it" if details.manifest else "none: every command loads the driver"
    pairs = [
        ("handle", info.handle),
        ("name", info.name),
        ("package", f"{info.distribution} {info.version}".strip() or "-"),
        ("licence", details.licence or "not stated"),
        ("module", details.module or "registered by the program"),
        ("written for", f"version {info.api} of the hooks"),
        ("manifest", how),
        ("suffixes", ", ".join(info.suffixes) or "none"),
        ("create options", ", ".join(option.name for option in info.create_options) or "none"),
        ("amend options", ", ".join(option.name for option in info.amend_options) or "none"),
    ]
    print_pairs(pairs)
    print_line("recognised by:")
    probes = ["td_probe"] if "td_probe" in _has(details) and not info.magic else []
    for text in [*map(describe_magic, info.magic), *probes] or ["nothing but its handle"]:
        print_line(f"    {text}")
    print_line("can:")
    print_pairs(
        [
            (name, ", ".join(f"{hook.hook} ({hook.where})" for hook in hooks))
            for name, hooks in details.capabilities().items()
        ],
        "    ",
    )
    print_line("other hooks:")
    print_pairs([(h.hook, h.where) for h in details.hooks if h.where and not h.capability], "    ")
    print_line("left out:")
    print_pairs([(h.hook, h.default) for h in details.hooks if not h.where], "    ")
    _print_conformance(details.conformance)


def _has(details: FormatDetails) -> set[str]:
    return {hook.hook for hook in details.hooks if hook.where}


def _print_conformance(found: object) -> None:
    """What the test kit found: by its check, or as it is."""
    if isinstance(found, dict) and found:
        print_line("conformance:")
        print_pairs([(str(name), value) for name, value in found.items()], "    ")
