"""The drivers in which bugs are planted, loaded from a source that may have been changed."""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import attrs

from tapcore.testkit import DriverContract

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "docs/examples"


@attrs.frozen
class Base:
    """A good driver.

    Attributes:
        path: of its source.
        handle: of the driver.
        attribute: the driver in its module; "" for the module itself.
    """

    path: Path
    handle: str
    attribute: str = ""


BASES = {
    "hooks": Base(HERE / "sparse.py", "sparse"),
    "read-only": Base(HERE / "packed.py", "packed"),
    "map": Base(EXAMPLES / "tap-chunkio/tap_chunkio/driver.py", "chunkio"),
    "simple": Base(EXAMPLES / "tap-chunks/tap_chunks/__init__.py", "chunks", "Chunks"),
}


def loaded(base: Base, old: str = "", new: str = "") -> tuple[ModuleType, Any]:
    """The module, and the driver in it, after a part of the source was replaced.

    The part has to be there once.
    """
    source = base.path.read_text()
    if old:
        assert source.count(old) == 1, (base.handle, source.count(old), old)
        source = source.replace(old, new)
    module = ModuleType(f"planted_{base.handle}")
    exec(compile(source, str(base.path), "exec"), vars(module))
    return module, getattr(module, base.attribute) if base.attribute else module


class Tight(DriverContract):
    """One small size."""

    sizes: ClassVar[tuple[int, ...]] = ((200 << 10) + 512,)
    check_limit = 20.0
    time_limit = 2.0
    damages = 120
    __test__ = False


class ReadOnly(Tight):
    """Images that are made by the test, with content."""

    module: ClassVar[ModuleType]

    def make_image(self, size: int, name: str = "image") -> str:
        path = os.path.join(self.folder, f"{name}.packed")
        Path(path).write_bytes(self.module.pack(self.fresh_content(size)))
        return path

    def fresh_content(self, size: int) -> bytes:
        content, rng = bytearray(size), random.Random(size)
        for at in range(0, size, 50_000):
            content[at : at + 20_000] = rng.randbytes(min(20_000, size - at))
        return bytes(content)


def subject(kind: str, old: str = "", new: str = "") -> type[DriverContract]:
    """The kit for one of `BASES`, with a part of its source replaced."""
    base = BASES[kind]
    module, driver = loaded(base, old, new)
    body: dict[str, Any] = {"handle": base.handle, "driver": driver, "module": module}
    if old:
        body["patience"] = 0.4  # a bug has to be found quickly
    if kind == "hooks":
        body["notices_changed_parents"] = True
    return type(f"Planted{kind.title()}", (ReadOnly if kind == "read-only" else Tight,), body)
