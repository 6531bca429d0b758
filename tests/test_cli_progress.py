"""How far a command is: a bar on a terminal, plain lines where they are asked for, else nothing."""

import json
import os
import re
import threading
from pathlib import Path

import pytest

import tapcore
from tapcore.cli.main import main
from tapcore.cli.progress import progress

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("a.img").write_bytes(b"x" * 4 * MIB)
    return "a.img"


def test_plain_lines_end_with_a_last_one(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--progress", "plain", image, "b.img"]) == 0
    *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"tapdisk: converting: 100\.0%, 4 MiB of 4 MiB, [\d.]+ [KMG]iB/s", last)


def test_a_line_a_second_says_how_long_it_will_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("tapcore.cli.progress.monotonic", lambda: now[0])
    with progress("copying", quiet=False, style="plain") as tell:
        for quarter in range(5):
            tell(quarter * MIB, 4 * MIB)
            now[0] += 0.6
    assert capsys.readouterr().err.splitlines() == [
        "tapdisk: copying: 50.0%, 2 MiB of 4 MiB, 1.667 MiB/s, 1 s left",
        "tapdisk: copying: 100.0%, 4 MiB of 4 MiB, 1.667 MiB/s",
        "tapdisk: copying: 100.0%, 4 MiB of 4 MiB, 1.333 MiB/s",
    ]


def test_nothing_where_nothing_is_wanted(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--progress", "none"], ["-q", "--progress", "plain"]):
        assert main(["compare", *options, image, image]) == 0
        assert capsys.readouterr().err == ""


def test_no_last_line_after_an_error(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--progress", "plain", image, "no/such/b.img"]) == 1
    assert capsys.readouterr().err == "tapdisk: no/such/b.img: No such file or directory\n"


def test_a_size_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", quiet=False, style="plain") as tell:
        tell(3 * MIB, 0)
    assert re.fullmatch(r"tapdisk: reading: 3 MiB, .*/s\n", capsys.readouterr().err)


# ---- space that is taken -----------------------------------------------------------------------


def test_taking_space_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A host that is slow to take it: the second half comes when the first one has been told."""
    from tapcore.files import byname
    from tapcore.tools import progress as told

    first_half = threading.Event()
    steps: list[tuple[int, int]] = []

    def slowly(fd: int, size: int, preallocation: str) -> None:
        os.posix_fallocate(fd, 0, size // 2)
        assert first_half.wait(60)
        os.posix_fallocate(fd, 0, size)

    def tell(done: int, total: int) -> None:
        steps.append((done, total))
        if done:
            first_half.set()

    monkeypatch.setattr(byname, "_make_anew", slowly)
    monkeypatch.setattr(told, "_SECONDS", 0.01)
    name, full = f"aio:{tmp_path}/disk", {"preallocation": "full"}
    tapcore.create_image(name, 8 << 20, options=full, progress=tell)
    assert any(4 << 20 <= done < 8 << 20 for done, _ in steps)
    assert steps[-1] == (8 << 20, 8 << 20)
    monkeypatch.undo()
    create = ["create", "--force", name, "1M", "--progress", "json"]
    assert main([*create, "-o", "preallocation=full"]) == 0
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (line["phase"], line["bytes"], line["total"]) == ("preallocating", 1 << 20, 1 << 20)
    assert main(create) == 0
    assert capsys.readouterr().err == ""
