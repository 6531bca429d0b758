"""Sketches: what a picture sums up, a little at a time, and told to another process."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sketches import make_family, sketched

from tapcore.tools import sketch
from tapcore.tools.openimage import open_image
from tapcore.tools.picture import disk_row, image_row
from tapcore.tools.picture_svg import svg_of_rows
from tapcore.tools.sketch import MOST_IMAGES, Sketch, SketchFailedError, Sketching
from tapcore.tools.sketcher import Sketcher


@pytest.fixture
def family(toys: Path) -> Path:
    """A directory with a chain of two toys."""
    make_family()
    return toys


@pytest.mark.parametrize("slow", [False, True])
def test_a_sketch_is_what_a_picture_sums_up(
    family: Path, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slow:  # each extent ends its piece
        monkeypatch.setattr(sketch, "_SLICE_SECONDS", -1.0)
    with open_image("<top>.toy") as disk:
        found, pieces = sketched(disk.state)
        cell = found.rows[0].cell
        child, parent = disk.state.disks.chain()
        wanted = [image_row(child, 0, cell), image_row(parent, 1, cell), disk_row(disk, cell)]
    assert pieces >= (12 if slow else 3)
    for row, same in zip(found.rows, wanted, strict=True):
        assert row.totals == same.totals
        assert [row.amounts(n) for n in range(len(row))] == [
            same.amounts(n) for n in range(len(same))
        ]
    again = Sketch.from_dict(json.loads(json.dumps(found.as_dict())))
    text = svg_of_rows(again.images, again.rows)
    assert text == svg_of_rows(found.images, found.rows)
    assert "&lt;top&gt;.toy" in text
    ET.fromstring(text)


def test_a_sketch_of_a_changed_chain_is_refused(family: Path) -> None:
    with open_image("<top>.toy") as disk, open_image("base.toy") as other:
        work = Sketching(disk.state)
        assert not work.go_on(0.0)
        chain, disk.state.disks = disk.state.disks, other.state.disks
        with pytest.raises(SketchFailedError, match="being changed"):
            work.go_on(0.0)
        disk.state.disks = chain
    with pytest.raises(SketchFailedError, match="closed"):
        work.go_on(0.0)


def test_a_sketch_that_takes_too_long_is_given_up(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sketch, "WORK_SECONDS", 0.0)
    with open_image("<top>.toy") as disk, pytest.raises(SketchFailedError, match="more than"):
        sketched(disk.state)


def test_one_sketch_at_a_time(family: Path) -> None:
    due: list[Callable[[], object]] = []
    told: list[Sketch | Exception] = []
    sketcher = Sketcher(lambda seconds, do: due.append(do))
    with open_image("<top>.toy") as disk:
        sketcher.begin(disk.state, told.append)
        with pytest.raises(SketchFailedError, match="busy"):
            sketcher.begin(disk.state, told.append)
        while due:
            due.pop()()
        sketcher.begin(disk.state, told.append)
    due.pop()()
    found, error = told
    assert isinstance(found, Sketch)
    assert isinstance(error, SketchFailedError)


def _lies(good: dict[str, Any]) -> Iterator[Any]:
    image, rows = good["images"][0], good["rows"]
    yield from ([], None, 7, {}, {"images": [], "rows": []})
    yield good | {"images": [image] * (MOST_IMAGES + 1)}
    yield good | {"images": [{**image, "size": 1 << 70}]}
    yield good | {"images": [{**image, "size": True}]}
    yield good | {"images": [{**image, "name": ["x"]}]}
    yield good | {"images": [{"name": "x"}]}
    yield good | {"rows": []}
    yield good | {"rows": rows * 2}
    yield good | {"rows": [rows[0][1:]]}
    yield good | {"rows": [{"a": 1}]}
    for cell in ([[2, 1 << 40]], [[2, -1]], [[4, 512]], [[-1, 512]], [["2", 512]], [[2]], 3, [7]):
        yield good | {"rows": [[cell, *rows[0][1:]]]}


def test_what_cannot_be_true_is_not_believed(family: Path) -> None:
    with open_image("base.toy") as disk:
        good = sketched(disk.state)[0].as_dict()
    assert Sketch.from_dict(good).as_dict() == good
    lies = list(_lies(good))
    assert len(lies) == 22
    for lie in lies:
        with pytest.raises(SketchFailedError, match="cannot be true"):
            Sketch.from_dict(lie)
