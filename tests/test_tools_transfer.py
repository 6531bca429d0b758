"""Moving content between late, busy and failing disks: right, in bounded memory, never hanging."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from drivers.faulty import FaultyImage
from drivers.late import LateImage
from enginebench import REGISTRY, content_of, home
from hypothesis import given, settings
from hypothesis import strategies as st

import tapcore
from tapcore import DiskId, OpenOptions
from tapcore.opening.chain import open_disk
from tapcore.tools import transfer as transfer_module
from tapcore.tools.plan import (
    Job,
    jobs_for_difference,
    jobs_for_fresh,
    jobs_for_holes,
    jobs_for_used,
)
from tapcore.tools.transfer import Transfer


@contextmanager
def disk_of(
    images: Sequence[LateImage | FaultyImage], handle: str = "late", *, name: str = "image"
) -> Iterator[tapcore.Disk]:
    """A chain of test images, child first, as a disk."""
    names = [f"{name}{n}" for n in range(len(images))]
    for image, parent in zip(images, names[1:], strict=False):
        assert isinstance(image, LateImage)
        image.parent = DiskId(parent, handle)
    path = home(*names)
    options = OpenOptions(private={"images": dict(zip(names, images, strict=True))})
    state = open_disk(DiskId(str(path / names[0]), handle), REGISTRY, options=options)
    with tapcore.Disk(state) as disk:
        yield disk
    for image in images:
        assert image.violations == []


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    """So that a small disk has many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer_module, "PIECE_BYTES", 8192)
        patch.setattr(transfer_module, "MEMORY_BYTES", 5 * 8192)
        patch.setattr("tapcore.engine.dispatch.BUSY_RETRY_SECONDS", 0.0)
        yield


def late(rng: random.Random, size: int, fill: float, **more: object) -> LateImage:
    image = LateImage(
        size,
        cluster=rng.choice([1, 8, 16]),
        sector_size=rng.choice([512, 4096]),
        seed=rng.getrandbits(32),
        now=rng.choice([0.0, 0.5, 1.0]),
        depth=rng.choice([None, 2]),
        busy=rng.choice([0.0, 0.3]),
        zero=rng.choice(["yes", "no", "mixed"]),
        **more,  # type: ignore[arg-type]
    )
    image.fill(rng, fill)
    for start in range(0, size, 8):  # some of what is stored is zeroes
        if rng.random() < 0.3:
            end = min(start + 8, size)
            image.data[start * 512 : end * 512] = bytes((end - start) * 512)
    return image


@settings(max_examples=60)
@given(st.integers())
def test_a_copy_is_a_copy(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randrange(1, 400)
    source = [late(rng, size, 0.5), late(rng, rng.randrange(1, 400), 0.5)]
    fresh = rng.random() < 0.5
    goal = late(rng, size, 0.0 if fresh else 0.5)
    if fresh:
        goal.data[:] = bytes(len(goal.data))
    told: list[int] = []
    with disk_of(source) as one, disk_of([goal], "latefull", name="goal") as other:
        plan = jobs_for_fresh if fresh else jobs_for_used
        work = Transfer(one, other, fresh=fresh, progress=lambda done, total: told.append(done))
        written = work.run(plan(one, max(other.cluster_size, 4096)))
    assert content_of([goal]) == content_of(source)
    assert written <= size * 512
    assert told == sorted(told)
    assert told[-1] == size * 512


@settings(max_examples=60)
@given(st.integers())
def test_only_what_differs_is_written_onto_a_parent(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randrange(8, 400)
    below = late(rng, rng.randrange(1, 400), 0.7)
    source = late(rng, size, 0.7)
    same = min(size, below.size) // 16 * 16
    source.data[: same * 256] = below.content(b"")[: same * 256]  # the first half
    source.allocated |= set(range(same // 2 // source.cluster))
    goal = LateImage(size, cluster=8, seed=seed, now=0.5)
    wanted = content_of([source])
    with disk_of([source]) as one, disk_of([goal, below], "latefull", name="goal") as other:
        Transfer(one, other, against=other).run(jobs_for_difference(one, other, 4096))
    assert content_of([goal, below]) == wanted
    assert all(cluster * 8 + 8 > same // 2 - 8 for cluster in goal.allocated)


@settings(max_examples=60)
@given(st.integers())
def test_a_child_reads_the_same_on_another_parent(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.randrange(1, 400)
    child = late(rng, size, 0.4)
    old, new = late(rng, rng.randrange(1, 400), 0.5), late(rng, rng.randrange(1, 400), 0.5)
    wanted = content_of([child, old])
    alone = rng.random() < 0.3
    with disk_of([child, old], "latefull") as disk, disk_of([new], name="new") as parent:
        work = Transfer(
            disk, disk, against=None if alone else parent, fresh=alone, hold_zeroes=not alone
        )
        work.run(jobs_for_holes(disk, None if alone else parent))
    assert content_of([child] if alone else [child, new]) == wanted


@pytest.mark.parametrize("late_answers", [False, True])
def test_a_failed_write_stops_the_work_and_leaves_nothing_under_way(late_answers: bool) -> None:
    source = LateImage(400, seed=1)
    source.fill(random.Random(1), 1.0)
    goal = FaultyImage(400, late=late_answers, busy={3}, faults={5: -28})
    with (
        disk_of([source]) as one,
        disk_of([goal], "faulty", name="goal") as other,
        pytest.raises(tapcore.IOFailedError, match="goal0: write failed: No space left"),
    ):
        Transfer(one, other, fresh=True).run([Job(0, 400 * 512, "copy")])
