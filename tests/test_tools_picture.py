"""Pictures of disks: every kind is seen, the sums are exact, and a large disk has a small one."""

import os
import pty
import random
import subprocess
import sys
import tracemalloc
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from drivers.toy import BLOCK, ToyDriver, change_head

from tapcore import Disk, DiskDriver, Extent, Registry, hookimpl
from tapcore.cli.main import main
from tapcore.interface.access import Access
from tapcore.tools.create import create_image
from tapcore.tools.openimage import open_image
from tapcore.tools.picture import (
    COMPRESSED,
    DATA,
    HOLE,
    KINDS,
    SEVERAL_FILES,
    ZERO,
    Face,
    Row,
    cell_size,
)
from tapcore.tools.picture_svg import svg_picture
from tapcore.tools.picture_text import ASCII, UNICODE, Characters, characters_for, text_picture

MIB = 1 << 20
SVG = "{http://www.w3.org/2000/svg}"


def text_of(image: str, columns: int = 80, lines: int = 16, how: Characters = UNICODE) -> list[str]:
    """The picture's lines, without styles."""
    with open_image(image) as disk:
        picture = text_picture(disk, columns, lines, characters=how)
    return ["".join(text for text, _ in line) for line in picture]


def svg_of(image: str) -> ET.Element:
    with open_image(image) as disk:
        return ET.fromstring(svg_picture(disk))


def hints(svg: ET.Element) -> list[str]:
    """What hovering tells, in the order of the document."""
    return [found.text or "" for found in svg.iterfind(f"{SVG}rect/{SVG}title")]


@pytest.fixture
def family(toys: Path) -> Path:
    """A child of 64 blocks with everything, a parent as long, and a shorter grandparent."""
    create_image("old.toy", 32 * BLOCK)
    create_image("base.toy", 64 * BLOCK, parent="old.toy")
    create_image("child.toy", None, parent="base.toy")
    change_head("old.toy", blocks=[*range(24, 32)], compressed=[30, 31])
    change_head("base.toy", blocks=[*range(16, 26)], zeroes=[40, 41])
    change_head("child.toy", blocks=[*range(8)], compressed=[4, 5, 6, 7], zeroes=[8, 9])
    return toys


# ---- on the terminal -------------------------------------------------------------------------


def test_every_kind_has_a_character_and_the_legend_has_the_sums(family: Path) -> None:
    title, cells, *legend = text_of("child.toy")
    assert title == "child.toy (toy): 256 KiB, a character is 4 KiB"
    shown = f"████▓▓▓▓--{'·' * 6}1111111111222222{'·' * 8}--{'·' * 22}"
    assert cells == f"       0 B {shown}"
    assert [" ".join(line.split()) for line in legend] == [
        "█ data 16 KiB 6.2%",
        "▓ compressed 16 KiB 6.2%",
        "1 from base.toy (depth 1) 40 KiB 15.6%",
        "2 from old.toy (depth 2, 8 KiB of it compressed) 24 KiB 9.4%",
        "- zeroes 16 KiB 6.2%",
        "· not allocated, reads as zeroes 144 KiB 56.2%",
    ]


def test_little_content_is_seen_and_thin(family: Path) -> None:
    change_head("child.toy", blocks=[0, 9, 10, 16, 17, 18], compressed=[16, 17, 18], zeroes=[24])
    change_head("base.toy", blocks=[33, *range(40, 46)], zeroes=[56, 57, 58, 59, 60])
    change_head("old.toy", blocks=[], compressed=[])
    picture = text_of("child.toy", columns=20, lines=1)  # 16 characters of 16 KiB
    assert picture[1].split(" ")[-1] == "▄·▄·▓···₁·1₁··-·"
    assert picture[-1].strip() == "▄ ₁ content, but of no more than half of the cell"


