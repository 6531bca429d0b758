"""Nobody knows whether a terminal is black or white: what is coloured can be read on both."""

import inspect

import pytest
from rich.color import Color, ColorSystem

from tapcore.cli import progress
from tapcore.tools import colours, picture_text
from tapcore.tools.picture import COMPRESSED, DATA, HOLE, KINDS, ZERO, Face

NAMED = {name: value for name, value in inspect.getmembers(colours) if name.isupper()}


def luminance(style: str) -> float:
    """Of a colour of the 256, between 0 and 1 (WCAG 2.1, "relative luminance")."""
    number = int(style.removeprefix("color(").removesuffix(")"))
    assert 16 <= number < 256, "the first sixteen are what each user makes of them"
    if number >= 232:
        levels = [8 + 10 * (number - 232)] * 3
    else:
        parts = (number - 16) // 36, (number - 16) // 6 % 6, (number - 16) % 6
        levels = [0 if part == 0 else 55 + 40 * part for part in parts]
    linear = [
        level / 255 / 12.92 if level <= 10 else ((level / 255 + 0.055) / 1.055) ** 2.4
        for level in levels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", NAMED)
def test_a_colour_can_be_read_on_black_and_on_white(name: str) -> None:
    here = luminance(NAMED[name])
    assert 1.05 / (here + 0.05) >= 3.5
    assert (here + 0.05) / 0.05 >= 3.5


@pytest.mark.parametrize("name", NAMED)
def test_of_sixteen_it_becomes_neither_yellow_nor_white(name: str) -> None:
    fewer = Color.parse(NAMED[name]).downgrade(ColorSystem.STANDARD)
    assert fewer.number not in (3, 7, 11, 15)


def test_there_are_no_other_colours() -> None:
    slots = [depth * KINDS + kind for depth in range(8) for kind in (DATA, COMPRESSED)]
    faces = [Face(slot, 4) for slot in (*slots, ZERO, HOLE)]
    used = {picture_text._style(face) for face in faces} | set(progress._STYLES.values())
    assert used <= set(NAMED.values())
    assert len(used) == len(NAMED)
