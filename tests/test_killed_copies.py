"""A conversion over an old target that is ended at any moment: old or new, whole, and nothing else.

`TAPCORE_THOROUGH=50` tries a hundred moments for every kind of image.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import killedcopies

THOROUGH = int(os.environ.get("TAPCORE_THOROUGH") or 1)


def test_whatever_ends_a_copy_the_target_is_old_or_new_and_nothing_else_is_left(
    tmp_path: Path,
) -> None:
    seed = os.environ.get("TAPCORE_SEED") or str(random.SystemRandom().getrandbits(32))
    print(f"to see the same again: TAPCORE_SEED={seed}")
    command = [
        sys.executable,
        killedcopies.__file__,
        str(tmp_path),
        "every",
        seed,
        str(2 * THOROUGH),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    print(*results, sep="\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert [result for result in results if "wrong" in result] == []
    assert [result["kind"] for result in results] == list(killedcopies.KINDS)
    assert {result["tried"] for result in results} == {2 * THOROUGH}
