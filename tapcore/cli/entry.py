"""The console script `tapdisk`: what must come before anything else is imported."""

from __future__ import annotations

# `signal` itself would import more, while Ctrl-C still shows a traceback
import _signal  # type: ignore[import-not-found]
import gc
import sys

from tapcore import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


_OBJECTS_BEFORE_COLLECTING = 50_000


def run() -> NoReturn:
    """As `tapcore.cli.main.run`; Ctrl-C while that is being imported shows no traceback."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    if sys.argv[1:] in (["--version"], ["-V"]) and _told_version():
        sys.exit(0)
    # importing makes many objects and no garbage; looking for it would take a tenth of a command
    gc.set_threshold(_OBJECTS_BEFORE_COLLECTING, *gc.get_threshold()[1:])
    from tapcore.cli.main import run as run_main

    run_main()


def _told_version() -> bool:
    """Print the version, importing nothing for it; False: what is wrong has to be told."""
    if sys.stdout is None:
        return False
    try:
        print(f"tapdisk {__version__}", flush=True)
    except OSError:
        return False
    return True
