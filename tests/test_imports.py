"""The layout tells the story: no module imports in a circle, and none from a layer above its own.

Imports for the type checker, and imports inside of functions, count as all others: a reader has to
follow them just the same.
"""

from pathlib import Path

import pytest
from importgraph import ImportGraph

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [
    ROOT / "tapcore",
    *sorted(path.parent for path in ROOT.glob("plugins/*/tap_*/__init__.py")),
    *sorted(path.parent for path in ROOT.glob("docs/examples/*/tap_*/__init__.py")),
]

LAYERS = (
    {"errors", "constants"},
    {"buffers", "oldnames", "sizes", "process"},
    {"interface"},
    {"files"},
    {"formats", "engine"},
    {"clusters", "simple"},
    {"rawfile", "deflate", "zstd", "luks", "sectorcipher", "opening"},
    {"views", "metrics"},
    {"disk", "nbd", "ring", "monitor"},
    {"tools"},
    {"live"},
    {"daemon"},
    {"the names of tapcore itself"},
    {"cli", "testkit", "fsspecdisk"},
    {"__main__"},
)
"""The rooms of the core, from the ground up. What is side by side does not know each other."""

_HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}


def room_of(module: str) -> str:
    """The part of the core that a module belongs to."""
    inside = module.split(".")[1:]
    return inside[0] if inside else "the names of tapcore itself"


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_no_module_imports_in_a_circle(folder: Path) -> None:
    assert ImportGraph.of_package(folder).circles() == []


def test_every_part_of_the_core_has_its_layer() -> None:
    rooms = {room_of(module) for module in ImportGraph.of_package(ROOT / "tapcore").imports}
    assert rooms == set(_HEIGHT)


def test_the_core_imports_downwards_only() -> None:
    upwards = [
        f"{module} imports {other}"
        for module, others in ImportGraph.of_package(ROOT / "tapcore").imports.items()
        for other in sorted(others)
        if room_of(module) != room_of(other) and _HEIGHT[room_of(other)] >= _HEIGHT[room_of(module)]
    ]
    assert upwards == []


# ---- the graph itself ------------------------------------------------------------------------


def package(folder: Path, **sources: str) -> ImportGraph:
    """The graph of a package `p` with such modules; `a__b` is the module `b` of the package `a`."""
    for name, source in sources.items():
        path = (folder / "p" / name.replace("__", "/")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        (path.parent / "__init__.py").touch()
    return ImportGraph.of_package(folder / "p")


@pytest.mark.parametrize(
    "back",
    [
        "from p import a",
        "from p.a import name",
        "import p.a",
        "import p.a as other",
        "if TYPE_CHECKING:\n    from p.a import name",
        "def function():\n    from p.a import name",
    ],
)
def test_a_circle_is_found_whatever_closes_it(tmp_path: Path, back: str) -> None:
    graph = package(tmp_path, a="from p.b import x", b="from p import c", c=back, d="import p.a")
    assert graph.circles() == [["p.a", "p.b", "p.c"]]


def test_circles_are_told_apart_and_trees_have_none(tmp_path: Path) -> None:
    graph = package(
        tmp_path,
        a="import p.room.one\nimport os\nfrom elsewhere import p",
        room__one="from p.room import two",
        room__two="from p.room.one import x",
        left="import p.right",
        right="import p.left",
        leaf="from p.a import x\nfrom p.left import y",
    )
    assert graph.circles() == [["p.left", "p.right"], ["p.room.one", "p.room.two"]]
    assert graph.imports["p.a"] == {"p.room.one"}
    assert graph.imports["p.leaf"] == {"p.a", "p.left"}
