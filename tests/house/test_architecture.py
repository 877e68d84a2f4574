"""Imports point one way only, as docs/architecture.md draws them; C++ knows neither NumPy nor PyTorch."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import sys
from pathlib import Path

import pytest

import batchnorm as bn

PACKAGE = Path(bn.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
CPP = Path(__file__).parents[2] / "cpp"

# A file imports from levels below its own only.
LEVELS = {
    "_native": 0,
    "_version": 1,
    "_public": 1,
    "_plan": 1,
    "_memory": 1,
    "_threads": 1,
    "_options": 1,
    "_refusals": 1,
    "_formulas": 1,
    "_foreign": 1,
    "_left_out": 1,
    "_records": 1,
    "_findings": 2,
    "_frames": 2,
    "_merge": 2,
    "_inputs": 2,  # its refusals speak of plans
    "_ghosts": 3,
    "_call": 3,
    "_masks": 3,
    "_missing": 3,
    "_moments": 4,
    "_batch_moments": 5,
    "_renorm": 5,
    "_running": 5,
    "_row_groups": 5,
    "_prepared": 6,
    "_functional": 8,
    "_layer_steps": 7,
    "_layers": 8,
    "torch": 8,  # a front end beside these: neither imports the other
    "_scaling": 9,
    "sklearn": 10,  # a front end, too
    "_blocks": 9,
    "_ranked": 9,
    "_gathering": 10,
    "tools": 11,
    "__init__": 12,
    "__main__": 13,
}
ALONE = "_reference"  # the specification: imports nothing of the package, and only tools/bench imports it, to verify
# Inside of two parts: a file, or a folder of the tools, imports from the rows above its own only.
INSIDE = {
    "torch": (
        (
            "_backend",
            "_activations",
            "_options",
            "_norms",
            "_report",
            "_batches",
            "_free",
            "_footprint",
            "_fuse/reads",
            "_causes",
        ),
        ("_operands", "_plain", "_forwards", "_fuse/watching", "_diagnosis_page", "_eps"),
        ("_positions", "_operations", "_merge", "_diagnosis"),
        ("_running", "_shared", "_accelerate", "_uses"),
        ("_layers", "_ranks", "functional"),
        ("_contexts",),
        ("_sync", "_layer_inputs", "_peers"),
        ("_fuse/step", "_lockstep", "_grouped"),
        ("_fuse/trace", "_fuse/aliases", "_definitions", "_recalibration"),
        ("_fuse/forward", "_fuse/patterns"),
        ("_convert",),
        ("_fuse/fuse", "fused", "_freeze"),
        ("_masked", "_theirs", "_groups"),
        ("_one_update", "_adapt"),
        ("_recalibrate",),
        ("_diagnose",),
        ("__init__",),
    ),
    "tools": (("text",), ("files", "explain"), ("data_commands", "why", "bench", "models"), ("cli",)),
}
MOST_EXCEPTED = 63  # lines kept from the formatter
MAY_IMPORT = {  # who, of the package
    "torch": ("torch", "tools/why", "tools/bench", "tools/models"),
    "greenlet": ("torch",),
    "sklearn": ("sklearn", "tools/why"),
    "matplotlib": ("tools/why",),
}
LIGHT = 11  # below this level numpy is the only thing from outside the standard library


def _module(path: Path) -> str:
    """The part of the package that a file belongs to: a module, or a subpackage as a whole."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _folder(path: Path) -> str:
    """The folder of a file, one level below the tools; of a module beside them its name."""
    parts = path.relative_to(PACKAGE).parts[:-1]
    return "/".join(parts[:2] if parts[:1] == ("tools",) else parts[:1]) or _module(path)


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
            own = _is_package(name)  # from batchnorm import moments: the names are modules, or functions of __init__
            found += [(f"{name}.{alias.name}" if own else name, node.lineno) for alias in node.names]
    return found


