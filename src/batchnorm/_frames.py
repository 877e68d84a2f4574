"""Tables of pandas, polars and pyarrow: their columns of numbers as an array, and results in the columns' place.

None of these packages is imported: whoever has a table has imported its package.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ._foreign import beyond_exact, rounding
from ._left_out import NOTHING, LeftOut, refusal, remark
from ._plan import Axis, channel_axes

Array = NDArray[Any]

_FIX = "; leave the column out, or convert it"


class Frame:
    """The columns of numbers of a table.

    ``values`` has a row for each row and a column for each of ``names``; what is missing is NaN in it. ``remarks`` say
    what was left out.
    """

    def __init__(self, table: Any, adapter: _Adapter, chosen: Sequence[int], left: Sequence[LeftOut], who: str) -> None:
        self._table, self._adapter, self._chosen = table, adapter, chosen
        self.names = tuple(adapter.names(table)[i] for i in chosen)
        self.remarks = (remark(left),) if left else ()
        parts = []
        for i in chosen:
            whole = adapter.integers(table, i)
            if whole is not None and len(found := beyond_exact(whole)):
                got = f"{whole.ravel()[found[0]]} in column {adapter.names(table)[i]!r}"
                raise ValueError(f"{who}: {rounding(got)}")
            parts.append(adapter.numbers(table, i))
        kinds = {p.dtype for p in parts}
        dtype = kinds.pop() if len(kinds) == 1 and parts[0].dtype.kind == "f" else np.dtype(np.float64)
        self.values = np.empty((len(parts[0]), len(parts)), dtype)
        for j, part in enumerate(parts):
            self.values[:, j] = part

    def warn(self, who: str, depth: int = 1) -> None:
        """Warn of what was left out, where ``who`` was called, so many calls above."""
        for said in self.remarks:
            warnings.warn(f"{who}: {said}", UserWarning, stacklevel=2 + depth)

    def named(self, axis: Axis) -> tuple[str, ...] | None:
        """Return the names of the channels, where they are the columns."""
        return self.names if channel_axes(axis) in (1, -1, (1,), (-1,)) else None

    def like(self, y: Array) -> Any:
        """Return the table with ``y`` in the place of its numbers; the other columns and the index are as they were."""
        missing = np.isnan(self.values)
        return self._adapter.replaced(self._table, {i: (y[:, j], missing[:, j]) for j, i in enumerate(self._chosen)})


class _Adapter(Protocol):
    """What one package calls things."""

    def names(self, table: Any) -> list[str]:
        """The names of all columns."""

    def holds(self, table: Any, i: int) -> str | None:
        """What column i holds, or None where it holds numbers."""

    def integers(self, table: Any, i: int) -> Array | None:
        """The integers of column i that are there, or None where it holds others."""

    def numbers(self, table: Any, i: int) -> Array:
        """Column i as floats, NaN where a value is missing."""

    def replaced(self, table: Any, columns: dict[int, tuple[Array, Array]]) -> Any:
        """The table with other values in some columns, and where they are missing."""


class _Pandas(_Adapter):
    def names(self, table: Any) -> list[str]:
        return [str(name) for name in table.columns]

    def holds(self, table: Any, i: int) -> str | None:
        types, dtype = sys.modules["pandas"].api.types, table.dtypes.iloc[i]
        if types.is_bool_dtype(dtype):
            return "booleans"
        if types.is_datetime64_any_dtype(dtype) or types.is_timedelta64_dtype(dtype):
            return "dates"
        if types.is_complex_dtype(dtype):
            return "complex numbers"
        if types.is_numeric_dtype(dtype):
            return None if table.iloc[:, i].notna().any() else NOTHING
        kind = types.infer_dtype(table.iloc[:, i], skipna=True)
        if kind in ("integer", "floating", "mixed-integer-float", "decimal"):
            return None
        return {"boolean": "booleans", "datetime": "dates", "date": "dates", "empty": NOTHING}.get(kind, "text")

    def integers(self, table: Any, i: int) -> Array | None:
        column = table.iloc[:, i]
        if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iu":
            return np.asarray(column.to_numpy())
        if sys.modules["pandas"].api.types.infer_dtype(column, skipna=True) != "integer":
            return None
        there = column.dropna()
        kind = np.uint64 if str(column.dtype).lower().startswith("uint64") else np.int64
        return np.asarray(there.to_numpy(dtype=object if there.dtype == object else kind))

    def numbers(self, table: Any, i: int) -> Array:
        column = table.iloc[:, i]
        kind = getattr(column.dtype, "numpy_dtype", column.dtype)  # of pandas' own types, and of Arrow's
        small = kind if isinstance(kind, np.dtype) and kind.kind == "f" else np.float64
        return np.asarray(column.to_numpy(dtype=small, na_value=np.nan))

    def replaced(self, table: Any, columns: dict[int, tuple[Array, Array]]) -> Any:
        pandas = sys.modules["pandas"]
        made = []
        for i in range(table.shape[1]):
            column = table.iloc[:, i]
            if i in columns:
                values, missing = columns[i]
                column = pandas.Series(self._typed(pandas, column.dtype, values, missing), index=table.index)
            made.append(column)
        whole = pandas.concat(made, axis=1) if made else table.copy()
        whole.columns = table.columns
        whole.attrs = dict(table.attrs)
        return whole

    def _typed(self, pandas: Any, dtype: Any, values: Array, missing: Array) -> Any:
        """Values with NA where they are missing, in a type of pandas' own where the column had one."""
        if isinstance(dtype, np.dtype):
            return np.array(values)
        if type(dtype).__name__ == "ArrowDtype":
            column = sys.modules["pyarrow"].array(np.array(values), mask=missing)
            return pandas.array(column, dtype=pandas.ArrowDtype(column.type))
        if type(dtype).__name__ == "SparseDtype":
            return np.array(values)
        typed = pandas.array(np.array(values), dtype="Float32" if values.dtype == np.float32 else "Float64")
        typed[missing] = pandas.NA
        return typed


