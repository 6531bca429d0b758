"""The test kit catches what it is there to catch, by the right check, in words for an author."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import testkit_faults

from tapcore.testkit import run_checks

CAUGHT = [
    # the class in testkit_faults.py, the check, what it says
    ("LosesASector", "reads_are_answered_exactly_once", r"sector \d+ was never answered, \d+ of"),
    ("LosesASector", "behaves_as_a_bytearray", r"perhaps a request is never answered: took longer"),
    ("AnswersTwice", "reads_are_answered_exactly_once", r"sector \d+ was answered twice"),
    ("AnswersOutside", "reads_are_answered_exactly_once", r"outside what was asked"),
    ("ForgetsPrv", "reads_are_answered_exactly_once", r"did not hand back the `id` and `prv`"),
    ("AnswersErrnoWithoutSign", "reads_are_answered_exactly_once", r"answered with 5: allowed are"),
    ("FailsReads", "reads_are_answered_exactly_once", r"the read of sectors? .* failed with EIO"),
    ("ReturnsTooMany", "reads_are_answered_exactly_once", r"returned \d+, but \d+ requests were"),
    ("DirtyHoles", "a_fresh_image_reads_as_expected", r"byte 0 .* reads 5a5a.* where 0000"),
    ("AnswersFromAThread", "reads_are_answered_exactly_once", r"came from another thread"),
    ("BusyForEver", "a_full_queue_is_tried_again", r"-EBUSY although nothing else is under way"),
    ("BusyButAnswers", "a_full_queue_is_tried_again", r"nothing was answered, but some was"),
    (
        "ChangesTheBuffer",
        "every_sector_is_answered_exactly_once",
        r"changed the buffer|its buffer written to",
    ),
    ("ClosesTooEarly", "closing_finishes_what_is_under_way", r"sector 0 was never answered"),
    ("NeverFlushes", "a_flush_beside_writes_is_answered", r"the flush was never answered"),
    ("ForgetsAtFlush", "what_was_flushed_is_safe", r"after a flush, then a crash .*: byte \d+"),
    ("ForgetsAtClose", "content_persists", r"after opening again"),
    ("DiscardsTooMuch", "discards_and_zeroes_stay_inside", r"behind a discard of 65536 bytes at"),
    ("SizeInBytes", "reports_its_size", r"401 sectors, but td_open set dd.size to 205312"),
    ("KeepsTheImageInTheModule", "two_images_at_once", r"the first of two open images"),
    ("CallsDataAHole", "extents_are_true", r"'unallocated', but there is content in sector"),
    (
        "ExtentsInTheWrongPlace",
        "extents_are_true",
        r"lies at offset \d+ of its file; what is there",
    ),
    ("ExtentsWithGaps", "extents_of_a_fresh_image", r"a gap: sector 128 follows where 127"),
    ("ExtentsTooLong", "extents_are_true", r"they end at sector \d+ instead of \d+"),
    ("OldApi", "the_driver_loads", r"written for version 99 of the hooks, this is version 1"),
    ("LeaksADescriptor", "opens_and_closes_without_a_trace", r"3 descriptors stay open: .*/image"),
    ("LeaksWhenRefusing", "bad_files_are_refused_or_harmless", r"descriptors stay open: .*/bad"),
    ("OpensForWriting", "a_read_only_disk_leaves_its_files_alone", r"image is open for writing"),
    ("WritesWhenReadOnly", "a_read_only_disk_leaves_its_files_alone", r"image has other content"),
    ("TouchesWhenReadOnly", "a_read_only_disk_leaves_its_files_alone", r"image was written to"),
    ("RaisesStructError", "bad_files_are_refused_or_harmless", r"raised error: unpack requires"),
    (
        "Hangs",
        "bad_files_are_refused_or_harmless",
        r"one byte \(number 1\): took longer than 0.5 s",
    ),
    ("SwallowsMemory", "bad_files_are_refused_or_harmless", r"one byte: took \d+ MiB of memory"),
    ("ProbesAnything", "probing_looks_at_anything", r"takes an empty file for an image"),
    ("ProbesCarelessly", "probing_looks_at_anything", r"first 1 bytes raised IndexError"),
    ("RecognisesNothing", "probing_looks_at_anything", r"does not recognise an image of its own"),
    ("TakesAnyOption", "bad_options_are_refused", r"made with the option colour="),
    ("RefusesItsOwnOption", "every_option_makes_an_image", r"colour=red, which disk_info offers"),
    ("LeavesAHalf", "what_cannot_be_made_leaves_nothing_behind", r"left new behind"),
    ("ChangesItsParent", "copy_on_write", r"has changed the files of its parent"),
    ("ZeroesAreHoles", "zeroes_hide_the_parent", r"zeroes in a child: byte \d+"),
    ("ForgetsItsParent", "an_image_without_a_parent_says_so", r"empty name|impossible name"),
    ("HidesItsParent", "copy_on_write", r"No such device or address"),
]


@pytest.mark.parametrize(
    ("toy", "check", "said"), CAUGHT, ids=["-".join(case[:2]) for case in CAUGHT]
)
def test_a_fault_is_caught(toy: str, check: str, said: str) -> None:
    logging.disable(logging.CRITICAL)  # what broken drivers make the core say
    try:
        results = list(run_checks(getattr(testkit_faults, f"Test{toy}"), (check,)))
    finally:
        logging.disable(logging.NOTSET)
    assert results, "the check is not for this driver"
    text = "\n".join(result.message for result in results if result.outcome == "failed")
    assert re.search(said, text), text or "it passed"


def test_a_failure_prints_the_seed(tmp_path: Path) -> None:
    """In pytest's own words, and without a traceback."""
    test = tmp_path / "test_it.py"
    test.write_text("from testkit_faults import TestFailsReads\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "exactly_once and reads", test],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(testkit_faults.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert re.search(r"to see the same again: TAPCORE_SEED=\d+", done.stdout), done.stdout
    assert re.search(r"the read of sectors? .* failed with EIO", done.stdout)
    assert "Traceback" not in done.stdout
