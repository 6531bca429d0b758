"""Who imports whom inside a package, read from its source without running it.

Every import counts: those that only a type checker follows, and those inside of a function.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import attrs


@attrs.frozen
class ImportGraph:
    """The modules of one package.

    Attributes:
        imports: by each module's name, the modules of the package that it imports.
    """

    imports: dict[str, frozenset[str]]

    @classmethod
    def of_package(cls, folder: Path) -> "ImportGraph":
        """Of a package's folder, whose name is the package's."""
        files = {_module_name(path, folder): path for path in folder.rglob("*.py")}
        return cls({name: _imported(name, path, files) for name, path in files.items()})

    def circles(self) -> list[list[str]]:
        """Modules that import each other, directly or through others; each circle in order.

        A module is in a circle with all those that it reaches and that reach it.
        """
        reached = {name: self._reached_from(name) for name in self.imports}
        found: dict[frozenset[str], None] = {}
        for name in sorted(self.imports):
            circle = frozenset(other for other in reached[name] if name in reached[other])
            if circle:
                found[circle] = None
        return [sorted(circle) for circle in found]

    def _reached_from(self, name: str) -> set[str]:
        reached: set[str] = set()
        waiting = [name]
        while waiting:
            new = self.imports[waiting.pop()] - reached
            reached |= new
            waiting.extend(new)
        return reached


def _module_name(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, path: Path, known: dict[str, Path]) -> frozenset[str]:
    tree = ast.parse(path.read_text(), str(path))
    found = {each for node in ast.walk(tree) for each in _named(node)}
    modules = {_module_of(each, known) for each in found}
    return frozenset(module for module in modules if module not in ("", name))


def _named(node: ast.AST) -> Iterator[str]:
    """Every dotted name that an import statement needs."""
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute here"
        for alias in node.names:
            yield f"{node.module}.{alias.name}"
    elif isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name


def _module_of(dotted: str, known: dict[str, Path]) -> str:
    """The module that a dotted name lies in, or is; "" outside the package."""
    if dotted in known:
        return dotted
    home = dotted.rpartition(".")[0]
    return home if home in known else ""
