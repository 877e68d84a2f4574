"""Parquet, through pyarrow, which is imported here and nowhere else, and only when such a file is read or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .refused import Refused
from .table import Table, choose, other_columns_hint


def read_parquet(path: Path, columns: str | None = None) -> Table:
    """Return the table in ``path``. Missing values in a chosen column are refused."""
    pyarrow, parquet = _pyarrow(path)
    try:
        arrow = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise Refused(f"{path} is not a whole Parquet file ({reason}). Write it again.") from error
    names = tuple(arrow.column_names)
    if arrow.num_rows == 0 or not names:
        raise Refused(f"{path} holds {arrow.num_rows} rows of {len(names)} columns: there is nothing to average.")
    chosen = choose(columns, names, str(path))
    for i in chosen:
        _check_column(pyarrow, arrow, i, path)
    parts = [_numpy(pyarrow, arrow.column(i)) for i in chosen]
    kinds = {p.dtype for p in parts}
    dtype = kinds.pop() if len(kinds) == 1 and parts[0].dtype.kind in "fi" else np.dtype(np.float64)
    values = np.empty((arrow.num_rows, len(chosen)), dtype)
    for j, column in enumerate(parts):
        values[:, j] = column
    others = {i: arrow.column(i).to_pylist() for i in range(len(names)) if i not in chosen}
    return Table(names, True, chosen, values, others, arrow=arrow)


def write_parquet(path: Path, table: Table, values: np.ndarray) -> None:
    """Write ``table`` with ``values`` in the chosen columns; a Parquet file's other columns keep type and metadata."""
    pyarrow, parquet = _pyarrow(path)
    arrow = table.arrow
    if arrow is None:
        others = [pyarrow.array(table.others.get(i, []) or [None] * len(values)) for i in range(len(table.names))]
        arrow = pyarrow.Table.from_arrays(others, names=list(table.names))
    for j, i in enumerate(table.chosen):
        column = pyarrow.array(np.ascontiguousarray(values[:, j]))
        field = pyarrow.field(table.names[i], column.type, metadata=arrow.schema.field(i).metadata)
        arrow = arrow.set_column(i, field, column)
    parquet.write_table(arrow, path)


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise Refused(
            f'{path}: Parquet files need pyarrow. Install it with: pip install "batchnorm[parquet]"'
        ) from error
    return pyarrow, parquet


def _is_number(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_decimal(kind))


def _check_column(pyarrow: Any, arrow: Any, i: int, path: Path) -> None:
    column = arrow.column(i)
    where = f"{path}, column {i} {arrow.column_names[i]!r}"
    if not _is_number(pyarrow, column.type):
        numeric = [j for j, field in enumerate(arrow.schema) if _is_number(pyarrow, field.type)]
        raise Refused(f"{where} holds {column.type}, not numbers. {other_columns_hint(numeric, len(arrow.schema))}")
    if column.null_count:
        first = column.is_null().index(True).as_py()
        raise Refused(
            f"{where} has {column.null_count} missing values, the first in row {first}. A mean has no place for a "
            "missing value: "
            "fill them in, remove those rows, or leave the column out with --columns."
        )


def _numpy(pyarrow: Any, column: Any) -> np.ndarray:
    if pyarrow.types.is_decimal(column.type):
        column = column.cast(pyarrow.float64())
    values: np.ndarray = column.to_numpy()
    return values
