"""What the author of a driver sees of it: tracebacks, traces, and answers that do not come."""

import io
import logging
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drivers.broken import Tiny

import tapcore
from tapcore import DiskId, Registry, UsageError, hookimpl
from tapcore.cli.main import main
from tapcore.engine import READ, Engine, Request, overdue
from tapcore.engine.drive import EngineLoop
from tapcore.interface.registry import set_default_registry
from tapcore.interface.tracing import TRACE
from tapcore.opening.chain import close_disk, open_disk


class Careless:
    """A driver that goes wrong in one hook."""

    def __init__(self, wrong: str, error: Exception) -> None:
        self.disk_info = tapcore.DiskInfo(handle="wrong", name="goes wrong", api=1)
        self.wrong, self.error = wrong, error

    def step(self, hook: str) -> None:
        if hook == self.wrong:
            self.deep_inside()

    def deep_inside(self) -> None:
        raise self.error

    @hookimpl
    def td_open(self, dd: Any, name: str, flags: int) -> None:
        self.step("td_open")
        dd.private = tapcore.open_image_file(name, flags, dd.options)
        dd.size = 16

    @hookimpl
    def td_close(self, dd: Any) -> None:
        dd.private.close()
        self.step("td_close")

    @hookimpl
    def td_queue_read(
        self, dd: Any, sector: int, nb_sectors: int, cb: Any, id: int, prv: Any
    ) -> int:
        self.step("td_queue_read")
        return int(cb(dd, 0, sector, nb_sectors, id, prv))

    @hookimpl
    def td_queue_write(
        self, dd: Any, sector: int, nb_sectors: int, cb: Any, id: int, prv: Any
    ) -> int:
        return int(cb(dd, 0, sector, nb_sectors, id, prv))

    @hookimpl
    def td_submit(self) -> int:
        self.step("td_submit")
        return 0

    @hookimpl
    def td_get_parent_id(self) -> int:
        self.step("td_get_parent_id")
        return tapcore.TD_NO_PARENT

    @hookimpl
    def td_info(self) -> dict[str, Any]:
        self.step("td_info")
        return {}

    @hookimpl
    def td_check(self) -> tapcore.CheckResult:
        self.step("td_check")
        return tapcore.CheckResult()

    @hookimpl
    def td_resize(self) -> None:
        self.step("td_resize")

    @hookimpl
    def td_create(self) -> None:
        self.step("td_create")

    @hookimpl
    def td_measure(self) -> tapcore.Measurement:
        self.step("td_measure")
        return tapcore.Measurement(1, 1)

    @hookimpl
    def td_inspect(self) -> tapcore.Inspection:
        self.step("td_inspect")
        return tapcore.Inspection(512)


