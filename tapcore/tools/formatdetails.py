"""One driver, with all that is known of it."""

from __future__ import annotations

import inspect
from typing import Any, Final

import attrs

from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.hooks import HOOKS
from tapcore.interface.installed import licence_of
from tapcore.interface.magic import Magic
from tapcore.interface.manifest import Row, package_file
from tapcore.interface.registry import Registry, default_registry
from tapcore.tools.formats import format_as_dict

CONFORMANCE: Final = "tapcore-conformance.json"
"""A driver's package may have this file: what the test kit found of it, as JSON."""


@attrs.frozen
class HookOrigin:
    """Where a hook of a driver comes from.

    Attributes:
        hook: its name.
        capability: what a driver can do that has it; empty: nothing that is listed.
        where: `MODULE:LINE`; empty: the driver leaves it out.
        default: what happens without it.
    """

    hook: str
    capability: str
    where: str
    default: str


@attrs.frozen
class FormatDetails:
    """All that is known of a driver; it has been loaded for it.

    Attributes:
        info: its row of the table, with its distribution.
        licence: as the distribution says it; empty: it does not.
        module: that its entry point names; empty: the program has registered it.
        manifest: its facts are data in its package.
        hooks: all that there are.
        conformance: what the test kit found, where the package has it.
    """

    info: DiskInfo
    licence: str
    module: str
    manifest: bool
    hooks: tuple[HookOrigin, ...]
    conformance: Any

    def capabilities(self) -> dict[str, list[HookOrigin]]:
        """What it can do, and the hooks by which it can."""
        found: dict[str, list[HookOrigin]] = {name: [] for name in self.info.capabilities}
        for hook in self.hooks:
            if hook.where and hook.capability:
                found[hook.capability].append(hook)
        return found

    def as_dict(self) -> dict[str, Any]:
        """What `formats --long NAME --json` prints."""
        info = self.info
        return {
            **format_as_dict(info),
            "licence": self.licence,
            "module": self.module,
            "manifest": self.manifest,
            "api": info.api,
            "suffixes": list(info.suffixes),
            "magic": [describe_magic(magic) for magic in info.magic],
            "create_options": [option.name for option in info.create_options],
            "amend_options": [option.name for option in info.amend_options],
            "hooks": {hook.hook: hook.where or None for hook in self.hooks},
            "conformance": self.conformance,
        }


def format_details(handle: str, registry: Registry | None = None) -> FormatDetails:
    """All about one driver, which is loaded.

    Args:
        handle: of the driver.
        registry: drivers to use instead of the installed ones.

    Raises:
        UnknownHandleError: there is none of that handle, or it cannot be used.
    """
    registry = registry or default_registry()
    registry.load(handle)
    (row,) = [row for row in registry.rows() if row.info.handle == handle and row.plugin]
    (info,) = [info for info in registry.table() if info.handle == handle and not info.error]
    ep = row.entry_point
    return FormatDetails(
        info=info,
        licence=licence_of(ep),
        module=ep.value if ep is not None else "",
        manifest=row.manifest is not None,
        hooks=tuple(_origin(row, name) for name in HOOKS),
        conformance=_conformance(row),
    )


def _origin(row: Row, name: str) -> HookOrigin:
    drv = row.info.drv
    assert drv is not None
    where = ""
    if name in drv.implemented:  # called under its own name, but where a mark says another one
        where = _place_of(getattr(row.plugin, name, getattr(drv, name)))
    hook = HOOKS[name]
    return HookOrigin(name, hook.capability or "", where, hook.default)


def _place_of(function: Any) -> str:
    """`MODULE:LINE` of a driver's function."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(function, "__code__", None)
    module = getattr(function, "__module__", "") or "?"
    return f"{module}:{code.co_firstlineno}" if code is not None else module


def _conformance(row: Row) -> Any:
    """None where there is none, or none that can be read."""
    import json

    content = package_file(row.entry_point.value, CONFORMANCE) if row.entry_point else None
    try:
        return None if content is None else json.loads(content)
    except ValueError:
        return None


def describe_magic(magic: Magic) -> str:
    """For people: what is looked for, and where."""
    kind = "pattern " if magic.pattern else ""
    end = "end" if magic.offset < 0 else "start"
    where = f" at {abs(magic.offset)} from the {end}" if magic.offset else " at the start"
    named = ", of files that are named so" if magic.named else ""
    sure = "" if magic.sure else ", then td_probe is asked"
    return f"{kind}{magic.content!r}{where}{named}{sure}"
