"""Whether each thread of this process is bound by what it has given up."""

from __future__ import annotations

import os
import threading
import time
from typing import Final

_LOOKS: Final = 100
_PAUSE_SECONDS: Final = 0.01
"""A thread that Python has joined is gone for the kernel a moment later."""


def unbound_threads() -> list[str]:
    """Names of threads that have not given up new privileges: they are older than that."""
    for _ in range(_LOOKS):
        found = _unbound()
        alive = {each.native_id: each.name for each in threading.enumerate()}
        if not set(found) - set(alive):
            break
        time.sleep(_PAUSE_SECONDS)
    return sorted(alive.get(number, name) for number, name in found.items())


def _unbound() -> dict[int, str]:
    """By number, with the kernel's names."""
    found = {}
    for number in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{number}/status", encoding="utf-8") as status:
                fields = dict(line.rstrip("\n").split(":", 1) for line in status if ":" in line)
        except OSError:  # it has ended
            continue
        if fields.get("NoNewPrivs", "").strip() == "0":
            found[int(number)] = fields["Name"].strip()
    return found
