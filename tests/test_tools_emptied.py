"""A child is emptied after a commit, and power fails: it reads as before.

What it holds is in its parent by then, so to lose it, or to have it still, makes no difference.
"""

import itertools
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

import tapcore
from tapcore.testkit import Recording

MIB = 1 << 20
SIZE = 5 * MIB + 512
FORMATS: Mapping[str, Mapping[str, str]] = {
    "qcow": {},
    "qcow2": {"cluster_size": "4096"},
    "qcow2 of version 2": {"compat": "0.10"},
    "vdi": {},
    "vhd": {},
    "vhdx": {"block_size": "1M"},
    "vmdk": {},
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_child_that_is_emptied_reads_as_its_parent_after_every_crash(
    kind: str, tmp_path: Path, rng: random.Random
) -> None:
    handle = kind.split()[0]
    parent, image = tmp_path / f"parent.{handle}", tmp_path / f"disk.{handle}"
    content = rng.randbytes(SIZE)
    tapcore.create_image(f"{handle}:{parent}", SIZE, options=FORMATS[kind])
    with tapcore.open(f"{handle}:{parent}", readonly=False) as disk:
        disk.pwrite(0, content)
    options = FORMATS[kind]
    tapcore.create_image(
        f"{handle}:{image}", None, parent=f"{handle}:{parent.name}", options=options
    )
    with tapcore.open(f"{handle}:{image}", readonly=False) as disk:
        for start, length in ((3 * MIB, MIB), (0, 300_000), (MIB + 5000, 700), (SIZE - 9000, 9000)):
            disk.pwrite(start, content[start : start + length])
    with Recording(image) as recording, tapcore.open(f"{handle}:{image}", readonly=False) as disk:
        dd = disk.state.disks
        dd.drv.td_make_empty(dd)
    copy = tmp_path / f"copy.{handle}"
    lengths_alone = (  # as a file system does that writes content later
        recording.state(rng, barrier.done - 1, lambda change: change.kind == "size")
        for barrier in recording.barriers
    )
    for state in itertools.chain(recording.prefixes(), lengths_alone, recording.states(rng, 20)):
        state.write({image: copy})
        with tapcore.open(f"{handle}:{copy}", readonly=True) as disk:
            assert disk.pread(0, length=SIZE) == content, state
        with tapcore.open(f"{handle}:{copy}", readonly=False) as disk:
            disk.pwrite(2 * MIB, b"new" * 1000)
            assert disk.pread(0, length=2 * MIB + 3000) == content[: 2 * MIB] + b"new" * 1000, state
            assert disk.pread(2 * MIB + 3000, length=MIB) == content[2 * MIB + 3000 :][:MIB], state
