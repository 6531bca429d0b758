"""Mapped memory is handed to system calls, and nothing in the sources touches it.

A view of a mapping comes out of few names (`SOURCES`). What a function gets from one of them, it
may slice, measure, compare with None, keep, return, and hand to the calls that are listed here;
whatever else it does with it is an error of this test, until somebody has looked at it and listed
it. Functions that hand such views on are sources themselves.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "tapcore"

SOURCES = {"to_read", "data_to_read", "to_write", "next_buffers"}
"""Methods whose result may be mapped memory; and `view`, of a mapping or window."""

_SOURCE = re.compile(rf"\.\s*({'|'.join(sorted(SOURCES))})\b")

TAKERS = {
    "len",
    "append",  # to what is sent, or to a vector
    "data",  # of `Replies`
    "_answer",  # of `Alone`: to `sendmsg`
    "fill",  # of `ImageFile`, by `preadv`
    "mapped",  # the same
    "is_mapped",
    "memoryview",
    "partial",
    "preadv",
    "pwritev",
    "recv_into",
    "sendmsg",
    "send",
}
"""Calls that may get it."""


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if uses(path.read_text()))


def uses(text: str) -> bool:
    """Whether a module can have mapped memory at all: it names one of the sources."""
    return _SOURCE.search(text) is not None or "files.mapping" in text


def called(node: ast.AST) -> str:
    """The name of what a call calls."""
    function = node.func if isinstance(node, ast.Call) else None
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def is_source(node: ast.AST) -> bool:
    if isinstance(node, ast.Await | ast.NamedExpr | ast.Subscript):
        return is_source(node.value)
    return called(node) in SOURCES


def tainted_names(function: ast.AST) -> set[str]:
    """Local names that mapped memory was given to."""
    names: set[str] = set()
    for node in ast.walk(function):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign) and is_source(node.value):
            targets = node.targets
        elif isinstance(node, ast.NamedExpr) and is_source(node.value):
            targets = [node.target]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def is_tainted(node: ast.AST, names: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Slice) and is_tainted(node.value, names)
    return is_source(node)


def offences(tree: ast.AST) -> Iterator[str]:
    """What is done with mapped memory that may not be."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    for function in functions:
        names = tainted_names(function)
        for node in ast.walk(function):
            yield from (
                f"{function.name}, line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}"
                for _ in touches(node, names)
            )


def touches(node: ast.AST, names: set[str]) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call):
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        listed = [each for a in arguments for each in elements(a)]
        if any(is_tainted(each, names) for each in listed) and called(node) not in TAKERS:
            yield node
        function = node.func
        if isinstance(function, ast.Attribute) and is_tainted(function.value, names):
            yield node  # tobytes, hex, cast, ...
    elif isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        by_content = not all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops)
        if by_content and any(is_tainted(side, names) for side in sides):
            yield node
    elif isinstance(node, ast.Subscript):
        index = not isinstance(node.slice, ast.Slice) or isinstance(node.ctx, ast.Store)
        if index and is_tainted(node.value, names):
            yield node
    elif isinstance(node, ast.For | ast.comprehension):
        if is_tainted(node.iter, names):
            yield node
    elif isinstance(node, ast.BinOp | ast.Starred | ast.FormattedValue) and any(
        is_tainted(child, names) for child in ast.iter_child_nodes(node)
    ):
        yield node


def elements(node: ast.expr) -> Iterator[ast.expr]:
    """A list or tuple's own; else the expression."""
    if isinstance(node, ast.List | ast.Tuple):
        for each in node.elts:
            yield from elements(each)
    else:
        yield node


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_touches_mapped_memory(path: Path) -> None:
    assert list(offences(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "line",
    [
        "bytes(view)",
        "view.tobytes()",
        "view == other",
        "view[0]",
        "view[:4] = b'data'",
        "[byte for byte in view]",
        "b''.join([head, view])",
        "unpack_from(view, 0)",
        "view + b''",
        "sink(*view)",
        "hashlib.sha256(view[2:])",
        "bytes(windows.to_read(0, 1, 0.0))",
    ],
)
def test_what_touches_it_is_found(line: str) -> None:
    text = f"def use(windows):\n    view = windows.to_read(0, 512, 0.0)\n    {line}\n"
    assert list(offences(ast.parse(text)))


@pytest.mark.parametrize(
    "line",
    [
        "sock.sendmsg([head, view[4:]])",
        "os.preadv(memory, (view, gap), 0)",
        "queue.append(view)",
        "return view if view is not None else None",
        "size = len(view)",
        "sock.recv_into(view[:4])",
    ],
)
def test_what_only_hands_it_on_is_not(line: str) -> None:
    text = f"def use(windows):\n    view = windows.to_read(0, 512, 0.0)\n    {line}\n"
    assert not list(offences(ast.parse(text)))


def test_there_is_something_to_look_at() -> None:
    assert "windows.py" in {path.name for path in modules()}
