"""A client of the daemon, or of a disk process: one call after the other."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Self

from tapcore.daemon.jsonrpc import (
    MAX_ANSWER,
    Call,
    Lines,
    call_line,
    parse_answer,
)
from tapcore.daemon.raised import raised_there
from tapcore.daemon.rundir import RunDirectory, default_run_directory
from tapcore.errors import IOFailedError, TapError, UsageError, describe
from tapcore.interface.options import CacheMode

_RECEIVE = 64 << 10


class DaemonClient:
    """Asks a daemon; a context manager.

    Args:
        run_dir: the daemon's run directory; None: the user's.
        path: of a control socket, instead of that of the run directory's daemon.
        timeout: seconds for each call; None: as long as it takes.

    Raises:
        TapError: no daemon can be reached there.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str] | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> None:
        if path is None:
            folder = default_run_directory() if run_dir is None else os.fsdecode(run_dir)
            path = RunDirectory(folder).control
        self._path = os.fsdecode(path)
        self._timeout = timeout
        self._ids = count(1)
        self._socket: socket.socket | None = None
        self._lines = Lines(MAX_ANSWER)
        self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; another call makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._lines = Lines(MAX_ANSWER)

    # ---- what can be asked for --------------------------------------------------------------

    def attach(
        self,
        image: str | os.PathLike[str],
        *,
        name: str | None = None,
        nbd: str = "",
        ring: str = "",
        readonly: bool = False,
        filters: Sequence[str] = (),
        cache: CacheMode = "writeback",
        metadata_cache: int | None = None,
        parents: Sequence[str] = (),
        key_files: Sequence[str] = (),
        fixed: bool = False,
    ) -> dict[str, Any]:
        """Attach an image; relative paths count from this process's directory.

        Args:
            image: `[HANDLE:]PATH`.
            name: of the disk; None: the daemon makes one of the image's name.
            nbd: where it is served: path of a Unix socket, port, or ADDRESS:PORT; empty: on a
                socket in the run directory.
            ring: path of a Unix socket for front ends of shared rings; empty: there is none.
            readonly: open and offer it for reading only.
            filters: around the image's drivers, `NAME[:KEY=VALUE,...]`, the first outermost.
            cache: "writeback" or "none".
            metadata_cache: bytes for the tables of each image; None: the driver's default.
            parents: which files the image may name: `DIR`, `any`, `none`.
            key_files: `FILE` or `IMAGE=FILE` with passphrases, which the disk's process reads.
            fixed: no other image takes its place while it is served, and none is made.

        Returns:
            The disk, as `disks` has it: `uri` is for NBD clients.

        Raises:
            TapError: it cannot be opened, as opening it here would say.
        """
        disk = self.call(
            "attach",
            image=os.fsdecode(image),
            directory=os.getcwd(),
            name=name or "",
            nbd=nbd,
            ring=ring,
            read_only=readonly,
            filters=list(filters),
            cache=cache,
            metadata_cache=metadata_cache,
            parents=list(parents),
            key_files=list(key_files),
            fixed=fixed,
        )
        return dict(disk)

    def detach(self, name: str, *, force: bool = False) -> None:
        """Flush and close a disk.

        Args:
            name: of it.
            force: also where clients are connected, whose connections end then.
        """
        self.call("detach", name=name, force=force)

    def disks(self) -> list[dict[str, Any]]:
        """All disks, how each is, and where clients find it."""
        return list(self.call("list")["disks"])

    # ---- changes of a disk while it is served -------------------------------------------------

    def pause(self, name: str) -> dict[str, Any]:
        """Have what was asked answered and flushed, and the images closed; clients wait.

        Returns:
            As of the others here: `image`, `state` and `virtual_size` of the disk.
        """
        return dict(self.call("pause", name=name))

    def resume_io(self, name: str) -> dict[str, Any]:
        """Have the images of a paused disk opened again, and answered what has waited.

        Raises:
            TapError: they cannot be; requests fail until this is tried again.
        """
        return dict(self.call("resume-io", name=name))

    def snapshot_live(
        self,
        name: str,
        child: str | os.PathLike[str],
        *,
        options: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Make a new child under a disk, and serve that.

        Args:
            name: of the disk.
            child: `[HANDLE:]PATH` of the new image.
            options: of its format.
        """
        words = [f"{key}={value}" for key, value in (options or {}).items()]
        return dict(
            self.call(
                "snapshot-live",
                name=name,
                child=os.fsdecode(child),
                directory=os.getcwd(),
                options=words,
            )
        )

    def swap(self, name: str, image: str | os.PathLike[str]) -> dict[str, Any]:
        """Serve another image of the same size in a disk's place."""
        return dict(self.call("swap", name=name, image=os.fsdecode(image), directory=os.getcwd()))

    def commit_live(self, name: str) -> dict[str, Any]:
        """Begin to fold a disk into its parent; `commit_status` tells of it."""
        return dict(self.call("commit-live", name=name))

    def commit_status(self, name: str) -> dict[str, Any]:
        """How far that is: `phase` ("copying", "finishing", "done", "cancelled", "failed"), bytes
        `done` of `total`, bytes `copied`, and `rate` in bytes a second."""
        return dict(self.call("commit-status", name=name))

    def commit_cancel(self, name: str) -> dict[str, Any]:
        """Let that end; the disk is served on as before."""
        return dict(self.call("commit-cancel", name=name))

    def resize_live(self, name: str, size: str, *, shrink: bool = False) -> dict[str, Any]:
        """Change the size of a disk: `SIZE`, `+N` or `-N`.

        Clients see it when they connect again: NBD has no way to tell those that are there.
        """
        return dict(self.call("resize-live", name=name, size=size, shrink=shrink))

    def stats(self, name: str | None = None) -> list[dict[str, Any]]:
        """What disks have done: one, or all."""
        return list(self.call("stats", name=name)["disks"])

    def reload(self) -> dict[str, Any]:
        """Let the daemon look for drivers again."""
        return dict(self.call("reload"))

    def dump_ring(self, name: str) -> list[dict[str, Any]]:
        """The rings of a disk: shared and private indices, events, slots in use."""
        return list(self.call("dump-ring", name=name)["rings"])

    def log_level(self, level: str, name: str | None = None) -> None:
        """What the daemon tells from now on, or the process of a disk."""
        self.call("log-level", level=level, name=name)

    def stop(self, *, keep_disks: bool = False) -> None:
        """End the daemon; disks are closed, or go on without it. Returns when it has ended."""
        self.call("stop", keep_disks=keep_disks)
        self._wait_for_end()

    def _wait_for_end(self) -> None:
        assert self._socket is not None
        self._socket.settimeout(self._timeout)
        while self._socket.recv(_RECEIVE):
            pass
        self.close()

    # ---- asking -----------------------------------------------------------------------------

    def call(self, method: str, **params: Any) -> Any:
        """Ask for anything.

        Args:
            method: of the daemon or, with a disk's `name`, of its process.
            params: of the method.

        Returns:
            What JSON gives for the result.

        Raises:
            TapError: what went wrong there, as it would have been raised here.
        """
        known = next(self._ids)
        line = call_line(Call(method, params, known))
        try:
            self._send(line)
            return self._answer_to(known)
        except TapError:
            raise
        except OSError as exc:
            self.close()
            if isinstance(exc, TimeoutError):
                raise IOFailedError(
                    "the daemon does not answer", image=self._path, errno=errno.ETIMEDOUT
                ) from None
            raise IOFailedError(describe(exc), image=self._path, errno=exc.errno) from None

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self._timeout)
        try:
            sock.connect(self._path)
        except OSError as exc:
            sock.close()
            if isinstance(exc, FileNotFoundError | ConnectionRefusedError):
                text = "no daemon runs here ('tapdisk daemon' starts one)"
                raise UsageError(text, image=self._path, errno=exc.errno) from None
            raise UsageError(describe(exc), image=self._path, errno=exc.errno) from None
        self._socket = sock
        return sock

    def _send(self, line: bytes) -> None:
        if self._socket is not None and _has_ended(self._socket):
            self.close()  # it was idle for long, or the daemon is another
        sock = self._socket or self._connect()
        sock.sendall(line)

    def _answer_to(self, known: int) -> Any:
        assert self._socket is not None
        while True:
            line = self._lines.next_line()
            if line is None:
                data = self._socket.recv(_RECEIVE)
                if not data:
                    raise ConnectionResetError(errno.ECONNRESET, "the daemon ended")
                self._lines.receive(data)
                continue
            answer = parse_answer(line)
            if answer.error is not None and answer.id in (known, None):
                raise raised_there(answer.error)
            if answer.id == known:
                return answer.result


def _has_ended(sock: socket.socket) -> bool:
    """Whether the other side has closed it: between calls nothing else can be there."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
