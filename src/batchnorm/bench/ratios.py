"""What a row says: our time beside the copies' and the others', and where we lose."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

Row = dict[str, Any]

COPIES = ("memcpy", "streaming copy")
OTHERS = ("eager", "compiled", "onednn", "jax", "numpy", "scikit-learn")
LOST = 0.95  # theirs / ours below this is a loss, and not noise


class Loss(NamedTuple):
    """A row in which another library is faster."""

    row: Row
    outputs: str
    other: str
    ratio: float


def seconds(row: Row, name: str, outputs: str) -> float | None:
    """Median of a contestant; where it has none for reused outputs, that of none: unlike things are not compared."""
    times = row["times"].get(f"{name} {outputs}")
    return None if times is None else float(times["median_s"])


def times_faster(row: Row, other: str, outputs: str) -> float | None:
    """Their time divided by ours: above 1 we are faster."""
    ours, theirs = seconds(row, "ours", outputs), seconds(row, other, outputs)
    return None if ours is None or theirs is None else theirs / ours


def in_copies(row: Row, copy: str, outputs: str) -> float | None:
    """Our time as a multiple of a copy's."""
    ours, copied = seconds(row, "ours", outputs), seconds(row, copy, outputs)
    return None if ours is None or copied is None else ours / copied


def floor_in_copies(row: Row) -> tuple[float, float]:
    """The floor, as a multiple of a copy: where second readings come from a cache, and where from memory."""
    b = row["bytes"]
    return b["floor"] / b["copy"], b["streamed"] / b["copy"]


def gigabytes_a_second(row: Row, outputs: str) -> float | None:
    """The bytes of the floor by our time: what is moved more often than it must be does not count."""
    ours = seconds(row, "ours", outputs)
    return None if ours is None else float(row["bytes"]["floor"] / ours / 1e9)


def losses(rows: Iterable[Row]) -> list[Loss]:
    """All, the worst first."""
    found = []
    for row in rows:
        for outputs in ("fresh", "reused"):
            for other in OTHERS:
                ratio = times_faster(row, other, outputs)
                if ratio is not None and ratio < LOST:
                    found.append(Loss(row, outputs, other, ratio))
    return sorted(found, key=lambda loss: loss.ratio)


def mean(ratios: Iterable[float]) -> float | None:
    """The geometric mean, or None of nothing."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else None


def by_shape(document: dict[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """A row for each shape and layout, for tables of several operations: of the dtype, with the most threads measured.

    Its times are named "copy" (into memory that exists), "forward" and "forward torch" (new results), "forward out"
    (reused), and so on for each operation.
    """
    threads = max(row["threads"] for row in document["rows"])
    found: dict[tuple[Any, ...], Row] = {}
    for row in document["rows"]:
        if row["threads"] != threads or row["dtype"] != dtype:
            continue
        shape = found.setdefault((*row["shape"], row["layout"]), {**{k: row[k] for k in SAME}, "median_s": {}})
        names = {"": ("ours", "fresh"), " out": ("ours", "reused"), " torch": ("eager", "fresh")}
        times = {row["operation"] + ending: seconds(row, *who) for ending, who in names.items()}
        times["copy"] = shape["median_s"].get("copy", seconds(row, "memcpy", "reused"))
        shape["median_s"] |= {name: time for name, time in times.items() if time is not None}
    return {"machine": {**document["machine"], "threads": threads}, "rows": list(found.values())}


SAME = ("name", "shape", "layout")
