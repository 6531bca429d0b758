"""A driver that gives back what cannot be is named, with its hook, in one line."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tapcore
from tapcore import DiskDriver, DiskInfo, DriverError, Registry, TapError, TdCallback, hookimpl
from tapcore.cli.main import main
from tapcore.engine import chain_extents
from tapcore.tools.check import check_image
from tapcore.tools.info import image_info
from tapcore.tools.inspect import inspect_image


class Wrong:
    """A disk of one sector; a test replaces what its hooks give back."""

    disk_info = DiskInfo(handle="wrong", name="for tests", api=1)
    opened: Any = None
    size: Any = 1
    info: Any = None
    check: Any = None

    @hookimpl
    def td_open(self, dd: DiskDriver) -> Any:
        if self.size is not None:
            dd.size = self.size
        return self.opened

    @hookimpl
    def td_queue_read(
        self,
        dd: DiskDriver,
        sector: int,
        nb_sectors: int,
        buf: memoryview,
        cb: TdCallback,
        id: int,
        prv: Any,
    ) -> int:
        return cb(dd, 0, sector, nb_sectors, id, prv)

    @hookimpl
    def td_info(self) -> Any:
        return self.info

    @hookimpl
    def td_check(self) -> Any:
        return self.check

    @hookimpl
    def td_inspect(self) -> Any:
        return self.check

    @hookimpl
    def td_measure(self) -> Any:
        return self.check


Make = Callable[..., str]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    (tmp_path / "disk").write_bytes(b"")

    def made(**answers: Any) -> str:
        driver = Wrong()
        for name, answer in answers.items():
            setattr(driver, name, answer)
        registry = Registry()
        assert not registry.register(driver).error
        monkeypatch.setattr("tapcore.interface.registry._default", registry)
        return f"wrong:{tmp_path}/disk"

    return made


@pytest.mark.parametrize("returned", [None, 0])
def test_an_image_that_was_opened(image: Make, returned: object) -> None:
    with tapcore.open(image(opened=returned), readonly=True) as disk:
        assert disk.size == 512


def test_an_errno_that_td_open_returns_is_why_it_is_not_open(image: Make) -> None:
    with pytest.raises(TapError) as caught:
        tapcore.open(image(opened=-errno.ENOSPC), readonly=True)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("returned", [1, "open", [], object()])
def test_anything_else_that_td_open_returns(image: Make, returned: object) -> None:
    with pytest.raises(DriverError, match="the driver wrong is wrong: its td_open returned"):
        tapcore.open(image(opened=returned), readonly=True)


def test_a_size_that_was_never_set(image: Make) -> None:
    """It is not taken for an empty disk, which would be copied without a word."""
    with pytest.raises(DriverError, match="the driver wrong has opened the image and set no size"):
        tapcore.open(image(size=None), readonly=True)


@pytest.mark.parametrize("size", [1.0, "1", [1]])
def test_a_size_that_is_no_number(image: Make, size: object) -> None:
    with pytest.raises(DriverError, match="has set a size that is no whole number"):
        tapcore.open(image(size=size), readonly=True)


@pytest.mark.parametrize("info", [None, [], "text"])
def test_info_that_is_no_object(image: Make, info: object) -> None:
    name = image(info=info)
    with pytest.raises(DriverError, match=r"its td_info returned .*, which is no dict"):
        image_info(name)
    disk = tapcore.open(name, readonly=True)
    with disk, pytest.raises(DriverError, match=r"its td_info returned"):
        disk.info()


@pytest.mark.parametrize("result", [None, 0, {}])
def test_results_of_another_kind(image: Make, result: object) -> None:
    name = image(check=result)
    with pytest.raises(DriverError, match=r"its td_check returned .*, which is no CheckResult"):
        check_image(name)
    with pytest.raises(DriverError, match=r"its td_inspect returned .*, which is no Inspection"):
        inspect_image(name)


# ---- hooks that are no requests ----------------------------------------------------------------


class Returns:
    """A driver of which one hook returns something."""

    def __init__(self, hook: str, value: Any) -> None:
        self.disk_info = DiskInfo(handle="wrong", name="for tests", api=1)
        function = hookimpl(lambda: value, specname=hook)
        setattr(self, hook, function)

    @hookimpl
    def td_open(self, dd: DiskDriver, name: str) -> None:
        dd.size = 1

    @hookimpl
    def td_queue_read(self, dd: DiskDriver) -> int:
        return 0


def hook_of(hook: str, value: Any) -> tuple[Callable[..., Any], DiskDriver]:
    """A hook that returns something, as everybody calls it; and an open image."""
    registry = Registry(discover=False)
    assert not registry.register(Returns(hook, value)).error
    drv = registry.operations("wrong")
    dd = DiskDriver(name="disk", drv=drv, flags=0)
    dd.size = 2
    return getattr(drv, hook), dd


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "td_create": ("disk", 512, None, {}),
    "td_resize": (512,),
    "td_get_parent_id": (tapcore.DiskId(""),),
    "td_validate_parent": (None, 0),
    "td_check": ("",),
    "td_inspect": ("disk", 0, 0),
}
WRONG: list[tuple[str, Any, str]] = [
    ("td_create", True, "a value of the type bool, where None means that it is done"),
    ("td_resize", None, "was to make the disk 512 bytes long, and has left it 1024"),
    ("td_get_parent_id", "aio", "a value of the type str, which is no number"),
    ("td_validate_parent", True, "a value of the type bool, which is no number"),
    ("td_other_files", "abc", "a value of the type str, which is no list"),
    ("td_other_files", [b"abc"], "a value of the type bytes in a list of str"),
    ("td_snapshots", None, "None, which is no list"),
    ("td_bitmaps", [1], "a value of the type int in a list of Bitmap"),
    ("td_check", tapcore.CheckResult(leaks=-1), "the leaks -1, which is no number of anything"),
    ("td_inspect", tapcore.Inspection(1, references=("x",)), "the reference 'x', which is no pair"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("hook", "value", "said"), WRONG)
def test_what_cannot_be_returned_names_driver_and_hook(hook: str, value: Any, said: str) -> None:
    call, dd = hook_of(hook, value)
    arguments = ARGUMENTS.get(hook, ())
    with pytest.raises(DriverError, match=rf"disk: the driver wrong is wrong: its {hook} .*{said}"):
        call(*arguments) if hook in ("td_create", "td_inspect") else call(dd, *arguments)


@pytest.mark.parametrize("value", [None, 0])
def test_what_is_done_is_done(value: object) -> None:
    assert hook_of("td_create", value)[0]("disk", 512, None, {}) is value


def test_an_errno_that_is_returned_is_raised() -> None:
    """As blktap's hooks return it: it was passed over."""
    with pytest.raises(OSError, match="No space left") as caught:
        hook_of("td_create", -errno.ENOSPC)[0]("disk", 512, None, {})
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("told", [None, [(0, 1, "data")], [tapcore.Extent(0, 1.0, "data")]])  # type: ignore[arg-type]
def test_extents_that_are_none(told: Any) -> None:
    _, dd = hook_of("td_extents", told)
    with pytest.raises(DriverError, match="the driver wrong is wrong: its td_extents "):
        list(chain_extents(dd, 0, 512))


