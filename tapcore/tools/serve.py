"""Serving images by their names over NBD."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import attrs

from tapcore.engine.loop import Loop
from tapcore.errors import NotWritableError, ReadOnlyDeviceError, TapError, UsageError
from tapcore.interface.access import Access
from tapcore.interface.filters.filter import Filter
from tapcore.interface.keys import Keys
from tapcore.interface.models import TdState
from tapcore.interface.options import CacheMode
from tapcore.interface.policy import Parents
from tapcore.interface.registry import Registry
from tapcore.metrics.publishing import Metrics
from tapcore.monitor.webserver import WebServer
from tapcore.nbd.budget import BUDGET
from tapcore.nbd.constants import MAX_STRING
from tapcore.nbd.exports import Export, Exports
from tapcore.nbd.listening import Address
from tapcore.nbd.server import MAX_CONNECTIONS, Encryption, NbdServer
from tapcore.nbd.tlsoptions import TlsOptions
from tapcore.oldnames import renamed
from tapcore.opening.chain import close_disk
from tapcore.opening.names import ImageName
from tapcore.tools.givennames import given_image
from tapcore.tools.openimage import open_chain
from tapcore.tools.unrecognised import warn_of_unrecognised
from tapcore.views.store import Room

log = logging.getLogger(__name__)


@renamed(references="parents", read_only="readonly")
def nbd_server(
    images: Sequence[ImageName],
    address: Address,
    *,
    names: Sequence[str] = (),
    readonly: bool = False,
    cache: CacheMode = "writeback",
    metadata_cache: int | None = None,
    parents: Parents = (),
    keys: Keys | None = None,
    filters: Sequence[str | Filter] = (),
    signals: Iterable[int] = (),
    registry: Registry | None = None,
    tls: TlsOptions | None = None,
    max_connections: int = MAX_CONNECTIONS,
    idle_seconds: float | None = None,
    overlay: Overlay | None = None,
    max_memory: int = BUDGET,
    loop: Loop | None = None,
    ended: Callable[[list[TapError]], object] | None = None,
    metrics: str | None = None,
) -> NbdServer:
    """Open images, and a server for them that listens but does not run yet.

    Args:
        images: `[HANDLE:]PATH`, at least one.
        address: where to listen.
        names: of the exports, one for each image; without them a single image is the default
            export, and several are named as their files are.
        readonly: open and offer them for reading only.
        cache: "writeback" or "none".
        metadata_cache: bytes for the tables of each image; None: the driver's default.
        parents: which files the images may name, as of `tapcore.open`.
        keys: passphrases of encrypted images.
        filters: around the drivers of each image, `NAME[:KEY=VALUE,...]`, the first outermost.
        signals: that stop the server cleanly from the moment on when it listens, as by
            `NbdServer.stop_on_signals` (main thread only).
        registry: drivers to use instead of the installed ones.
        tls: encryption for clients; None: there is none.
        max_connections: clients at a time.
        idle_seconds: it stops when nobody was connected for so long; None: it does not.
        overlay: the images are opened for reading, and clients write into views; None: they do not.
        max_memory: bytes for the requests of all clients together.
        loop: of somebody else, who runs it; None: the server's own.
        ended: told when a server in somebody's loop has ended; see `NbdServer`.
        metrics: where requests are counted: a directory that gets a page for each export, or the
            file of the only one's, or a port of loopback, where browsers and Prometheus see it;
            None: they are not.

    Raises:
        TapError: an image cannot be opened, the names do not do, or the address cannot be used;
            nothing is left open.
    """
    # As long as it is by its keywords, each of which goes on as it came.
    encryption = None if tls is None else _encryption(tls)
    access = Access(parents, keys, metadata_cache, registry, tuple(filters))
    names = _export_names(images, names, access.registry)
    opened = partial(
        open_chain,
        access=access,
        cache=cache,
        missing="zeroes",  # a guest must be able to start after a power loss
    )
    exports: list[Export] = []
    counting = None if metrics is None else _metrics(metrics, names, exports)
    disks: list[TdState] = []
    try:
        for image in images:
            disks.append(_open(image, opened, readonly=readonly or overlay is not None))
            warn_of_unrecognised(image, disks[-1].image.drivertype, access.registry)
        exports += [Export.of(disk, name) for disk, name in zip(disks, names, strict=True)]
        for export in exports:
            if counting is not None:
                export.count(counting)
        return NbdServer(
            Exports(exports) if overlay is None else _views(exports, overlay, access),
            address,
            signals=signals,
            encryption=encryption,
            max_connections=max_connections,
            idle_seconds=idle_seconds,
            max_memory=max_memory,
            loop=loop,
            ended=ended,
            metrics=counting,
        )
    except BaseException as exc:
        if counting is not None:
            counting.close()
        for disk in disks:
            close_disk(disk)
        if isinstance(exc, NotWritableError):
            exc.message += " (--read-only would open it)"
        raise


def _metrics(place: str, names: Sequence[str], exports: Sequence[Export]) -> Metrics:
    if place.isdecimal():
        return Metrics(begun=partial(_on_port, int(place), exports))
    if len(names) > 1 and not os.path.isdir(place):
        raise UsageError(f"there are {len(names)} exports, and '{place}' is not a directory")
    return Metrics(place)


def _on_port(port: int, exports: Sequence[Export], metrics: Metrics, loop: Loop) -> WebServer:
    from tapcore.monitor.monitor import Monitor  # needs what is installed only where it is wanted
    from tapcore.tools.webmap import draw_exports

    if port > 65535:
        raise UsageError(f"'{port}' is not a port")
    by_name = {export.info.name: export for export in exports}
    return Monitor(metrics.snapshots, draw_exports(by_name.get)).listen(loop, port)


@attrs.frozen
class Overlay:
    """How clients get views of what is served, and write into those.

    Attributes:
        named: there is a view for each name `EXPORT@NAME` that a client asks for; else one for each
            connection.
        directory: where views keep what is written to them; empty: memory.
        limit: bytes for each view; None: the default.
        keep: handle and directory of the images that are made of views at their end; None: none is.
    """

    named: bool = False
    directory: str = ""
    limit: int | None = None
    keep: tuple[str, str] | None = None


def _views(exports: Sequence[Export], overlay: Overlay, access: Access) -> Exports:
    from tapcore.nbd.views import Views
    from tapcore.tools.keep import Keeper

    keeper = None
    if overlay.keep is not None:
        bases = {export.info.name: export.disk.image for export in exports}
        keeper = Keeper(bases, *overlay.keep, access)
    room = Room.of(overlay.directory, overlay.limit)
    return Views(exports, room, named=overlay.named, keeper=keeper)


def _encryption(options: TlsOptions) -> Encryption:
    from tapcore.nbd.tlsconnection import Encryption  # costs an import of ssl
    from tapcore.nbd.tlsfiles import Credentials

    return Encryption(Credentials(options))


def _open(image: ImageName, opened: Callable[..., TdState], *, readonly: bool) -> TdState:
    """For writing, unless that is not wanted or the device cannot be written."""
    if not readonly:
        try:
            return opened(image, writing=True)
        except ReadOnlyDeviceError as exc:
            log.warning("%s, and served as such", exc)
    return opened(image, writing=False)


def _export_names(
    images: Sequence[ImageName], names: Sequence[str], registry: Registry
) -> list[str]:
    if names and len(names) != len(images):
        raise UsageError(f"{len(names)} export names were given for {len(images)} images")
    chosen = list(names)
    if not chosen:
        chosen = [""] if len(images) == 1 else [_file_name(image, registry) for image in images]
    for number, each in enumerate(chosen):
        _check_export_name(each, images[number], given=bool(names))
    if len(set(chosen)) < len(chosen):
        name = max(chosen, key=chosen.count)
        count = chosen.count(name)
        raise UsageError(f"{count} exports would be named '{name}'; name each with --export")
    return chosen


def _check_export_name(name: str, image: ImageName, *, given: bool) -> None:
    """What the protocol allows: UTF-8, of 4096 bytes at most ("Values", on strings)."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        if given:
            raise UsageError("an export's name has to be UTF-8, and is not", image=name) from None
        text = "its name is not UTF-8, as an export's has to be; name each with --export"
        raise UsageError(text, image=os.fsdecode(image)) from None
    if size > MAX_STRING:
        raise UsageError(f"an export's name has {MAX_STRING} bytes at most, and this one {size}")
    if "\0" in name:
        raise UsageError("an export's name cannot have a NUL byte")


def _file_name(image: ImageName, registry: Registry) -> str:
    return os.path.basename(given_image(image, registry).name)
