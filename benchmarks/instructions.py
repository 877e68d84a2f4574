"""Instructions per element, counted by Valgrind's callgrind: what else runs on the machine does not matter.

    python benchmarks/instructions.py

writes the table of docs/performance.md. A child runs every call once under callgrind, on one thread; before and after
each, this process has the counts written out and set to zero. What the interpreter does around a call is measured with
an empty one, and subtracted. Callgrind knows no AVX-512: the counts are those of AVX2.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

SHAPES = {  # large enough that what is done once for a call does not count
    "contiguous, 28×28": ((32, 64, 28, 28), False),
    "contiguous, 7×7": ((256, 128, 7, 7), False),
    "channels-last, 28×28": ((32, 64, 28, 28), True),
    "(N, C)": ((8192, 128), False),
}
OPERATIONS = ("statistics", "evaluation", "forward", "backward")
WEIGHTS = ("", "mask", "weights")
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
MARK = "<!-- {}instructions -->"


def calls() -> Iterator[tuple[str, Callable[[], object], int]]:
    """Name, call and number of elements; first the empty call."""
    import numpy as np

    import batchnorm as bn

    bn.set_num_threads(1)
    rng = np.random.default_rng(0)
    yield "", lambda: None, 1
    for name, (shape, last) in SHAPES.items():
        order = np.moveaxis if len(shape) > 2 else (lambda a, *_: a)

        def array(shape=shape, last=last, order=order):
            a = rng.normal(size=shape).astype(np.float32)
            return order(np.ascontiguousarray(order(a, 1, -1)), -1, 1) if last else a

        x, g = array(), array()
        y, m = bn.batch_norm(x)
        positions = (shape[0], *shape[2:])
        counted = rng.random(positions) < 0.7
        for kind in WEIGHTS:
            given = {"mask": {"mask": counted}, "weights": {"weights": (counted * rng.random(positions)).astype("f4")}}
            options = given.get(kind, {})
            m = bn.moments(x, **options)
            works = {
                "statistics": lambda x=x, o=options: bn.moments(x, **o),
                "evaluation": lambda x=x, m=m, y=y: bn.normalize(x, m, out=y),
                "forward": lambda x=x, y=y, o=options: bn.batch_norm(x, out=y, **o),
                "backward": lambda x=x, g=g, m=m, y=y, o=options: bn.batch_norm_backward(g, x, m, out=y, **o),
            }
            for operation, call in works.items():
                if operation != "evaluation" or not kind:
                    yield f"{name}|{operation}|{kind}", call, x.size


def child() -> None:
    """Run the calls; a line from the parent begins and ends each."""
    for name, call, size in calls():
        call()
        print(f"{name}\t{size}", flush=True)
        sys.stdin.readline()
        call()
        print("ran", flush=True)
        sys.stdin.readline()


def count() -> dict[str, float]:
    """Instructions per element of each call."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        out = f"{place}/out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, __file__, "--child"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdin
        assert process.stdout
        dumps = 0

        def dump() -> int:
            nonlocal dumps
            subprocess.run(["vgdb", f"--pid={process.pid}", "dump"], check=True, capture_output=True)
            dumps += 1
            counts = re.search(r"^totals: (\d+)", Path(f"{out}.{dumps}").read_text(), re.MULTILINE)
            assert counts
            return int(counts[1])

        def go_on() -> None:
            process.stdin.write("\n")
            process.stdin.flush()

        empty = 0
        while line := process.stdout.readline():
            name, size = line.rstrip("\n").split("\t")
            dump()
            go_on()
            assert process.stdout.readline() == "ran\n"
            spent = dump()
            go_on()
            if name:
                found[name] = (spent - empty) / int(size)
            else:
                empty = spent
    return found


def table(found: dict[str, float]) -> str:
    """Of the page: a row for each layout, a column for each operation; masked and weighted behind the plain number."""
    lines = ["| float32, AVX2 | " + " | ".join(OPERATIONS) + " |", "|---|" + "---:|" * len(OPERATIONS)]
    for name in SHAPES:
        cells = []
        for operation in OPERATIONS:
            numbers = [found.get(f"{name}|{operation}|{kind}") for kind in WEIGHTS]
            cells.append(" / ".join(f"{n:.2f}" for n in numbers if n is not None))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Count, print, and put the table into the page."""
    if not (shutil.which("valgrind") and shutil.which("vgdb")):
        sys.exit("instructions.py needs valgrind and its vgdb on the path; install your system's package valgrind")
    rows = table(count())
    print(rows)
    start, end = MARK.format(""), MARK.format("/")
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(start)
    PAGE.write_text(f"{before}{start}\n\n{rows}\n\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    child() if sys.argv[1:] == ["--child"] else main()
