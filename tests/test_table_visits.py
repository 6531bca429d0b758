"""Tables that are named again and again: told before it takes long."""

import random

import pytest

import tapcore
from tapcore import TableVisits
from tapcore.tablevisits import MOST_AGAIN

TABLE = 65536


def test_tables_of_their_own_may_be_as_many_as_there_are(rng: random.Random) -> None:
    """In any order, aligned or not, side by side or apart."""
    visits = TableVisits(TABLE)
    places = [512 + number * TABLE for number in range(3000)]
    rng.shuffle(places)
    for place in places:
        visits.visit(place)


@pytest.mark.parametrize("step", [0, 512, TABLE - 512, 512 - TABLE])
def test_tables_on_top_of_each_other_may_be_few(step: int) -> None:
    visits, seen = TableVisits(TABLE), iter(range(1000))
    with pytest.raises(tapcore.ImageFormatError, match="same tables so often"):
        any(visits.visit((1 << 40) + number * step) for number in seen)
    assert MOST_AGAIN // TABLE < next(seen) <= 2 * MOST_AGAIN // TABLE + 3


def test_a_few_are_always_borne_with() -> None:
    """However large they are: a disk that has a table twice can be copied."""
    visits = TableVisits(MOST_AGAIN)
    for _ in range(5):
        visits.visit(MOST_AGAIN)
    with pytest.raises(tapcore.ImageFormatError):
        visits.visit(MOST_AGAIN)
