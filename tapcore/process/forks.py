"""Whether this is still the process in which something was opened: it does not survive a fork."""

from __future__ import annotations

import os

_forks = 0


def forks() -> int:
    """How often this process was forked away from another since it loaded this module."""
    return _forks


def _count() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count)
