"""How a tool that moves content tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""`progress(done, total)` in bytes, called after each piece; what it raises stops the work, at a
moment when nothing is half done."""