class _Polars(_Adapter):
    def names(self, table: Any) -> list[str]:
        return list(table.columns)

    def holds(self, table: Any, i: int) -> str | None:
        polars, column = sys.modules["polars"], table.to_series(i)
        if column.dtype == polars.Boolean:
            return "booleans"
        if column.dtype.is_temporal():
            return "dates"
        if column.dtype.is_numeric():
            return None if column.null_count() < len(column) else NOTHING
        return NOTHING if column.dtype == polars.Null else "text"

    def integers(self, table: Any, i: int) -> Array | None:
        column = table.to_series(i)
        return column.drop_nulls().to_numpy() if column.dtype.is_integer() else None

    def numbers(self, table: Any, i: int) -> Array:
        polars, column = sys.modules["polars"], table.to_series(i)
        kind = column.dtype if column.dtype == polars.Float32 else polars.Float64
        return np.asarray(column.cast(kind).fill_null(float("nan")).to_numpy())

    def replaced(self, table: Any, columns: dict[int, tuple[Array, Array]]) -> Any:
        polars, made = sys.modules["polars"], []
        for i, (values, missing) in columns.items():
            column = table.to_series(i)
            new = polars.Series(column.name, np.array(values))
            nulls = polars.Series(missing) & column.is_null()  # NaN of the table stays NaN
            made.append(new.set(nulls, None) if column.null_count() else new)
        return table.with_columns(made)


class _Arrow(_Adapter):
    def names(self, table: Any) -> list[str]:
        return list(table.schema.names)

    def holds(self, table: Any, i: int) -> str | None:
        return arrow_holds(sys.modules["pyarrow"], table.column(i))

    def integers(self, table: Any, i: int) -> Array | None:
        return arrow_integers(sys.modules["pyarrow"], table.column(i))

    def numbers(self, table: Any, i: int) -> Array:
        return arrow_numbers(sys.modules["pyarrow"], table.column(i))

    def replaced(self, table: Any, columns: dict[int, tuple[Array, Array]]) -> Any:
        pyarrow, schema = sys.modules["pyarrow"], table.schema
        arrays, fields = list(table.columns), list(schema)
        for i, (values, _) in columns.items():
            mask = np.asarray(table.column(i).is_null())
            arrays[i] = pyarrow.array(np.ascontiguousarray(values), mask=mask)
            fields[i] = pyarrow.field(schema.names[i], arrays[i].type, metadata=schema.field(i).metadata)
        return type(table).from_arrays(arrays, schema=pyarrow.schema(fields, schema.metadata))


