"""Images that several test modules damage."""

from collections.abc import Callable

import pytest

from qcow2damage import LAYOUTS, good_words, make
from qcow2walk import Walk


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Walk]:
    """An undamaged image of a layout; each is made once."""
    made: dict[str, Walk] = {}

    def one(layout: str) -> Walk:
        if layout not in made:
            image = make(tmp_path_factory.mktemp(layout), LAYOUTS[layout])
            made[layout] = good_words(image.read_bytes())
        return made[layout]

    return one
