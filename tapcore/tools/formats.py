"""The driver table for people and programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tapcore.interface.diskinfo import DiskInfo
from tapcore.interface.registry import Registry, default_registry

if TYPE_CHECKING:
    from tapcore.interface.filters.parameters import FilterInfo


def list_formats(registry: Registry | None = None) -> list[DiskInfo]:
    """Every driver found, the broken ones too, in the order of their handles."""
    return sorted((registry or default_registry()).table(), key=lambda info: info.handle)


def list_filters(registry: Registry | None = None) -> list[FilterInfo]:
    """Every filter found, by name, and loaded; the broken ones say why they are that."""
    return (registry or default_registry()).filters()


def filter_as_dict(info: FilterInfo) -> dict[str, Any]:
    """The item of `formats --filters --json`."""
    return {
        "filter": info.name,
        "title": info.title,
        "distribution": info.distribution,
        "version": info.version,
        "parameters": {
            each.name: {"value": each.form.shown, "required": each.required}
            for each in info.parameters
        },
        "error": info.error or None,
    }


def format_as_dict(info: DiskInfo) -> dict[str, Any]:
    """The item of `formats --json`."""
    return {
        "handle": info.handle,
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "capabilities": list(info.capabilities),
        "error": info.error or None,
    }
