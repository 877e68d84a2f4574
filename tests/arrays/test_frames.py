"""Tables of pandas, polars and pyarrow: their columns of numbers are computed, all else comes back as it was."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import batchnorm as bn

A, B = [1.5, 2.0, 4.0, 7.0], [2.5, None, 3.5, -1.0]
TEXTS, TRUTHS, DAYS = list("wxyz"), [True, False, True, True], [date(2024, 1, d) for d in (1, 2, 3, 4)]
X = np.array([A, [np.nan if b is None else b for b in B]]).T


def columns() -> dict[str, Any]:
    return {"name": TEXTS, "a": A, "ok": TRUTHS, "b": B, "day": DAYS}


TABLES = {
    "pandas": lambda: pd.DataFrame(columns(), index=[10, 20, 20, 40]),
    "pandas, nullable": lambda: pd.DataFrame(columns()).convert_dtypes(),
    "pandas over Arrow": lambda: pd.DataFrame(columns()).convert_dtypes(dtype_backend="pyarrow"),
    "polars": lambda: pl.DataFrame(columns()),
    "pyarrow": lambda: pa.table(columns()),
    "pyarrow, a batch": lambda: pa.RecordBatch.from_pydict(columns()),
}
LEFT_OUT = r"3 columns were left out: column 'name' \(text\), column 'ok' \(booleans\), column 'day' \(\w+\)"


def values(table: Any, name: str) -> np.ndarray:
    column = table[name]
    if isinstance(table, pd.DataFrame):
        return column.to_numpy(dtype=float, na_value=np.nan)
    return np.array(
        [np.nan if v is None else v for v in (column.to_list() if hasattr(column, "to_list") else column.to_pylist())]
    )


def rest(table: Any) -> Any:
    return table.drop(columns=["a", "b"]) if isinstance(table, pd.DataFrame) else table.select(["name", "ok", "day"])


@pytest.mark.parametrize("kind", TABLES)
def test_moments_of_a_table_have_its_names(kind: str) -> None:
    with pytest.warns(UserWarning, match=f"gather_moments: {LEFT_OUT}") as seen:
        m = bn.gather_moments(TABLES[kind]())
    assert [w.filename for w in seen] == [__file__]
    assert m.names == ("a", "b")
    assert m.count.tolist() == [4, 3]
    assert np.allclose([m.mean, m.std()], [np.nanmean(X, axis=0), np.nanstd(X, axis=0)], rtol=1e-14)


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_becomes_a_table(kind: str) -> None:
    table = TABLES[kind]()
    before = copy.deepcopy(table)
    m = bn.moments(np.array([[1.0, 5.0], [2.0, 6.0], [4.0, 8.0]])).named(["b", "a"])
    y = bn.normalize(table, m)  # the columns are found by their names
    assert type(y) is type(table)
    wanted = bn.normalize(np.ascontiguousarray(X[:, ::-1]), m)
    assert np.array_equal(values(y, "a"), wanted[:, 1])
    assert np.array_equal(values(y, "b"), wanted[:, 0], equal_nan=True)
    assert rest(y).equals(rest(before))
    assert before.equals(table)
    if isinstance(table, pd.DataFrame):
        assert y.index.equals(table.index)
        assert y.columns.equals(table.columns)
        assert y["b"].isna().tolist() == [False, True, False, False]
        assert [d.kind for d in y.dtypes[["a", "b"]]] == ["f", "f"]
        assert type(y.dtypes["b"]) is type(table.dtypes["b"])
    else:
        assert y["b"].null_count == 1 if isinstance(table, pa.Table | pa.RecordBatch) else y["b"].null_count() == 1


@pytest.mark.parametrize("kind", TABLES)
def test_batch_norm_of_a_table(kind: str) -> None:
    table, weight = TABLES[kind](), np.array([1.0, 3.0])
    with pytest.warns(UserWarning, match=f"batch_norm: {LEFT_OUT}") as seen:
        y, m = bn.batch_norm(table, weight, activation="relu")
    assert [w.filename for w in seen] == [__file__]
    wanted, moments = bn.batch_norm(X, weight, activation="relu", nan_policy="omit")
    assert m == moments
    assert m.names == ("a", "b")
    assert np.array_equal(np.transpose([values(y, "a"), values(y, "b")]), wanted, equal_nan=True)
    assert rest(y).equals(rest(table))
    with pytest.warns(UserWarning, match=f"moments: {LEFT_OUT}"):
        assert bn.moments(table) == moments
    with pytest.warns(UserWarning, match=LEFT_OUT), pytest.raises(ValueError, match="must have no NaN"):
        bn.batch_norm(table, nan_policy="raise")
    with pytest.warns(UserWarning, match=LEFT_OUT):
        assert np.isnan(values(bn.batch_norm(table, nan_policy="propagate")[0], "b")).all()


@pytest.mark.parametrize("kind", TABLES)
def test_an_explanation_of_a_table_has_names_and_remarks(kind: str) -> None:
    e = bn.explain(TABLES[kind]())
    assert e.labels.names == ("a", "b")
    text = " ".join(e.to_text().split())
    assert "3 columns were left out: column 'name' (text), column 'ok' (booleans), column 'day'" in text
    assert "1 missing cell is left out of the statistics, in column 'b'." in text
    assert e.channels.count.tolist() == [4, 3]
    assert np.isnan(bn.explain(TABLES[kind](), nan_policy="propagate").channels.mean[1])
    with pytest.raises(ValueError, match="no value may be NaN; column 'b' has one"):
        bn.explain(TABLES[kind](), nan_policy="raise")


@pytest.mark.parametrize("kind", TABLES)
def test_iterators_of_tables(kind: str) -> None:
    table = TABLES[kind]()
    reordered = table[["b", "a"]] if isinstance(table, pd.DataFrame) else table.select(["b", "a"])
    m = bn.gather_moments(iter([reordered, table, table]))
    assert m.names == ("b", "a")
    assert m.count.tolist() == [9, 12]
    with pytest.raises(ValueError, match="must have the columns that the moments have; got no column 'b'"):
        bn.gather_moments([reordered, pd.DataFrame({"a": A})])


@pytest.mark.parametrize("kind", TABLES)
def test_a_column_that_is_missing_for_a_while(kind: str) -> None:
    """A part of a table, or a new table, without a value in a column whose moments are known."""
    table = TABLES[kind]()
    nothing = pl.DataFrame({"a": [2.0], "b": [None]})
    if isinstance(table, pd.DataFrame):
        nothing = pd.DataFrame({"a": [2.0], "b": [None]}).astype({"b": table.dtypes["b"]})
    elif not isinstance(table, pl.DataFrame):
        nothing = type(table).from_pydict({"a": [2.0], "b": [None]})
    m = bn.gather_moments(
        iter([table[["a", "b"]] if isinstance(table, pd.DataFrame) else table.select(["a", "b"]), nothing])
    )
    assert m.count.tolist() == [5, 3]
    y = bn.normalize(nothing, m)
    assert np.isnan(values(y, "b")).all()
    assert np.isfinite(values(y, "a")).all()


def test_a_series_is_not_yet_a_table() -> None:
    with pytest.raises(TypeError, match=r"got Series; make a table of it with to_frame\(\)"):
        bn.gather_moments(pd.Series(A))
    with pytest.raises(TypeError, match=r"got LazyFrame; make a table of it with collect\(\)"):
        bn.gather_moments(pl.LazyFrame({"a": A}))


def test_integers_are_computed_in_float64() -> None:
    stamps = [1_700_000_000_001, 1_700_000_000_002, 1_700_000_000_006]
    for table in (pd.DataFrame({"t": stamps}), pl.DataFrame({"t": stamps}), pa.table({"t": stamps})):
        assert bn.gather_moments(table).mean.tolist() == [1_700_000_000_003]
    beyond = [2**53 + 1, None, 3]
    for table in (
        pd.DataFrame({"t": pd.array(beyond, dtype="Int64")}),
        pl.DataFrame({"t": beyond}),
        pa.table({"t": beyond}),
    ):
        with pytest.raises(
            ValueError, match=r"up to 2\*\*53; got 9007199254740993 in column 't'; subtract a whole number"
        ):
            bn.gather_moments(table)
    with pytest.raises(TypeError, match=r"integer data .*convert it with x.astype\(np.float64\)"):
        bn.moments(np.array([[1], [2]]))


def test_types_of_columns() -> None:
    frame = pd.DataFrame(
        {
            "small": np.array([1, 2, 4], np.float32),
            "money": [Decimal("1.5"), None, Decimal("2.5")],
            "objects": np.array([1, None, 2.5], object),
            "kinds": pd.Categorical(["u", "v", "u"]),
            "nothing": [np.nan] * 3,
        }
    )
    with pytest.warns(UserWarning, match=r"column 'kinds' \(text\), column 'nothing' \(no value\)"):
        assert bn.gather_moments(frame).names == ("small", "money", "objects")
    m = bn.Moments.from_statistics([1.0], [4.0]).named(["small"])
    assert bn.normalize(frame, m)["small"].dtype == np.float32
    for small in ("Float32", "float[pyarrow]"):
        assert bn.normalize(frame.astype({"small": small}), m)["small"].dtype == small
    with pytest.raises(TypeError, match=r"normalize: no column holds numbers: column 'a' holds text\. A table"):
        bn.normalize(pd.DataFrame({"a": ["x"]}), bn.Moments.from_statistics([1.0], [4.0]))
    with pytest.raises(TypeError, match="column 'a' must hold numbers; it holds text; leave the column out, or"):
        bn.normalize(pd.DataFrame({"a": ["x"]}), m.named(["a"]))
    with pytest.raises(TypeError, match="out must be left out where x is a table"):
        bn.normalize(frame, m, out=np.zeros((3, 1), np.float32))


# Names of moments


def test_names_stay_with_moments(tmp_path: Path) -> None:
    m = bn.moments(X[:, :1]).named(["a"])
    for again in (
        pickle.loads(pickle.dumps(m)),
        copy.copy(m),
        copy.deepcopy(m),
        m + m,
        m + bn.Moments.empty(1),
        sum([m, m]),
    ):
        assert isinstance(again, bn.Moments)
        assert again.names == ("a",)
    assert (bn.Moments.empty(1) + m).names == ("a",)
    assert m == m.named(None)  # moments are numbers: names are what they are called
    assert m.named(None).names is None
    assert repr(m).startswith("Moments(names=('a',), count=")
    bn.save_moments(tmp_path / "m.json", m)
    assert bn.load_moments(tmp_path / "m.json").names == ("a",)
    ghosts = bn.moments(np.eye(4), virtual_batch_size=2).named(list("abcd"))
    assert ghosts.reduce().names == tuple("abcd")
    assert ghosts.reduce(1).names is None


def test_names_that_do_not_fit() -> None:
    m = bn.moments(np.eye(2))
    with pytest.raises(ValueError, match="names must be one for each channel, for channels on one axis; got 1"):
        m.named(["a"])
    with pytest.raises(TypeError, match="names must be texts"):
        m.named("ab")
    with pytest.raises(ValueError, match="got 'b' and 'c' as names of channel 1; bring the columns into one order"):
        m.named(["a", "b"]).merge(m.named(["a", "c"]))


def test_nothing_is_imported_for_tables() -> None:
    code = (
        "import sys, batchnorm, numpy; batchnorm.gather_moments(numpy.eye(2)); "
        "print({'pandas', 'polars', 'pyarrow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_arrays_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bn.gather_moments(pd.DataFrame({"a": A}))
