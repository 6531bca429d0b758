"""Disks for what reads through fsspec: `tapdisk://qcow2:/vm/disk.qcow2` is the disk's content.

fsspec finds it by an entry point. A name is what `tapcore.open` takes; the options of a file system
are its keyword arguments (`parents`, `keys`, `snapshot` ...).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, ClassVar

from fsspec import AbstractFileSystem

from tapcore.disk import Disk, open
from tapcore.errors import TapError


class DiskFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec is not annotated
    """A file system in which each image is a file, with the content of its disk; for reading, and
    for writing into images that there are.

    Args:
        how: of `tapcore.open`, for every file.
    """

    protocol: ClassVar[str] = "tapdisk"
    root_marker = ""
    cachable = False  # an image may have another size the next time

    def __init__(self, **how: Any) -> None:
        known = AbstractFileSystem.__init__.__code__.co_varnames
        own = {key: value for key, value in how.items() if key in known or key.endswith("_cache")}
        super().__init__(**{key: how[key] for key in own})
        self._how = {key: value for key, value in how.items() if key not in own}

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        name = str(path).removeprefix("tapdisk://")
        return name.rstrip("/") or name[:1]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size (bytes of the disk) and type of an image, or of a folder of images."""
        name = self._strip_protocol(path)
        if os.path.isdir(name):
            return {"name": name, "size": 0, "type": "directory"}
        with open(name, "rb", **self._how) as disk:
            return {"name": name, "size": disk.size, "type": "file", "handle": disk.handle}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What lies in a folder; what is no disk is left out. An image has only itself."""
        found = self.info(path)
        rows = list(self._inside(found["name"])) if found["type"] == "directory" else [found]
        return rows if detail else [row["name"] for row in rows]

    def _inside(self, folder: str) -> Iterator[dict[str, Any]]:
        for name in sorted(os.listdir(folder)):
            with contextlib.suppress(TapError):
                yield self.info(os.path.join(folder, name))

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """The bytes of a range; negative numbers count from the end."""
        with open(self._strip_protocol(path), "rb", **self._how) as disk:
            first, stop, _step = slice(start, end).indices(disk.size)
            return disk.pread(first, length=max(stop - first, 0))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Disk:
        if mode not in ("rb", "r+b", "rb+"):
            raise NotImplementedError(f"a disk is opened as 'rb' or 'r+b', not {mode!r}")
        return open(self._strip_protocol(path), readonly=mode == "rb", **self._how)
