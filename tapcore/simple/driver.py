"""`SimpleDriver`: what an author derives from whose format needs no speed of its own."""

from __future__ import annotations

from typing import Any

from tapcore.simple.hooks import become_driver
from tapcore.simple.methods import SimpleMethods


class SimpleDriver(SimpleMethods):
    """A subclass is a driver, to be named by an entry point; an instance is one open image.

    The methods that it has, of those of `SimpleMethods`, become its hooks.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if cls.handle:  # else it is the base of several
            become_driver(cls)
