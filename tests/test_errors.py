"""Errors are one line that is safe to print and to log, whatever the names in them are."""

import copy
import errno
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

import tapcore
from tapcore.errors import ImageFormatError, TapError, describe, errno_of, open_error
from tapcore.tools.resize import resize_image

ODD = "a\nb\x1b[31m\udce9"
SAFE = "a\\x0ab\\x1b[31m\\xe9"


def test_the_message_is_printable_and_of_bounded_length() -> None:
    assert TapError(ODD).message == SAFE
    long = TapError(f"its parent {'x' * 100_000}: is cut short").message
    assert len(long) == 2000
    assert long.endswith("xx: is cut short")


def test_what_is_not_text_becomes_one() -> None:
    assert TapError(ValueError("bad")).message == "bad"  # type: ignore[arg-type]


def test_a_message_that_is_changed_is_printable_too() -> None:
    exc = TapError("bad")
    exc.message = f"its parent {ODD}: {exc.message}"
    assert exc.message == f"its parent {SAFE}: bad"


def test_the_text_has_the_image_before_the_message() -> None:
    assert str(ImageFormatError("is cut short", image="x.img")) == "x.img: is cut short"
    assert str(ImageFormatError("is cut short", image=ODD)) == f"{SAFE}: is cut short"
    assert str(ImageFormatError("is cut short")) == "is cut short"


@pytest.mark.parametrize("exc", [TapError(ODD), ValueError(ODD), KeyError(ODD)])
def test_what_is_described_is_printable(exc: Exception) -> None:
    assert describe(exc).isprintable()


def test_an_error_keeps_the_image_that_it_names() -> None:
    first = ImageFormatError("is cut short", image="inner")
    assert open_error(first, "outer") is first
    assert open_error(OSError(2, "x"), "outer").image == "outer"


# ---- Python's own classes ----------------------------------------------------------------------

CLASSES = [
    value
    for name in tapcore.__all__
    if name.endswith("Error") and issubclass(value := getattr(tapcore, name), TapError)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_each_is_an_oserror_with_what_one_has(kind: type[TapError]) -> None:
    exc = kind("is wrong", image="a.img", errno=errno.ENOSPC)
    assert isinstance(exc, OSError)
    assert (exc.errno, exc.strerror, exc.filename) == (errno.ENOSPC, "is wrong", "a.img")
    assert (str(exc), describe(exc), errno_of(exc)) == ("a.img: is wrong", "is wrong", errno.ENOSPC)
    exc.message = f"its parent b: {exc.message}"
    exc.image = ""
    assert (exc.strerror, exc.filename) == ("its parent b: is wrong", None)


@pytest.mark.parametrize(
    ("code", "own"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.EEXIST, FileExistsError),
        (errno.EACCES, PermissionError),
        (errno.EPERM, PermissionError),
    ],
)
@pytest.mark.parametrize("kind", CLASSES)
def test_it_is_of_the_class_that_python_has_for_its_errno(
    kind: type[TapError], code: int, own: type[OSError]
) -> None:
    exc = kind("is wrong", errno=code)
    assert isinstance(exc, (kind, own))
    assert isinstance(exc, own)
    assert (type(exc).__name__, exc.errno) == (kind.__name__, code)


@pytest.mark.parametrize("code", [errno.EINTR, errno.EAGAIN, errno.EPIPE])
def test_it_is_never_one_that_asks_for_another_try(code: int) -> None:
    exc = tapcore.IOFailedError("read failed", errno=code)
    assert not isinstance(exc, (InterruptedError, BlockingIOError, BrokenPipeError))


def test_a_call_that_cannot_be_is_a_valueerror() -> None:
    assert issubclass(tapcore.UsageError, ValueError)
    assert issubclass(tapcore.ClosedError, ValueError)
    assert tapcore.ClosedError("is closed").errno == errno.EBADF
    assert issubclass(tapcore.ReadOnlyError, io.UnsupportedOperation)
    assert issubclass(tapcore.NotSupportedError, io.UnsupportedOperation)
    for damaged in (tapcore.ImageFormatError, tapcore.ImageOpenError, tapcore.IOFailedError):
        assert not issubclass(damaged, ValueError)


class _OfAPlugin(tapcore.ImageFormatError):
    def __init__(self, sector: int, size: int) -> None:
        super().__init__(f"sector {sector} of {size} is odd", errno=errno.EIO)
        self.sector = sector


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOENT])
@pytest.mark.parametrize("kind", CLASSES)
def test_it_goes_to_another_process_and_back(kind: type[TapError], code: int) -> None:
    exc = kind(ODD, image=ODD, errno=code)
    for other in (pickle.loads(pickle.dumps(exc)), copy.copy(exc)):
        assert type(other) is type(exc)
        assert (str(other), other.image, other.errno) == (str(exc), ODD, code)


def test_a_class_with_arguments_of_its_own_does_too() -> None:
    exc = pickle.loads(pickle.dumps(_OfAPlugin(7, 8)))
    assert (type(exc), exc.sector, str(exc)) == (_OfAPlugin, 7, "sector 7 of 8 is odd")
    assert exc.errno == errno.EIO


@pytest.mark.parametrize(
    ("make", "kind", "code"),
    [
        ("missing", FileNotFoundError, errno.ENOENT),
        ("folder", IsADirectoryError, errno.EISDIR),
        ("file/below", NotADirectoryError, errno.ENOTDIR),
        ("locked", BlockingIOError, errno.EAGAIN),
    ],
)
def test_what_opening_fails_with_is_pythons_own_error_too(
    make: str, kind: type[OSError], code: int, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("file", "locked"):
        (tmp_path / name).write_bytes(bytes(512))
    path = tmp_path / make
    with tapcore.open(f"aio:{tmp_path / 'locked'}", readonly=False):
        calls: list[Callable[[], object]] = [
            lambda: tapcore.open(f"aio:{path}", readonly=False),
            lambda: tapcore.convert_image(f"aio:{path}", tmp_path / "new.img"),
            lambda: resize_image(f"aio:{path}", "1M"),
        ]
        for call in calls:
            with pytest.raises(kind) as caught:
                call()
            assert isinstance(caught.value, tapcore.TapError)
            assert (caught.value.errno, caught.value.filename) == (code, str(path))
            again = pickle.loads(pickle.dumps(caught.value))
            assert (type(again), str(again)) == (type(caught.value), str(caught.value))


def test_what_is_there_already_is_a_file_exists_error(tmp_path: Path) -> None:
    (tmp_path / "old.img").write_bytes(bytes(512))
    for make in (
        lambda: tapcore.create_image(tmp_path / "old.img", 512),
        lambda: tapcore.create_image(
            tmp_path / "new.qcow2", 512, options={"data_file": tmp_path / "old.img"}
        ),
        lambda: tapcore.convert_image("ram:512", tmp_path / "old.img"),
    ):
        with pytest.raises(FileExistsError) as caught:
            make()
        assert isinstance(caught.value, tapcore.UsageError)
        assert caught.value.filename == str(tmp_path / "old.img")
