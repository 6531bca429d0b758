"""What a driver that was taken over aims at (`drivers.hostile`): a process, and sockets."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from drivers import hostile
from nbd_client import Client

REFUSALS = {"refused: 1", "refused: 13"}  # EPERM, EACCES


@contextlib.contextmanager
def aims() -> Iterator[str]:
    """For the environment of the driver (`HOSTILE`)."""
    abstract = f"\0tapcore-{os.getpid()}"
    with (
        tempfile.TemporaryDirectory(prefix="tapcore-") as where,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as by_path,
        socket.socket(socket.AF_UNIX) as by_name,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
    ):
        for sock, address in ((by_path, f"{where}/s"), (by_name, abstract)):
            sock.bind(address)
            sock.listen()
        port = tcp.getsockname()[1]
        found = {"port": port, "unix": f"{where}/s", "abstract": abstract}
        yield json.dumps({**found, "process": process.pid})
        process.kill()


def tried(client: Client, *, in_a_thread: bool = False) -> dict[str, str]:
    """What came of each attack, and of what is allowed."""
    found = {}
    for number, name in enumerate(hostile.ALL):
        content = client.read((number + 1000 * in_a_thread) * 512, 512)
        found[name] = content.rstrip(b"\0").decode()
    return found


def done(results: dict[str, str]) -> set[str]:
    """Attacks that were not refused."""
    return {name for name in hostile.ATTACKS if results[name] not in REFUSALS}


def kept_from(results: dict[str, str]) -> dict[str, str]:
    """What drivers do that was refused all the same."""
    return {name: results[name] for name in hostile.ALLOWED if results[name] != "done"}
