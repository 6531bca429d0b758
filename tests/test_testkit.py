"""The test kit catches what it is there to catch, by the right check, in words for an author."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

FAULTS = Path(__file__).with_name("testkit_faults.py")

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


def run_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=FAULTS.parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[str]]:
    """What each check of each faulty driver said; "" where it passed."""
    report = tmp_path_factory.mktemp("kit") / "report.xml"
    wanted = [f"{FAULTS}::Test{toy}::test_{check}" for toy, check, _ in CAUGHT]
    done = run_pytest(f"--junitxml={report}", f"{FAULTS}::TestGood", *wanted)
    assert report.exists(), done.stdout + done.stderr
    found: dict[tuple[str, str], list[str]] = {}
    for case in ET.parse(report).iter("testcase"):
        toy = case.attrib["classname"].rpartition(".")[2].removeprefix("Test")
        check = case.attrib["name"].partition("[")[0].removeprefix("test_")
        said = [f"{node.get('message')}\n{node.text}" for node in case if "message" in node.attrib]
        found.setdefault((toy, check), []).append("\n".join(said))
    return found


@pytest.mark.parametrize(
    ("toy", "check", "said"), CAUGHT, ids=["-".join(case[:2]) for case in CAUGHT]
)
def test_a_fault_is_caught(
    outcomes: dict[tuple[str, str], list[str]], toy: str, check: str, said: str
) -> None:
    assert (toy, check) in outcomes, sorted(outcomes)
    text = "\n".join(outcomes[toy, check])
    assert re.search(said, text), text or "it passed"


def test_a_good_driver_passes(outcomes: dict[tuple[str, str], list[str]]) -> None:
    good = {check: said for (toy, check), said in outcomes.items() if toy == "Good"}
    assert len(good) > 25
    assert not [text for said in good.values() for text in said if text]


def test_a_failure_prints_the_seed() -> None:
    done = run_pytest(f"{FAULTS}::TestFailsReads::test_reads_are_answered_exactly_once")
    assert re.search(r"to see the same again: TAPCORE_SEED=\d+", done.stdout)
    assert "Traceback" not in done.stdout
