"""All checks together."""

from __future__ import annotations

from tapcore.testkit.answers import AnswerChecks
from tapcore.testkit.bounds import BoundChecks
from tapcore.testkit.checking import CheckChecks
from tapcore.testkit.content import ContentChecks
from tapcore.testkit.creating import CreationChecks, ResizeChecks
from tapcore.testkit.extents import ExtentChecks
from tapcore.testkit.faulty import FaultChecks
from tapcore.testkit.openclose import OpeningChecks
from tapcore.testkit.oracle import OracleChecks
from tapcore.testkit.parents import ParentChecks
from tapcore.testkit.powerloss import PowerLossChecks
from tapcore.testkit.racing import RaceChecks
from tapcore.testkit.readonly import ReadOnlyChecks
from tapcore.testkit.strangers import StrangerChecks


class DriverContract(
    OpeningChecks,
    AnswerChecks,
    ContentChecks,
    PowerLossChecks,
    FaultChecks,
    RaceChecks,
    ExtentChecks,
    ReadOnlyChecks,
    StrangerChecks,
    CheckChecks,
    BoundChecks,
    OracleChecks,
    CreationChecks,
    ResizeChecks,
    ParentChecks,
):
    """The contract of a driver as pytest checks: subclass it, and set `handle`.

    Checks of what the driver does not do are left out. `Subject` has the attributes and methods
    that a subclass may set.
    """
