"""How fast this machine reads and copies, and so the least that batch normalization could take here, in copies.

    python benchmarks/run.py roofline

Bytes do not say it: where memory takes reads and writes at the same time, a copy of two passes lasts no longer than
reading alone, and an operation that reads more than it writes has no chance to be as fast, a byte, as the copy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import batchnorm as bn
from batchnorm import _native
from batchnorm.bench.timing import Runner
from batchnorm.bench.timing import measure as timed
from record import Document, Row, digits, document, machine, markdown, median, seconds

MIB = 2**20


class Sizes(NamedTuple):
    """MiB of the tensors, and how long to measure."""

    mib: tuple[float, ...] = (4, 16, 64, 200)
    rounds: int = 21
    budget: float = 3.0  # seconds, for each size and number of threads


class Floor(NamedTuple):
    """Least time of forward and backward in copies: the second reading from a nearer cache, and from the same place."""

    near: tuple[float, float]
    far: tuple[float, float]


def measure(sizes: Sizes = Sizes()) -> Document:  # noqa: B008  # a tuple
    most = bn.get_num_threads()
    rows: list[Row] = []
    for mib in sizes.mib:
        x = np.ones(int(mib * MIB), np.uint8)
        y = np.ones_like(x)
        runners = {
            "read": Runner(lambda x=x: _native.read(x), ""),
            "memcpy": Runner(lambda x=x, y=y: _native.copy(y, x, False), ""),
            "streaming copy": Runner(lambda x=x, y=y: _native.copy(y, x, True), ""),
        }
        for threads in sorted({1, most}):
            bn.set_num_threads(threads)
            times = seconds(timed(runners, sizes.rounds, sizes.budget))
            rows.append({"mib": mib, "threads": threads, "times": times})
        bn.set_num_threads(most)
    return document(rows)


def copy_seconds(row: Row) -> float:
    """Of the faster copy."""
    return min(median(row, "memcpy"), median(row, "streaming copy"))


def floor(row: Row) -> Floor:
    """A pass takes as long as all its reading, or as a copy, whichever is more.

    Forward: x is read; x is read and y is written. Backward: x and g are read; both are read and dx is written. What
    comes from a nearer cache the second time costs nothing here.
    """
    read = median(row, "read") / copy_seconds(row)
    return Floor((max(read, 1), max(2 * read, 1)), (read + 1, 2 * read + max(2 * read, 1)))


def tables(results: Document) -> dict[str, str]:
    head = [
        "MiB",
        "threads",
        "read, GB/s",
        "copy, GB/s each way",
        "reading, in copies",
        "least, nearer",
        "least, from there",
    ]
    rows = []
    for row in results["rows"]:
        size, least = row["mib"] * MIB / 1e9, floor(row)
        rates = [digits(size / t) for t in (median(row, "read"), copy_seconds(row))]
        floors = [f"{forward:.2f} / {backward:.2f}" for forward, backward in least]
        reading = f"{median(row, 'read') / copy_seconds(row):.2f}"
        rows.append([f"{row['mib']:g}", str(row["threads"]), *rates, reading, *floors])
    note = f"{machine(results)}; medians of interleaved turns. The last two columns: forward / backward."
    return {"roofline": f"{markdown(head, rows, 0)}\n\n{note}"}