def test_the_kind_of_which_there_is_most_is_shown(family: Path) -> None:
    change_head("child.toy", blocks=[0, 1, 2, 4], compressed=[0, 4], zeroes=[])
    change_head("base.toy", blocks=[3, 5, 6, 7])
    change_head("old.toy", blocks=[], compressed=[])
    assert text_of("child.toy", columns=20, lines=1)[1].split(" ")[-1][:2] == "█1"


def test_ascii_where_there_is_no_better(family: Path) -> None:
    picture = text_of("child.toy", how=characters_for("ascii"))
    assert all(line.isascii() for line in picture)
    assert picture[1].endswith(f" ####%%%%--{'.' * 6}1111111111222222{'.' * 8}--{'.' * 22}")
    assert characters_for(None) is characters_for("latin-1") is characters_for("nonsense") is ASCII
    assert characters_for("utf-8") is UNICODE


class Blank(ToyDriver):
    """All of a disk is one hole."""

    @hookimpl
    def td_extents(self, dd: DiskDriver, sector: int, nb_sectors: int) -> Iterator[Extent]:
        yield Extent(sector, nb_sectors, "unallocated")


@pytest.mark.parametrize("columns", [1, 30, 60, 80, 120, 400])
@pytest.mark.parametrize("size", [512, 4096, 5 * MIB + 512, 1 << 40, (1 << 63) - 512])
def test_a_picture_fits_the_terminal(tmp_path: Path, columns: int, size: int) -> None:
    registry = Registry()
    registry.register(Blank())
    image = f"{tmp_path}/disk.toy"
    create_image(image, size, registry=registry)
    with open_image(image, access=Access(registry=registry)) as disk:
        picture = text_picture(disk, columns, 20)
    cells = [line for line in picture if line[0][1] == "dim"]
    assert 1 <= len(cells) <= 20
    assert max(sum(len(text) for text, _ in line) for line in cells) <= max(columns, 27)
    assert sum(len(text) for line in cells for text, _ in line[1:]) * cell_size(size, 1) >= size


def test_an_empty_disk_has_a_title(toys: Path) -> None:
    create_image("disk.toy", 512)
    change_head("disk.toy", size=0)  # as another program made it
    assert text_of("disk.toy") == ["disk.toy (toy): 0 B"]
    svg = svg_of("disk.toy")
    assert svg.findtext(f"{SVG}title") == "disk.toy: 0 B"
    assert hints(svg) == []


# ---- counting --------------------------------------------------------------------------------


