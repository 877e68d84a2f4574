"""The table of what was aimed at, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from batchnorm.bench.ratios import mean, seconds, times_faster
from record import Document, Row, markdown
from roofline import floor

COPIES = ("memcpy", "streaming copy")
MIB = 2**20
CACHE = 32 * MIB  # of the last level; what a copy touches must be more
DIRECTIONS = ("forward", "backward")


class Target(NamedTuple):
    """A regime, and the most that forward and backward should take in it, in the unit of `measured`."""

    words: str
    fits: Callable[[Row], bool]
    most: tuple[float, float]
    is_large: bool
    rereads_nearer: bool  # a nearer cache than where the tensor lies holds a channel


def _is_large(row: Row) -> bool:
    return bool(row["bytes"]["copy"] > CACHE)


def _is_contiguous_images(row: Row) -> bool:
    return row["layout"] == "contiguous" and len(row["shape"]) > 2


REGIMES = (
    Target(
        "contiguous, larger than the last cache",
        lambda r: _is_large(r) and _is_contiguous_images(r),
        (1.25, 1.9),
        is_large=True,
        rereads_nearer=True,
    ),
    Target(
        "channels-last and (N, C), larger than the last cache",
        lambda r: _is_large(r) and not _is_contiguous_images(r),
        (1.6, 2.4),
        is_large=True,
        rereads_nearer=False,
    ),
    Target(
        "in the last cache, any layout",
        lambda r: not _is_large(r) and r["bytes"]["copy"] >= MIB,
        (3.0, 4.0),
        is_large=False,
        rereads_nearer=False,
    ),
)
FUSED = {"with ReLU, to without": (" + relu", (1.05, 1.05)), "with add and ReLU": (" + add + relu", (1.5, 1.4))}
AGAINST = {"PyTorch": ("eager", 0, 4.0), "oneDNN, from 1 MiB": ("onednn", MIB, 2.0)}


def in_fastest_copies(row: Row) -> float:
    """Our time, writing into memory that exists, in the faster of the two copies."""
    ours, *copies = (seconds(row, who, "reused") for who in ("ours", *COPIES))
    assert ours is not None
    return ours / min(copy for copy in copies if copy is not None)


def targets(core: Document, roofline: Document) -> str:
    """Least and most of each regime's shapes, with all threads."""
    threads = max(row["threads"] for row in core["rows"])
    rows = [row for row in core["rows"] if row["threads"] == threads]
    head = ["", "forward, aim", "possible here", "forward", "backward, aim", "possible here", "backward"]
    return markdown(head, [*_copies(rows, roofline["rows"]), *_fused(rows), *_others(rows)], 1)


def _copies(rows: list[Row], roofline: list[Row]) -> Iterator[list[str]]:
    for target in REGIMES:
        cells = [f"{target.words}, in copies"]
        for i, direction in enumerate(DIRECTIONS):
            found = [in_fastest_copies(row) for row in rows if row["operation"] == direction and target.fits(row)]
            cells += [f"≤ {target.most[i]:g}", f"≥ {_floor(target, roofline)[i]:.2f}", _spread(found)]
        yield cells


def _floor(target: Target, roofline: list[Row]) -> tuple[float, float]:
    """With all threads, of the largest tensors that the caches hold, or of the largest of all."""
    fits = [row for row in roofline if target.is_large or 2 * row["mib"] * MIB <= CACHE]
    least = floor(max(fits, key=lambda row: (row["mib"], row["threads"])))
    return least.near if target.rereads_nearer else least.far


def _fused(rows: list[Row]) -> Iterator[list[str]]:
    """Fused operations as multiples of the plain ones, of arrays from 1 MiB on."""
    times = {_key(row, row["operation"]): seconds(row, "ours", "reused") for row in rows}
    for words, (ending, most) in FUSED.items():
        cells = [f"{words}, from 1 MiB"]
        for direction, limit in zip(DIRECTIONS, most, strict=True):
            plain = [row for row in rows if row["operation"] == direction and row["bytes"]["copy"] >= MIB]
            pairs = [(times[_key(row, direction + ending)], times[_key(row, direction)]) for row in plain]
            cells += [f"≤ {limit:g}", "", _spread([fused / alone for fused, alone in pairs if fused and alone])]
        yield cells


def _others(rows: list[Row]) -> Iterator[list[str]]:
    """How many times faster, new results for both; and in how many rows at least 0.95 times as fast."""
    for words, (key, least_bytes, aim) in AGAINST.items():
        cells = [f"times faster than {words}: geometric mean"]
        for direction in DIRECTIONS:
            fits = [row for row in rows if row["operation"] == direction and row["bytes"]["copy"] >= least_bytes]
            found = [ratio for row in fits if (ratio := times_faster(row, key, "fresh")) is not None]
            average = mean(found)
            cells += [
                f"≥ {aim:g}",
                "",
                "not measured"
                if average is None
                else f"{average:.1f}; not slower in {sum(ratio >= 0.95 for ratio in found)} of {len(found)}",
            ]
        yield cells


def _key(row: Row, operation: str) -> tuple[object, ...]:
    return (*row["shape"], row["layout"], operation)


def _spread(values: list[float]) -> str:
    if not values:
        return "not measured"
    return f"{min(values):.2f} to {max(values):.2f}"
