"""The console script `tapdisk`: what must come before anything else is imported."""

from __future__ import annotations

import signal
from typing import NoReturn


def run() -> NoReturn:
    """As `tapcore.cli.main.run`; Ctrl-C while that is being imported shows no traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tapcore.cli.main import run as run_main

    run_main()
