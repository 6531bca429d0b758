"""Formats with tables: a format says where, this package moves the bytes; public, for plugins.

A driver makes `Clusters` (or `WritableClusters`) of an open image, with a map of its own kind, puts
them into `dd.private.clusters`, and takes its hooks from here, as others take some from `rawfile`.
See `map` for what a format has to say. Everything is loaded when it is first used.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as in tapcore
if TYPE_CHECKING:
    from typing import Any

    from tapcore.clusters.cache import Read, TableCache, TakenTables
    from tapcore.clusters.hooks import (
        td_close,
        td_do_callbacks,
        td_extents,
        td_places,
        td_queue_discard,
        td_queue_flush,
        td_queue_read,
        td_queue_write,
        td_queue_write_compressed,
        td_queue_write_zeroes,
        td_submit,
    )
    from tapcore.clusters.machine import (
        Clusters,
        NotForDirect,
        WritableClusters,
        open_mapped,
        or_through_page_cache,
    )
    from tapcore.clusters.map import (
        ClusterMap,
        PackingMap,
        Picture,
        Place,
        ShortWay,
        Unpacker,
        WritableMap,
    )
    from tapcore.clusters.packed import DeflatedClusters
    from tapcore.clusters.runs import (
        ASK,
        DATA,
        HOLE,
        NOWHERE,
        PACKED,
        ZERO,
        AnswerPart,
        DamagedTable,
        MissingContent,
        Run,
    )
    from tapcore.clusters.tablemap import TableMap, WritableTableMap
    from tapcore.clusters.tables import (
        Coding,
        Numbers,
        Table,
        Write,
        rising_until,
        same_until,
    )
    from tapcore.clusters.writeback import Writeback

_HOMES = {
    "cache": "Read TableCache TakenTables",
    "hooks": (
        "td_close td_do_callbacks td_extents td_places td_queue_discard td_queue_flush "
        "td_queue_read td_queue_write td_queue_write_compressed td_queue_write_zeroes td_submit"
    ),
    "machine": "Clusters NotForDirect WritableClusters open_mapped or_through_page_cache",
    "map": "ClusterMap PackingMap Picture Place ShortWay Unpacker WritableMap",
    "packed": "DeflatedClusters",
    "runs": "AnswerPart ASK DATA HOLE NOWHERE PACKED ZERO DamagedTable MissingContent Run",
    "tablemap": "TableMap WritableTableMap",
    "tables": "Coding Numbers Table Write rising_until same_until",
    "writeback": "Writeback",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "ASK",
    "DATA",
    "HOLE",
    "NOWHERE",
    "PACKED",
    "ZERO",
    "AnswerPart",
    "ClusterMap",
    "Clusters",
    "Coding",
    "DamagedTable",
    "DeflatedClusters",
    "MissingContent",
    "NotForDirect",
    "Numbers",
    "PackingMap",
    "Picture",
    "Place",
    "Read",
    "Run",
    "ShortWay",
    "Table",
    "TableCache",
    "TableMap",
    "TakenTables",
    "Unpacker",
    "WritableClusters",
    "WritableMap",
    "WritableTableMap",
    "Write",
    "Writeback",
    "open_mapped",
    "or_through_page_cache",
    "rising_until",
    "same_until",
    "td_close",
    "td_do_callbacks",
    "td_extents",
    "td_places",
    "td_queue_discard",
    "td_queue_flush",
    "td_queue_read",
    "td_queue_write",
    "td_queue_write_compressed",
    "td_queue_write_zeroes",
    "td_submit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tapcore.clusters' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"tapcore.clusters.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
