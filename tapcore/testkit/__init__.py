"""A test kit for authors of drivers: a few lines of pytest, and the whole contract is tested.

    from tapcore.testkit import DriverContract

    class TestMyFormat(DriverContract):
        handle = "myformat"

pytest then runs some sixty checks against the installed driver: every sector answered exactly
once, content, persistence, power loss, files that fail, extents, read-only opening, damaged files,
creation, resizing, parents, `td_check`. What a driver does not do is not tested. The attributes and
methods of `Subject` say how to make an image where `td_create` cannot, and what else is particular
to a format.

Everything random depends on one seed, which a failure prints; `TAPCORE_SEED=N` repeats it, but for
the order in which threads do their work.

What the checks are made of can be used by itself: `Recording` and `Workload` (power loss), `Faults`
(files that fail, or are late), `ThrowAway` (a driver that is installed for one test).

This package needs pytest; nothing else in tapcore imports it.
"""

from tapcore.testkit.asked import Asked
from tapcore.testkit.contract import DriverContract
from tapcore.testkit.crashstates import NEVER, Change, State
from tapcore.testkit.faults import Faults
from tapcore.testkit.recording import Recording, UnrecordedError
from tapcore.testkit.running import Result, run_checks
from tapcore.testkit.session import Session
from tapcore.testkit.subject import Subject
from tapcore.testkit.throwaway import ThrowAway, throw_away
from tapcore.testkit.workload import Workload

__all__ = [
    "NEVER",
    "Asked",
    "Change",
    "DriverContract",
    "Faults",
    "Recording",
    "Result",
    "Session",
    "State",
    "Subject",
    "ThrowAway",
    "UnrecordedError",
    "Workload",
    "run_checks",
    "throw_away",
]
