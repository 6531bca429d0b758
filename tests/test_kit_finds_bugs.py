"""Bugs are planted in good drivers, and the test kit has to find them.

By default a few of them are run, by chance, each with the one check that is known to find it;
`TAPCORE_THOROUGH=1` does so with all, and runs the whole kit where that check has missed its bug.
"""

import logging
import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from planted.bugs import BUGS, Bug
from planted.subjects import BASES, loaded, subject

from tapcore.testkit import run_checks, running
from tapcore.testkit.running import checks_of

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 0)
FEW = 10
TRIES = 6
AT_LEAST = 0.95


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What broken drivers make the core say is of no interest here."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_each_bug_can_be_planted() -> None:
    """Its driver has the lines, once, and says something else without them."""
    assert len({bug.what for bug in BUGS}) == len(BUGS) >= 100
    checks = {name for kind in BASES for name in checks_of(subject(kind))}
    for bug in BUGS:
        source = BASES[bug.base].path.read_text()
        assert source.count(bug.old) == 1, bug.what
        assert bug.old != bug.new, bug.what
        assert bug.by in checks, bug.what
    assert min(Counter(bug.kind for bug in BUGS).values()) >= 4


@pytest.mark.parametrize("base", ["hooks", "read-only"])
def test_no_false_alarm(base: str) -> None:
    """The drivers as they are pass all checks that are for them.

    The others are examples: `test_example_driver` runs the kit on them.
    """
    results = list(run_checks(subject(base)))
    assert [result for result in results if result.outcome != "passed"] == []
    assert len(results) >= 12


def test_a_few_bugs_are_found_by_the_check_that_is_for_them(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By chance a check may miss its bug: it gets some more, and then the others theirs."""
    missed = []
    for bug in rng.sample(BUGS, FEW):
        for _ in range(TRIES):
            if _found(bug, (bug.by,)):
                break
            monkeypatch.setattr(running, "SEED", rng.getrandbits(32))
        else:
            missed += [] if _found(bug) else [bug.what]
    assert len(missed) <= 1, missed


@pytest.mark.skipif(not THOROUGH, reason="for TAPCORE_THOROUGH: ten seconds of CPU time, or more")
@pytest.mark.timeout(1800)
def test_the_kit_finds_the_bugs() -> None:
    missed = []
    for bug in BUGS:
        found = _found(bug, (bug.by,)) or _found(bug)
        missed += [] if found else [bug.what]
        print(f"{bug.kind:10} | {bug.base:9} | {bug.what} | {', '.join(found) or 'NOTHING'}")
    print(f"{len(BUGS) - len(missed)} of {len(BUGS)} found")
    assert len(missed) <= (1 - AT_LEAST) * len(BUGS), missed


def _found(bug: Bug, only: tuple[str, ...] = ()) -> list[str]:
    """The checks that fail for a driver with the bug."""
    results = run_checks(subject(bug.base, bug.old, bug.new), only)
    return list(dict.fromkeys(each.check for each in results if each.outcome == "failed"))


def test_a_part_that_is_not_there_cannot_be_replaced() -> None:
    with pytest.raises(AssertionError):
        loaded(BASES["hooks"], "no such line", "")
