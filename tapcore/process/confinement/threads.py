"""Whether each thread of this process is bound by what it has given up."""

from __future__ import annotations

import os
import threading


def unbound_threads() -> list[str]:
    """Names of threads that have not given up new privileges: they are older than that."""
    found = []
    for number in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{number}/status", encoding="utf-8") as status:
                fields = dict(line.rstrip("\n").split(":", 1) for line in status if ":" in line)
        except OSError:  # it has ended
            continue
        if fields.get("NoNewPrivs", "").strip() == "0":
            found.append(_name_of(int(number), fields["Name"].strip()))
    return sorted(found)


def _name_of(number: int, kernel_name: str) -> str:
    names = {each.native_id: each.name for each in threading.enumerate()}
    return names.get(number, kernel_name)
