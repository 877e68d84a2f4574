"""What a machine has left: memory of a device, and threads."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

_THREADS = 2048  # of one work; each thread of ours brings its own of OpenMP's
_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a device; infinite where nothing tells."""
    if device.type == "cpu":
        return min(_of_system(), _of_group("memory"))
    if device.type in ("cuda", "xpu"):
        return float(getattr(torch, device.type).mem_get_info(device)[0])
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return math.inf


def free_threads(device: torch.device) -> int:
    """How many threads may compute on a device, if each has its helpers."""
    helpers = torch.get_num_threads() if device.type == "cpu" else 1
    return max(1, int(min(_THREADS, _of_group("pids") / 2) // helpers))


def _of_system() -> float:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))  # half of which is allowed
    except (AttributeError, ValueError, OSError):
        return math.inf


def _of_group(what: str) -> float:
    """What a container has left, in control groups of version 2."""
    try:
        most = (_CGROUP / f"{what}.max").read_text(encoding="ascii").strip()
        used = (_CGROUP / f"{what}.current").read_text(encoding="ascii").strip()
        return math.inf if most == "max" else max(0.0, float(most) - float(used))
    except (OSError, ValueError):
        return math.inf
