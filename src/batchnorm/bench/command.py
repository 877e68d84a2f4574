"""``batchnorm bench``: its options, and what is done with them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .document import Settings
    from .problem import Problem

MOST_THREADS = 4096
COMPILED = ("forward", "backward")  # by torch.compile, which takes seconds for each shape and layout


def add_bench(commands: Any) -> None:
    """Add the command to the commands of ``batchnorm``."""
    parser = commands.add_parser(
        "bench",
        help="measure the speed on this machine, beside memcpy and other libraries",
        description="Verify, then time the functions on named shapes, in turn with two kinds of copy, PyTorch, and "
        "oneDNN, JAX, NumPy and scikit-learn where they are installed. Takes about two minutes; wants an idle machine.",
    )
    parser.add_argument(
        "--threads", type=_threads, metavar="N,M", help="numbers of threads, each measured; default one per processor"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--shapes", type=Path, metavar="FILE", help="a list of shapes, each line as: name, 32x64x56x56")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and nothing compiled: half a minute")
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
    from ..explanation.terminal import columns_of, show
    from ..files import Refused
    from ..files.atomic import check_output, replacing
    from ..files.progress import progress_on
    from ..functional import get_num_threads, set_num_threads
    from .contestants import everybody
    from .document import run, written
    from .table import table
    from .verification import Wrong

    if options.json is not None:
        check_output(options.json)  # before the minutes, not after
    before = get_num_threads()
    rows, settings = _plan(options, before)
    compiled = {(kind, max(p.threads for p in rows)) for kind in COMPILED} if not options.quick else set()
    try:
        with progress_on(sys.stderr, still=True) as progress:
            document = run(rows, everybody(compiled), settings, progress("measuring", len(rows)))
    except Wrong as wrong:
        raise Refused(f"{wrong}. That is a fault of this library: please report it, with your processor.") from wrong
    except MemoryError as error:
        raise Refused(f"the memory does not suffice ({error}). Name smaller shapes with --shapes.") from error
    finally:
        set_num_threads(before)
    if options.json is not None:
        with replacing(options.json) as unfinished:
            unfinished.write_text(written(document), encoding="utf-8")
    show(table(document, columns_of(sys.stdout)), sys.stdout)


def _plan(options: argparse.Namespace, threads: int) -> tuple[list[Problem], Settings]:
    from .document import Settings
    from .machine import memory_bytes
    from .problem import check_memory, problems, read_shapes

    path = options.shapes or Path(__file__).with_name("shapes.txt")
    shapes = read_shapes(path)
    check_memory(shapes, path, memory_bytes())
    operations = ("forward", "backward") if options.quick else ("forward", "evaluation", "backward")
    rows = list(problems(shapes, ("float32",), operations, options.threads or (threads,)))
    return rows, Settings(rounds=3, budget=0.3) if options.quick else Settings(rounds=11, budget=1.5)
