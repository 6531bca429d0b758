"""A raw image that was found by probing refuses to be turned into another format's."""

import errno
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers.late import MAGIC, Late, LateImage
from enginebench import Bench

from tapcore import TD_RDONLY, DiskDriver, DiskId, OpenOptions, Registry, hookimpl
from tapcore.engine import DISCARD, READ, WRITE, ZERO, Request
from tapcore.interface.diskinfo import DiskInfo
from tapcore.opening.chain import close_disk, open_disk
from tapcore.opening.probe import probe

LOOKS_LATE = (MAGIC + b"late\0").ljust(512, b".")


class ProbeRaises:
    """Its probe cannot take a short head."""

    disk_info = DiskInfo(handle="aaa", name="raises", api=1)

    @hookimpl
    def td_open(self, dd: Any, name: str, flags: int) -> None: ...

    @hookimpl
    def td_queue_read(self, dd: Any) -> int:
        return 0

    @hookimpl
    def td_probe(self, head: bytes) -> bool:
        raise IndexError("index out of range")


@pytest.fixture
def registry() -> Registry:
    made = Registry(discover=False)
    made.register(ProbeRaises())
    made.register(Late())
    made.register(Late("sync"))
    return made


@pytest.fixture
def raw(tmp_path: Path, registry: Registry) -> Iterator[Bench]:
    path = tmp_path / "disk"
    path.write_bytes(b"nothing that anybody knows")
    image = LateImage(64, now=0.5, data=bytearray(b"x") * (64 << 9), allocated=set(range(64)))
    options = OpenOptions(private={"images": {"disk": image}})
    disk = open_disk(DiskId(str(path)), registry, options=options)
    assert disk.image.drivertype == "sync"
    yield Bench(disk, random.Random(0))
    close_disk(disk)
    assert not image.data.startswith(LOOKS_LATE[:9])


@pytest.mark.parametrize("length", [512, 513, 700, 4096, 8 << 10])
def test_a_first_sector_of_another_format_is_not_written(raw: Bench, length: int) -> None:
    data = LOOKS_LATE.ljust(length, b"x")
    assert raw.run(WRITE, 0, data=data).status == -errno.EPERM
    assert raw.engine.in_flight == 0
    assert raw.run(WRITE, 512, data=data).status == 0
    assert raw.run(WRITE, 0, data=bytes(length)).status == 0


def test_nor_byte_by_byte(raw: Bench) -> None:
    statuses = [raw.run(WRITE, n, data=LOOKS_LATE[n : n + 1]).status for n in range(9)]
    assert statuses == [0] * 8 + [-errno.EPERM]
    assert raw.run(WRITE, 8, data=b"!").status == 0


def test_nor_in_pieces(raw: Bench) -> None:
    first = Request(WRITE, 0, 512, None, lambda req: None)
    assert not raw.engine.begin_write(first)


@pytest.mark.parametrize("end", [0, 1], ids=["head", "tail"])
def test_where_an_end_cannot_be_read_nothing_is_written(
    raw: Bench, end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, calls = raw.engine.layers[0], list[int]()
    read = layer.read

    def fails_once(dd: DiskDriver, sector: int, *rest: Any) -> int:
        calls.append(sector)
        return -errno.EIO if len(calls) == end + 1 else read(dd, sector, *rest)

    monkeypatch.setattr(layer, "read", fails_once)
    assert raw.run(WRITE, 0, data=bytes(512)).status == -errno.EIO
    assert len(calls) == 2
    assert bytes(raw.run(READ, 0, 512).buf or b"") == b"x" * 512
    assert raw.run(WRITE, 0, data=bytes(512)).status == 0  # nothing is held any more


def test_everything_else_is_allowed(raw: Bench) -> None:
    assert raw.run(ZERO, 0, 1024).status == 0
    assert raw.run(DISCARD, 0, 1024).status == 0
    assert raw.run(READ, 0, 1024).status == 0
    assert raw.run(WRITE, 3, data=b"abc").status == 0


def test_who_named_the_handle_may_write_anything(tmp_path: Path, registry: Registry) -> None:
    image = LateImage(64)
    options = OpenOptions(private={"images": {"disk": image}})
    disk = open_disk(DiskId(str(tmp_path / "disk"), "sync"), registry, options=options)
    assert Bench(disk, random.Random(0)).run(WRITE, 0, data=LOOKS_LATE).status == 0
    close_disk(disk)
    assert image.data.startswith(LOOKS_LATE)


def test_a_probe_that_raises_recognises_nothing(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "disk").write_bytes(LOOKS_LATE)
    assert probe(str(tmp_path / "disk"), registry) == "late"
    (tmp_path / "empty").touch()
    assert probe(str(tmp_path / "empty"), registry) == "sync"
    image = LateImage(8)
    options = OpenOptions(private={"images": {"empty": image}})
    disk = open_disk(DiskId(str(tmp_path / "empty")), registry, flags=TD_RDONLY, options=options)
    close_disk(disk)
