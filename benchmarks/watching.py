"""Who watches a daemon's disks while their processes are killed: clients that remember, a list.

For daemon_soak.py.
"""

from __future__ import annotations

import contextlib
import random
import struct
import sys
import threading
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from nbd_client import Client, NbdError

from tapcore.daemon.client import DaemonClient

MIB = 1 << 20
FORMATS = ("aio", "sync", "qcow", "qcow2", "vdi", "vhd", "vhdx", "vmdk")
DISK = 64 * MIB
LEDGER = 4 * MIB
"""At the start of each disk: for the client that remembers. The rest is fio's."""

BLOCK = 4096
STAMP = struct.Struct(">QQ")
PATIENCE = 60.0
"""Seconds for a process to be there again, on a busy machine."""


class Failed(AssertionError):
    """Something is not as it has to be."""


def check(right: object, text: str) -> None:
    if not right:
        raise Failed(text)


class Ledger(threading.Thread):
    """A client that writes numbered blocks, flushes, and remembers which number each block has.

    A connection that ends while its disk's process is meant to die is made again; what was flushed
    must be there then, or something newer that was written afterwards.
    """

    def __init__(self, name: str, uri: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.name, self._uri = name, uri
        self._random = random.Random(f"{seed} {name}")
        self.flushed: dict[int, int] = {}
        self._written: dict[int, list[int]] = {}
        self.may_end = False
        self.ends = 0
        self.number = 0
        self.error = ""
        self._over = threading.Event()

    def run(self) -> None:
        try:
            while not self._over.is_set():
                self._connection()
        except BaseException as exc:
            self.error = repr(exc)

    def _connection(self) -> None:
        try:
            with Client(self._uri) as client:
                self._verify(client)
                while not self._over.is_set():
                    self._batch(client)
        except NbdError as exc:
            raise Failed(f"{self.name}: an error reply: {exc}") from exc
        except (EOFError, ConnectionError) as exc:
            check(self.may_end, f"{self.name}: the connection ended: {exc!r}")
            self.ends += 1

    def _batch(self, client: Client) -> None:
        for _ in range(self._random.randrange(1, 16)):
            self._write(client, self._random.randrange(LEDGER // BLOCK))
        self._flush(client)

    def _write(self, client: Client, block: int) -> None:
        self.number += 1
        self._written.setdefault(block, []).append(self.number)
        stamp = STAMP.pack(block, self.number)
        client.write(block * BLOCK, stamp * (BLOCK // len(stamp)))

    def _flush(self, client: Client) -> None:
        client.flush()
        self.flushed.update({block: numbers[-1] for block, numbers in self._written.items()})
        self._written.clear()

    def _verify(self, client: Client) -> None:
        """Each sector has what was flushed, or one of the numbers that were being written."""
        content = client.read(0, LEDGER)
        for block, number in self.flushed.items():
            allowed = {(block, each) for each in (number, *self._written.get(block, ()))}
            mine = content[block * BLOCK : (block + 1) * BLOCK]
            found = {*STAMP.iter_unpack(mine)}
            check(found <= allowed, f"{self.name}: block {block} has {found}, not of {allowed}")
        for block in sorted(self._written):  # nobody knows what of these is there
            self._write(client, block)
        self._flush(client)

    def stop(self) -> None:
        """Let it come to its end; raises what went wrong."""
        self._over.set()
        self.join(PATIENCE)
        check(not self.is_alive(), f"{self.name}: a request is never answered")
        check(not self.error, f"{self.name}: {self.error}")


class Watch(threading.Thread):
    """Asks for the list and the statistics all the time, and compares them with what there is.

    Attributes:
        states: how often each disk was told to be in each state.
        asked: how often the list came.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(daemon=True)
        self._run_dir = run_dir
        self.dying: set[str] = set()
        self.states: Counter[tuple[str, str]] = Counter()
        self.asked = 0
        self.error = ""
        self._uptimes: dict[str, float] = {}
        self._over = threading.Event()

    def run(self) -> None:
        try:
            with DaemonClient(self._run_dir, timeout=60) as client:
                while not self._over.wait(0.02):
                    self._look(client)
                    self._look_at_stats(client)
        except BaseException as exc:
            self.error = repr(exc)

    def _look(self, client: DaemonClient) -> None:
        dying = set(self.dying)
        rows = client.disks()
        dying |= self.dying
        self.asked += 1
        for row in rows:
            name, state = row["name"], row["state"]
            self.states[name, state] += 1
            if name in dying:
                check(state in ("serving", "silent", "restarting"), f"list: {name} is {state}")
                continue
            check(state == "serving", f"list: {name} is {state}, and nobody has touched it")
            check(is_alive(row["pid"]), f"list: {name} is served by {row['pid']}, which is gone")
            check(row["clients"] >= 1, f"list: {name} has no client")

    def _look_at_stats(self, client: DaemonClient) -> None:
        dying = set(self.dying)
        rows = {row["name"]: row for row in client.stats()}
        dying |= self.dying
        for name in dying:
            self._uptimes.pop(name, None)
        for name in set(FORMATS) - dying:
            check(name in rows, f"stats: {name} is missing")
            uptime, before = rows[name]["uptime"], self._uptimes.get(name, 0.0)
            check(uptime > before, f"stats: {name} was up for {before} s, and now for {uptime}")
            check(rows[name]["clients"] >= 1, f"stats: {name} has no client")
            self._uptimes[name] = uptime

    def stop(self) -> None:
        self._over.set()
        self.join(PATIENCE)
        check(not self.error, f"the list: {self.error}")


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended and that nobody has waited for does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
