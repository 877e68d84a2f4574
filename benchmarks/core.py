"""Time the NumPy functions against a copy of the same array and against PyTorch, interleaved, each row verified first.

python benchmarks/core.py --threads 2 --json benchmarks/results/core.json
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import batchnorm as bn
from batchnorm import _reference

HERE = Path(__file__).parent
EPS = 1e-5


class Problem(NamedTuple):
    """A named shape in one memory layout."""

    name: str
    shape: tuple[int, ...]
    layout: str


def read_shapes(path: Path) -> list[Problem]:
    rows = [line.split(",") for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return [Problem(n.strip(), tuple(map(int, s.strip().split("x"))), layout.strip()) for n, s, layout in rows]


def random_tensor(problem: Problem, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(problem.shape, generator=generator)
    return x.contiguous(memory_format=torch.channels_last) if problem.layout == "channels_last" else x


def verify(x: np.ndarray, g: np.ndarray, y: np.ndarray, grad_x: np.ndarray) -> None:
    """Compare with the float64 specification: a fast wrong answer is not timed."""
    exact = _reference.arrange(x, 1)
    ones = np.ones(exact.shape[1])
    _, mean, var = _reference.moments(exact)
    xhat, z = _reference.normalize(exact, mean, var, ones, 0 * ones, EPS)
    dx, _, _ = _reference.backward(_reference.arrange(g, 1), xhat, var, ones, EPS)
    assert np.all(np.abs(_reference.arrange(y, 1) - z) <= 2.5e-7 * np.maximum(1, np.abs(z)))
    assert np.max(np.abs(_reference.arrange(grad_x, 1) - dx)) <= 1e-6 * np.max(np.abs(dx))


def contestants(problem: Problem) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    x, g = random_tensor(problem, generator), random_tensor(problem, generator)
    C = problem.shape[1]
    weight, bias, mean, var = torch.ones(C), torch.zeros(C), torch.zeros(C), torch.ones(C)
    xn, gn, wn, bias_n = x.numpy(), g.numpy(), weight.numpy(), bias.numpy()
    y, m = bn.batch_norm(xn, wn, bias_n)
    verify(xn, gn, y, bn.batch_norm_backward(gn, xn, m, wn, bias_n).x)
    _, save_mean, save_rstd = torch.native_batch_norm(x, weight, bias, mean, var, True, 0.1, EPS)
    out, copy_of_x = np.empty_like(xn), torch.empty_like(x)
    torch_backward = torch.ops.aten.native_batch_norm_backward
    saved = (g, x, weight, mean, var, save_mean, save_rstd, True, EPS, [True, True, True])
    return {
        "copy": lambda: copy_of_x.copy_(x),
        "forward torch": lambda: torch.native_batch_norm(x, weight, bias, mean, var, True, 0.1, EPS),
        "forward": lambda: bn.batch_norm(xn, wn, bias_n),
        "forward out": lambda: bn.batch_norm(xn, wn, bias_n, out=out),
        "evaluation torch": lambda: torch.native_batch_norm(x, weight, bias, mean, var, False, 0.1, EPS),
        "evaluation": lambda: bn.normalize(xn, m, wn, bias_n),
        "backward torch": lambda: torch_backward(*saved),
        "backward": lambda: bn.batch_norm_backward(gn, xn, m, wn, bias_n),
        "backward out": lambda: bn.batch_norm_backward(gn, xn, m, wn, bias_n, out=out),
    }


# Each contestant runs untimed for this long before its timed calls: PyTorch's OpenMP threads spin for 10 to 20 ms after
# a call, on processors that the next contestant needs, and a pause instead would let caches and clocks go cold.
SETTLE = 0.03
CALLS = 5


def measure(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            settled = time.perf_counter() + SETTLE
            while time.perf_counter() < settled:
                function()
            for _ in range(CALLS):
                start = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - start)
    return times


def summarise(problem: Problem, times: dict[str, list[float]]) -> dict[str, object]:
    median = {name: float(np.median(values)) for name, values in times.items()}
    spread = {name: [float(q) for q in np.percentile(values, [25, 75])] for name, values in times.items()}
    return {**problem._asdict(), "median_s": median, "quartiles_s": spread}


def describe_machine(threads: int) -> dict[str, object]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": f"{cpu[0]} x {len(cpu)}",
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "kernels": bn._native.isa(),
        "threads": threads,
        "commit": commit.stdout.strip(),
    }


def show(rows: list[dict], console: Console) -> None:
    table = Table(title="time as a multiple of a copy, and how many times faster than PyTorch (medians)")
    for heading in ("shape", "layout", "copy ms"):
        table.add_column(heading)
    kinds = ("forward", "forward out", "evaluation", "backward", "backward out")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for row in rows:
        t = row["median_s"]
        cells = [f"{t[k] / t['copy']:.2f}  {t[k.removesuffix(' out') + ' torch'] / t[k]:.1f}x" for k in kinds]
        table.add_row("x".join(map(str, row["shape"])), row["layout"], f"{t['copy'] * 1e3:.3f}", *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=bn.get_num_threads())
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--shapes", type=Path, default=HERE / "shapes" / "core.txt")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bn.set_num_threads(options.threads)
    console = Console(width=150)
    rows = []
    for problem in track(read_shapes(options.shapes), "measuring", console=console):
        rows.append(summarise(problem, measure(contestants(problem), options.repeats)))
    machine = describe_machine(options.threads)
    show(rows, console)
    console.print(machine)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