# ---- what a driver says of itself --------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"suffixes": ".img"}, "suffixes='.img', which is no tuple of str"),
        ({"api": "1"}, "api='1', which is no int"),
        ({"api": True}, "api=True, which is no int"),
        ({"name": None}, "name=None, which is no str"),
        ({"magic": b"abc"}, "magic=b'abc', which is no tuple of Magic"),
        ({"magic": (tapcore.Magic("abc"),)}, "looks for the magic 'abc', which is not bytes"),  # type: ignore[arg-type]
        ({"create_options": ("size",)}, "which is no tuple of FormatOption"),
    ],
)
def test_facts_of_the_wrong_kind_are_a_row_with_an_error(facts: Any, said: str) -> None:
    driver = Returns("td_submit", 0)
    driver.disk_info = DiskInfo(**{"handle": "wrong", "name": "for tests", "api": 1, **facts})
    assert said in Registry(discover=False).register(driver).error


def test_a_hook_that_nobody_would_await() -> None:
    class Waits(Wrong):
        @hookimpl
        async def td_submit(self) -> int:
            return 0

    error = Registry(discover=False).register(Waits()).error
    assert error == "has td_submit as 'async def': hooks are called, and never awaited"


@pytest.mark.parametrize("polled", ["x", -1])
def test_a_descriptor_that_is_none(image: Make, polled: Any, monkeypatch: Any) -> None:
    def td_open(self: Wrong, dd: DiskDriver) -> None:
        dd.size, dd.io_fd[0] = 1, polled

    monkeypatch.setattr(Wrong, "td_open", hookimpl(td_open))
    with pytest.raises(DriverError, match="has set an io_fd that is no descriptor"):
        tapcore.open(image(), readonly=True)


def test_who_ends_the_program_does_not_make_it_a_success(
    image: Make, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def td_open(self: Wrong, dd: DiskDriver) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(Wrong, "td_open", hookimpl(td_open))
    assert main(["compare", image(), image()]) == 2
    assert capsys.readouterr().err == (
        "tapdisk: unexpected error: SystemExit: 0 (--debug shows where)\n"
    )


def test_an_image_that_was_not_made(tmp_path: Path) -> None:
    registry = Registry()
    assert not registry.register(Returns("td_create", None)).error
    with pytest.raises(
        DriverError, match="the driver wrong is wrong: its td_create has made no file"
    ):
        tapcore.create_image(f"wrong:{tmp_path / 'new'}", 512, registry=registry)
    assert list(tmp_path.iterdir()) == []


def test_who_failed_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing but an errno can be answered."""

    class Fails(Returns):
        @hookimpl
        def td_queue_read(self, dd: DiskDriver) -> int:
            raise ZeroDivisionError("oops")

    registry = Registry()
    assert not registry.register(Fails("td_submit", 0)).error
    disk = tapcore.open("wrong:disk", registry=registry, readonly=True)
    with disk, pytest.raises(tapcore.IOFailedError):
        disk.pread(0, length=512)
    assert "disk: read failed in the driver wrong" in caplog.text
