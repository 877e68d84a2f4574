"""Imports point one way only, as docs/architecture.md draws them; C++ knows neither NumPy nor PyTorch."""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path

import pytest

import batchnorm as bn

PACKAGE = Path(bn.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
CPP = Path(__file__).parent.parent / "cpp"

# cli → why · bench → files · explanation → ranked · gathering → layers · _blocks → functional → renorm · running
# → moments → _ghosts · _usual · masks → _checks → _plan · _memory · _options · _formulas · _foreign → _native.
LEVELS = {
    "_native": 0,
    "_plan": 1,
    "_memory": 1,
    "_options": 1,
    "_formulas": 1,
    "_foreign": 1,
    "_checks": 2,  # its refusals speak of plans
    "_ghosts": 3,
    "_usual": 3,
    "masks": 3,
    "moments": 4,
    "renorm": 5,
    "running": 5,
    "functional": 6,
    "torch": 6,  # a front end beside functional: neither imports the other
    "_blocks": 7,
    "layers": 7,
    "gathering": 8,
    "ranked": 8,
    "files": 9,
    "explanation": 9,
    "why": 10,  # experiments: torch models on real data, and their report
    "bench": 10,  # speed, beside other libraries
    "cli": 11,
    "__init__": 12,
    "__main__": 13,
}
ALONE = "_reference"  # the specification: imports nothing of the package, and only bench imports it, to verify
MAY_IMPORT = {  # who, of the package
    "torch": ("torch", "why", "bench"),
    "sklearn": ("why",),
    "matplotlib": ("why",),
}
LIGHT = 9  # below this level numpy is the only thing from outside the standard library


def _module(path: Path) -> str:
    """The part of the package that a file belongs to: a module, or a subpackage as a whole."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def _imports(path: Path) -> list[tuple[str, int]]:
    """What a file imports, anywhere in it: absolute dotted names, with the line."""
    package = ["batchnorm", *path.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            own = name == "batchnorm"  # from batchnorm import moments: the names are modules, or functions of __init__
            found += [(f"{name}.{alias.name}" if own else name, node.lineno) for alias in node.names]
    return found


def _inside(path: Path) -> list[tuple[str, int]]:
    """Parts of the package that a file imports, other than its own."""
    parts = [(name.split("."), line) for name, line in _imports(path)]
    inner = [(names[1] if len(names) > 1 else "__init__", line) for names, line in parts if names[0] == "batchnorm"]
    known = [(part if part in LEVELS or part == ALONE else "__init__", line) for part, line in inner]
    return [(part, line) for part, line in known if part != _module(path)]


def _outside(path: Path) -> list[tuple[str, int]]:
    """What a file imports from outside the package and the standard library."""
    names = [(name.partition(".")[0], line) for name, line in _imports(path)]
    return [(name, line) for name, line in names if name != "batchnorm" and name not in sys.stdlib_module_names]


def test_the_parts_of_the_package_are_the_ones_drawn():
    assert {_module(path) for path in SOURCES} | {"_native"} == {*LEVELS, ALONE}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path):
    module = _module(path)
    for part, line in _inside(path):
        where = f"{path.relative_to(PACKAGE)}:{line}"
        if part == ALONE:
            assert module == "bench", f"{where} imports {ALONE}, which only bench may, to verify what it times"
            continue
        assert module != ALONE, f"{where}: {ALONE} imports {part}; it stands by itself"
        if module == "__init__" and line > _first_function(path):
            continue  # a function of the front page may load a heavier part when it is called
        if part == "__init__":
            assert LEVELS[module] >= LIGHT, f"{where}: {module} imports the package itself, and so everything in it"
            continue
        assert LEVELS[part] < LEVELS[module], f"{where}: {module} imports {part}, which stands above it or beside it"


def _first_function(path: Path) -> int:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return min((node.lineno for node in tree.body if isinstance(node, ast.FunctionDef)), default=sys.maxsize)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_core_needs_numpy_only(path: Path):
    """PyTorch and others where MAY_IMPORT says; below files and explanation nothing else but numpy."""
    module = _module(path)
    light = module == ALONE or LEVELS[module] < LIGHT or module == "__init__"
    for name, line in _outside(path):
        where = f"{path.relative_to(PACKAGE)}:{line}"
        assert name != "pandas", f"{where} imports {name}"
        if name in MAY_IMPORT:
            assert module in MAY_IMPORT[name], f"{where} imports {name}: only {', '.join(MAY_IMPORT[name])} may"
        assert not light or name in ("numpy", module), f"{where}: {module} imports {name}"


def test_this_test_sees_imports():
    """The reading of imports above finds the ones that are there."""
    found = {part for part, _ in _inside(PACKAGE / "functional.py")}
    assert {"moments", "_checks", "_native"} <= found
    assert {name for name, _ in _outside(PACKAGE / "functional.py")} == {"numpy"}


@pytest.mark.skipif(not CPP.is_dir(), reason="the C++ sources are in a checkout only")
def test_cpp_knows_neither_numpy_nor_pytorch():
    """Kernels include the standard library, intrinsics and each other; Python's headers belong to the bindings."""
    bindings = ("torch_errors.cpp", "torch_errors.h")  # and bind_*
    sources = sorted(CPP.glob("*.h")) + sorted(CPP.glob("*.cpp"))
    assert len(sources) > 5
    for path in sources:
        included = re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(encoding="utf-8"), flags=re.M)
        for header in included:
            assert not re.search(r"numpy|torch/|ATen|c10", header), f"{path.name} includes {header}"
            if not path.name.startswith("bind_") and path.name not in bindings:
                assert not re.search(r"nanobind|Python\.h", header), f"{path.name} includes {header}"


LEAVES = ("simd.h", "sums.h", "apply.h", "activation.h")  # of leaves.cpp, which is compiled for each instruction set
FOR_LEAVES = ("convert.h", "leaves.h", "problem.h")  # what they may include beside each other


@pytest.mark.skipif(not CPP.is_dir(), reason="the C++ sources are in a checkout only")
def test_only_leaves_know_an_instruction_set():
    """Intrinsics stand in simd.h; leaves include no part of the driver, and the driver none of them."""
    for path in sorted(CPP.glob("*.h")) + sorted(CPP.glob("*.cpp")):
        text = path.read_text(encoding="utf-8")
        if path.name != "simd.h":
            assert not re.search(r"\b_mm\d*_|immintrin|arm_neon", text), path.name
        included = re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, flags=re.M)
        is_leaf = path.name in (*LEAVES, "leaves.cpp")
        for header in included:
            if is_leaf:
                assert header in (*LEAVES, *FOR_LEAVES), f"{path.name} includes {header}"
            else:
                assert header not in LEAVES, f"{path.name} includes {header}"


@pytest.mark.skipif(not CPP.is_dir(), reason="the C++ sources are in a checkout only")
def test_the_map_of_the_core_is_complete():
    """cpp/README.md names every unit: the file, or the header of the same name."""
    text = (CPP / "README.md").read_text(encoding="utf-8")
    units = {path.stem for path in CPP.glob("*.cpp")} | {path.stem for path in CPP.glob("*.h")}
    missing = [unit for unit in sorted(units) if not re.search(rf"`{unit}(\.h|\.cpp)`", text)]
    assert not missing, f"cpp/README.md does not name {missing}"
