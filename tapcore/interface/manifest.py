"""Manifests: what is to be known of a driver, as data in its distribution, read without import.

The manifest is the file `tapcore-drivers.json` in the package that the driver's entry point names.
`tapdisk plugins manifest HANDLE` makes it from the driver. A driver without one works as well: it
is loaded to be asked.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from importlib.machinery import PathFinder
from typing import Any, Final, NamedTuple

from tapcore.errors import describe
from tapcore.interface.diskinfo import DiskInfo, FormatOption
from tapcore.interface.installed import EntryPoint, release_of
from tapcore.interface.magic import Magic

log = logging.getLogger(__name__)

MANIFEST: Final = "tapcore-drivers.json"
"""The file's name."""

_VERSION: Final = 1
"""Of the file's form; others are not read."""

_SAID: Final = ("name", "api", "single_handler", "file_backed", "makes_unnamed")
"""What of a `DiskInfo` stands in the manifest as it is."""


class Manifest(NamedTuple):
    """What a manifest says of one driver.

    Attributes:
        info: as its `disk_info`.
        hooks: that it implements.
    """

    info: DiskInfo
    hooks: frozenset[str]


def package_file(value: str, name: str) -> bytes | None:
    """A file of the package that an entry point names; the package is not imported.

    Args:
        value: of the entry point, `MODULE` or `MODULE:ATTRIBUTES`.
        name: of the file, in the topmost package.

    Returns:
        Its content; None where there is none, or no such package.
    """
    package = value.partition(":")[0].partition("[")[0].strip().partition(".")[0]
    for folder in _folders(package):
        try:
            with open(os.path.join(folder, name), "rb") as file:
                return file.read()
        except OSError:
            continue
    return None


def _folders(package: str) -> list[str]:
    """Where a topmost package lies, as an import would find it."""
    for finder in sys.meta_path:
        try:
            path = _path_to(package) if finder is PathFinder else None
            spec = finder.find_spec(package, path)
        except Exception:  # a finder of somebody's; an import would fail as well
            return []
        if spec is not None:
            return list(spec.submodule_search_locations or ())
    return []


def _path_to(package: str) -> list[str]:
    """Of the path what may hold a package: to look through all the rest in vain takes an import
    longer than anything else here."""
    return [folder for folder in sys.path if _may_hold(folder, package)]


def _may_hold(folder: str, package: str) -> bool:
    try:
        return package in _names_in(folder or ".", os.stat(folder or ".").st_mtime_ns)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError):  # no folder: an archive, or somebody's own
        return True


@functools.lru_cache(maxsize=64)
def _names_in(folder: str, changed: int) -> frozenset[str]:
    """What can be imported from a folder, and more.

    Args:
        folder: its path.
        changed: when it was (nanoseconds), so that it is looked at anew then.
    """
    return frozenset(name.partition(".")[0] for name in os.listdir(folder))


def read_manifest(value: str, handle: str) -> Manifest | None:
    """What a driver's distribution says of it.

    Args:
        value: of its entry point.
        handle: of the driver.

    Returns:
        None where there is no manifest, or not of this driver, or of another version.

    Raises:
        ValueError: the file is not what a manifest is.
    """
    content = package_file(value, MANIFEST)
    return None if content is None else parse_manifest(content, handle)


def manifest_at(value: str, handle: str) -> Manifest | None:
    """As `read_manifest`; None also for what is no manifest, so that the driver itself is asked."""
    try:
        return read_manifest(value, handle)
    except ValueError as exc:
        log.warning("the driver %s: its manifest cannot be read: %s", handle, describe(exc))
        return None


def parse_manifest(content: bytes, handle: str) -> Manifest | None:
    """As `read_manifest`, of the file's content."""
    import json

    said = json.loads(content)
    try:
        if said["version"] != _VERSION or handle not in said["drivers"]:
            return None
        return _manifest(said["drivers"][handle], handle)
    except (TypeError, KeyError, AttributeError, IndexError) as exc:
        raise ValueError(f"is no manifest: {type(exc).__name__}: {exc}") from None


