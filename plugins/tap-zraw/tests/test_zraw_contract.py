"""`zraw:` keeps a driver's contract, as what it makes and as what others make."""

import os
import random
from typing import ClassVar

import pytest

import tap_zraw.image
from tap_zraw import forward
from tapcore.testkit import DriverContract
from zrawtools import KIB, KINDS, some_content


class TestNewImages(DriverContract):
    """Seekable zstd, as `create` makes it."""

    handle = "zraw"
    damages = 60

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name + ".raw.zst")
        self.operations().td_create(path, size, None, {"frame": "64K"})
        return path


class Packed(DriverContract):
    """What others have made, with content."""

    sizes = (512, 70 * KIB + 512, 200 * KIB)
    damages = 20
    kind: ClassVar[str] = ""

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, name + self.kind)
        with open(path, "wb") as file:
            file.write(KINDS[self.kind](self.fresh_content(size)))
        return path

    def fresh_content(self, size: int) -> bytes:
        return some_content(random.Random(size), size)


class TestSeekable(Packed):
    handle = "zraw"
    kind = "seekable.img.zst"


class TestFrames(Packed):
    handle = "zraw"
    kind = "skipped.img.zst"


class TestXz(Packed):
    handle = "zraw"
    kind = "xz.img.xz"


class TestGzip(Packed):
    handle = "zraw"
    kind = "gzip.img.gz"

    def test_inspecting_is_safe(self, rng: random.Random) -> None:
        """It does not tell its size: see `test_zraw_strangers`."""


class TestBgzip(Packed):
    handle = "zraw"
    kind = "bgzip.img.gz"


@pytest.mark.usefixtures("_little_is_kept")
class TestForwardOnly(Packed):
    """Pieces that are too large to be unpacked whole; nothing stays in memory."""

    handle = "zraw"
    kind = "frames.img.zst"

    @pytest.fixture
    def _little_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tap_zraw.zstd.opening.LARGEST_PART", 1000)
        monkeypatch.setattr(forward, "PART", 3000)
        monkeypatch.setattr("tap_zraw.zstd.opening.PART", 3000)
        monkeypatch.setattr(tap_zraw.image, "KEPT_BYTES", 0)
