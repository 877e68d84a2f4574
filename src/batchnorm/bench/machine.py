"""Where and with what the numbers were measured."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _native
from .contestants.contract import Contestant, version_of

PACKAGE = Path(__file__).resolve().parents[1]


def describe(contestants: Sequence[Contestant], checkout: Path | None = None) -> dict[str, Any]:
    """Processor, system, versions, kernels and commit; where the package is installed, that of a checkout like it."""
    versions = {c.name: version for c in contestants if (version := c.version()) is not None}
    return {
        "cpu": f"{_processor()} x {os.cpu_count()}",
        "caches": _caches(),
        "memory_gib": _memory(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": versions.get("eager"),
        "onednn": versions.get("onednn"),
        "jax": versions.get("jax"),
        "scikit-learn": versions.get("scikit-learn"),
        "batchnorm": version_of("batchnorm"),
        "kernels": _native.isa(),
        "commit": _commit(checkout),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    """The first processor's caches, as the system reports them; virtual machines are often wrong here."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / part).read_text().strip() for part in ("level", "type", "size"))
        except OSError:
            continue
        found[f"L{level} {kind.lower()}"] = size
    return found


def _memory() -> float | None:
    found = memory_bytes()
    return None if found is None else round(found / 2**30, 1)


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


def _commit(checkout: Path | None) -> str | None:
    """The commit of the sources, and "+" if they were changed since; None where they are of no checkout."""
    top = checkout or PACKAGE.parents[1]
    sources = top / "src" / "batchnorm"
    if not sources.is_dir() or (sources.resolve() != PACKAGE and _python(sources) != _python(PACKAGE)):
        return None
    commit, changed = (
        _git(top, "rev-parse", "--short", "HEAD"),
        _git(top, "status", "--porcelain", "-uno", "src", "cpp"),
    )
    return None if commit is None else commit + ("+" if changed else "")


def _python(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.py")}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
