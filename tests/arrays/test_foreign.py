"""Arrays of no dtype that can be computed in: the message says what they hold, and its fix works."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from scipy import sparse

import batchnorm as bn


class NAType:
    """What pandas puts in place of a missing value."""

    def __repr__(self) -> str:
        return "<NA>"


DAY = np.timedelta64(1, "D")
LATE = np.int64(1_700_000_000_000_000_000)  # nanoseconds since 1970
RAGGED = np.empty(2, object)
RAGGED[:] = [[1.0], [1.0, 2.0]]

FLOAT64, FROM_LEAST = "x.astype(np.float64)", "(x - x.min()).astype(np.float64)"

# What came, words of the message, and the code that it advises, where that makes numbers by itself.
FOREIGN = {
    "small integers": (np.array([[1, 2], [3, 5]]), "integer data", FLOAT64),
    "the last integers of float32": (np.array([[2**24, 1]]), "integer data", FLOAT64),
    "seconds since 1970": (np.array([[1_700_000_001], [1_700_000_002]]), "integer data", FLOAT64),
    "negative integers": (np.array([[-(2**24) - 1, 0]]), "integer data", FLOAT64),
    "nanoseconds since 1970": (np.array([[LATE], [LATE + 1]]), "would round 1700000000000000001", FROM_LEAST),
    "the least integer": (np.array([[-(2**63)]]), "float64 would round 9223372036854775808", FROM_LEAST),
    "unsigned": (np.array([[2**64 - 1, 2**64 - 2]], np.uint64), "would round 18446744073709551615", FROM_LEAST),
    "no integer": (np.zeros((0, 2), int), "integer data", FLOAT64),
    "integers of the other byte order": (np.array([[1, 2]], ">i4"), "integer data", FLOAT64),
    "bool": (np.array([[True, False]]), "bool data", FLOAT64),
    "long double": (np.ones((2, 2), np.longdouble), "longdouble|float", FLOAT64),
    "complex": (np.ones((2, 2), complex), "complex data .* normalize x.real and x.imag", None),
    "dates": (np.array([["2026-01-01"], ["2026-01-02"]], "M8[D]"), "dates", "(x - x.min()) / np.timedelta64(1, 's')"),
    "spans of time": (np.array([[DAY], [2 * DAY]]), "spans of time", "x / np.timedelta64(1, 's')"),
    "text": (np.array([["1.5", "2"]]), "text", FLOAT64),
    "bytes": (np.array([[b"1.5", b"2"]]), "text", FLOAT64),
    "records": (np.zeros((2, 2), [("a", "f8"), ("b", "f8")]), "records .* pass one field", "x['a']"),
    "raw bytes": (np.zeros((2, 2), "V2"), r"raw bytes .* x\.view\(dtype\)", None),
    "Python numbers": (np.array([[Decimal("1.5"), Fraction(1, 2), 3]], object), "Python numbers", FLOAT64),
    "missing values of pandas": (
        np.array([[1, NAType()]], object),
        r"missing values \(<NA> among object data\) .* x\.to_numpy\(dtype=np\.float64, na_value=np\.nan\)",
        None,
    ),
    "None among numbers": (np.array([[1.0, None]], object), r"missing values \(None .* fill them in", None),
    "rows of many lengths": (RAGGED, r"rows as object data \(list\) .* from rows of equal length", None),
    "text among numbers": (np.array([[1.0, "Ada"]], object), r"text \(such as 'Ada' .* leave out what is not", None),
    "a sparse matrix": (sparse.csr_matrix(np.eye(3)), r"a sparse matrix \(csr_matrix\)", "x.toarray()"),
    "a sparse array": (sparse.coo_array(np.eye(3)), r"a sparse matrix \(coo_array\)", "x.toarray()"),
    "a lazy table": (pl.LazyFrame({"a": [1.0]}), r"a table that is not .* \(LazyFrame\) .* x\.collect\(\)", None),
    "an iterator": (iter([[1.0]]), r"an iterator \(list_iterator\) .* np\.array\(list\(x\)\)", None),
    "something else": (np.array([[object()]]), r"object data \(object\) .* pass numbers", None),
    "nothing": (None, r"object data \(NoneType\) .* pass numbers", None),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_the_message_says_what_came_and_what_to_do(case: str) -> None:
    x, words, code = FOREIGN[case]
    for who, call in (("batch_norm", bn.batch_norm), ("moments", bn.moments)):
        with pytest.raises(TypeError, match=words) as refusal:
            call(x)
        assert str(refusal.value).startswith(f"{who}: x must be float64, float32, float16 or bfloat16; got ")
    if code is None:
        return
    assert str(refusal.value).endswith(code) or f"{code}, as " in str(refusal.value)
    made = eval(code, {"x": x, "np": np})
    assert bn.moments(made).shape == (x.shape[1],)
    if x.dtype.kind in "iu" and x.size:  # no two integers became one
        assert [int(v) for v in (made - made.min()).ravel()] == [int(v) - int(x.min()) for v in x.ravel()]


def test_rows_of_many_lengths_in_a_list() -> None:
    with pytest.raises(
        TypeError, match=r"x must be an array of .*; got list .*; pass numbers, in rows of equal length"
    ):
        bn.batch_norm([[1.0], [1.0, 2.0]])


def test_tensors_that_numpy_does_not_take() -> None:
    torch = pytest.importorskip("torch")
    for x in (torch.ones(3, 2, requires_grad=True), torch.ones(3, 2, dtype=torch.bfloat16)):
        with pytest.raises(TypeError, match=r"got Tensor \(.*; use x\.detach\(\)\.cpu\(\)\.float\(\)\.numpy\(\)"):
            bn.moments(x)


class Table:
    """A table as pandas has them: an iteration gives the names of its columns."""

    def __array__(self, *_: object) -> np.ndarray:
        return np.eye(3)

    def __iter__(self):
        return iter(("a", "b", "c"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Table(), "got Table; pass np.asarray of it"),
        ([Table()], "item 0 is Table; pass np.asarray of it"),
        (sparse.csr_matrix(np.eye(3)), r"got csr_matrix; fill in its zeros with toarray\(\)"),
        ([sparse.csr_matrix(np.eye(3))], r"item 0 is csr_matrix; fill in its zeros with toarray\(\)"),
        ([[1.0, 2.0]], "item 0 is list; use np.asarray"),
        (np.array([[LATE], [LATE + 1]]), r"up to 2\*\*53; got 1700000000000000000 at index \(0, 0\); subtract"),
    ],
)
def test_gathering_from_what_is_no_array(source: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as refusal:
        bn.gather_moments(source)
    assert str(refusal.value).startswith("gather_moments: ")