def _is_package(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == "batchnorm" and PACKAGE.joinpath(*parts[1:], "__init__.py").is_file()


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


@pytest.mark.skipif(not CPP.is_dir(), reason="the documents are in a checkout only")
def test_the_page_says_what_each_part_is_for():
    page = (CPP.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = "\n".join(line for line in page.splitlines() if line.startswith("| `"))
    files = {_module(path) for path in SOURCES if path.parent == PACKAGE} - {"__init__", "__main__"}
    files |= {path.stem for path in (PACKAGE / "torch").glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in SOURCES if path.parent.parent in (PACKAGE, PACKAGE / "tools")} - {""}
    names = {f"`{name}.py`" for name in files} | {f"{name}/`" for name in folders - {"tools"}}
    assert not [name for name in sorted(names) if name not in rows]


def test_imports_point_down():
    for path, (part, line) in [(p, each) for p in SOURCES for each in _inside(p)]:
        module, where = _module(path), f"{path.relative_to(PACKAGE)}:{line}"
        if part == ALONE:
            assert _folder(path) == "tools/bench", f"{where} imports {ALONE}: only tools/bench may"
            continue
        assert module != ALONE, f"{where}: {ALONE} imports {part}; it stands by itself"
        if module == "__init__" and line > _first_function(path):
            continue  # a function of the front page may load a heavier part when it is called
        if part == "__init__":
            pytest.fail(f"{where}: {module} imports the package itself, and so everything in it")
        assert LEVELS[part] < LEVELS[module], f"{where}: {module} imports {part}, which stands above it or beside it"


def _unit(part: str, parts: tuple[str, ...]) -> str:
    """What a file, or an imported name, below torch or tools belongs to there."""
    if part == "tools":
        return parts[0]
    return "/".join(parts[:2] if parts[0] == "_fuse" else parts[:1])


@pytest.mark.parametrize("part", INSIDE)
def test_imports_inside_a_part_point_down(part: str):
    """Lazy imports and those of types, too; so there is no circle."""
    rows = {unit: i for i, row in enumerate(INSIDE[part]) for unit in row}
    units = set()
    for path in sorted((PACKAGE / part).rglob("*.py")):
        if not _imports(path):
            continue  # a folder's front page that is words alone
        unit = _unit(part, path.relative_to(PACKAGE / part).with_suffix("").parts)
        units.add(unit)
        for other, line in _inside_of(part, path):
            where = f"{path.relative_to(PACKAGE)}:{line}"
            assert other == unit or rows[other] < rows[unit], f"{where}: {unit} imports {other}, which is not below it"
    assert units == set(rows)


def _pictures() -> dict[str, list[str]]:
    """What docs/architecture.md draws, each with the highest row first."""
    levels = [" · ".join(part for part, level in LEVELS.items() if level == i) for i in sorted({*LEVELS.values()})]
    inside = {part: [" · ".join(row) for row in rows] for part, rows in INSIDE.items()}
    return {"the package": levels[::-1], **{part: rows[::-1] for part, rows in inside.items()}, "cpp": [*FOLDERS[::-1]]}


@pytest.mark.skipif(not CPP.is_dir(), reason="the documents are in a checkout only")
@pytest.mark.parametrize("part", ["the package", *INSIDE, "cpp"])
def test_pictures_are_drawn(part: str):
    picture = "\n".join(_pictures()[part])
    page = CPP.parent / "docs" / "architecture.md"
    assert f"```\n{picture}\n```" in page.read_text(encoding="utf-8"), f"put this into {page.name}:\n{picture}"


def test_no_circle():
    """Among all files; but for the front page, whose functions load what they need when they are called."""
    graph = {path: {_file_of(name) for name, _ in _imports(path)} - {None, path} for path in SOURCES}
    del graph[PACKAGE / "__init__.py"]
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(graph)  # CycleError names one


def _file_of(name: str) -> Path | None:
    """The file of the package in which a name lies; not the front page."""
    top, *parts = name.split(".")
    for n in range(len(parts) if top == "batchnorm" else 0, 0, -1):
        place = PACKAGE.joinpath(*parts[:n])
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def _inside_of(part: str, path: Path) -> list[tuple[str, int]]:
    """Units of the same part that a file imports; its own, too."""
    names = [(tuple(name.split(".")), line) for name, line in _imports(path)]
    return [(_unit(part, name[2:]), line) for name, line in names if name[:2] == ("batchnorm", part) and len(name) > 2]


def _first_function(path: Path) -> int:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return min((node.lineno for node in tree.body if isinstance(node, ast.FunctionDef)), default=sys.maxsize)


def test_the_core_needs_numpy_only():
    """PyTorch and others where MAY_IMPORT says; below the tools nothing else but numpy."""
    for path, (name, line) in [(p, each) for p in SOURCES for each in _outside(p)]:
        module, where = _module(path), f"{path.relative_to(PACKAGE)}:{line}"
        light = module == ALONE or LEVELS[module] < LIGHT or module == "__init__"
        assert name != "pandas", f"{where} imports {name}"
        if name in MAY_IMPORT:
            assert _folder(path) in MAY_IMPORT[name], f"{where} imports {name}: only {', '.join(MAY_IMPORT[name])} may"
        assert not light or name in ("numpy", module, *MAY_IMPORT), f"{where}: {module} imports {name}"


def test_this_test_sees_imports():
    """The reading of imports above finds the ones that are there."""
    found = {part for part, _ in _inside(PACKAGE / "_prepared.py")}
    assert {"_moments", "_inputs", "_native"} <= found
    assert {name for name, _ in _outside(PACKAGE / "_prepared.py")} == {"numpy"}
    found = {part for part, _ in _inside_of("torch", PACKAGE / "torch" / "_fuse" / "patterns.py")}
    assert {"_activations", "_sync", "_fuse/step"} <= found


# python → libtorch → call → kernels → core → runtime: a folder includes those below it, and itself.
FOLDERS = ("runtime", "core", "kernels", "call", "libtorch", "python")


def _cpp() -> list[Path]:
    return sorted(CPP.rglob("*.h")) + sorted(CPP.rglob("*.cpp"))


@pytest.mark.skipif(not CPP.is_dir(), reason="the C++ sources are in a checkout only")
def test_includes_point_down():
    for path in _cpp():
        folder = path.parent.name
        assert path.parent.parent == CPP, path
        for header in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(encoding="utf-8"), flags=re.M):
            included = header.partition("/")[0]
            assert FOLDERS.index(included) <= FOLDERS.index(folder), f"{folder}/{path.name} includes {header}"


@pytest.mark.skipif(not CPP.is_dir(), reason="the C++ sources are in a checkout only")
def test_cpp_knows_neither_numpy_nor_pytorch():
    """Kernels include the standard library, intrinsics and each other; Python's headers belong to the bindings."""
    assert len(_cpp()) > 5
    for path in _cpp():
        included = re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(encoding="utf-8"), flags=re.M)
        for header in included:
            assert not re.search(r"^numpy|^torch/|ATen|c10", header), f"{path.name} includes {header}"
            if path.parent.name not in ("python", "libtorch"):
                assert not re.search(r"nanobind|Python\.h", header), f"{path.name} includes {header}"


