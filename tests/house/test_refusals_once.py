"""A refusal's words stand once: no two messages share a run of ten words, in Python or in C++."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchnorm as bn

PACKAGE = Path(bn.__file__).parent
CPP = Path(__file__).parents[2] / "cpp"
RUN = 10
GAP = "\0"  # a value within a message


def _sources() -> list[Path]:
    """The library; what the tools report is prose of its own."""
    python = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "tools" not in path.parents]
    return [*sorted(python), *sorted(path for path in CPP.rglob("*") if path.suffix in (".h", ".cpp"))]


def _joined(node: ast.expr) -> str:
    """A literal text as it is read, with a gap for each value in it; nothing where it is none."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_joined(value) or GAP for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (_joined(left) or GAP) + (_joined(right) or GAP)
    return ""


def _texts_of_python(source: str) -> Iterator[tuple[int, str]]:
    tree = ast.parse(source)
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    passed = {id(node.body[0]) for node in scopes if ast.get_docstring(node) is not None}
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if id(node) in passed or (isinstance(node, ast.Call) and ast.unparse(node.func) == "LIBRARY.define"):
            continue  # operator schemas are no sentences
        text = _joined(node) if isinstance(node, ast.expr) else ""
        if text and isinstance(node, ast.expr):
            yield node.lineno, text
        inner = ast.iter_child_nodes(node)
        waiting += _values_of(node) if text else inner


def _values_of(node: ast.AST) -> list[ast.AST]:
    """What stands in the gaps of a text."""
    match node:
        case ast.Constant():
            return []
        case ast.JoinedStr(values=values):
            return [value for part in values for value in _values_of(part)]
        case ast.BinOp(left=left, right=right):
            return [value for side in (left, right) for value in _values_of(side)]
        case ast.FormattedValue(value=value):
            return [value]
    return [node]


def _texts_of_cpp(source: str) -> Iterator[tuple[int, str]]:
    source = re.sub(r"//[^\n]*", "", source)
    source = re.sub(r'"\s*"', "", source)  # neighbors are one literal
    for found in re.finditer(r'"((?:[^"\\\n]|\\.)*)"', source):
        yield source.count("\n", 0, found.start()) + 1, found[1]


def _runs(text: str) -> Iterator[str]:
    for piece in text.lower().split(GAP):
        words = re.findall(r"[a-z_']+", piece)
        for i in range(len(words) - RUN + 1):
            yield " ".join(words[i : i + RUN])


def _places(sources: dict[str, str]) -> dict[str, set[str]]:
    """Each run of words, with the messages it stands in."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, source in sources.items():
        texts = _texts_of_python(source) if name.endswith(".py") else _texts_of_cpp(source)
        for line, text in texts:
            for run in _runs(text):
                found[run].add(f"{name}:{line}: {' '.join(text.replace(GAP, '…').split())}")
    return found


@pytest.mark.skipif(not CPP.is_dir(), reason="the C++ sources are in a checkout only")
def test_no_two_messages_share_their_words() -> None:
    found = _places({str(path): path.read_text(encoding="utf-8") for path in _sources()})
    assert len(found) > 1000, "the messages are not read"
    twice = {run: sorted(places) for run, places in found.items() if len(places) > 1}
    assert not twice, "say it once, in _refusals.py, say: " + "\n".join(f"{run}: {of}" for run, of in twice.items())


COPIES = {
    "in Python": {
        "a.py": 'raise ValueError(f"{who}: a mask must be bool, as it says " "which positions count; got {x}")',
        "b.py": 'def f():\n    """Words."""\n    return g(f"a mask must be bool, as it says which positions {x}")',
    },
    "inside of another": {
        "a.py": "f\"{who}: {'a mask must be bool as it says which positions count' if here else x}\"",
        "b.py": 'refuse("a mask must be bool as it says which positions count")',
    },
    "in C++": {
        "a.py": 'raise ValueError("the weights must be finite and not below zero here")',
        "b.cpp": 'refuse("x: the weights must be finite "\n       "and not below zero here");',
    },
}


@pytest.mark.parametrize("name", COPIES)
def test_copied_words_are_found(name: str) -> None:
    assert [places for places in _places(COPIES[name]).values() if len(places) > 1]


def test_other_texts_are_no_messages() -> None:
    words = "x and y and z are of one and the same dtype"
    sources = {
        "a.py": f'"""{words}"""',
        "b.py": f"LIBRARY.define('{words}')",
        "c.cpp": f"// {words}",
        "d.cpp": f'"{words}"',
    }
    assert not [places for places in _places(sources).values() if len(places) > 1]
