"""Plain data into a plain file: short runs go together, and each byte to its place."""

import os
import random
from pathlib import Path
from unittest.mock import patch

from tapcore.engine import MappedExtent
from tapcore.process.workers import Lane
from tapcore.tools.plaincopy import PlainCopier
from tapcore.tools.plan import Job

RUN = 8 << 10
put = Lane.put


def test_short_runs_that_lie_apart_are_copied_together(tmp_path: Path, rng: random.Random) -> None:
    content = rng.randbytes(96 * RUN)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    target.touch()
    os.truncate(target, len(content))
    places = list(range(96))
    rng.shuffle(places)
    fd = os.open(source, os.O_RDONLY)
    jobs = [
        Job(at, at + RUN, "copy", MappedExtent(at, RUN, 0, "data", True, fd=fd, offset=place * RUN))
        for at, place in zip(range(0, len(content), RUN), places, strict=True)
    ]
    copier = PlainCopier("source", str(target), None, len(content))
    with patch.object(Lane, "put", autospec=True, side_effect=put) as puts:
        assert list(copier.filter(jobs)) == []
    copier.close()
    os.close(fd)
    assert target.read_bytes() == b"".join(content[p * RUN : (p + 1) * RUN] for p in places)
    assert copier.written == len(content)
    assert len({id(call.args[2][0]) for call in puts.call_args_list if call.args[2]}) == 2
