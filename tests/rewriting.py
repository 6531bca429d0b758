"""Test modules are compiled once in a clean clone, not by each worker of pytest-xdist.

pytest rewrites the assertions of each test module before it compiles it. That takes a worker 10 s
of CPU time, and all workers do it at the same time. Here each does a part of them before it begins,
and finds the others' in the cache.
"""

import contextlib
import sys
from pathlib import Path

import pytest


def compile_share(config: pytest.Config, part: int, parts: int) -> None:
    """Leave every one in `parts` of the test modules that are asked for in pytest's cache.

    With a pytest that does this in another way nothing is done, and time is lost.
    """
    if sys.dont_write_bytecode:
        return
    with contextlib.suppress(ImportError, AttributeError, TypeError, OSError, SyntaxError):
        from _pytest.assertion import rewrite

        for module in _asked_for(config)[part::parts]:
            folder = rewrite.get_cache_dir(module)
            compiled = folder / (module.name[:-3] + rewrite.PYC_TAIL)
            if not compiled.exists() and rewrite.try_makedirs(folder):
                source, code = rewrite._rewrite_test(module, config)
                rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, source, compiled)


def _asked_for(config: pytest.Config) -> list[Path]:
    found: set[Path] = set()
    for argument in config.args:
        path = config.invocation_params.dir / argument.split("::")[0]
        found |= set(path.rglob("test_*.py")) if path.is_dir() else {path}
    return sorted(found)
