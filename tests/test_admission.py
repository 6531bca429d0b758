"""What a service says that it takes: anything else is a danger, and nothing takes for ever."""

import json
import os
import threading
from pathlib import Path

import pytest
from commandline import tapdisk

from tapcore.cli.timelimit import TimeLimitError, ended_after


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tapdisk("create", "-q", "d.qcow2", "10G", status=0)
    (tmp_path / "d.raw").write_bytes(bytes(4096))
    return tmp_path


def codes(*words: str, status: int) -> list[str]:
    found = json.loads(tapdisk("inspect", "--json", *words, status=status)[0])
    return [finding["code"] for finding in found["findings"]]


def test_a_disk_may_be_just_as_large_as_is_taken(folder: Path) -> None:
    assert codes("--max-size", "10G", "d.qcow2", status=0) == []
    assert codes("--max-size", "10737418239", "d.qcow2", status=2) == ["too-large"]
    assert codes("--max-size", "4095", "d.raw", status=2) == ["too-large"]


def test_only_formats_that_are_named_are_taken(folder: Path) -> None:
    assert codes("--formats", "qcow2,vmdk", "d.qcow2", status=0) == []
    assert codes("--formats", "raw", "d.raw", status=0) == []
    assert codes("--formats", "raw", "d.qcow2", status=2) == ["format-not-taken"]
    assert codes("--formats", "qcow2", "d.raw", status=2) == ["format-not-taken"]


def test_a_format_without_a_driver_is_not_taken_either(folder: Path) -> None:
    (folder / "x").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(600))
    assert "format-not-taken" in codes("--formats", "raw", "x", status=2)


def test_work_that_takes_too_long_ends() -> None:
    limit = pytest.raises(TimeLimitError, match=r"longer than 0\.05 s")
    with limit, ended_after(0.05, "x"):
        threading.Event().wait()
    with ended_after(None, "x"):
        pass
    with ended_after(60, "x"):  # and is over where the work is done
        assert os.getpid()


def test_the_limit_of_one_image_does_not_keep_the_others_from_being_looked_at(
    folder: Path,
) -> None:
    out, _ = tapdisk("inspect", "--time-limit", "60", "d.qcow2", "d.raw", status=0)
    assert out.count("harmless") == 2
