"""How disks are opened, for those whom opening itself calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tapcore.interface.models import TdState


class Opening(NamedTuple):
    """How disks are opened, closed, and released without asking their drivers: of `chain`."""

    open_disk: Callable[..., TdState]
    close_disk: Callable[[TdState], None]
    abandon_disk: Callable[[TdState], object]
