"""tapcore: a plugin framework for virtual disks.

`tapcore.open("qcow2:disk.qcow2")` gives a seekable binary file. A driver is a plugin with
functions marked `@tapcore.hookimpl`; see docs/write-a-driver.md.

Everything in `__all__` is public. It is loaded when it is first used, so that `import tapcore`
costs a program nothing that it does not need.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # typing's own costs an import, while Ctrl-C still shows a traceback
if TYPE_CHECKING:
    from typing import Any

    from tapcore.constants import (
        BLK_NOT_ALLOCATED,
        DEFAULT_SECTOR_SIZE,
        HOOKS_VERSION,
        MAX_IOFD,
        MAX_SEGMENTS_PER_REQ,
        SECTOR_SHIFT,
        TD_NO_PARENT,
        TD_RDONLY,
        VDISK_CDROM,
        VDISK_READONLY,
        VDISK_REMOVABLE,
    )
    from tapcore.daemon.client import DaemonClient
    from tapcore.disk import Disk, open
    from tapcore.disk.asyncdisk import AsyncDisk, aopen
    from tapcore.engine import MappedExtent
    from tapcore.engine.salvage import LostRange, Salvage
    from tapcore.errors import (
        BrokenOffError,
        ClosedError,
        DriverError,
        ForkedError,
        ImageFormatError,
        ImageLockedError,
        ImageOpenError,
        IOFailedError,
        LostContentError,
        NotSupportedError,
        NotWritableError,
        OutOfRangeError,
        ReadOnlyError,
        ReferencePolicyError,
        TapError,
        UnknownHandleError,
        UsageError,
        printable,
    )
    from tapcore.errors import describe as describe_error
    from tapcore.files import (
        ImageFile,
        create_host_file,
        describe_host_file,
        host_file_size,
        open_host_file,
        open_image_file,
        remove_host_file,
        supersede_host_file,
    )
    from tapcore.files.hostfile import punch_hole as fallocate_punch_hole
    from tapcore.formats.tablevisits import EmptyTables, TableVisits
    from tapcore.interface.answer import Answer, Then, answer_over
    from tapcore.interface.below import Below
    from tapcore.interface.damage import content_damaged, content_missing
    from tapcore.interface.diskinfo import DiskInfo, FormatOption
    from tapcore.interface.extent import Extent
    from tapcore.interface.filters.call import Call as FilterCall
    from tapcore.interface.filters.filter import Filter
    from tapcore.interface.filters.parameters import Rate as FilterRate
    from tapcore.interface.filters.parameters import Seconds as FilterSeconds
    from tapcore.interface.filters.parameters import Size as FilterSize
    from tapcore.interface.filters.parameters import TextForm
    from tapcore.interface.hooks import hookimpl, implements
    from tapcore.interface.inspection import Finding, Inspection, lost_content
    from tapcore.interface.keys import Keys, read_key_file
    from tapcore.interface.keys import readings as passphrase_readings
    from tapcore.interface.magic import Magic
    from tapcore.interface.models import DiskDriver, Hooks, TdCallback, TdState
    from tapcore.interface.options import CacheMode, DiskId, OpenOptions
    from tapcore.interface.places import Places
    from tapcore.interface.policy import ReferencePolicy
    from tapcore.interface.registry import Registry
    from tapcore.interface.results import Bitmap, CheckResult, Measurement, Snapshot
    from tapcore.nbd.handshake import TlsMode
    from tapcore.nbd.listening import TcpAddress, UnixAddress
    from tapcore.nbd.server import NbdServer
    from tapcore.nbd.tlsoptions import TlsOptions
    from tapcore.opening.byids import ImageIds, check_ids, find_by_ids, look_at_file
    from tapcore.opening.namedfiles import open_named_file
    from tapcore.opening.names import plain_name
    from tapcore.opening.windowsnames import for_windows, from_windows
    from tapcore.simple import SimpleDriver
    from tapcore.sizes import parse_size
    from tapcore.tools.convert import convert_image
    from tapcore.tools.create import create_image
    from tapcore.tools.serve import Overlay, nbd_server
    from tapcore.tools.template import Template, View

__version__ = "0.1.0"

_HOMES = {
    "interface.answer": "Answer Then answer_over",
    "interface.below": "Below",
    "constants": (
        "BLK_NOT_ALLOCATED DEFAULT_SECTOR_SIZE HOOKS_VERSION MAX_IOFD MAX_SEGMENTS_PER_REQ "
        "SECTOR_SHIFT TD_NO_PARENT TD_RDONLY VDISK_CDROM VDISK_READONLY VDISK_REMOVABLE"
    ),
    "daemon.client": "DaemonClient",
    "disk": "Disk open",
    "disk.asyncdisk": "AsyncDisk aopen",
    "engine": "MappedExtent",
    "errors": (
        "BrokenOffError ClosedError DriverError ForkedError IOFailedError ImageFormatError "
        "ImageLockedError ImageOpenError LostContentError NotSupportedError NotWritableError "
        "OutOfRangeError ReadOnlyError ReferencePolicyError TapError UnknownHandleError "
        "UsageError printable"
    ),
    "interface.filters.filter": "Filter",
    "interface.filters.parameters": "TextForm",
    "interface.hooks": "hookimpl implements",
    "files": (
        "ImageFile create_host_file describe_host_file host_file_size open_host_file "
        "open_image_file remove_host_file supersede_host_file"
    ),
    "interface.keys": "Keys read_key_file",
    "interface.damage": "content_damaged content_missing",
    "interface.magic": "Magic",
    "interface.diskinfo": "DiskInfo FormatOption",
    "interface.models": "DiskDriver Hooks TdCallback TdState",
    "interface.options": "CacheMode DiskId OpenOptions",
    "interface.extent": "Extent",
    "interface.inspection": "Finding Inspection lost_content",
    "interface.results": "Bitmap CheckResult Measurement Snapshot",
    "opening.byids": "ImageIds check_ids find_by_ids look_at_file",
    "opening.namedfiles": "open_named_file",
    "opening.names": "plain_name",
    "opening.windowsnames": "for_windows from_windows",
    "nbd.handshake": "TlsMode",
    "nbd.listening": "TcpAddress UnixAddress",
    "nbd.server": "NbdServer",
    "nbd.tlsoptions": "TlsOptions",
    "interface.places": "Places",
    "interface.policy": "ReferencePolicy",
    "interface.registry": "Registry",
    "engine.salvage": "LostRange Salvage",
    "formats.tablevisits": "EmptyTables TableVisits",
    "simple": "SimpleDriver",
    "sizes": "parse_size",
    "tools.convert": "convert_image",
    "tools.create": "create_image",
    "tools.serve": "Overlay nbd_server",
    "tools.template": "Template View",
}
_HOME_OF = {name: (home, name) for home, names in _HOMES.items() for name in names.split()} | {
    "FilterCall": ("interface.filters.call", "Call"),
    "FilterRate": ("interface.filters.parameters", "Rate"),
    "FilterSeconds": ("interface.filters.parameters", "Seconds"),
    "FilterSize": ("interface.filters.parameters", "Size"),
    "describe_error": ("errors", "describe"),
    "fallocate_punch_hole": ("files.hostfile", "punch_hole"),
    "passphrase_readings": ("interface.keys", "readings"),
}

__all__ = [
    "BLK_NOT_ALLOCATED",
    "DEFAULT_SECTOR_SIZE",
    "HOOKS_VERSION",
    "MAX_IOFD",
    "MAX_SEGMENTS_PER_REQ",
    "SECTOR_SHIFT",
    "TD_NO_PARENT",
    "TD_RDONLY",
    "VDISK_CDROM",
    "VDISK_READONLY",
    "VDISK_REMOVABLE",
    "Answer",
    "AsyncDisk",
    "Below",
    "Bitmap",
    "BrokenOffError",
    "CacheMode",
    "CheckResult",
    "ClosedError",
    "DaemonClient",
    "Disk",
    "DiskDriver",
    "DiskId",
    "DiskInfo",
    "DriverError",
    "EmptyTables",
    "Extent",
    "Filter",
    "FilterCall",
    "FilterRate",
    "FilterSeconds",
    "FilterSize",
    "Finding",
    "ForkedError",
    "FormatOption",
    "Hooks",
    "IOFailedError",
    "ImageFile",
    "ImageFormatError",
    "ImageIds",
    "ImageLockedError",
    "ImageOpenError",
    "Inspection",
    "Keys",
    "LostContentError",
    "LostRange",
    "Magic",
    "MappedExtent",
    "Measurement",
    "NbdServer",
    "NotSupportedError",
    "NotWritableError",
    "OpenOptions",
    "OutOfRangeError",
    "Overlay",
    "Places",
    "ReadOnlyError",
    "ReferencePolicy",
    "ReferencePolicyError",
    "Registry",
    "Salvage",
    "SimpleDriver",
    "Snapshot",
    "TableVisits",
    "TapError",
    "TcpAddress",
    "TdCallback",
    "TdState",
    "Template",
    "TextForm",
    "Then",
    "TlsMode",
    "TlsOptions",
    "UnixAddress",
    "UnknownHandleError",
    "UsageError",
    "View",
    "answer_over",
    "aopen",
    "check_ids",
    "content_damaged",
    "content_missing",
    "convert_image",
    "create_host_file",
    "create_image",
    "describe_error",
    "describe_host_file",
    "fallocate_punch_hole",
    "find_by_ids",
    "for_windows",
    "from_windows",
    "hookimpl",
    "host_file_size",
    "implements",
    "look_at_file",
    "lost_content",
    "nbd_server",
    "open",
    "open_host_file",
    "open_image_file",
    "open_named_file",
    "parse_size",
    "passphrase_readings",
    "plain_name",
    "printable",
    "read_key_file",
    "remove_host_file",
    "supersede_host_file",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tapcore' has no attribute '{name}'")
    home, attribute = _HOME_OF[name]
    value = getattr(importlib.import_module(f"tapcore.{home}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
