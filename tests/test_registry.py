"""The table of drivers: what is refused and why, and what a call of a hook really calls."""

import importlib.metadata
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from drivers.broken import (
    AnswersToAnyName,
    BadSignature,
    CannotRead,
    Explodes,
    NoInfo,
    OldApi,
    Terse,
    Tiny,
    UnknownHook,
    Wraps,
    info,
)

import tapcore
from peers import missing
from tapcore import (
    DiskId,
    OpenOptions,
    Registry,
    TapError,
    UnknownHandleError,
    UsageError,
    hookimpl,
)
from tapcore.constants import TD_RDONLY
from tapcore.engine import READ, WRITE, Request, engine_of
from tapcore.interface import registry as registry_module
from tapcore.opening.chain import close_disk, open_disk

# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        (NoInfo(), "has no disk_info"),
        (OldApi(), "was written for version 2 of the hooks, this is version 1"),
        (CannotRead(), "does not implement td_queue_read"),
        (UnknownHook("typo"), "implements hooks that do not exist: td_opne"),
        (BadSignature("signed"), "batch"),
        (Wraps("wraps"), "td_submit"),
        (Tiny("not-a-name"), "at most 9 characters"),
        (Tiny("tencharsxx"), "at most 9 characters"),
        (Tiny(""), "at most 9 characters"),
        (Explodes(), "do not look at me"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_plugin_that_is_no_driver_is_reported_and_harms_no_other(plugin: Any, said: str) -> None:
    registry = Registry(discover=False)
    registry.register(Tiny("first", 1))
    row = registry.register(plugin)
    registry.register(Tiny("last", 2))
    assert said in row.error
    assert "\n" not in row.error
    assert row.drv is None
    assert [good.handle for good in registry.drivers()] == ["first", "last"]
    assert row in registry.table()
    assert read_from(registry, "first") == 1
    assert read_from(registry, "last") == 2


def test_an_entry_point_named_differently_from_the_handle_is_reported() -> None:
    registry = Registry(discover=False)
    row = registry.register(Tiny("one"), handle="two")
    assert row.handle == "two"
    assert "its handle is 'one'" in row.error
    assert "one" not in registry


def test_a_second_driver_of_the_same_handle_is_refused_and_the_first_works_on() -> None:
    registry = Registry(discover=False)
    registry.register_filter("nothing", types.ModuleType("nothing"))
    first = Tiny("same", 1)
    assert not registry.register(first).error
    again = registry.register(Tiny("same", 2))
    assert "taken" in again.error
    assert read_from(registry, "same") == 1
    assert read_from(registry, "same", ("nothing",)) == 1
    assert [row.handle for row in registry.drivers()] == ["same"]
    assert again in registry.table()


def test_the_same_driver_twice_is_refused_and_works_on() -> None:
    registry = Registry(discover=False)
    driver = Tiny("same", 1)
    registry.register(driver)
    assert registry.register(driver).error
    assert read_from(registry, "same") == 1


def test_what_has_every_attribute_is_no_hook() -> None:
    registry = Registry(discover=False)
    assert registry.register(AnswersToAnyName("odd", 3)).error == ""
    assert read_from(registry, "odd") == 3


def test_who_asks_for_a_broken_driver_is_told_what_is_wrong_with_it() -> None:
    registry = Registry(discover=False)
    registry.register(OldApi())
    registry.register(Tiny("good"))
    with pytest.raises(UnknownHandleError, match="'old' cannot be used: was written for version 2"):
        registry.get("old")
    with pytest.raises(UnknownHandleError, match=r"has the handle 'x' \(installed: good\)"):
        registry.get("x")
    assert registry.knows("old")
    assert "old" not in registry
    assert "x" not in registry


def test_without_any_driver_the_message_says_what_to_install() -> None:
    with pytest.raises(UnknownHandleError, match="pip install tap-aio"):
        Registry(discover=False).get("aio")


# ---- discovery -----------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that these are the entry points of a group: name=what loading does."""

    def pretend(*points: tuple[str, Any], group: str = registry_module.DRIVER_GROUP) -> None:
        found = []
        for name, loads in points:
            ep = EntryPoint(name, f"some_module:{name}", group)
            found.append(_Pretended(ep, loads))
        monkeypatch.setattr(
            registry_module,
            "entry_points",
            lambda group, wanted=group: found if group == wanted else [],
        )

    return pretend


class _Pretended:
    def __init__(self, ep: EntryPoint, loads: Any) -> None:
        self.name, self.value, self.dist, self._loads = ep.name, ep.value, None, loads

    def load(self) -> Any:
        if isinstance(self._loads, BaseException):
            raise self._loads
        return self._loads


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ImportError("No module named 'zstd'"), "No module named 'zstd'"),
        (SyntaxError("bad\nsyntax"), "SyntaxError: bad"),
        (SystemExit(3), "SystemExit"),
        (RuntimeError(), "RuntimeError"),
        (RecursionError("deep"), "RecursionError"),
        (OSError(2, "x"), "No such file"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_plugin_that_fails_to_import_is_a_row_with_an_error(
    installed: Callable[..., None], raised: BaseException, said: str
) -> None:
    installed(("b_bad", raised), ("c_good", Tiny("c_good")), ("a_good", Tiny("a_good")))
    registry = Registry()
    assert [row.handle for row in registry.drivers()] == ["a_good", "c_good"]
    (bad,) = (row for row in registry.table() if row.error)
    assert bad.handle == "b_bad"
    assert said in bad.error
    assert "\n" not in bad.error


def test_a_keyboard_interrupt_during_discovery_is_one(installed: Callable[..., None]) -> None:
    installed(("a", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        Registry()


def test_plugins_that_raise_when_they_are_looked_at_stop_nothing(
    installed: Callable[..., None],
) -> None:
    installed(("bad", Explodes()), ("good", Tiny("good")))
    registry = Registry()
    assert [row.handle for row in registry.drivers()] == ["good"]
    assert [row.handle for row in registry.table()] == ["bad", "good"]


def test_of_two_installed_drivers_with_one_handle_the_second_is_reported(
    installed: Callable[..., None],
) -> None:
    installed(("same", Tiny("same", 1)), ("same", Tiny("same", 2)))
    registry = Registry()
    assert read_from(registry, "same") == 1
    assert [row.error != "" for row in registry.table()] == [False, True]


def test_the_distribution_that_brought_a_driver_is_named() -> None:
    registry = Registry()
    rows = {row.handle: row for row in registry.table()}
    if "sync" not in rows:
        missing("tap-sync is not installed here")
    assert rows["sync"].distribution == "tap-sync"
    assert rows["sync"].version == importlib.metadata.version("tap-sync")


# ---- what a call calls ---------------------------------------------------------------------


def read_from(registry: Registry, handle: str, filters: tuple[str, ...] = ()) -> int:
    """The first byte of a disk of a driver."""
    options = OpenOptions(filters=filters)
    disk = open_disk(DiskId("x", handle), registry, flags=TD_RDONLY, options=options)
    buf = bytearray(512)
    engine_of(disk).call(Request(READ, 0, 512, memoryview(buf), lambda req: None))
    close_disk(disk)
    return buf[0]


def test_without_filters_the_operations_are_the_plugins_own_functions() -> None:
    registry = Registry(discover=False)
    driver = Tiny("own")
    registry.register(driver)
    operations = registry.operations("own")
    assert operations.td_open == driver.td_open
    assert operations.td_queue_read == driver.td_queue_read
    assert operations is registry.operations("own")


def test_a_hook_that_is_left_out_has_the_behaviour_of_the_simplest_image() -> None:
    registry = Registry(discover=False)
    row = registry.register(Tiny("own"))
    drv = row.drv
    assert drv is not None
    assert drv.implemented == {"td_open", "td_queue_read"}
    assert row.capabilities == ("read",)
    answers: list[tuple[int, int]] = []

    def cb(dd: Any, res: int, sector: int, count: int, id: int, prv: Any) -> int:
        answers.append((res, count))
        return 1

    dd: Any = None  # none of these looks at it
    assert drv.td_queue_write(dd, 0, 1, memoryview(b""), cb, 0, None) == -30
    assert drv.td_submit(dd) == drv.td_do_callbacks(dd, 0) == 0
    assert drv.td_close(dd) is None
    assert drv.td_get_parent_id(dd, DiskId("")) == 1
    assert drv.td_validate_parent(dd, dd, 0) == -22
    assert drv.td_probe("x", b"", b"") is False
    assert drv.td_queue_flush(dd, cb, 0, None) == 1
    assert drv.td_queue_discard(dd, 0, 4, cb, 0, None) == 1
    assert drv.td_queue_write_zeroes(dd, 0, 4, True, cb, 0, None) == -95
    assert answers == [(0, 0), (0, 4)]
    assert [(e.sector, e.nb_sectors) for e in drv.td_extents(dd, 3, 4)] == [(3, 4)]
    assert drv.td_info(dd) == {}
    for refused in (
        lambda: drv.td_create("x", 512, None, {}),
        lambda: drv.td_inspect("x", 0, 0),
        lambda: drv.td_resize(dd, 512),
        lambda: drv.td_check(dd, ""),
    ):
        with pytest.raises(TapError):
            refused()


def test_hooks_may_leave_out_arguments_and_name_them_in_any_order() -> None:
    registry = Registry(discover=False)
    terse = Terse("terse", 4)
    registry.register(terse)
    other = Terse("other", 5)
    registry.register(other)  # a driver that is found later takes none of its calls
    disk = open_disk(DiskId("x", "terse"), registry)
    done: list[int] = []
    engine_of(disk).call(
        Request(WRITE, 0, 512, memoryview(bytes(512)), lambda req: done.append(req.status))
    )
    close_disk(disk)
    assert done == [0]
    assert (terse.submits, other.submits) == (1, 0)
    assert read_from(registry, "terse") == 4


class Trace:
    """A filter that notes calls, under a name."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    @hookimpl(wrapper=True)
    def td_queue_read(self, dd: Any, sector: int) -> Any:
        self.log.append(f"{self.name} > {sector}")
        result = yield
        self.log.append(f"{self.name} < {result}")
        return result

    @hookimpl(wrapper=True)
    def td_open(self, name: str) -> Any:
        self.log.append(f"{self.name} open {name}")
        return (yield)

    @hookimpl(wrapper=True)
    def td_close(self) -> Any:
        self.log.append(f"{self.name} close")
        return (yield)


def test_a_filter_sees_the_calls_of_the_disks_that_name_it_and_no_others() -> None:
    registry = Registry(discover=False)
    log: list[str] = []
    registry.register(Tiny("one", 1))
    registry.register(Tiny("two", 2))
    registry.register_filter("trace", Trace("trace", log))
    assert read_from(registry, "one") == 1
    assert log == []
    assert read_from(registry, "one", ("trace",)) == 1
    assert log == ["trace open x", "trace > 0", "trace < 1", "trace close"]
    assert read_from(registry, "two", ("trace",)) == 2
    assert registry.operations("one").td_queue_read == registry.get("one").drv.td_queue_read  # type: ignore[union-attr]


def test_what_a_filter_does_not_wrap_stays_a_direct_call() -> None:
    registry = Registry(discover=False)
    driver = Tiny("one", 1)
    registry.register(driver)

    class OnlyOpen:
        @hookimpl(wrapper=True)
        def td_open(self) -> Any:
            return (yield)

    registry.register_filter("open", OnlyOpen())
    operations = registry.operations("one", ("open",))
    assert operations.td_queue_read == driver.td_queue_read
    assert operations.td_open != driver.td_open


def test_filters_and_drivers_that_come_later_change_no_disk_that_is_open() -> None:
    registry = Registry(discover=False)
    log: list[str] = []
    registry.register(Tiny("one", 1))
    registry.register_filter("first", Trace("first", log))
    operations = registry.operations("one", ("first",))
    registry.register_filter("second", Trace("second", log))
    registry.register(Tiny("two", 2))
    assert read_from(registry, "one", ("first",)) == 1
    assert operations is registry.operations("one", ("first",))
    assert not any("second" in line for line in log)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_the_filter_named_first_is_the_outermost(order: tuple[str, str]) -> None:
    registry = Registry(discover=False)
    log: list[str] = []
    registry.register(Tiny("one", 1))
    for name in ("a", "b"):
        registry.register_filter(name, Trace(name, log))
    assert read_from(registry, "one", order) == 1
    first, second = order
    assert log == [
        f"{first} open x",
        f"{second} open x",
        f"{first} > 0",
        f"{second} > 0",
        f"{second} < 1",
        f"{first} < 1",
        f"{first} close",
        f"{second} close",
    ]


def test_a_filter_may_answer_in_place_of_the_driver() -> None:
    registry = Registry(discover=False)
    registry.register(Tiny("one", 1))

    class Refuses:
        @hookimpl(wrapper=True)
        def td_queue_read(self) -> Any:
            yield
            raise OSError(5, "injected")

    class Instead:
        @hookimpl
        def td_queue_read(
            self, dd: Any, sector: int, nb_sectors: int, buf: Any, cb: Any, id: int, prv: Any
        ) -> int:
            buf[:] = b"\x09" * len(buf)
            return int(cb(dd, 0, sector, nb_sectors, id, prv))

    registry.register_filter("instead", Instead())
    assert read_from(registry, "one", ("instead",)) == 9
    registry.register_filter("refuses", Refuses())
    assert read_from(registry, "one", ("refuses",)) == 1  # answered before: cannot fail any more


def test_a_filter_around_a_default_and_a_driver_that_returns_nothing() -> None:
    """With a filter, a driver's None must not let the default speak."""
    registry = Registry(discover=False)

    class ReturnsNone(Tiny):
        @hookimpl
        def td_queue_write(self, dd, sector, nb_sectors, buf, cb, id, prv):  # type: ignore[no-untyped-def]
            dd.private = (cb, dd, 0, sector, nb_sectors, id, prv)

        @hookimpl
        def td_submit(self, dd):  # type: ignore[no-untyped-def]
            cb, *answer = dd.private
            cb(*answer)

    class Around:
        seen = 0

        @hookimpl(wrapper=True)
        def td_queue_write(self) -> Any:
            self.seen += 1
            return (yield)

        @hookimpl(wrapper=True)
        def td_queue_flush(self) -> Any:
            self.seen += 1
            return (yield)

    around = Around()
    registry.register(ReturnsNone("none"))
    registry.register_filter("around", around)
    disk = open_disk(DiskId("x", "none"), registry, options=OpenOptions(filters=("around",)))
    done: list[int] = []
    request = Request(
        WRITE, 0, 512, memoryview(bytes(512)), lambda req: done.append(req.status), fua=True
    )
    engine_of(disk).call(request)
    close_disk(disk)
    assert done == [0]
    assert around.seen == 2


def test_a_filter_that_does_not_exist_or_does_not_load_is_one_clear_line(
    installed: Callable[..., None],
) -> None:
    registry = Registry(discover=False)
    registry.register(Tiny("one"))
    with pytest.raises(UsageError, match="no filter is named 'nope'"):
        registry.operations("one", ("nope",))
    installed(
        ("broken", ImportError("No module named 'yaml'")),
        ("typo", UnknownHook("typo")),
        group=registry_module.FILTER_GROUP,
    )
    with pytest.raises(UsageError, match=r"the filter 'broken' cannot be used: .*yaml"):
        registry.operations("one", ("broken",))
    with pytest.raises(UsageError, match=r"the filter 'typo' cannot be used: .*td_opne"):
        registry.operations("one", ("typo",))
    assert read_from(registry, "one") == 0


def test_a_filter_named_twice_wraps_once() -> None:
    registry = Registry(discover=False)
    log: list[str] = []
    registry.register(Tiny("one", 1))
    registry.register_filter("trace", Trace("trace", log))
    assert read_from(registry, "one", ("trace", "trace")) == 1
    assert log.count("trace > 0") == 1


def test_the_row_of_a_driver_says_what_it_can_do() -> None:
    registry = Registry(discover=False)
    row = registry.register(Terse("terse"))
    assert (row.handle, row.name, row.api) == ("terse", "test driver terse", info("x").api)
    assert row.capabilities == ("read", "write")
    assert row.idnum == 0
    assert registry.register(Tiny("tiny")).idnum == 1
    assert registry.get("terse").drv is registry.operations("terse")


# ---- threads -----------------------------------------------------------------------------------


def test_threads_may_want_a_driver_for_the_first_time_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tapcore.create_image(tmp_path / "disk.qcow2", 1 << 20)
    registry, both = tapcore.Registry(), threading.Barrier(2)
    entry_point = registry._rows["qcow2"].entry_point
    assert entry_point is not None
    load, asked = type(entry_point).load, []

    def load_slowly(self: Any) -> Any:
        asked.append(self.name)
        both_came.wait(1)  # the other one, if it may come in
        return load(self)

    both_came = threading.Event()

    def open_it() -> int:
        both.wait(60)
        with tapcore.open(tmp_path / "disk.qcow2", registry=registry) as disk:
            return disk.size

    monkeypatch.setattr(type(entry_point), "load", load_slowly)
    with ThreadPoolExecutor(2) as threads:
        sizes = [threads.submit(open_it) for _ in range(2)]
        assert [size.result(60) for size in sizes] == [1 << 20, 1 << 20]
    assert asked == ["qcow2"]
