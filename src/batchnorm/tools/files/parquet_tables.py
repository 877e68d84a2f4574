"""Parquet, through pyarrow, which is imported here and nowhere else, and only when such a file is read or written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..._foreign import MOST_EXACT, beyond_exact
from ..._frames import arrow_holds, arrow_integers, arrow_numbers
from ..._left_out import NOTHING, LeftOut, refusal, remark
from ..text.language import Said
from .refused import Refused
from .table import Table, choose, other_columns_hint


def read_parquet(path: Path, columns: str | tuple[str, ...] | None = None) -> Table:
    """Return the table in ``path``; missing values become NaN.

    Columns that hold no numbers, or booleans, are left out, unless ``columns`` names them.
    """
    pyarrow, parquet = _pyarrow(path)
    try:
        arrow = parquet.ParquetFile(path).read()  # the file alone: read_table makes columns of folders named a=1
        names = tuple(arrow.column_names)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system
            raise
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Refused(f"{path} is not a whole Parquet file ({reason}). Write it again.") from error
    index = _index(arrow)
    if arrow.num_rows == 0 or len(index) == len(names):
        beside = ", all of them pandas' index" if names and len(index) == len(names) else ""
        raise Refused(
            f"{path} holds {arrow.num_rows} rows of {len(names)} columns{beside}: there is nothing to average. Write "
            "a table that holds numbers."
        )
    chosen = choose(columns, names, str(path), index)
    numeric = [i for i, field in enumerate(arrow.schema) if _is_number(pyarrow, field.type) and i not in index]
    left = []
    if columns is None:
        left = [LeftOut(i, names[i], why) for i in chosen if (why := arrow_holds(pyarrow, arrow.column(i)))]
        chosen = tuple(i for i in chosen if i not in {one.column for one in left})
    for i in chosen:
        _check_column(pyarrow, arrow, i, numeric, path)
    if not chosen:
        raise Refused(f"{path}: {refusal(left)}")
    parts = [arrow_numbers(pyarrow, arrow.column(i)) for i in chosen]
    kinds = {p.dtype for p in parts}
    dtype = kinds.pop() if len(kinds) == 1 and parts[0].dtype.kind in "fi" else np.dtype(np.float64)
    values = np.empty((arrow.num_rows, len(chosen)), dtype)
    for j, column in enumerate(parts):
        values[:, j] = column
    rounded = next(filter(None, (_rounded(pyarrow, arrow, i) for i in chosen)), None)
    remarks = (remark(left),) if left else ()
    gap = next(
        (
            f"row {arrow.column(i).is_null().index(True).as_py()}, column {i} {names[i]!r} is missing"
            for i in chosen
            if arrow.column(i).null_count
        ),
        None,
    )
    return Table(names, True, chosen, values, {}, remarks, rounded=rounded, first_gap=gap, arrow=arrow)


def write_parquet(path: Path, table: Table, values: np.ndarray) -> None:
    """Write ``table`` with ``values`` in the chosen columns; a Parquet file's other columns keep type and metadata.

    What was missing stays so.
    """
    pyarrow, parquet = _pyarrow(path)
    arrow = table.arrow
    if arrow is None:
        others = [pyarrow.array(table.others.get(i, []) or [None] * len(values)) for i in range(len(table.names))]
        arrow = pyarrow.Table.from_arrays(others, names=list(table.names))
    for j, i in enumerate(table.chosen):
        missing = None if table.arrow is None else arrow.column(i).is_null().to_numpy()
        if table.arrow is None and i in table.gaps:
            missing = np.zeros(len(values), bool)
            missing[[*table.gaps[i]]] = True
        column = pyarrow.array(np.ascontiguousarray(values[:, j]), mask=missing)
        field = pyarrow.field(table.names[i], column.type, metadata=arrow.schema.field(i).metadata)
        arrow = arrow.set_column(i, field, column)
    parquet.write_table(_retyped(arrow, {table.names[i] for i in table.chosen}, str(values.dtype)), path)


def texts(table: Table, path: Path) -> dict[int, Sequence[Any]]:
    """Return the columns of a Parquet file that were not chosen, as the cells of a text table; None is blank."""
    pyarrow, _ = _pyarrow(path)
    found: dict[int, Sequence[Any]] = {}
    for i in set(range(len(table.names))) - set(table.chosen):
        column = table.arrow.column(i)
        try:
            found[i] = column.cast(pyarrow.string()).to_pylist()
        except pyarrow.ArrowException as error:
            raise Refused(
                f"{path}: column {i} {table.names[i]!r} holds {column.type}, which a cell of a text table cannot hold. "
                "Write to a .parquet file."
            ) from error
    return found


def gaps(table: Table) -> dict[int, dict[int, str]]:
    """Return the missing cells of the chosen columns of a Parquet file, as a text table has them: blank."""
    return {
        i: dict.fromkeys(np.flatnonzero(table.arrow.column(i).is_null().to_numpy()).tolist(), "") for i in table.chosen
    }


def _pandas(arrow: Any) -> dict[str, Any]:
    """What pandas noted about the table, or nothing."""
    try:
        noted = json.loads((arrow.schema.metadata or {})[b"pandas"])
    except (KeyError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _index(arrow: Any) -> list[int]:
    """The columns that hold pandas' index; one of a mere range of numbers is noted without a column."""
    noted = _pandas(arrow).get("index_columns")
    stored = [name for name in noted if isinstance(name, str)] if isinstance(noted, list) else []
    return [i for i, name in enumerate(arrow.column_names) if name in stored]


def _retyped(arrow: Any, names: set[str], dtype: str) -> Any:
    """Let pandas' note say the new type of the columns ``names``, or pandas would convert them back to the old one."""
    noted = _pandas(arrow)
    if not isinstance(noted.get("columns"), list):
        return arrow
    for column in noted["columns"]:
        if isinstance(column, dict) and column.get("field_name", column.get("name")) in names:
            column |= {"pandas_type": dtype, "numpy_type": dtype, "metadata": None}
    return arrow.replace_schema_metadata(arrow.schema.metadata | {b"pandas": json.dumps(noted).encode()})


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise Refused(f"{path}: Parquet files need pyarrow. Install it with: pip install pyarrow") from error
    return pyarrow, parquet


def _is_number(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_decimal(kind))


def _check_column(pyarrow: Any, arrow: Any, i: int, numeric: list[int], path: Path) -> None:
    column = arrow.column(i)
    where = f"{path}, column {i} {arrow.column_names[i]!r}"
    if not _is_number(pyarrow, column.type) and arrow_holds(pyarrow, column) != NOTHING:
        raise Refused(f"{where} holds {column.type}, not numbers. {other_columns_hint(numeric, len(arrow.schema))}")


def _rounded(pyarrow: Any, arrow: Any, i: int) -> str | None:
    """Say where the first integer of a column stands that float64 does not hold, if any."""
    column = arrow.column(i)
    rows: list[int] = []
    if (whole := arrow_integers(pyarrow, column)) is not None:
        rows = beyond_exact(whole).tolist()
    elif pyarrow.types.is_decimal(column.type) and column.type.scale <= 0:
        large = np.flatnonzero(np.abs(np.nan_to_num(arrow_numbers(pyarrow, column))) >= MOST_EXACT)
        rows = [r for r in large.tolist() if abs(column[r].as_py()) > MOST_EXACT]
    if not rows:
        return None
    where = Said("row_and_column", row=rows[0], column=Said("column_both", index=i, name=repr(arrow.column_names[i])))
    return Said("stands_at", where=where, what=column[rows[0]].as_py())
