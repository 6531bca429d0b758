"""Errors are one line that is safe to print and to log, whatever the names in them are."""

import pytest

from tapcore.errors import ImageFormatError, TapError, describe, open_error

ODD = "a\nb\x1b[31m\udce9"
SAFE = "a\\x0ab\\x1b[31m\\xdce9"


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
