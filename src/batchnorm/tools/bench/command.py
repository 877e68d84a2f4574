"""``batchnorm bench``: its options, and what is done with them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .problem import Problem

MOST_THREADS = 4096


def add_bench(commands: Any) -> None:
    """Add the command to the commands of ``batchnorm``."""
    parser = commands.add_parser(
        "bench",
        help="measure the speed on this machine, beside copies, PyTorch and oneDNN",
        description="Check the results of the functions on named shapes, then time them in turn with copies of the "
        "tensor. If PyTorch is installed, time it, too: as it is, accelerated, and with oneDNN's kernels. The "
        "command takes about a minute and needs an idle machine.",
    )
    parser.add_argument(
        "--threads",
        type=_threads,
        metavar="N,M",
        help="measure with each of these numbers of threads (default: one per processor)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument(
        "--shapes", type=Path, metavar="FILE", help="a file with one shape per line, such as: name, 32x64x56x56"
    )
    parser.add_argument("--quick", action="store_true", help="measure fewer rounds, and contiguous tensors only")
    parser.set_defaults(run=run_bench)


def _threads(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdigit() and 1 <= int(part) <= MOST_THREADS for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers of threads: give integers from 1 to {MOST_THREADS}, such as 1,2"
        )
    return tuple(sorted({int(part) for part in parts}))


def run_bench(options: argparse.Namespace) -> None:
    """Do what the options say."""
    from ..._threads import get_num_threads
    from ..files import Refused
    from ..files.atomic import check_output
    from ..files.progress import progress_on
    from ..text.terminal import columns_of, show
    from .functions import row_of, set_threads
    from .problem import Wrong
    from .results import document, row, write
    from .table import functions
    from .timing import Settings, keep_memory

    if options.json is not None:
        check_output(options.json)  # before the minute, not after
    before, rows = get_num_threads(), []
    problems = _problems(options, before)
    settings = Settings(rounds=3, budget=0.3) if options.quick else Settings(rounds=15, budget=3.0)
    keep_memory()
    try:
        with progress_on(sys.stderr, still=True) as progress:
            advance = progress("measuring", len(problems))
            for problem in problems:
                rows.append(row(problem, row_of(problem, settings)))
                advance(1)
    except Wrong as wrong:
        raise Refused(f"{wrong}. That is a fault of this library: please report it, with your processor.") from wrong
    except MemoryError as error:
        raise Refused(f"the memory does not suffice ({error}). Name smaller shapes with --shapes.") from error
    finally:
        set_threads(before)
    found = document("functions", rows)
    if options.json is not None:
        write(found, options.json)
    show(functions(found, columns_of(sys.stdout)), sys.stdout)


def _problems(options: argparse.Namespace, threads: int) -> list[Problem]:
    from .problem import SHAPES, Problem, layouts, read_shapes
    from .results import memory_bytes

    shapes = SHAPES if options.shapes is None else read_shapes(options.shapes, memory_bytes())
    return [
        Problem(shape, layout, "float32", count)
        for shape in shapes
        for layout in (layouts(shape)[:1] if options.quick else layouts(shape))
        for count in options.threads or (threads,)
    ]
