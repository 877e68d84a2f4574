"""Groups of rows, named by a label for each row: the rows of each, and the merge of their moments by label."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._moments import Moments

Array = NDArray[Any]
Rows = slice | NDArray[np.intp]


def parts_of(groups: ArrayLike, length: int) -> tuple[Array, list[Rows]]:
    """Labels, sorted, and the rows of each: a slice where they stand together."""
    each = np.asarray(groups)
    if each.shape != (length,):
        raise ValueError(f"StandardScaler: groups must have one label for each of the {length} rows; got {each.shape}")
    if each.dtype.kind == "O" and all(isinstance(label, str) for label in each):
        each = each.astype(str)
    if each.dtype.kind not in "biuUSM" and not (each.dtype.kind == "f" and not np.isnan(each).any()):
        raise ValueError(
            "StandardScaler: groups must be all strings or all numbers, none of them missing; got "
            f"{each.dtype}, labels such as {each[:3].tolist()}; convert them with astype(str), and name what is missing"
        )
    labels, codes = np.unique(each, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(labels)))
    return labels, [_together(rows) for rows in np.split(order, ends[:-1])]


def _together(rows: NDArray[np.intp]) -> Rows:
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def refuse_other_labels(a: Array, b: Array) -> None:
    if (a.dtype.kind in "biuf") != (b.dtype.kind in "biuf"):
        raise ValueError(
            f"StandardScaler: labels of groups must be of one kind; got {a[:1].tolist()} before and {b[:1].tolist()} "
            "now; convert them with astype(str)"
        )


def merged_groups(parts: list[tuple[Array, Moments]]) -> tuple[Array, Moments]:
    """All labels, and the moments of each, merged in the order of the parts."""
    for labels, _ in parts[1:]:
        refuse_other_labels(parts[0][0], labels)
    union = np.unique(np.concatenate([labels for labels, _ in parts]))
    merged = Moments.empty((len(union), *parts[0][1].shape[1:]))
    for labels, m in parts:
        table = np.zeros((4, *merged.shape))
        table[:, np.searchsorted(union, labels)] = m._table
        merged = merged + Moments._of_table(table)
    return union, merged
