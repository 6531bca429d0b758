"""The name of this process, as `ps` and messages of other programs show it."""

from __future__ import annotations

from typing import Final

from tapcore.process.libc import libc

_PR_SET_NAME: Final = 15


def name_process(name: str) -> None:
    """Call it so: 15 bytes of it are shown (prctl(2))."""
    libc().prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
