"""A family of images, and their sketches, for tests."""

from drivers.toy import BLOCK

from tapcore.interface.models import TdState
from tapcore.tools.create import create_image
from tapcore.tools.openimage import open_image
from tapcore.tools.sketch import Sketch, Sketching


def make_family() -> None:
    """A child of 64 blocks, `<top>.toy`, and a shorter parent, `base.toy`; here."""
    create_image("base.toy", 32 * BLOCK)
    create_image("<top>.toy", 64 * BLOCK, parent="base.toy")
    for name, blocks in (("base.toy", (0, 1, 5, 31)), ("<top>.toy", (5, 40, 41, 63))):
        with open_image(name, writing=True) as disk:
            for block in blocks:
                disk.seek(block * BLOCK)
                disk.write(b"x" * BLOCK)


def sketched(state: TdState, seconds: float = 0.0) -> tuple[Sketch, int]:
    """A sketch, and in how many pieces it was made."""
    work, pieces = Sketching(state), 1
    while not work.go_on(seconds):
        pieces += 1
    return work.sketch, pieces
