"""What the parts that measure more than single calls share: the document of results, and tables of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from batchnorm.bench.contestants.pytorch import EAGER
from batchnorm.bench.document import FORMAT
from batchnorm.bench.machine import describe
from batchnorm.bench.timing import Times

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Document = dict[str, Any]
Row = dict[str, Any]


def document(rows: Sequence[Row], **more: Any) -> Document:
    """Rows with where and by what they were measured, as `batchnorm bench` records it."""
    return {"format": FORMAT, "machine": describe(EAGER, ROOT), **more, "rows": list(rows)}


def seconds(times: Mapping[str, Times]) -> dict[str, dict[str, Any]]:
    """For JSON."""
    return {name: t._asdict() for name, t in times.items()}


def median(row: Row, name: str) -> float:
    return float(row["times"][name]["median_s"])


def spread(row: Row, name: str) -> str:
    """Half of the distance between the quartiles, in per cent of the median."""
    low, high = row["times"][name]["quartiles_s"]
    return f"±{50 * (high - low) / median(row, name):.0f} %"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """A table whose first `words` columns are texts and the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))


def digits(value: float) -> str:
    """Three of them."""
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:.0f}"


def machine(document: Document, threads: int | None = None) -> str:
    """Where it was measured, in words."""
    count = threads or document["machine"].get("threads") or max(row["threads"] for row in document["rows"])
    where = "{cpu}, {threads} threads, {kernels} kernels, PyTorch {torch}, commit {commit}"
    return where.format(**{**document["machine"], "threads": count})


def shape(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def layout(row: Row) -> str:
    return str(row["layout"]).replace("_", "-")
