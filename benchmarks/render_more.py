"""Write the tables of the networks' layers and of other dtypes into docs/performance.md, from what run.py measured.

    python benchmarks/render_more.py

A part whose results are not there stays empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from batchnorm.bench.document import read
from batchnorm.bench.problem import LAYOUTS, Shape, read_shapes
from batchnorm.bench.ratios import in_copies, mean, seconds, times_faster
from batchnorm.bench.table import number

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
Document = dict[str, Any]


def markdown(head: list[str], rows: list[list[str]], words: int) -> str:
    """A table whose first `words` columns are texts and the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))


def machine(document: Document) -> str:
    threads = max(row["threads"] for row in document["rows"])
    where = "{cpu}, {threads} threads, {kernels} kernels, PyTorch {torch}, commit {commit}"
    return where.format(**document["machine"], threads=threads)


def networks(document: Document, lists: dict[str, Sequence[Shape]]) -> str:
    """For each network the time of all its batch-norm layers, one after the other, ours and PyTorch's."""
    times: dict[tuple[Any, ...], tuple[float, float]] = {}
    for row in document["rows"]:
        ours, theirs = seconds(row, "ours", "fresh"), seconds(row, "eager", "fresh")
        if ours is not None and theirs is not None:
            times[(*row["shape"], row["layout"], row["operation"])] = (ours, theirs)
    table = []
    for name, shapes in lists.items():
        for layout in LAYOUTS:
            some = [shape for shape in shapes if layout in shape.layouts]
            if not some:
                continue
            cells, worst = [], (float("inf"), "")
            for operation in ("forward", "backward"):
                pairs = [(shape, *times[(*shape.sizes, layout, operation)]) for shape in some]
                ours, theirs = (sum(shape.layers * pair[i] for shape, *pair in pairs) for i in (0, 1))
                cells += [f"{theirs * 1e3:#.3g}".rstrip("."), f"{theirs / ours:.2f}"]
                for shape, our, their in pairs:
                    worst = min(worst, (their / our, f"{'×'.join(map(str, shape.sizes))} {operation}"))
            layers = str(sum(shape.layers for shape in some))
            table.append([name, layers, layout.replace("_", "-"), *cells, f"{worst[1]}: {worst[0]:.2f}"])
    head = ["network", "layers", "layout", "forward, ms", "faster", "backward, ms", "faster", "the worst layer"]
    return (
        "## All layers of a network\n\n"
        "Every batch-norm layer of networks at their usual sizes (`benchmarks/shapes/`), timed alone as above, and\n"
        "added up: PyTorch's milliseconds, and how many times faster ours are; and the layer for which that is least.\n"
        "In a network, what stands before a layer has filled the caches; that is not in these sums.\n\n"
        f"{markdown(head, table, 3)}\n\n{machine(document)}; medians, new outputs for both."
    )


def dtypes(document: Document) -> str:
    """Geometric means over the shapes, for each dtype, layout and operation."""
    rows = document["rows"]
    kinds = list(dict.fromkeys((row["dtype"], row["layout"]) for row in rows))
    table = []
    for dtype, layout in kinds:
        cells = []
        for operation in ("forward", "evaluation", "backward"):
            some = [r for r in rows if (r["dtype"], r["layout"], r["operation"]) == (dtype, layout, operation)]
            faster = [x for r in some if (x := times_faster(r, "eager", "fresh")) is not None]
            copies = [x for r in some if (x := in_copies(r, "memcpy", "fresh")) is not None]
            cells += [number(mean(copies)), number(mean(faster))]
        table.append([dtype, layout.replace("_", "-"), *cells])
    head = [
        "dtype",
        "layout",
        "forward, copies",
        "faster",
        "evaluation, copies",
        "faster",
        "backward, copies",
        "faster",
    ]
    return (
        "## Other dtypes\n\n"
        "The same shapes; geometric means of our time in copies of the tensor, and of how many times faster than "
        "PyTorch that is:\n\n"
        f"{markdown(head, table, 2)}\n\n{machine(document)}; medians, new outputs for all."
    )


def fill(text: str, name: str, part: str) -> str:
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{part}\n\n{end}{rest.split(end)[1]}"


def main() -> None:
    def lists() -> dict[str, Sequence[Shape]]:
        from run import NETWORKS

        return {name: read_shapes(HERE / "shapes" / f"{name}.txt") for name in NETWORKS}

    parts: dict[str, Callable[[Document], str]] = {
        "networks": lambda document: networks(document, lists()),
        "dtypes": dtypes,
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, part in parts.items():
        path = HERE / "results" / f"{name}.json"
        if path.exists():
            text = fill(text, name, part(read(path)))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
