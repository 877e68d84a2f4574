"""Measure and write the results that the documents show; needs an idle machine.

    python benchmarks/run.py                  # everything, one part after the other: about an hour
    python benchmarks/run.py sizes threads    # or some parts
    python benchmarks/render.py               # then writes the tables and draws the figures

Single calls, verified and timed in turn with copies and other libraries: core (the named shapes, all operations, 1
thread and all), dtypes (the same in 64 and 16 bits), networks (every distinct batch-norm layer of the networks in
shapes/), sizes (64 KiB to 200 MiB).
More than single calls: groups (PyTorch's functions by layout and type, warm and in turn), torch_layers (forward and
backward through autograd), end_to_end and compiled (training steps), saved (bytes kept for the backward), threads,
overhead, variants (masks, weights, ghosts), sync (two processes), roofline (what the machine can read and copy).
Only when they are named, on machines other than the one of everything else: another_machine and
another_machine_layers (core and torch_layers in short; of a processor with many cores, say), gpu.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from batchnorm import get_num_threads
from batchnorm.bench.contestants import everybody
from batchnorm.bench.contestants.contract import Contestant
from batchnorm.bench.document import Settings, run, written
from batchnorm.bench.problem import OPERATIONS, Shape, problems, read_shapes
from batchnorm.bench.table import table
from batchnorm.explanation.lines import plain
from batchnorm.files.progress import progress_on

HERE = Path(__file__).parent
PLAIN = ("forward", "evaluation", "backward")
NETWORKS = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "densenet121", "unet", "unet3d",
    "mlp",
)  # fmt: skip


class Part(NamedTuple):
    """What one file of results holds."""

    lists: tuple[str, ...]
    dtypes: tuple[str, ...]
    operations: tuple[str, ...]
    one_thread: bool
    who: tuple[str, ...] | None  # contestants, by name or by key; None for all
    settings: Settings


PARTS = {
    "core": Part(("core",), ("float32",), tuple(OPERATIONS), True, None, Settings(rounds=11, budget=0.8)),
    "dtypes": Part(
        ("core",), ("bfloat16", "float16", "float64"), PLAIN, False,
        ("memcpy", "streaming copy", "ours", "eager", "onednn"), Settings(rounds=9, budget=0.4),
    ),
    "networks": Part(
        NETWORKS, ("float32",), ("forward", "backward"), False,
        ("memcpy", "streaming copy", "ours", "eager"), Settings(rounds=7, budget=0.3),
    ),
    "another_machine": Part(
        ("core",), ("float32",), PLAIN, False,
        ("memcpy", "streaming copy", "ours", "eager"), Settings(rounds=9, budget=0.4),
    ),
    "sizes": Part(
        ("sizes",), ("float32",), ("forward", "backward"), False,
        ("memcpy reused", "streaming copy reused", "ours", "eager fresh", "onednn fresh"),
        Settings(rounds=11, budget=0.5),
    ),
}  # fmt: skip


class Other(NamedTuple):
    """A part that measures more than single calls: the module beside this one, and its functions."""

    module: str
    measure: str = "measure"
    tables: str = "tables"

    def call(self, function: str, *arguments: Any) -> Any:
        """Call one of its functions; the module is imported now, since it imports PyTorch."""
        return getattr(import_module(self.module), function)(*arguments)


OTHERS = {
    "groups": Other("groups"),
    "torch_layers": Other("torch_layers"),
    "end_to_end": Other("end_to_end"),
    "compiled": Other("end_to_end", "measure_compiled", "tables_compiled"),
    "saved": Other("saved"),
    "threads": Other("threads"),
    "overhead": Other("overhead"),
    "variants": Other("variants"),
    "sync": Other("sync"),
    "roofline": Other("roofline"),
    "another_machine_layers": Other("torch_layers", "measure_shortly", "tables_of_another_machine"),
    "gpu": Other("gpu"),
}

ELSEWHERE = ("another_machine", "another_machine_layers", "gpu")


def distinct(lists: tuple[str, ...]) -> list[Shape]:
    """The shapes of several lists, each once, under the first name that it has."""
    found: dict[tuple[int, ...], Shape] = {}
    for name in lists:
        for shape in read_shapes(HERE / "shapes" / f"{name}.txt"):
            found.setdefault(shape.sizes, shape)
    return list(found.values())


def contestants(part: Part, most: int) -> list[Contestant]:
    """Those that take part."""
    all_of_them = everybody({(operation, most) for operation in part.operations})
    return [c for c in all_of_them if part.who is None or c.name in part.who or c.key in part.who]


def measure_calls(name: str) -> tuple[dict[str, Any], str]:
    """A part of single calls: the document, and its table as text."""
    part, most = PARTS[name], get_num_threads()
    threads = sorted({1, most}) if part.one_thread else [most]
    rows = list(problems(distinct(part.lists), part.dtypes, part.operations, threads))
    with progress_on(sys.stderr, still=True) as progress:
        document = run(rows, contestants(part, most), part.settings, progress(name, len(rows)), HERE.parent)
    return document, "\n".join(map(plain, table(document, 130)))


def measure_other(name: str) -> tuple[dict[str, Any], str]:
    """Another part: the document, and its tables in Markdown."""
    part = OTHERS[name]
    document = part.call(part.measure)
    return document, "\n\n".join(part.call(part.tables, document).values())


def measure(name: str) -> None:
    """One part: measured, written, printed."""
    start = time.perf_counter()
    document, text = measure_calls(name) if name in PARTS else measure_other(name)
    target = HERE / "results" / f"{name}.json"
    target.write_text(written(document), encoding="utf-8")
    print(text)
    minutes = (time.perf_counter() - start) / 60
    print(f"{target.relative_to(HERE.parent)}: {len(document['rows'])} rows in {minutes:.1f} minutes\n")


def main() -> None:
    names = [*PARTS, *OTHERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(names)}; default all")
    options = parser.parse_args()
    unknown = set(options.parts) - set(names)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for name in options.parts or (name for name in names if name not in ELSEWHERE):
        measure(name)


if __name__ == "__main__":
    main()
