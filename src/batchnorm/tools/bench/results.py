"""The one format of results: rows of times, and where, when, with what and of which sources they were measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ... import _native
from ..._threads import get_num_threads
from ..files import Refused
from ..files.atomic import replacing
from .problem import Problem

FORMAT = 2
Row = dict[str, Any]
Document = dict[str, Any]
PACKAGE = Path(__file__).resolve().parents[2]
LIBRARIES = ("batchnorm", "torch", "scikit-learn", "timm", "jax", "flax")


def row(problem: Problem, measured: Row) -> Row:
    """One row: what it is of, and what was measured."""
    return {**problem._asdict(), "threads": problem.threads or get_num_threads(), **measured}


def document(part: str, rows: list[Row]) -> Document:
    """Rows with where they were measured."""
    return {"format": FORMAT, "part": part, "machine": machine(), "date": date.today().isoformat(), "rows": rows}


def machine() -> dict[str, Any]:
    """Processor, memory, system, versions, kernels and commit."""
    return {
        "cpu": f"{_processor()} x {os.cpu_count()}",
        "memory_gib": None if (size := memory_bytes()) is None else round(size / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **{name: _version(name) for name in LIBRARIES},
        "kernels": _native.isa(),
        "threads": get_num_threads(),
        "commit": commit(),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """The memory of this machine, or of the container that the process runs in, where it is less."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return found
    return min(found, int(limit)) if limit.isdigit() else found


def commit() -> str | None:
    """The last commit that changed the sources, "+" behind it if they were changed since; None without a checkout."""
    top = PACKAGE.parents[1]
    if not (top / "src" / "batchnorm").is_dir():
        return None
    last = _git(top, "log", "-1", "--format=%h", "--", *SOURCES)
    return last and last + ("+" if _git(top, "status", "--porcelain", "-uno", *SOURCES) else "")


SOURCES = ("cpp", "src", ":!src/batchnorm/tools/bench")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def write(document: Document, path: Path) -> None:
    """As JSON, a row a line; the file appears whole or not at all."""
    rows = ",\n".join("  " + json.dumps(each, ensure_ascii=False, allow_nan=False) for each in document["rows"])
    head = json.dumps({**document, "rows": []}, ensure_ascii=False, indent=1, allow_nan=False)
    with replacing(path) as unfinished:
        unfinished.write_text(head.replace('"rows": []', f'"rows": [\n{rows}\n ]') + "\n", encoding="utf-8")


def read(path: Path) -> Document:
    """The document in a file that `write` made."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read as JSON ({error}). Name a file that --json wrote.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise Refused(f"{path} is not a result of this version of batchnorm bench. Measure again.")
    return found
