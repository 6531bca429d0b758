"""What is public exists, and is enough: the plugins and the examples import nothing else."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tapcore

ROOT = Path(__file__).resolve().parent.parent
DRIVERS = [*ROOT.glob("plugins/*/tap_*/**/*.py"), *ROOT.glob("docs/examples/*/tap_*/**/*.py")]
PUBLIC_MODULES = {
    "tapcore.clusters",
    "tapcore.deflate",
    "tapcore.zstd",
    "tapcore.luks",
    "tapcore.rawfile",
    "tapcore.sectorcipher",
    "tapcore.testkit",
}
_IMPORT = re.compile(r"^\s*(?:from|import) (tapcore\.[\w.]+)", re.MULTILINE)


@pytest.mark.parametrize("name", tapcore.__all__)
def test_a_public_name_exists(name: str) -> None:
    assert getattr(tapcore, name) is not None


def imported_for_type_checkers() -> dict[str, tuple[str, str]]:
    """Each name that `tapcore` imports for them: from which module, and what it is called there."""
    tree = ast.parse((ROOT / "tapcore/__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name: (node.module.removeprefix("tapcore."), alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module != "typing" and node.module
        for alias in node.names
    }


def test_a_program_and_a_type_checker_are_told_of_the_same_names() -> None:
    """One that was missing for the checker would be taken for anything at all."""
    assert imported_for_type_checkers() == tapcore._HOME_OF
    assert set(tapcore.__all__) == set(tapcore._HOME_OF)
    assert len(tapcore.__all__) == len(set(tapcore.__all__))


@pytest.mark.parametrize("path", DRIVERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_drivers_import_public_names_only(path: Path) -> None:
    assert set(_IMPORT.findall(path.read_text())) <= PUBLIC_MODULES


@pytest.mark.parametrize(
    ("public", "home"),
    [
        ("rawfile", "formats.rawfile"),
        ("deflate", "formats.deflate"),
        ("zstd", "formats.zstd"),
        ("sectorcipher", "formats.cipher"),
    ],
)
def test_a_public_module_gives_all_that_its_home_offers(public: str, home: str) -> None:
    names = importlib.import_module(f"tapcore.{public}")
    module = importlib.import_module(f"tapcore.{home}")
    offered = {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
    }
    assert offered
    assert {name: getattr(names, name) for name in offered} == offered
    assert offered.keys() <= set(names.__all__)


def test_only_the_test_kit_needs_pytest() -> None:
    files = [path for path in ROOT.glob("tapcore/**/*.py") if "testkit" not in path.parts]
    needing = [
        path
        for path in files
        if re.search(r"^\s*(from|import) (_?pytest|hypothesis)", path.read_text(), re.MULTILINE)
    ]
    assert needing == []
    code = "import sys, tapcore.cli.main, tapcore.tools.serve; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
