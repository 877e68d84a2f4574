"""Measure and write the results that the documents show; needs an idle machine.

    python benchmarks/run.py               # all three, one after the other
    python benchmarks/run.py core          # or one: core, dtypes, networks

core: the named shapes, every operation, 1 thread and all, every contestant. dtypes: the same shapes in 64 and 16 bits.
networks: every distinct batch-norm layer of the networks in shapes/, beside the copies and PyTorch.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

from batchnorm import get_num_threads
from batchnorm.bench.contestants import everybody
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
    who: tuple[str, ...] | None  # contestants; None for all
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
}  # fmt: skip


def distinct(lists: tuple[str, ...]) -> list[Shape]:
    """The shapes of several lists, each once, under the first name that it has."""
    found: dict[tuple[int, ...], Shape] = {}
    for name in lists:
        for shape in read_shapes(HERE / "shapes" / f"{name}.txt"):
            found.setdefault(shape.sizes, shape)
    return list(found.values())


def measure(name: str) -> None:
    """One part: measured, written, printed."""
    part, most, start = PARTS[name], get_num_threads(), time.perf_counter()
    threads = sorted({1, most}) if part.one_thread else [most]
    rows = list(problems(distinct(part.lists), part.dtypes, part.operations, threads))
    compiled = {(operation, most) for operation in part.operations}
    contestants = [c for c in everybody(compiled) if part.who is None or c.name in part.who]
    with progress_on(sys.stderr, still=True) as progress:
        document = run(rows, contestants, part.settings, progress(name, len(rows)), HERE.parent)
    target = HERE / "results" / f"{name}.json"
    target.write_text(written(document), encoding="utf-8")
    for one in table(document, 130):
        print(plain(one))
    print(f"{target.relative_to(HERE.parent)}: {len(rows)} rows in {(time.perf_counter() - start) / 60:.1f} minutes\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default all")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for name in options.parts or PARTS:
        measure(name)


if __name__ == "__main__":
    main()
