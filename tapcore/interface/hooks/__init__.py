"""The table of hooks: for each its name, signature, contract, default and capability."""

from tapcore.interface.hooks.changes import ChangeHooks
from tapcore.interface.hooks.images import ImageHooks
from tapcore.interface.hooks.requests import RequestHooks
from tapcore.interface.hooks.table import (
    HOOKS,
    PROJECT,
    capabilities,
    hookimpl,
    implements,
    lack_of,
)

__all__ = [
    "HOOKS",
    "PROJECT",
    "ChangeHooks",
    "ImageHooks",
    "RequestHooks",
    "capabilities",
    "hookimpl",
    "implements",
    "lack_of",
]
