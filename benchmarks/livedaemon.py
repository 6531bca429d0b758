"""A disk of a daemon, for `live_soak.py`: its process is confined to its own files."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tapcore
from tapcore.daemon.client import DaemonClient
from tapcore.interface.options import CacheMode
from tapcore.live import LiveCalls

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from daemons import daemon_in
from livekinds import KEY_FILE, Kind

_NAME = "live"
_ON_ITS_WAY = ("beginning", "copying", "finishing")


class DaemonCalls:
    """The calls of `LiveCalls`, of which each goes through the daemon; the export has one name.

    Args:
        client: of the daemon.
    """

    def __init__(self, client: DaemonClient) -> None:
        self._client = client

    def state(self, name: str) -> dict[str, Any]:
        row = self._client.disks()[0]
        return {key: row[key] for key in ("name", "image", "state", "virtual_size")}

    def pause(self, name: str) -> dict[str, Any]:
        return self._client.pause(_NAME)

    def resume(self, name: str) -> dict[str, Any]:
        return self._client.resume_io(_NAME)

    def swap(self, name: str, image: str) -> dict[str, Any]:
        return self._client.swap(_NAME, image)

    def snapshot(
        self, name: str, child: str, *, options: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        return self._client.snapshot_live(_NAME, child, options=options)

    def resize(self, name: str, size: str, *, shrink: bool = False) -> dict[str, Any]:
        told = self._client.resize_live(_NAME, size, shrink=shrink)
        return {**told, "size": told["virtual_size"]}

    def commit(self, name: str) -> dict[str, Any]:
        self.begin_commit(name)
        while (told := self.commit_progress(name))["phase"] in _ON_ITS_WAY:
            time.sleep(0.01)
        if told["phase"] != "done":
            raise tapcore.TapError(f"the commit is {told}")
        return told

    def begin_commit(self, name: str) -> dict[str, Any]:
        return self._client.commit_live(_NAME)

    def commit_progress(self, name: str) -> dict[str, Any]:
        return self._client.commit_status(_NAME)

    def cancel_commit(self, name: str) -> dict[str, Any]:
        return self._client.commit_cancel(_NAME)


@contextlib.contextmanager
def daemon_disk(
    kind: Kind, image: str, folder: Path, cache: CacheMode
) -> Iterator[tuple[LiveCalls | DaemonCalls, str]]:
    """Attach an image to a daemon of its own; gives the calls, and the URI for clients."""
    with daemon_in(folder) as daemon:
        with daemon.start() as client:
            keys = [str(folder / KEY_FILE)] if kind.locked else []
            disk = client.attach(image, name=_NAME, cache=cache, key_files=keys)
            yield DaemonCalls(client), disk["uri"]
            restarts = client.disks()[0]["restarts"]
            client.detach(_NAME, force=True)
        status = daemon.end()
        if status or restarts or "Traceback" in daemon.log:
            raise tapcore.TapError(f"{status}, {restarts} restarts: {daemon.log}")
