"""Whether the kernel makes those wait who write into the page cache."""

from __future__ import annotations

from typing import Final

SLOW_WRITE_SECONDS: Final = 0.005
"""A write into the page cache that takes longer was throttled by the kernel, or somebody else had
the processor meanwhile."""

WATCHED: Final = 100
"""So many writes after a slow one it is looked at whether they wait."""


def times_waited() -> int:
    """How often this thread has waited for something but a processor."""
    import resource

    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
