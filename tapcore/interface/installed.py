"""Entry points of what is installed: as `importlib.metadata` finds them, in a tenth of its time.

Every command looks for drivers, and importing that module alone takes a fifth of a short command.
Distributions in plain folders, which is where pip puts them, are read here; where anything else is
on the path (archives, eggs, finders of a packager), it is asked after all.
Source: "Entry points specification" and "Recording installed projects" of packaging.python.org.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from importlib.metadata import Distribution


class EntryPoint(NamedTuple):
    """A name under which a distribution offers an object.

    Attributes:
        name: left of the equals sign.
        value: `MODULE` or `MODULE:ATTRIBUTES`.
        place: folder of the distribution's records.
    """

    name: str
    value: str
    place: str

    def load(self) -> Any:
        """Import the module, and return it or its attribute."""
        module, _, attributes = self.value.partition("[")[0].partition(":")
        loaded = importlib.import_module(module.strip())
        names = [name for name in attributes.strip().split(".") if name]
        return functools.reduce(getattr, names, loaded)

    @property
    def dist(self) -> Distribution | None:
        """The distribution that offers it."""
        from importlib.metadata import Distribution

        return Distribution.at(self.place)

    @property
    def release(self) -> tuple[str, str]:
        """Name and version of the distribution; empty where its records do not say."""
        found = self.records("Name", "Version")
        return found["Name"], found["Version"]

    def records(self, *names: str) -> dict[str, str]:
        """What the distribution's records say under these names; empty: nothing.

        Source: "Core metadata specifications": headers as in a mail.
        """
        found = dict.fromkeys(names, "")
        for records in ("METADATA", "PKG-INFO"):
            with (
                contextlib.suppress(OSError, UnicodeDecodeError),
                open(os.path.join(self.place, records), encoding="utf-8") as file,
            ):
                for line in itertools.takewhile(str.strip, file):
                    name, _, value = line.partition(":")
                    if name in found and not found[name]:
                        found[name] = value.strip()
                break
        return found


def release_of(entry_point: Any) -> tuple[str, str]:
    """Name and version of the distribution that offers an entry point, of whichever kind."""
    if isinstance(entry_point, EntryPoint):
        return entry_point.release
    dist = getattr(entry_point, "dist", None)
    return (dist.name, dist.version) if dist is not None else ("", "")


def licence_of(entry_point: Any) -> str:
    """What the distribution that offers an entry point says of its licence; empty: nothing."""
    if isinstance(entry_point, EntryPoint):
        said = entry_point.records("License-Expression", "License")
    else:
        dist = getattr(entry_point, "dist", None)
        said = dict(dist.metadata.items()) if dist is not None else {}
    return str(said.get("License-Expression") or said.get("License") or "")


def entry_points(group: str) -> list[Any]:
    """What all installed distributions offer in a group.

    Args:
        group: a section of their `entry_points.txt`.

    Returns:
        Objects with `name`, `load()` and `dist`, in no particular order. Of two distributions with
        one name only the first on the path counts.
    """
    if _only_plain_folders():
        return list(_in_folders(group))
    import importlib.metadata

    return list(importlib.metadata.entry_points(group=group))


def _only_plain_folders() -> bool:
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_distributions")]
    if finders != [PathFinder]:
        return False
    return all(map(_is_plain, sys.path))


def _is_plain(path: object) -> bool:
    return isinstance(path, str) and not path.endswith(".egg") and not os.path.isfile(path)


def _in_folders(group: str) -> Iterator[EntryPoint]:
    seen = set()
    for path in sys.path:
        for record in _records(path or "."):
            name = normalized(os.path.splitext(record)[0].partition("-")[0])
            if name in seen:
                continue
            seen.add(name)
            yield from _of_record(os.path.join(path, record), group)


def normalized(name: str) -> str:
    """A distribution's name as it is compared: `Tap_Qcow2` as `tap-qcow2`.

    Source: "Names and normalization" of packaging.python.org.
    """
    words = name.lower().replace("_", "-").replace(".", "-").split("-")
    return "-".join(filter(None, words))


def _records(path: str) -> list[str]:
    try:
        names = os.listdir(path)
    except (OSError, ValueError):  # not there; not a path at all
        return []
    return [name for name in names if name.endswith((".dist-info", ".egg-info"))]


def _of_record(place: str, group: str) -> Iterator[EntryPoint]:
    try:
        with open(os.path.join(place, "entry_points.txt"), "rb") as file:
            content = file.read()
        text = content.decode() if group.encode() in content else ""
    except (OSError, UnicodeDecodeError):  # most distributions have none
        return
    inside = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            inside = line == f"[{group}]"
        elif inside and line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield EntryPoint(name.strip(), value.strip(), place)
