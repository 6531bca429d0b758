"""The soak of `benchmarks/`, small: long writes in small steps, several clients, all end."""

import subprocess
import sys
from pathlib import Path

import pytest
from served import TAPDISK

SOAK = Path(__file__).parent.parent / "benchmarks" / "soak.py"


@pytest.mark.parametrize("kind", ["aio-none", "qcow2"])
def test_writes_of_several_clients_end_beside_a_busy_disk(kind: str, tmp_path: Path) -> None:
    words = ["--writes", "2", "--clients", "2", "--size", "33", "--disk", "66", "--beside", "4"]
    words += ["--kinds", kind, "--dir", str(tmp_path), "--tapdisk", str(TAPDISK)]
    done = subprocess.run(
        [sys.executable, SOAK, *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[2].split()[:2] == [kind, "2"]
    assert done.stdout.rstrip().endswith("ok")
    assert not list(tmp_path.iterdir())
