"""Who serves a kind of disk: tapdisk, and each server of others that can."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from servers import Spec, find_command

REPOSITORY = Path(__file__).resolve().parent.parent
NEWER = Path(os.environ.get("TAPCORE_NEWER_PEERS") or REPOSITORY / "build" / "newer-peers")
"""Where `scripts/newer-peers.sh` has put the servers of a newer Debian, if it has."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of disk, as its servers have to be told.

    Attributes:
        handle: of tapdisk's driver.
        form: what QEMU calls the format.
        direct: with O_DIRECT.
        memory: it lies in memory, and not in a file.
    """

    handle: str
    form: str
    direct: bool = False
    memory: bool = False


def find_tapdisk(given: str | None = None) -> str | None:
    """The command that is judged: the one given, this tree's, or the one that is installed."""
    if given:
        found = find_command(given)
        return str(Path(found).absolute()) if found else None
    own = REPOSITORY / ".venv" / "bin" / "tapdisk"
    return str(own) if own.exists() else find_command("tapdisk")


def specs(kind: Kind) -> list[Spec]:
    """Ours, and those of others, the newer ones last."""
    installed = [_qemu_nbd(kind), *_storage_daemons(kind), *_nbdkit(kind)]
    return [_tapdisk(kind), *installed, *_newer(kind)]


def newer(name: str) -> str:
    """What the same server is called when it is one of the newer Debian."""
    return f"{name}-newer"


def command_of(spec: Spec, tapdisk: str | None) -> str | None:
    """Where the program of a server is; None: not installed."""
    if spec.ours:
        return tapdisk
    return spec.command if spec.start else find_command(spec.command)


def _tapdisk(kind: Kind) -> Spec:
    options = ["--cache", "none"] if kind.direct else []

    def argv(command: str, sock: Path, file: Path) -> list[str]:
        return [command, "serve", "--socket", str(sock), *options, f"{kind.handle}:{file}"]

    return Spec("tapdisk", "tapdisk", "make install", argv, ours=True)


def _qemu_nbd(kind: Kind) -> Spec:
    options = ["--cache=none", "--aio=native"] if kind.direct else ["--cache=writeback"]

    def argv(command: str, sock: Path, file: Path) -> list[str]:
        # -t: stay after the last client; -e: clients at a time (--shared)
        base = [command, "-f", kind.form, "-t", "-e", "8", "-k", str(sock), "--discard=unmap"]
        return [*base, *options, str(file)]

    return Spec("qemu-nbd", "qemu-nbd", "apt install qemu-utils", argv)


def _storage_daemons(kind: Kind) -> Iterator[Spec]:
    """One for each way in which it can do its I/O."""
    for aio in ("native" if kind.direct else "threads", "io_uring"):
        name = "qsd-io_uring" if aio == "io_uring" else "qsd"
        yield replace(_storage_daemon(kind, aio), name=name)


def _storage_daemon(kind: Kind, aio: str) -> Spec:
    cache = ",cache.direct=on" if kind.direct else ""

    def argv(command: str, sock: Path, file: Path) -> list[str]:
        path = str(file).replace(",", ",,")
        return [
            command,
            "--blockdev",
            f"driver=file,node-name=file,aio={aio}{cache},discard=unmap,filename={path}",
            "--blockdev", f"driver={kind.form},node-name=disk{cache},discard=unmap,file=file",
            "--nbd-server", f"addr.type=unix,addr.path={sock}",
            "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
        ]  # fmt: skip

    program = "qemu-storage-daemon"
    return Spec("qsd", program, "apt install qemu-system-common", argv, export="disk")


def _nbdkit(kind: Kind, plugins: Path | None = None) -> list[Spec]:
    """It knows raw disks only, and no O_DIRECT.

    Args:
        kind: of disk.
        plugins: the folder of its plugins; None: where it looks by itself.
    """
    if kind.form != "raw" or kind.direct:
        return []
    name = "memory" if kind.memory else "file"
    plugin = name if plugins is None else str(plugins / f"nbdkit-{name}-plugin.so")

    def argv(command: str, sock: Path, file: Path) -> list[str]:
        what = str(file.stat().st_size) if kind.memory else str(file)
        return [command, "-f", "-U", str(sock), plugin, what]

    return [Spec("nbdkit", "nbdkit", "apt install nbdkit", argv)]


def _newer(kind: Kind) -> Iterator[Spec]:
    """Those of the newer Debian, started by their own loader."""
    usr = NEWER / "usr"
    loaders = [*NEWER.glob("lib64/ld-linux-*.so.*"), *NEWER.glob("lib/ld-linux-*.so.*")]
    if not loaders:
        return
    libraries = [*usr.glob("lib/*-linux-gnu"), usr / "lib"]
    start = (str(loaders[0]), "--library-path", ":".join(map(str, libraries)))
    plugins = next(iter(usr.glob("lib/*-linux-gnu/nbdkit/plugins")), None)
    for spec in (_qemu_nbd(kind), *_storage_daemons(kind), *_nbdkit(kind, plugins)):
        found = [usr / place / spec.command for place in ("bin", "sbin")]
        for path in filter(Path.exists, found):
            yield replace(spec, name=newer(spec.name), command=str(path), start=start)
            break