LEAVES = tuple(f"kernels/{name}.h" for name in ("simd", "sums", "apply", "activation", "per_channel"))  # of leaves.cpp
FOR_LEAVES = (
    "core/convert.h",
    "core/numbers.h",
    "core/coefficients.h",
    "kernels/leaves.h",
    "core/problem.h",
)  # what they may include beside each other


@pytest.mark.skipif(not CPP.is_dir(), reason="the C++ sources are in a checkout only")
def test_only_leaves_know_an_instruction_set():
    """Intrinsics stand in simd.h; leaves include no part of the driver, and the driver none of them."""
    for path in _cpp():
        text = path.read_text(encoding="utf-8")
        if path.name != "simd.h":
            assert not re.search(r"\b_mm\d*_|immintrin|arm_neon", text), path.name
        included = re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, flags=re.M)
        is_leaf = str(path.relative_to(CPP)) in (*LEAVES, "kernels/leaves.cpp")
        for header in included:
            if is_leaf:
                assert header in (*LEAVES, *FOR_LEAVES), f"{path.name} includes {header}"
            else:
                assert header not in LEAVES, f"{path.name} includes {header}"


@pytest.mark.skipif(not CPP.is_dir(), reason="the C++ sources are in a checkout only")
def test_the_map_of_the_core_is_complete():
    """cpp/README.md names every unit in the table of its folder: the file, or the header of the same name."""
    text = (CPP / "README.md").read_text(encoding="utf-8")
    units = {f"{path.parent.name}/{path.stem}" for path in _cpp()}
    missing = [unit for unit in sorted(units) if not re.search(rf"`{unit}(\.h|\.cpp)`", text)]
    assert not missing, f"cpp/README.md does not name {missing}"


def test_formatting_is_left_to_the_formatter():
    """Lines that it would spread over a screen are excepted, and there are no more of them than there were."""
    excepted = [
        line for path in SOURCES for line in path.read_text(encoding="utf-8").splitlines() if "# fmt: skip" in line
    ]
    assert len(excepted) <= MOST_EXCEPTED, "fewer parameters, say as one NamedTuple, need no exception"
