"""An `aio:` disk is a bytearray in both cache modes, whatever its file's size and the depth."""

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapcore
from diskmodel import Model, Operation, contents, operations, padded, run_all
from tapcore.engine import Request
from tapcore.interface.options import CacheMode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aio")


@pytest.mark.parametrize("cache", ["writeback", "none"])
@settings(max_examples=80)
@given(content=contents, steps=operations)
def test_a_disk_is_a_bytearray(
    folder: Path, cache: CacheMode, content: bytes, steps: list[Operation]
) -> None:
    path = folder / "disk.img"
    path.write_bytes(content)
    with tapcore.open(f"aio:{path}", cache=cache, readonly=False) as disk:
        model = Model(disk, padded(content))
        for step in steps:
            model.apply(step)
        model.check()
    assert padded(path.read_bytes()) == model.data


@pytest.mark.parametrize("cache", ["writeback", "none"])
@settings(max_examples=25)
@given(content=contents.filter(bool), seed=st.integers(0, 1 << 20))
def test_disjoint_requests_in_one_batch_do_not_disturb_each_other(
    folder: Path, cache: CacheMode, content: bytes, seed: int
) -> None:
    """Slices of any length, written and read together; neighbours share sectors."""
    rng = random.Random(seed)
    path = folder / "batch.img"
    path.write_bytes(content)
    with tapcore.open(f"aio:{path}", cache=cache, readonly=False) as disk:
        data = bytearray(padded(content))
        cuts = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(24))})
        slices = [(a, b) for a, b in itertools.pairwise(cuts)]
        rng.shuffle(slices)
        finished: list[Request] = []
        requests, buffers = [], []
        for start, end in slices:
            op = rng.choice((0, 1, 4))
            buf = bytearray(rng.randbytes(end - start))
            buffers.append((op, start, end, buf))
            view = None if op == 4 else memoryview(buf)
            requests.append(Request(op, start, end - start, view, finished.append))
        run_all(disk, requests)
        assert len(finished) == len(requests)
        assert not any(request.status for request in finished)
        for op, start, end, buf in buffers:
            if op == 0:
                assert buf == data[start:end]
            else:
                data[start:end] = buf if op == 1 else bytes(end - start)
        assert disk.pread(0, length=disk.size) == data
