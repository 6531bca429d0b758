"""A test kit for authors of drivers: a few lines of pytest, and the whole contract is tested.

    from tapcore.testkit import DriverContract

    class TestMyFormat(DriverContract):
        handle = "myformat"

pytest then runs some thirty checks against the installed driver: every sector answered exactly
once, content, persistence, flush, extents, read-only opening, damaged files, creation, resizing,
parents. What a driver does not do is not tested. The attributes and methods of `Subject` say how
to make an image where `td_create` cannot, and what else is particular to a format.

Everything random depends on one seed, which a failure prints; `TAPCORE_SEED=N` repeats it.

This package needs pytest; nothing else in tapcore imports it.
"""

from tapcore.testkit.contract import DriverContract
from tapcore.testkit.crashstates import NEVER, Change, State
from tapcore.testkit.recording import Recording, UnrecordedError
from tapcore.testkit.session import Asked, Session
from tapcore.testkit.subject import Subject
from tapcore.testkit.workload import Workload

__all__ = [
    "NEVER",
    "Asked",
    "Change",
    "DriverContract",
    "Recording",
    "Session",
    "State",
    "Subject",
    "UnrecordedError",
    "Workload",
]
