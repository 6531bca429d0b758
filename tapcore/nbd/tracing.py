"""`TAPCORE_TRACE=requests`: a line for each request of a client, with the times of its stations.

An engine that is not traced has nothing of this. Requests that are refused, or need no disk, have
no line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from time import monotonic
from typing import Any

from tapcore.engine import Engine, Request
from tapcore.engine.requests import OP_NAMES
from tapcore.interface.tracing import say, wanted


def trace_requests(engine: Engine, environment: Mapping[str, str]) -> bool:
    """Write them down from now on, where the environment wants it.

    Args:
        engine: of the disk.
        environment: of the process.

    Returns:
        Whether it does.
    """
    if "requests" not in wanted(environment):
        return False
    if is_traced(engine):
        return True
    submit, begin_write = engine.submit, engine.begin_write

    def traced_submit(req: Request) -> None:
        _watch(engine, req)
        submit(req)

    def traced_begin(req: Request) -> bool:
        done = req.done
        _watch(engine, req)
        if begin_write(req):
            return True
        req.done = done  # it comes again, as a whole
        return False

    vars(engine).update(submit=traced_submit, begin_write=traced_begin)
    return True


def is_traced(engine: Engine) -> bool:
    """Whether its requests are written down, so that all of them have to pass there."""
    return "submit" in vars(engine)


def _watch(engine: Engine, req: Request) -> None:
    """Write its line when it is answered."""
    taken, done = monotonic(), req.done
    name = engine.disk.image.name

    def answered(finished: Any) -> None:
        at_driver = monotonic()
        done(finished)
        times = (req.queued or taken) - taken, at_driver - taken, monotonic() - taken
        queued, driver, replied = (f"{seconds * 1e6:.0f} µs" for seconds in times)
        result = os.strerror(-req.status) if req.status else "done"
        say(
            f"request {OP_NAMES[req.op]} {req.offset}+{req.length} of {name!r}: queued after "
            f"{queued}, driver done {driver}, answered {replied}: {result}"
        )

    req.done = answered
