"""For every test, the core's and the plugins': one seed, printed, for all that is random.

It is the same in every run, so that a change fails by what it changes. ``TAPCORE_SEED=random``, or
``TAPCORE_THOROUGH``, draws another; ``TAPCORE_SEED=<the seed printed>`` shows the same again.
"""

import os
import random
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings
from rewriting import compile_share
from warmstart import WarmStarts

# Else each of the hundreds of processes of a run would compile everything anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

SEED = pytest.StashKey[int]()
USUAL_SEED = 2006

settings.register_profile("tapcore", deadline=None, print_blob=True)
settings.load_profile("tapcore")


@pytest.hookimpl(tryfirst=True)  # before Hypothesis's own plugin reads its option
def pytest_configure(config: pytest.Config) -> None:
    given = os.environ.get("TAPCORE_SEED") or _usual_seed()
    try:
        seed = random.SystemRandom().getrandbits(32) if given == "random" else int(given)
    except ValueError:
        text = f"TAPCORE_SEED is a number, or random, not {given!r}"
        raise pytest.UsageError(text) from None
    config.stash[SEED] = seed
    os.environ["TAPCORE_SEED"] = str(seed)  # for the test kit, and for pytest run by a test
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(seed)


def _usual_seed() -> str:
    return "random" if os.environ.get("TAPCORE_THOROUGH") else str(USUAL_SEED)


def pytest_sessionstart(session: pytest.Session) -> None:
    worker = getattr(session.config, "workerinput", None)
    if worker is not None:
        part = int(worker["workerid"].removeprefix("gw")) % worker["workercount"]
        compile_share(session.config, part, worker["workercount"])


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    """What the tests start as `tapdisk` starts warm, and hears signals."""
    if _runs_none(session.config):
        return (yield)
    for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(signum) == signal.SIG_IGN:  # as in the background of a script
            usual = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
            signal.signal(signum, usual)
    if os.environ.get("TAPCORE_COLD"):
        return (yield)
    warm = WarmStarts()
    try:
        return (yield)
    finally:
        warm.end()


def pytest_runtest_teardown() -> None:
    """An image that a test has left half made is its failure, and not that of all after it."""
    module = sys.modules.get("tapcore.files.beingmade")
    if module is not None and module.new_files() is not None:
        module.CURRENT.set(None)
        pytest.fail("files of a new image are still being made")


def _runs_none(config: pytest.Config) -> bool:
    controls = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    return controls or config.option.collectonly


def pytest_report_header(config: pytest.Config) -> str:
    return f"random seed: TAPCORE_SEED={config.stash[SEED]}"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that depend on the session's seed and the test's name alone."""
    return random.Random(f"{request.config.stash[SEED]} {request.node.nodeid}")
