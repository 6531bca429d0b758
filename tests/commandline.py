"""The command line inside this process, for a tenth of the CPU time of an interpreter of its own.

Only for what neither uses the standard streams themselves nor is to be stopped by a signal.
"""

import contextlib
import io
import logging

from tapcore.cli.main import main


def tapdisk(*words: object, status: int) -> tuple[str, str]:
    """Run `tapdisk`; returns what it printed on standard output and on standard error.

    Args:
        words: of the command line.
        status: the exit status that is right.
    """
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = main([str(word) for word in words])
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
    assert found == status, out.getvalue() + err.getvalue()
    return out.getvalue(), err.getvalue()