Use = Callable[[Any], Registry]


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Let the command line know a driver; in a folder with a file `d`."""
    monkeypatch.chdir(tmp_path)
    Path("d").write_bytes(bytes(8192))
    registry = Registry()

    def register(driver: Any) -> Registry:
        row = registry.register(driver)
        assert not row.error, row.error
        return registry

    before = set_default_registry(registry)
    yield register
    set_default_registry(before)


COMMANDS = {
    "td_open": ["info", "wrong:d"],
    "td_close": ["compare", "wrong:d", "d"],
    "td_queue_read": ["compare", "wrong:d", "d"],
    "td_submit": ["compare", "wrong:d", "d"],
    "td_get_parent_id": ["info", "wrong:d"],
    "td_info": ["info", "wrong:d"],
    "td_check": ["check", "wrong:d"],
    "td_resize": ["resize", "wrong:d", "1M"],
    "td_create": ["create", "wrong:new", "1M"],
    "td_measure": ["measure", "d", "-O", "wrong"],
    "td_inspect": ["inspect", "wrong:d"],
}
ERRORS = (ZeroDivisionError("oops"), tapcore.ImageFormatError("is no good"))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("hook", COMMANDS)
def test_debug_shows_where_a_driver_raised(
    use: Use, capfd: pytest.CaptureFixture[str], hook: str, error: Exception
) -> None:
    use(Careless(hook, error))
    main(COMMANDS[hook])
    assert "Traceback" not in capfd.readouterr().err
    main([*COMMANDS[hook], "--debug"])
    said = capfd.readouterr().err
    assert f"in {hook}\n" in said, said
    assert "in deep_inside\n" in said
    assert str(error.args[-1]) in said


def test_debug_shows_where_a_method_of_a_simple_driver_raised(
    use: Use, capfd: pytest.CaptureFixture[str]
) -> None:
    class Simple(tapcore.SimpleDriver):
        handle, api = "wrong", 1

        def pread(self, offset: int, length: int) -> bytes:
            raise ZeroDivisionError("oops")

    use(Simple)
    main(["compare", "wrong:d", "d"])
    said = capfd.readouterr().err
    assert "d: a bug in the driver wrong: ZeroDivisionError: oops\n" in said
    assert "Traceback" not in said
    main(["compare", "wrong:d", "d", "--debug"])
    assert "in pread\n" in capfd.readouterr().err


# ---- traces ------------------------------------------------------------------------------------


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], io.StringIO]:
    """Trace, and catch what is written."""

    def catch(words: str) -> io.StringIO:
        monkeypatch.setenv(TRACE, words)
        out = io.StringIO()
        monkeypatch.setattr(sys, "stderr", out)
        return out

    return catch


def lines(out: io.StringIO) -> list[str]:
    """Without times."""
    text = re.sub(r"^trace \d+\.\d{6} ", "", out.getvalue(), flags=re.MULTILINE)
    return re.sub(r",? \d+ µs", "", re.sub(r"#\d+", "#", text)).splitlines()


def read_and_write(registry: Registry, name: str) -> None:
    with tapcore.open(name, registry=registry, readonly=False) as disk:
        disk.pread(4096, length=512)
        disk.pwrite(0, bytes(1024))
        disk.flush()


def test_requests_are_traced(trace: Callable[[str], io.StringIO], tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(bytes(8192))
    out = trace("requests")
    read_and_write(Registry(), f"aio:{tmp_path / 'd'}")
    name = repr(str(tmp_path / "d"))
    assert lines(out)[:5] == [
        f"# read 4096+512 of {name} by aio",
        "# 4096+512 = 0",
        f"# write 0+1024 of {name} by aio",
        "# 0+1024 = 0",
        f"# flush of {name} by aio",
    ]


def test_hooks_are_traced(trace: Callable[[str], io.StringIO], tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(bytes(8192))
    registry = Registry()
    out = trace("hooks")
    read_and_write(registry, f"sync:{tmp_path / 'd'}")
    said = lines(out)
    assert said[0].startswith("sync td_open(dd=")
    assert said[0].endswith("flags=0) = None")
    assert said[-1].startswith("sync td_close(dd=")
    assert [line for line in said if "td_queue_read(" in line and "buf=<512 bytes>" in line]


def test_what_a_hook_raises_is_traced(trace: Callable[[str], io.StringIO], use: Use) -> None:
    out = trace("hooks")
    registry = use(Careless("td_info", ZeroDivisionError("oops")))
    with (
        tapcore.open("wrong:d", registry=registry, readonly=False) as disk,
        pytest.raises(ZeroDivisionError),
    ):
        disk.state.disks.drv.td_info(disk.state.disks)
    assert [line for line in lines(out) if line.endswith("raised ZeroDivisionError: oops")]


def test_nothing_passes_by_a_trace(trace: Callable[[str], io.StringIO], tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(os.urandom(8192))
    trace("requests")
    with tapcore.open(f"aio:{tmp_path / 'd'}", registry=Registry(), readonly=False) as disk:
        leaf = disk.state.disks
        assert leaf.drv.td_places(leaf) is None
        assert {extent.fd for extent in leaf.drv.td_extents(leaf, 0, 16)} == {None}


def test_without_the_variable_a_hook_is_the_drivers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRACE, raising=False)
    registry = Registry(discover=False)
    driver = Tiny("own")
    registry.register(driver)
    assert registry.operations("own").td_queue_read == driver.td_queue_read


def test_a_word_that_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()
    monkeypatch.setenv(TRACE, "request")
    with pytest.raises(UsageError, match="TAPCORE_TRACE: 'request' is neither 'hooks' nor"):
        registry.operations("aio")


# ---- answers that do not come ------------------------------------------------------------------


class Forgets(Tiny):
    """Takes reads, and answers when it is told to."""

    def __init__(self) -> None:
        super().__init__("forgets")
        self.held: list[Callable[[], int]] = []

    @hookimpl
    def td_queue_read(
        self, dd: Any, sector: int, nb_sectors: int, buf: Any, cb: Any, id: int, prv: Any
    ) -> int:
        self.held.append(lambda: int(cb(dd, 0, sector, nb_sectors, id, prv)))
        return 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A time that the test says."""
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(overdue, "monotonic", lambda: now.seconds)
    return now


def waits(engine: Engine) -> float | None:
    return engine.timeout


def test_a_request_without_an_answer_is_named_once(
    clock: types.SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Forgets()
    registry = Registry(discover=False)
    registry.register(driver)
    disk = open_disk(DiskId("x", "forgets"), registry, flags=tapcore.TD_RDONLY)
    engine = disk.blkif
    assert isinstance(engine, Engine)
    assert waits(engine) is None
    done: list[int] = []
    for sector in (0, 4):
        view = memoryview(bytearray(1024))
        engine.submit(Request(READ, sector * 512, 1024, view, lambda req: done.append(req.status)))
    engine.turn()
    said: list[int] = []
    for _ in range(10):
        seconds = waits(engine)
        assert seconds is not None
        assert 0 < seconds <= overdue.LOOK_SECONDS
        clock.seconds += 1.9
        said.append(len(caplog.records))
    assert said[4] == 0  # 9.5 s
    assert said[-1] == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    text = "the driver forgets has a read of 2 sectors at sector 0 (and 1 more)"
    assert re.fullmatch(rf"x: no answer for 1\d s: {re.escape(text)}", record.getMessage())
    for answer in driver.held:
        answer()
    engine.turn()
    assert done == [0, 0]
    assert waits(engine) is None
    close_disk(disk)


def test_who_waits_for_an_answer_wakes_up_to_look(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(overdue, "OVERDUE_SECONDS", 0.02)
    monkeypatch.setattr(overdue, "LOOK_SECONDS", 0.01)
    driver = Forgets()
    registry = Registry(discover=False)
    registry.register(driver)
    disk = open_disk(DiskId("x", "forgets"), registry, flags=tapcore.TD_RDONLY)
    engine = disk.blkif
    assert isinstance(engine, Engine)
    engine.submit(Request(READ, 0, 512, memoryview(bytearray(512)), lambda req: None))

    def told() -> bool:
        if caplog.records:
            driver.held.pop()()
        return not driver.held

    EngineLoop(engine).run_until(told)
    assert "no answer for 0 s: the driver forgets has a read" in caplog.text
    close_disk(disk)
