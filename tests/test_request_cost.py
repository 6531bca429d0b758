"""What a request costs in Python: counted, so that the same tree always says the same.

Lines of the product's code that are executed, and calls into C, for a request of a batch of 32 (2
of 1 MiB) on its way through the NBD machine, the engine and a driver. `recorded-costs.json` has
what it was; `TAPCORE_RECORD_COSTS=1` writes it anew, which belongs into the commit that changes it.
"""

import gc
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

import attrs
import pytest
from nbd_client import READ, WRITE, WRITE_ZEROES
from nbdwire import Wire, opened

from tapcore.engine.loop import Loop
from tapcore.files.mappable import maps_well
from tapcore.nbd.alone import Alone
from tapcore.tools.create import create_image

RECORD: Final = Path(__file__).with_name("recorded-costs.json")
VERSION: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
BATCH: Final = 32
MIB: Final = 1 << 20


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No finalizers in between; a slow disk makes no write wait; all is written often."""
    monkeypatch.setattr("tapcore.files.imagefile.SLOW_WRITE_SECONDS", float("inf"))
    monkeypatch.setattr("tapcore.files.windows.OFTEN", 0)
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where images lie of which reads are answered from the page cache itself."""
    if not _can_be_mapped(tmp_path):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
            assert _can_be_mapped(Path(memory))
            yield Path(memory)
    else:
        yield tmp_path


def _can_be_mapped(folder: Path) -> bool:
    fd = os.open(folder, os.O_RDWR | os.O_TMPFILE)
    try:
        return maps_well(fd)
    finally:
        os.close(fd)


class Meter:
    """Counts what the product's code does inside `with`."""

    def __init__(self) -> None:
        self.steps = 0
        self._product: dict[str, bool] = {}

    def _is_product(self, frame: FrameType) -> bool:
        name = frame.f_code.co_filename
        known = self._product.get(name)
        if known is None:
            parts = Path(name).parts
            known = any(part == "tapcore" or part.startswith("tap_") for part in parts[:-1])
            self._product[name] = known = known and "tests" not in parts
        return known

    def _entered(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        return self._line if self._is_product(frame) else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        self.steps += event == "line"
        return self._line

    def _called(self, frame: FrameType, event: str, arg: object) -> None:
        self.steps += event == "c_call" and self._is_product(frame)

    def __enter__(self) -> "Meter":
        self._before = sys.gettrace(), sys.getprofile()
        sys.settrace(self._entered)
        sys.setprofile(self._called)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: object, trace: TracebackType | None
    ) -> None:
        sys.settrace(self._before[0])
        sys.setprofile(self._before[1])


@attrs.frozen
class Load:
    """One kind of request; `new`: each goes to a cluster that has no place yet; `alone`: it comes
    through a socket, when the one before it is answered."""

    handle: str
    command: int
    size: int
    new: bool = False
    alone: bool = False

    @property
    def batch(self) -> int:
        """Requests, of 2 MiB at most."""
        return min(BATCH, 2 * MIB // self.size)

    @property
    def name(self) -> str:
        what = {READ: "read", WRITE: "write", WRITE_ZEROES: "zeroes"}[self.command]
        what = f"new {what}" if self.new else f"{what} alone" if self.alone else what
        return f"{self.handle} {what} {self.size >> 10}k"


FORMATS: Final = ("qcow2", "vmdk", "qcow")
LOADS: Final = [
    *(
        Load(handle, command, size)
        for handle in ("aio", "ram", *FORMATS)
        for command in (READ, WRITE)
        for size in (4096, 65536)
    ),
    *(Load(handle, WRITE, MIB) for handle in ("aio", *FORMATS)),
    *(Load(handle, WRITE_ZEROES, 65536) for handle in ("ram", "qcow2")),
    *(Load("aio", command, 4096, alone=True) for command in (READ, WRITE)),
    *(Load(handle, WRITE, size, new=True) for handle in FORMATS for size in (4096, 65536)),
]


def image_of(load: Load, folder: Path) -> str:
    """An empty image of 64 MiB."""
    if load.handle == "ram":
        return "ram:64M"
    path = folder / "disk"
    if load.handle == "aio":
        path.write_bytes(bytes(64 * MIB))
    else:
        create_image(f"{load.handle}:{path}", 64 * MIB)
    return f"{load.handle}:{path}"


def cost_of(load: Load, folder: Path) -> float:
    """Steps for each request of a batch, after one that has warmed everything."""
    step, count = 65536 if load.new else load.size, load.batch
    payload = b"x" * load.size if load.command == WRITE else b""
    with opened(image_of(load, folder)) as disk:
        wire = Wire(disk)

        def batch(start: int) -> bytes:
            places = range(start, start + count * step, step)
            length = 0 if payload else load.size
            return b"".join(wire.make(load.command, at, length, 0, payload) for at in places)

        if not load.new:
            for at in range(0, 8 * MIB, 65536):
                wire.call(WRITE, at, payload=b"y" * 65536)
        wire.feed(batch(0))
        data = batch(count * step)
        if load.alone:
            return _cost_alone(wire, data, count)
        with Meter() as meter:
            wire.feed(data)
        assert not wire.side.in_flight
        assert not any(wire.errors())
        wire.end()
    return meter.steps / count


def _cost_alone(wire: Wire, data: bytes, count: int) -> float:
    """The same of requests that come one by one."""
    client, server = socket.socketpair()
    size, steps = len(data) // count, 0
    with client, server:
        alone = Alone(server, wire.side, Loop())
        for at in range(0, len(data), size):
            client.sendall(data[at : at + size])
            with Meter() as meter:
                assert alone.receive() is True
            steps += meter.steps
            wire.parser.feed(client.recv(MIB))
    assert not any(wire.errors())
    wire.end()
    return steps / count


def test_no_request_costs_more_than_was_recorded(folder: Path) -> None:
    """Ten parts in a hundred at most; what is cheaper by as much has to be recorded."""
    found = {}
    for number, load in enumerate(LOADS):
        (place := folder / str(number)).mkdir()
        found[load.name] = round(cost_of(load, place), 1)
    if os.environ.get("TAPCORE_RECORD_COSTS"):
        content = {"python": VERSION, "steps a request": found}
        RECORD.write_text(json.dumps(content, indent=1) + "\n")
    record = json.loads(RECORD.read_text())
    was: dict[str, float] = record["steps a request"]
    assert found.keys() == was.keys()
    slack = 1.10 if record["python"] == VERSION else 1.30  # other versions count a little otherwise
    worse = {name: (was[name], now) for name, now in found.items() if now > was[name] * slack}
    better = {name: (was[name], now) for name, now in found.items() if now * slack < was[name]}
    assert not worse, "costs more: (recorded, now)"
    assert not better, "costs less: record it, so that it stays so: (recorded, now)"


def test_the_same_tree_counts_the_same(folder: Path) -> None:
    load = Load("qcow2", READ, 4096)
    costs = set()
    for number in range(2):
        (place := folder / str(number)).mkdir()
        costs.add(cost_of(load, place))
    assert len(costs) == 1