def _manifest(said: dict[str, Any], handle: str) -> Manifest:
    info = DiskInfo(
        handle=handle,
        suffixes=tuple(said["suffixes"]),
        magic=tuple(map(_magic, said["magic"])),
        create_options=tuple(map(_option, said["create_options"])),
        amend_options=tuple(map(_option, said["amend_options"])),
        words_before_image=said.get("words_before_image"),
        **{name: said[name] for name in _SAID},
    )
    return Manifest(info, frozenset(said["hooks"]))


def _magic(said: dict[str, Any]) -> Magic:
    return Magic(**{**said, "content": said["content"].encode("latin-1")})


def _option(said: dict[str, Any]) -> FormatOption:
    return FormatOption(**{**said, "choices": tuple(said.get("choices", ()))})


# ---- written ---------------------------------------------------------------------------------


def render_manifest(manifests: list[Manifest]) -> str:
    """The content of the file for the drivers of one package."""
    import json

    drivers = {each.info.handle: _as_dict(each) for each in manifests}
    return json.dumps({"version": _VERSION, "drivers": drivers}, indent=2) + "\n"


def _as_dict(manifest: Manifest) -> dict[str, Any]:
    info = manifest.info
    words = info.words_before_image
    return {
        **{name: getattr(info, name) for name in _SAID},
        **({} if words is None else {"words_before_image": words}),
        "suffixes": info.suffixes,
        "magic": [
            {**_what_differs(each), "content": each.content.decode("latin-1")}
            for each in info.magic
        ],
        "hooks": sorted(manifest.hooks),
        "create_options": [_what_differs(each) for each in info.create_options],
        "amend_options": [_what_differs(each) for each in info.amend_options],
    }


def _what_differs(value: Magic | FormatOption) -> dict[str, Any]:
    """The fields of a value that are not as they are by default."""
    by_default = value._field_defaults
    return {
        name: found
        for name, found in value._asdict().items()
        if name not in by_default or found != by_default[name]
    }


def differences(manifest: Manifest, info: DiskInfo, hooks: frozenset[str]) -> list[str]:
    """Where a manifest does not say what the driver does.

    Args:
        manifest: that was read.
        info: the driver's `disk_info`.
        hooks: that it implements.

    Returns:
        Names of what differs, sorted; of `DiskInfo`'s attributes, and "hooks".
    """
    said, does = _as_dict(manifest), _as_dict(Manifest(info, hooks))
    return sorted(name for name in said | does if said.get(name) != does.get(name))


# ---- a driver, whatever is known of it -----------------------------------------------------------


class Row:
    """A driver of the table.

    By hand: no other class on the way of `tapdisk formats` is by attrs, whose import would take a
    third of the command.

    Attributes:
        info: what is known of it; `error` says why it cannot be used.
        plugin: the driver; None: it is not loaded, or cannot be.
        entry_point: where it was found.
        manifest: what its distribution says of it.
        cause: what it raised.
    """

    __slots__ = ("cause", "entry_point", "info", "manifest", "plugin")

    def __init__(
        self,
        info: DiskInfo,
        plugin: Any = None,
        entry_point: EntryPoint | None = None,
        manifest: Manifest | None = None,
        cause: BaseException | None = None,
    ) -> None:
        self.info = info
        self.plugin = plugin
        self.entry_point = entry_point
        self.manifest = manifest
        self.cause = cause

    def told(self) -> DiskInfo:
        """What is known of it, with the distribution that it came from."""
        name, version = release_of(self.entry_point)
        return self.info._replace(distribution=name, version=version) if name else self.info

    def break_off(self, problem: str, cause: BaseException | None) -> None:
        """It turned out that it cannot be used."""
        self.info = broken(self.info.handle, problem, self.info.idnum)
        self.cause = cause


def broken(handle: str, problem: str, idnum: int) -> DiskInfo:
    """What is known of a driver that cannot be used."""
    return DiskInfo(handle=handle, name="", api=0, idnum=idnum, error=problem)