def arrow_holds(pyarrow: Any, column: Any) -> str | None:
    """Return what a column of pyarrow's holds, or None where it holds numbers."""
    types, kind = pyarrow.types, column.type
    if column.null_count == len(column):
        return NOTHING
    if types.is_boolean(kind):
        return "booleans"
    if types.is_temporal(kind):
        return "dates"
    if types.is_dictionary(kind) or types.is_string(kind) or types.is_large_string(kind):
        return "text"
    return None if types.is_floating(kind) or types.is_integer(kind) or types.is_decimal(kind) else str(kind)


def arrow_numbers(pyarrow: Any, column: Any) -> Array:
    """Return a column of pyarrow's as floats, or integers where none is missing; NaN where one is."""
    if pyarrow.types.is_decimal(column.type) or (column.null_count and not pyarrow.types.is_floating(column.type)):
        column = column.cast(pyarrow.float64(), safe=False)
    return np.asarray(column.to_numpy(zero_copy_only=False) if hasattr(column, "buffers") else column.to_numpy())


def arrow_integers(pyarrow: Any, column: Any) -> Array | None:
    """Return the integers of a column of pyarrow's, 0 where one is missing, or None where it holds others."""
    if not pyarrow.types.is_integer(column.type):
        return None
    return arrow_numbers(pyarrow, column.fill_null(0))


#: The package, the classes of its tables, and what it calls things.
_KNOWN: tuple[tuple[str, tuple[str, ...], _Adapter], ...] = (
    ("pandas", ("DataFrame",), _Pandas()),
    ("polars", ("DataFrame",), _Polars()),
    ("pyarrow", ("Table", "RecordBatch"), _Arrow()),
)


def _adapter_of(x: object) -> _Adapter | None:
    for package, classes, adapter in _KNOWN:
        module = sys.modules.get(package)
        kinds = (getattr(module, name, None) for name in classes)  # half imported, a package has none
        if module is not None and isinstance(x, tuple(kind for kind in kinds if isinstance(kind, type))):
            return adapter
    return None


def is_frame(x: object) -> bool:
    """Whether x is a table."""
    return type(x) is not np.ndarray and _adapter_of(x) is not None


def frame_of(x: object, who: str, names: tuple[str, ...] | None = None) -> Frame | None:
    """Return the columns of numbers of a table, those of the ``names`` where there are some; None: x is no table."""
    if type(x) is np.ndarray or (adapter := _adapter_of(x)) is None:
        return None
    known = adapter.names(x)
    left = [LeftOut(i, known[i], why) for i in range(len(known)) if (why := adapter.holds(x, i))]
    out = {one.column: one for one in left}
    if names is None:
        chosen = [i for i in range(len(known)) if i not in out]
        if not chosen:
            raise TypeError(f"{who}: {refusal(left).removesuffix('.')}")
        return Frame(x, adapter, chosen, left, who)
    chosen = []
    for name in names:
        places = [i for i, other in enumerate(known) if other == name]
        if len(places) != 1:
            came, fix = ("no column", "add it") if not places else (f"{len(places)} columns", "rename one")
            raise ValueError(
                f"{who}: the table must have the columns that the moments have; got {came} {name!r} among "
                f"{', '.join(known[:12])}; {fix}, or pass the columns as an array"
            )
        if (one := out.get(places[0])) is not None and one.holds != NOTHING:
            raise TypeError(f"{who}: column {name!r} must hold numbers; it holds {one.holds}{_FIX}")
        chosen.append(places[0])
    return Frame(x, adapter, chosen, [], who)
