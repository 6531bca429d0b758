"""The table of hooks: for each its name, signature, contract, default and capability."""

from tapcore.interface.hooks.changes import ChangeHooks
from tapcore.interface.hooks.images import ImageHooks
from tapcore.interface.hooks.marks import PROJECT, hookimpl
from tapcore.interface.hooks.requests import RequestHooks
from tapcore.interface.hooks.table import (
    HOOKS,
    capabilities,
    implements,
    lack_of,
)

REQUIRED_HOOKS = tuple(row.name for row in HOOKS.values() if not row.default)
"""Those without which there is no driver."""

__all__ = [
    "HOOKS",
    "PROJECT",
    "REQUIRED_HOOKS",
    "ChangeHooks",
    "ImageHooks",
    "RequestHooks",
    "capabilities",
    "hookimpl",
    "implements",
    "lack_of",
]
