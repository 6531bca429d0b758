"""Planning a copy: whole units, no overlap, and together with the rules of `Transfer` the truth."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from tapcore.tools.plan import How, Job, in_units


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[Job], int, int]:
    """Jobs in order with gaps between, a unit and a disk's size."""
    unit = draw(st.sampled_from([1, 2, 3, 8]))
    size = draw(st.integers(1, 60))
    cuts = sorted(draw(st.sets(st.integers(0, size), max_size=12)))
    jobs = []
    for start, end in itertools.pairwise(cuts):
        how = draw(st.sampled_from(["copy", "zero", "gap"]))
        if how != "gap":
            jobs.append(Job(start, end, how))  # type: ignore[arg-type]
    return jobs, unit, size


@given(plans())
def test_units_are_whole_ordered_and_cover_every_job(case: tuple[list[Job], int, int]) -> None:
    jobs, unit, size = case
    planned = list(in_units(jobs, unit, size, "copy"))
    done = 0
    for job in planned:
        assert done <= job.start < job.end <= size
        assert job.start % unit == 0
        assert job.end % unit == 0 or job.end == size
        done = job.end
    for job in jobs:
        for at in range(job.start, job.end):
            (cover,) = (p for p in planned if p.start <= at < p.end)
            assert cover.how == job.how or cover.how == "copy"


@given(plans(), st.randoms(use_true_random=False))
def test_what_is_planned_makes_the_target_read_as_the_source(
    case: tuple[list[Job], int, int], rng: random.Random
) -> None:
    """A gap is where both read the same; copying it as well changes nothing."""
    jobs, unit, size = case
    source = [rng.randrange(1, 9) for _ in range(size)]
    target = source[:]
    for job in jobs:
        for at in range(job.start, job.end):
            if job.how == "zero":
                source[at] = 0
            target[at] = 9
    for job in in_units(jobs, unit, size, "copy"):
        for at in range(job.start, job.end):
            target[at] = 0 if job.how == "zero" else source[at]
    assert target == source


def test_the_edges_of_zeroes_are_treated_as_asked() -> None:
    hows: tuple[How, How] = ("copy", "differ")
    for edges in hows:
        jobs = list(in_units([Job(3, 29, "zero")], 8, 40, edges))
        assert jobs == [Job(0, 8, edges), Job(8, 24, "zero"), Job(24, 32, edges)]
    assert list(in_units([Job(3, 5, "zero")], 8, 40, "copy")) == [Job(0, 8, "copy")]
    assert list(in_units([Job(32, 40, "zero")], 16, 40, "copy")) == [Job(32, 40, "zero")]
