"""`hostile:PATH`, a raw file whose driver was taken over: to read sector N is to try attack N.

What came of it is what the sector reads as. The process of a test, and sockets on which it listens,
are found in the environment (`HOSTILE`), as JSON.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from tapcore import DiskDriver, DiskInfo, ImageFile, TdCallback, hookimpl, open_image_file

Attack = Callable[[str], object]
"""Gets the path of the image."""


def _aims() -> Any:
    return json.loads(os.environ["HOSTILE"])


def _libc(name: str, *arguments: Any) -> int:
    call = getattr(ctypes.CDLL(None, use_errno=True), name)
    result = int(call(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def _write(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(b"taken over")


def _send_to_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)


def _pair() -> None:
    for each in socket.socketpair():
        each.close()


def _connect(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)):
        pass


def _execute() -> None:
    with contextlib.suppress(FileNotFoundError):  # the kernel has looked for it
        os.execv("/no/such/program", ["program"])


def _fork() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)


def _peek(process: int) -> None:
    with open(f"/proc/{process}/environ", "rb") as file:
        file.read(1)


def _beside(image: str, name: str) -> str:
    return os.path.join(os.path.dirname(image), name)


ATTACKS: dict[str, Attack] = {
    "read a file of the system": lambda image: open("/etc/passwd").close(),
    "read it around a corner": lambda image: open("/proc/self/root/etc/passwd").close(),
    "list a directory": lambda image: os.listdir("/etc"),
    "read a file beside the image": lambda image: open(_beside(image, "other")).close(),
    "write a file beside the image": lambda image: _write(_beside(image, "other")),
    "cut off a file beside the image": lambda image: os.truncate(_beside(image, "other"), 1),
    "make a file beside the image": lambda image: open(_beside(image, "new"), "x").close(),
    "make a directory": lambda image: os.mkdir(_beside(image, "directory")),
    "make a link": lambda image: os.link(_beside(image, "other"), _beside(image, "linked")),
    "make a symbolic link": lambda image: os.symlink("/", _beside(image, "root")),
    "make a pipe": lambda image: os.mkfifo(_beside(image, "pipe")),
    "rename a file": lambda image: os.rename(_beside(image, "useless"), _beside(image, "useful")),
    "remove a file": lambda image: os.unlink(_beside(image, "unwanted")),
    "let all read a file": lambda image: os.chmod(_beside(image, "other"), 0o777),
    "give a file away": lambda image: os.chown(_beside(image, "other"), 1, 1),
    "date a file back": lambda image: os.utime(_beside(image, "other"), (0, 0)),
    "connect over TCP": lambda image: _connect(_aims()["port"]),
    "connect to a Unix socket": lambda image: _send_to_unix(_aims()["unix"]),
    "connect to an abstract Unix socket": lambda image: _send_to_unix(_aims()["abstract"]),
    "have sockets": lambda image: _pair(),
    "execute a program": lambda image: _execute(),
    "spawn a program": lambda image: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
    "run a command": lambda image: subprocess.run("true", shell=True, check=True),
    "fork": lambda image: _fork(),
    "signal another process": lambda image: os.kill(_aims()["process"], 0),
    "hold another process": lambda image: os.close(os.pidfd_open(_aims()["process"])),
    "look into another process": lambda image: _peek(_aims()["process"]),
    "become somebody": lambda image: os.setresuid(os.getuid(), os.getuid(), os.getuid()),
    "change the root": lambda image: os.chroot("/"),
    "set limits of another process": lambda image: _libc(
        "prlimit", _aims()["process"], 7, None, None
    ),
    "ask for asynchronous calls": lambda image: os.close(
        _libc("syscall", 425, 1, ctypes.create_string_buffer(120))
    ),
}

ALLOWED: dict[str, Attack] = {
    "open the image again": lambda image: _write(image),
    "open it through /proc": lambda image: open(f"/proc/self/fd/{_fd_of(image)}", "r+b").close(),
    "import what nobody has imported": lambda image: importlib.import_module("colorsys"),
    "import what loads a library": lambda image: importlib.import_module("_lsprof"),
    "read its own source": lambda image: open(__file__).close(),
    "write to nowhere": lambda image: open(os.devnull, "w").close(),
    "ask for its own state": lambda image: open("/proc/self/status").close(),
    "have more descriptors": lambda image: _libc("prlimit", 0, 7, None, None),
    "signal itself": lambda image: os.kill(os.getpid(), 0),
    "signal its threads": lambda image: signal.pthread_kill(threading.main_thread().ident or 0, 0),
    "begin a thread": lambda image: _in_a_thread(lambda _: None, image),
    "have memory": lambda image: os.close(os.memfd_create("memory")),
}
"""What drivers do, and must be able to do."""

ALL = {**ATTACKS, **ALLOWED}


def _fd_of(image: str) -> int:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(image), os.fstat(int(name))):
                return int(name)
    raise AssertionError("it is not open")


def outcome(attack: Attack, image: str) -> str:
    """Try it: "done", or why not."""
    try:
        attack(image)
    except OSError as exc:
        return f"refused: {exc.errno}"
    except BaseException as exc:
        return repr(exc)
    return "done"


def _in_a_thread(attack: Attack, image: str) -> str:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(outcome(attack, image)))
    thread.start()
    thread.join()
    return found[0]


class Hostile:
    """The driver. Where the sector's number is 1000 more, a thread tries it."""

    disk_info = DiskInfo(handle="hostile", name="hostile", api=1)

    @hookimpl
    def td_open(self, dd: DiskDriver[ImageFile], name: str, flags: int) -> None:
        dd.private = open_image_file(name, flags, dd.options)
        dd.size = 2000

    @hookimpl
    def td_queue_read(
        self,
        dd: DiskDriver[ImageFile],
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        attack = [*ALL.values()][sector % 1000]
        found = (_in_a_thread if sector >= 1000 else outcome)(attack, dd.name)
        buf[:] = found.encode().ljust(len(buf), b"\0")
        return cb(dd, 0, sector, nb_sectors, id, prv)

    @hookimpl
    def td_queue_write(
        self,
        dd: DiskDriver[ImageFile],
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        return cb(dd, 0, sector, nb_sectors, id, prv)

    @hookimpl
    def td_close(self, dd: DiskDriver[ImageFile]) -> None:
        dd.private.close()


class Crowd(Hostile):
    """One whose disks share a process."""

    disk_info = DiskInfo(handle="crowd", name="crowd", api=1, single_handler=True)


driver = Hostile()
crowd = Crowd()


class Threaded(Hostile):
    """One that begins a thread before anything is given up."""

    disk_info = DiskInfo(handle="threaded", name="threaded", api=1)

    @hookimpl
    def td_open(self, dd: DiskDriver[ImageFile], name: str, flags: int) -> None:
        super().td_open(dd, name, flags)
        waiting = threading.Event().wait
        threading.Thread(target=waiting, name="driver's own", daemon=True).start()


def main() -> int:
    """`tapdisk` with these drivers."""
    from tapcore.cli.main import main as tapdisk
    from tapcore.interface.registry import default_registry

    for driver in (Hostile(), Threaded()):
        default_registry().register(driver)
    return int(tapdisk() or 0)


if __name__ == "__main__":
    sys.exit(main())
