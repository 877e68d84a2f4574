"""The tables of single calls: functions on arrays, networks' layers, dtypes, sizes; and what is lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from batchnorm.bench.problem import LAYOUTS, Shape
from batchnorm.bench.ratios import LOST, by_shape, in_copies, mean, seconds, times_faster
from batchnorm.bench.table import number
from record import Document, Row, digits, layout, machine, markdown, shape

KINDS = ("forward", "evaluation", "backward")
REGIMES = (("16 MiB and more", 16.0, math.inf), ("1 to 16 MiB", 1.0, 16.0), ("below 1 MiB", 0.0, 1.0))
README = {
    "en": (
        ["shape", "layout", "forward / copy", "backward / copy", "forward", "evaluation", "backward"],
        "{cpu}, {threads} threads, {kernels}, PyTorch {torch}, commit {commit}; medians, new outputs for both. "
        "Third and fourth column: time as a multiple of a plain copy of the input. "
        "The last three: PyTorch's time divided by ours; below 1 PyTorch is faster.",
    ),
    "zh": (
        ["形状", "布局", "前向 / 复制", "反向 / 复制", "前向", "评估", "反向"],
        "{cpu}，{threads} 个线程，{kernels}，PyTorch {torch}，提交 {commit}；取中位数，双方都写入新分配的输出。"
        "第三、四列：耗时是单纯复制输入的几倍。后三列：PyTorch 的耗时除以我们的耗时，小于 1 表示 PyTorch 更快。",
    ),
}


def mib(row: Row) -> float:
    """Size of one float32 tensor of the row."""
    return math.prod(row["shape"]) * 4 / 2**20


def by_size(rows: Sequence[Row]) -> list[Row]:
    """Largest first; shapes of one size stay together."""
    return sorted(rows, key=lambda row: (-mib(row), row["shape"], row["layout"] != "contiguous"))


def readme(core: Document, language: str) -> str:
    """The short table: in copies, and against PyTorch."""
    result = by_shape(core)
    head, note = README[language]
    rows = []
    for row in result["rows"]:
        t = row["median_s"]
        to_copy = [f"{t[kind] / t['copy']:.1f}" for kind in ("forward", "backward")]
        rows.append([shape(row["shape"]), layout(row), *to_copy, *(f"{faster(row, kind):.1f}" for kind in KINDS)])
    return f"{markdown(head, rows, 2)}\n\n{note.format(**result['machine'])}"


def faster(row: Row, kind: str) -> float:
    """PyTorch's time divided by ours, in a row of `by_shape`."""
    return float(row["median_s"][f"{kind} torch"] / row["median_s"][kind])


def summary(core: Document) -> str:
    """Geometric means against PyTorch, by size and layout."""
    rows, table = by_shape(core)["rows"], []
    for name, least, most in REGIMES:
        for kind in LAYOUTS:
            some = [row for row in rows if row["layout"] == kind and least <= mib(row) < most]
            if some:
                means = [f"{math.exp(np.mean([np.log(faster(row, k)) for row in some])):.1f}" for k in KINDS]
                table.append([name, kind.replace("_", "-"), str(len(some)), *means])
    return markdown(["a tensor has", "layout", "shapes", *KINDS], table, 2)


def functions(core: Document) -> str:
    """Ours / PyTorch's in copies of the tensor, and ours into memory that exists."""
    result = by_shape(core)
    head = ["shape", "layout", "forward", "`out=`", "evaluation", "backward", "`out=`"]
    table = []
    for row in by_size(result["rows"]):
        copies = {name: digits(value / row["median_s"]["copy"]) for name, value in row["median_s"].items()}
        cells = []
        for kind in KINDS:
            cells += [f"{copies[kind]} / {copies[f'{kind} torch']}"]
            cells += [copies[f"{kind} out"]] if f"{kind} out" in copies else []
        table.append([shape(row["shape"]), layout(row), *cells])
    return f"{markdown(head, table, 2)}\n\n{machine(result)}; medians."


def networks(document: Document, lists: Mapping[str, Sequence[Shape]]) -> str:
    """For each network the time of all its batch-norm layers, one after the other, ours and PyTorch's."""
    times: dict[tuple[Any, ...], tuple[float, float]] = {}
    for row in document["rows"]:
        ours, theirs = seconds(row, "ours", "fresh"), seconds(row, "eager", "fresh")
        if ours is not None and theirs is not None:
            times[(*row["shape"], row["layout"], row["operation"])] = (ours, theirs)
    table = []
    for name, shapes in lists.items():
        for kind in LAYOUTS:
            some = [each for each in shapes if kind in each.layouts]
            if not some:
                continue
            cells, worst = [], (float("inf"), "")
            for operation in ("forward", "backward"):
                pairs = [(each, *times[(*each.sizes, kind, operation)]) for each in some]
                ours, theirs = (sum(each.layers * pair[i] for each, *pair in pairs) for i in (0, 1))
                cells += [digits(theirs * 1e3), f"{theirs / ours:.2f}"]
                for each, our, their in pairs:
                    worst = min(worst, (their / our, f"{shape(each.sizes)} {operation}"))
            layers = str(sum(each.layers for each in some))
            table.append([name, layers, kind.replace("_", "-"), *cells, f"{worst[1]}: {worst[0]:.2f}"])
    head = ["network", "layers", "layout", "forward, ms", "faster", "backward, ms", "faster", "the worst layer"]
    return f"{markdown(head, table, 3)}\n\n{machine(document)}; medians, new outputs for both."


def dtypes(document: Document) -> str:
    """Geometric means over the shapes, for each dtype, layout and operation."""
    rows, table = document["rows"], []
    for dtype, kind in dict.fromkeys((row["dtype"], row["layout"]) for row in rows):
        cells = []
        for operation in KINDS:
            some = [r for r in rows if (r["dtype"], r["layout"], r["operation"]) == (dtype, kind, operation)]
            cells.append(number(mean(x for r in some if (x := in_copies(r, "memcpy", "fresh")) is not None)))
            cells.append(number(mean(x for r in some if (x := times_faster(r, "eager", "fresh")) is not None)))
        table.append([dtype, kind.replace("_", "-"), *cells])
    head = ["dtype", "layout", *(cell for kind in KINDS for cell in (f"{kind}, copies", "faster"))]
    return f"{markdown(head, table, 2)}\n\n{machine(document)}; medians, new outputs for all."


def sizes(document: Document) -> str:
    """The figure, and where it was measured."""
    words = "For each layout, forward and backward of ours, PyTorch's and oneDNN's in copies, against the tensor's size"
    return f"![{words}](figures/performance-sizes.svg)\n\n{machine(document)}; medians."


def losses(core: Document, layers: Document) -> str:
    """Every measured case in which PyTorch is faster by more than 5 %."""
    found: dict[str, list[tuple[float, str]]] = {}
    for row in by_size(by_shape(core)["rows"]):
        for kind in KINDS:
            found.setdefault(f"function, {kind}", []).append((faster(row, kind), _named(row)))
    for row in by_size(layers["rows"]):
        for way in ("accelerated", "module"):
            what = f"layer, {way}, {row['kind']}".replace(", batch norm", "")
            found.setdefault(what, []).append((row["times_faster"][way], _named(row)))
    table = []
    for what, cases in found.items():
        lost = sorted(case for case in cases if case[0] < LOST)
        if lost:
            table.append([what, "; ".join(f"{name}: {ratio:.2f}" for ratio, name in lost)])
    return markdown(["what", "shape"], table, 2)


def _named(row: Row) -> str:
    return f"{shape(row['shape'])} {layout(row)}"