def test_sums_and_runs_are_exact(rng: random.Random) -> None:
    """Random runs, counted sector by sector in another way."""
    for _ in range(30):
        sectors = rng.randrange(1, 300)
        slots: list[int] = []
        row = Row("x", "toy", 0, sectors * 512, 4096, max_runs=400)
        while len(slots) < sectors:
            count = min(rng.choice((1, 2, 7, 8, 40)), sectors - len(slots))
            slot = rng.choice((HOLE, ZERO, DATA, COMPRESSED, KINDS + DATA))
            row.add(len(slots) * 512, count * 512, slot, "", 0)
            slots += [slot] * count
        assert row.totals == {slot: 512 * slots.count(slot) for slot in set(slots)}
        for index in range(len(row)):
            part = slots[index * 8 : index * 8 + 8]
            assert row.amounts(index) == {slot: 512 * part.count(slot) for slot in set(part)}
            assert row.length_of(index) == 512 * len(part)
        assert row.runs is not None
        assert [run.slot for run in row.runs for _ in range(run.length // 512)] == slots
        assert all(a.slot != b.slot for a, b in zip(row.runs, row.runs[1:], strict=False))


def test_neighbours_in_a_file_are_one_run_where_they_lie_in_one_piece() -> None:
    row = Row("x", "toy", 0, 4 * 4096, 8192, max_runs=10)
    for at, filename, offset in ((0, "a", 0), (1, "a", 4096), (2, "a", 65536), (3, "b", 69632)):
        row.add(at * 4096, 4096, DATA, filename, offset)
    assert row.runs is not None
    assert [(run.start, run.length, run.filename) for run in row.runs] == [
        (0, 8192, "a"),
        (8192, 4096, "a"),
        (12288, 4096, "b"),
    ]
    assert (row.file_of(0), row.file_of(1)) == ("a", SEVERAL_FILES)


def test_too_many_runs_are_not_kept() -> None:
    row = Row("x", "toy", 0, 64 * 512, 4096, max_runs=9)
    for at in range(64):
        row.add(at * 512, 512, (HOLE, DATA)[at % 2], "", 0)
    assert row.runs is None
    assert row.face(0) == Face(DATA, 2)
    assert row.totals == {HOLE: 32 * 512, DATA: 32 * 512}


# ---- SVG -------------------------------------------------------------------------------------


def test_an_svg_has_a_row_for_each_image_and_one_for_the_disk(family: Path) -> None:
    svg = svg_of("child.toy")
    assert svg.findtext(f"{SVG}title") == "child.toy: 256 KiB"
    texts = [found.text for found in svg.iterfind(f"{SVG}text")]
    assert texts[:6] == [
        "child.toy: 256 KiB",
        "toy, a chain of 3 images, child on top",
        "child.toy (toy, depth 0): 256 KiB, holds 16 KiB of data and 16 KiB of compressed data",
        "base.toy (toy, depth 1): 256 KiB, holds 40 KiB of data",
        "old.toy (toy, depth 2): 128 KiB, holds 24 KiB of data and 8 KiB of compressed data",
        "the disk: what all of them show together",
    ]
    for text in ("64 KiB", "data in child.toy (depth 0)", "compressed data in old.toy (depth 2)"):
        assert text in texts


def test_hovering_tells_range_kind_file_and_depth(family: Path) -> None:
    told = hints(svg_of("child.toy"))
    base = family / "base.toy"
    own = (
        "data in child.toy (depth 0)\n0 B - 16 KiB: 16 KiB (0x0 - 0x4000)\nat 0x10000 in child.toy"
    )
    assert told.count(own) == 2  # in its own row, and in the disk's
    assert (
        f"data in {base} (depth 1)\n"
        "64 KiB - 104 KiB: 40 KiB (0x10000 - 0x1a000)\n"
        f"at 0x20000 in {base}"
    ) in told
    rest = "168 KiB - 256 KiB: 88 KiB (0x2a000 - 0x40000)"
    assert told.count(f"not in this image: its parent's\n{rest}") == 1
    assert told.count(f"not allocated, reads as zeroes\n{rest}") == 1


def test_an_image_that_stands_alone_has_one_row(toys: Path) -> None:
    create_image("disk.toy", 16 * BLOCK)
    change_head("disk.toy", blocks=[3])
    assert [hint.splitlines()[0] for hint in hints(svg_of("disk.toy"))] == [
        "not allocated, reads as zeroes",
        "not allocated, reads as zeroes",
        "data in disk.toy (depth 0)",  # drawn last: however small, it is seen
    ]


def test_names_from_images_cannot_break_the_document(family: Path) -> None:
    nasty = os.fsdecode(b'<svg onload="x()">&]]>\x01\xff.toy')
    os.rename("base.toy", nasty)
    change_head("child.toy", parent=nasty)
    svg = svg_of("child.toy")
    texts = [found.text or "" for found in svg.iterfind(f"{SVG}text")]
    assert any('<svg onload="x()">&]]>\\x01\\xff.toy (toy, depth 1)' in text for text in texts)
    assert {found.tag for found in svg.iter()} <= {
        SVG + tag for tag in ["svg", "title", "style", "defs", "pattern", "rect", "text", "path"]
    }


class Scattered(ToyDriver):
    """A large disk in very many pieces, of which every fourth is stored."""

    piece = (1 << 40) // 16_000 >> 9

    @hookimpl
    def td_extents(self, dd: DiskDriver, sector: int, nb_sectors: int) -> Iterator[Extent]:
        at, end = sector, sector + nb_sectors
        while at < end:
            number = at // self.piece
            count = min((number + 1) * self.piece, end) - at
            if (number + len(dd.name)) % 4:
                yield Extent(at, count, "unallocated")
            else:
                yield Extent(at, count, "data", None, dd.name, at * 512)
            at += count


@pytest.fixture
def scattered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.chdir(tmp_path)
    registry = Registry()
    registry.register(Scattered())
    create_image("base.toy", 1 << 40, registry=registry)
    create_image("child.toy", None, parent="base.toy", registry=registry)
    with open_image("child.toy", access=Access(registry=registry)) as disk:
        yield disk


def test_a_disk_in_many_pieces_has_a_small_picture(scattered: Disk) -> None:
    tracemalloc.start()
    try:
        text = text_picture(scattered, 120, 24)
        svg = svg_picture(scattered)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(text) <= 24 + 5
    assert len(ET.fromstring(svg).findall(f"{SVG}rect")) < 3000
    assert peak < 8 * MIB


def test_progress_goes_on_and_what_it_raises_stops_the_work(scattered: Disk) -> None:
    told: list[tuple[int, int]] = []
    svg_picture(scattered, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert {total for _, total in told} == {3 << 40}

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        text_picture(scattered, 80, 24, progress=stop)


# ---- the command -----------------------------------------------------------------------------


def test_map_picture_in_a_pipe_is_plain(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "child.toy", "--picture"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert out.splitlines()[1] == text_of("child.toy", lines=24)[1]


def test_map_picture_on_a_terminal_has_colours(family: Path) -> None:
    master, slave = pty.openpty()
    code = "import sys; from tapcore.cli.main import main; sys.exit(main())"
    (family / "disk.img").write_bytes(b"x" * MIB)
    run = [sys.executable, "-c", code, "map", "-q", "disk.img", "--picture"]
    env = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1", "COLUMNS": "80"}
    env.pop("NO_COLOR", None)
    try:
        subprocess.run(run, check=True, stdout=slave, env=env, timeout=60)
        out = os.read(master, 1 << 16).decode()
    finally:
        os.close(slave)
        os.close(master)
    assert "\x1b[38;5;28m█" in out
    assert "data" in out


def test_map_svg_replaces_nothing_unasked(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "child.toy", "--svg", "out.svg"]) == 0
    assert capsys.readouterr() == ("", "")
    assert ET.parse("out.svg").getroot().tag == f"{SVG}svg"
    (family / "out.svg").write_text("mine")
    assert main(["map", "child.toy", "--svg", "out.svg"]) == 1
    assert "out.svg: exists already; --force replaces it" in capsys.readouterr().err
    assert (family / "out.svg").read_text() == "mine"
    assert main(["map", "child.toy", "--svg", "out.svg", "--force", "--picture"]) == 0
    assert "child.toy (toy): 256 KiB" in capsys.readouterr().out
    assert ET.parse("out.svg").getroot().tag == f"{SVG}svg"


def test_map_svg_never_replaces_an_image_of_the_chain(
    family: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.link("old.toy", "other-name")
    for name in ("child.toy", "base.toy", "other-name"):
        before = (family / name).read_bytes()
        assert main(["map", "child.toy", "--svg", name, "--force"]) == 1
        assert f"{name}: is the image, or one of its parents" in capsys.readouterr().err
        assert (family / name).read_bytes() == before


def test_map_svg_that_cannot_be_written_is_one_line(
    family: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["map", "child.toy", "--svg", "no/such.svg"]) == 1
    assert capsys.readouterr().err == "tapdisk: no/such.svg: No such file or directory\n"


def test_map_shows_one_way_at_a_time(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "child.toy", "--json", "--picture"]) == 2
    assert "--json" in capsys.readouterr().err
