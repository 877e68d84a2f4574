"""Measure what the documents show, on an idle machine, and write it there.

    python benchmarks/run.py                  # everything, a quarter of an hour on two cores; then the documents
    python benchmarks/run.py tiny networks    # or some parts
    python benchmarks/run.py --resume         # only parts of which there is no result of these sources
    python benchmarks/run.py --render         # measure nothing: write tables and figure from the results

A part is a file of results, written whole when its last row is measured. `gpu` is measured only when it is named.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

from batchnorm import get_num_threads
from batchnorm.tools.bench.functions import set_threads
from batchnorm.tools.bench.results import commit, document, read, row, write
from batchnorm.tools.bench.timing import keep_memory
from rows import PARTS

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))  # what networks are made of

RESULTS = Path(__file__).parent / "results"


def measure(name: str, threads: int) -> None:
    """One part, a line of progress for each row."""
    part, rows, start = PARTS[name], [], time.perf_counter()
    module, _, function = part.measure.rpartition(".")
    measured = getattr(import_module(module), function)
    for number, problem in enumerate(part.problems, 1):
        set_threads(problem.threads or threads)
        try:
            found = measured(problem, part.settings)
        except ImportError as error:
            found = {"times": {}, "unable": {problem.what or name: str(error)}}
        rows.append(row(problem, found))
        progress = f"{name} {number}/{len(part.problems)}, {time.perf_counter() - start:.0f} s: {problem.title}"
        print(progress, file=sys.stderr, flush=True)
    set_threads(threads)
    write(document(name, rows), RESULTS / f"{name}.json")


def is_measured(name: str) -> bool:
    """Whether there is a result of the sources as they are."""
    path = RESULTS / f"{name}.json"
    return path.exists() and read(path)["machine"]["commit"] == commit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default all but gpu")
    parser.add_argument("--resume", action="store_true", help="leave out parts that are measured")
    parser.add_argument("--render", action="store_true", help="only write the documents")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    keep_memory()
    if not options.render:
        for name in options.parts or (name for name, part in PARTS.items() if not part.named):
            if not (options.resume and is_measured(name)):
                measure(name, get_num_threads())
    import_module("render").main()


if __name__ == "__main__":
    main()
