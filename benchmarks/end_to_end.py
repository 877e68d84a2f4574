"""Training steps of MobileNetV2, ResNet-18 and ResNet-50: time, in turn, and peak memory, in processes of their own.

    python benchmarks/run.py end_to_end compiled

`end_to_end` runs PyTorch's own, accelerated, and fused, in float32 and under bfloat16 autocast; and the network with
batch norm and activations taken out, for no batch norm can gain more than that. `compiled` runs the same network
through torch.compile, and only ResNet-18, because each way and layout costs a compilation of minutes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from batchnorm.bench.problem import LAYOUTS
from batchnorm.bench.timing import Runner
from batchnorm.bench.timing import measure as timed
from record import Document, digits, document, machine, markdown, median, seconds, spread
from steps import COMPILED, EAGER, LIMIT, WAYS, batch, network, stepper

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Sizes(NamedTuple):
    """Of a batch, and how long to measure."""

    count: int = 16
    side: int = 128
    rounds: int = 9
    budget: float = 40.0  # seconds, of a network and layout


def measure(
    networks: Sequence[str] = ("MobileNetV2", "ResNet-18", "ResNet-50"),
    ways: Sequence[str] = (*EAGER, *LIMIT),
    sizes: Sizes = Sizes(),  # noqa: B008  # a tuple
    layouts: Sequence[str] = LAYOUTS,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
) -> Document:
    rows: list[dict[str, Any]] = []
    for name, dtype, layout in product(networks, dtypes, layouts):
        case = {"network": name, "dtype": dtype, "layout": layout, "threads": torch.get_num_threads()}
        times = step_times(name, dtype, layout, ways, sizes)
        measured = [way for way in ways if way not in LIMIT] if dtype == "float32" else []
        peaks = {way: peak_in_a_process(name, layout, way, sizes) for way in measured}
        rows.append({**case, **times, "peak": peaks})
        print(
            f"{name} {dtype} {layout}: " + ", ".join(f"{w} {median(rows[-1], w):.3f} s" for w in ways), file=sys.stderr
        )
    return document(rows, sizes=sizes._asdict())


def measure_compiled(sizes: Sizes = Sizes(), layouts: Sequence[str] = LAYOUTS) -> Document:  # noqa: B008
    return measure(("ResNet-18",), ("stock", "fused", *COMPILED), sizes, layouts, ("float32",))


# --- time


def step_times(name: str, dtype: str, layout: str, ways: Sequence[str], sizes: Sizes) -> dict[str, Any]:
    """Verify that all ways compute the same, then let their steps take turns."""
    given = batch(sizes.count, sizes.side, layout)
    runners, first = {}, {}
    for way in ways:
        model = network(name, way, layout)
        step = stepper(model, dtype)
        with WAYS[way].within():
            first[way] = [float(step(given)), gradient_norm(model)]
        runners[way] = Runner(lambda step=step: step(given), "torch", WAYS[way].within)
    verify({way: found for way, found in first.items() if way not in LIMIT}, 1 if dtype == "float32" else 10)
    return {"first": first, "times": seconds(timed(runners, sizes.rounds, sizes.budget))}


def gradient_norm(model: torch.nn.Module) -> float:
    return float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())


def verify(first: dict[str, list[float]], times: float) -> None:
    """A fast wrong step is not timed: loss and length of the gradient of the first step agree, in 16 bits less so."""
    expected = first["stock"]
    for way, found in first.items():
        for name, got, want, off in zip(("loss", "gradient"), found, expected, (1e-3, 2e-2), strict=True):
            if not abs(got - want) <= times * off * abs(want):
                raise SystemExit(f"{way}: {name} of the first step is {got}; PyTorch's own is {want}")


# --- memory


def peak_in_a_process(name: str, layout: str, way: str, sizes: Sizes) -> int | None:
    """Bytes that a step needs beyond what the process holds before it, measured where nothing else has run."""
    if not CLEAR.exists():
        return None
    arguments = [name, layout, way, str(sizes.count), str(sizes.side)]
    command = [sys.executable, str(Path(__file__).resolve()), "--peak", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def peak(name: str, layout: str, way: str, count: int, side: int) -> int:
    """Run in a process of its own: load and compile everything, return freed memory, then watch two steps."""
    step, given = stepper(network(name, way, layout)), batch(count, side, layout)
    with WAYS[way].within():
        # What is compiled is compiled for this batch; else a small one loads all libraries.
        step(given if way in COMPILED else batch(2, 32, layout))
        give_back()
        before = status("VmRSS")
        CLEAR.write_text("5")  # sets the peak to what is there now
        for _ in range(2):
            step(given)
    return status("VmHWM") - before


def give_back() -> None:
    """Let glibc return what it keeps."""
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def status(field: str) -> int:
    """Bytes, of a field of Linux's description of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


# --- tables


def tables(results: Document, mark: str = "end-to-end") -> dict[str, str]:
    """A line for each network, dtype, layout and way."""
    head = ["network", "dtype", "layout", "step", "ms", "spread", "times faster", "share of the gain", "peak, MiB"]
    rows: list[list[str]] = []
    for row in results["rows"]:
        stock = median(row, "stock")
        for way in row["times"]:
            held, time = row["peak"].get(way), median(row, way)
            possible = stock - median(row, "limit") if "limit" in row["times"] else 0.0
            rows.append(
                [
                    row["network"], row["dtype"], row["layout"].replace("_", "-"), WAYS[way].what, digits(time * 1e3),
                    spread(row, way), f"{stock / time:.2f}",
                    f"{(stock - time) / possible:.2f}" if possible > 0 else "–",
                    "–" if held is None else digits(held / 2**20),
                ]
            )  # fmt: skip
    s = results["sizes"]
    note = f"Batch {s['count']}, {s['side']}×{s['side']} pixels. {machine(results)}; medians of interleaved steps."
    return {mark: f"{markdown(head, rows, 4)}\n\n{note}"}


def tables_compiled(results: Document) -> dict[str, str]:
    return tables(results, "compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=peak.__doc__)
    parser.add_argument("--peak", nargs=5, required=True, metavar=("NETWORK", "LAYOUT", "WAY", "BATCH", "SIDE"))
    name, layout, way, count, side = parser.parse_args().peak
    print(json.dumps(peak(name, layout, way, int(count), int(side))))


if __name__ == "__main__":
    main()
