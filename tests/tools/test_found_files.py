"""Files as they are found: each is read right, or refused in one sentence with the fix; nothing is half-written."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from found import NAMED, PLAIN, SEMICOLONS, XY, expected, parquet
from hypothesis import given
from hypothesis import strategies as st

import batchnorm as bn
from batchnorm import _blocks
from batchnorm.tools.cli import main
from batchnorm.tools.files import Reading, Refused, Request, normalize_file, open_data
from batchnorm.tools.files.formats import FORMATS
from batchnorm.tools.files.table import Table
from batchnorm.tools.files.text_form import Form
from batchnorm.tools.files.text_tables import read_text_table, write_text_table

Capture = pytest.CaptureFixture[str]
HAS_NUL = sys.version_info >= (3, 11)


pytestmark = pytest.mark.usefixtures("here")


# .npy: data at any byte


def npy(x: np.ndarray, version: int, length: int) -> bytes:
    """An .npy whose header has this length, or the next that holds it."""
    about = {"descr": x.dtype.str, "fortran_order": x.flags.f_contiguous and not x.flags.c_contiguous, "shape": x.shape}
    text = str(about).ljust(length - 1) + "\n"
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode() + x.tobytes("A")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_data_at_any_byte_is_read_as_numpy_reads_it(
    version: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = itertools.product(("f8", ">f8", "f4", "f2", ">i4", "?"), "CF", (7, 1 << 22))
    for number, (dtype, order, size) in enumerate(cells):
        monkeypatch.setattr(_blocks, "BLOCK", size)
        x = np.asarray(rng.integers(0, 2 if dtype == "?" else 90, (4, 3, 2)).astype(dtype), order=order)
        length = 80 + (3 * number + version) % 8
        cell = f"{dtype} {order} {size} {length}"
        Path("x.npy").write_bytes(npy(x, version, length))
        assert np.array_equal(np.load("x.npy"), x), cell
        normalize_file(Request(Path("x.npy"), Path("y.npy")))
        y = np.load("y.npy")
        assert np.allclose(y, expected(x), atol={2: 2e-3, 4: 1e-6}.get(y.itemsize, 1e-12)), cell
        assert y.flags.f_contiguous == (order == "F"), cell
        mapped = np.load("x.npy", mmap_mode="r")
        assert bn.gather_moments(mapped, threads=2) == _blocks.gather(np.array(x), (1,)), cell
    assert main(["explain", "x.npy", "--json"]) == 0


def test_zero_size_at_an_odd_byte() -> None:
    Path("x.npy").write_bytes(npy(np.ones((0, 3)), 1, 81))
    assert bn.gather_moments(np.load("x.npy", mmap_mode="r")) == bn.Moments.empty(3)


def test_a_field_of_packed_records_is_gathered(rng: np.random.Generator) -> None:
    records = np.zeros((20, 3), [("flag", "u1"), ("value", "f8")])
    records["value"] = rng.normal(size=(20, 3))
    assert bn.gather_moments(records["value"]) == bn.moments(np.array(records["value"]))
    assert bn.explain(records["value"]).to_dict()["plan"]["m"] == 20


# Tables of text: what was not chosen comes back equal

# csv of Python 3.10 neither reads nor writes NUL.
CELLS = st.text(st.sampled_from("ab\",;|\t\r\n 1.\ufeffé漢🙂'\u2028\x85" + "\0" * HAS_NUL), max_size=6)


@given(
    st.lists(st.tuples(CELLS, CELLS, st.floats()), min_size=1, max_size=5),
    st.tuples(CELLS, CELLS),
    st.sampled_from([Form(","), Form("\t"), Form(";", ","), Form(",", ","), Form("|", ".", True)]),
)
def test_cells_come_back_equal(rows: list[tuple[str, str, float]], names: tuple[str, str], form: Form) -> None:
    values = np.array([[r[2]] for r in rows])
    others: dict[int, Any] = {0: [r[0] for r in rows], 1: [r[1] for r in rows]}
    heading = (*names, "value")
    write_text_table(Path("t.csv"), Table(heading, True, (2,), values, others), values, form)
    back = read_text_table(Path("t.csv"), form, Reading(None, "2", True, form.delimiter, form.decimal))
    assert back.names == heading
    assert back.others == others
    assert np.array_equal(back.values, values, equal_nan=True)


def test_nul_is_written_or_refused() -> None:
    x = np.array([[1.0]])
    table = Table(("a", "x"), True, (1,), x, {0: ["\0"]})
    with nullcontext() if HAS_NUL else pytest.raises(Refused, match="holds NUL"):
        write_text_table(Path("t.csv"), table, x, Form(","))
        assert Path("t.csv").read_bytes() == b"a,x\n\0,1.0\n"


def test_a_first_cell_that_begins_with_a_mark() -> None:
    for header, rows in (("--header", '"\ufeffa",1\nb,2\nc,4\n'), ("--no-header", '"\ufeffa",1\nb,2\nc,4\n')):
        Path("t.csv").write_text(rows, encoding="utf-8")
        assert main(["normalize", "t.csv", "-o", "u.csv", "--columns", "1", header]) == 0
        with open("u.csv", encoding="utf-8-sig", newline="") as file:
            assert [row[0] for row in csv.reader(file)] == ["\ufeffa", "b", "c"]


def test_every_python_reads_what_was_written() -> None:
    """Before Python 3.11.9 the writer left CR bare where lines end in LF: look at the bytes."""
    Path("t.csv").write_bytes(b'note,x\r\n"a\rb",1\r\n"c\r\nd",2\r\n"e""f",3\r\n')
    assert main(["normalize", "t.csv", "-o", "u.csv", "--columns", "x"]) == 0
    written = Path("u.csv").read_bytes()
    y = bn.batch_norm(np.array([[1.0], [2.0], [3.0]]))[0][:, 0]
    assert written == f'note,x\n"a\rb",{y[0]}\n"c\r\nd",{y[1]}\n"e""f",{y[2]}\n'.encode()


# Every form of every kind: what is read, or the words of the refusal

LONG = "x" * 200_000

TEXT: dict[str, tuple[str | bytes, list[str], Any]] = {
    "plain": (PLAIN, [], XY),
    "no final newline": (PLAIN.rstrip(), [], XY),
    "byte order mark": ("\ufeff" + NAMED, [], XY),
    "UTF-16": (NAMED.encode("utf-16"), [], XY),
    "UTF-16 of the other order": (("\ufeff" + NAMED).encode("utf-16-be"), [], XY),
    "UTF-16 without a mark": (NAMED.encode("utf-16-le"), [], XY),
    "Latin-1": (("größe,b\n" + PLAIN).encode("latin-1"), [], XY),
    "Latin-1, far inside": (("a,b\n" + "1,2\n" * 9000).encode() + b"1,\xb5\n", [], np.ones((9001, 1))),
    "Latin-1, of no meaning in Windows": (b"a,t\n1,\x81\n3,\x8d\n", [], [[1], [3]]),
    "names in Latin letters and others": ("größe,漢字\n" + PLAIN, [], XY),
    "lines of old Macs": (NAMED.replace("\n", "\r"), [], XY),
    "lines of Windows": (NAMED.replace("\n", "\r\n"), [], XY),
    "blank lines at the end": (NAMED + "\n\n  \n", [], XY),
    "a blank line inside": ("a,b\n1,2\n\n3,4\n", [], [[1, 2], [3, 4]]),
    "a blank line first": ("\na,b\n1,2\n3,4\n", [], [[1, 2], [3, 4]]),
    "quoted numbers": ('"a","b"\n"1","2.5"\n"3","4.5"\n"7","-1"\n', [], XY),
    "spaces around": (" a , b\n 1 , 2.5\n3 ,4.5\n7,\t-1\n", [], XY),
    "spaces around names": (" a , b\n" + PLAIN, ["--columns", "a,b"], XY),
    "a line's end in a name": ('"a\nb",c\n' + PLAIN, ["--columns", '"a\nb",c'], XY),
    "a line's end in a name, bare": ('"a\nb",c\n' + PLAIN, ["--columns", "a\nb"], "is not a list of names"),
    "a column of many digits": (NAMED, ["--columns", "9" * 5000], "has no column"),
    "exponents and signs": ("+1e0,25E-1\n3.,4.5\n7,-1.0\n", [], XY),
    "a trailing delimiter": ("1,2.5,\n3,4.5,\n7,-1,\n", ["--columns", "0,1"], XY),
    "a trailing delimiter, all columns": ("1,2.5,\n3,4.5,\n7,-1,\n", [], XY),
    "ragged": ("a,b\n1,2\n3\n", [], "line 3: expected 2 cells as in line 1, found 1"),
    "a long row": ("a,b\n1,2\n3,4,5\n", [], "line 3: expected 2 cells as in line 1, found 3"),
    "thousands": ('a,b\n"1,234",2\n"2,345",5\n', [], [[2], [5]]),
    "thousands, named": ('a,b\n"1,234",2\n', ["--columns", "a"], 'add --decimal ","; if it separates thousands'),
    "thousands and decimals": ('a,b\n"1,234.5",2\n', ["--columns", "a"], "Remove the separators of thousands"),
    "thousands by spaces": ("a,b\n1 234,2\n", ["--columns", "a"], "Remove the separators of thousands"),
    "thousands by points": ("a;b\n1.234,5;2\n2.345,5;5\n", ["--delimiter", ";", "--decimal", ","], [[2], [5]]),
    "thousands by points, named": ("a;b\n1.234,5;2,5\n", ["--columns", "a"], "a point is no part of a number"),
    "NaN": ("a,b\nnan,NaN\n-nan,1\n2,4\n5,6\n", [], [[np.nan, np.nan], [np.nan, 1], [2, 4], [5, 6]]),
    "nothing but NaN": ("a,b\nnan,1\nnan,2\n", [], [[1], [2]]),
    "infinity": ("a,b\ninf,-Infinity\n1,2\n", [], [[np.inf, -np.inf], [1, 2]]),
    **{
        f"missing as {word!r}": (f"a,b\n1,2\n3,{word}\n5,6\n", [], [[1, 2], [3, np.nan], [5, 6]])
        for word in ("", "NA", "N/A", "#N/A", "null", "None", "<NA>", "NaT", "-", "?")
    },
    "names twice": ("a,a\n" + PLAIN, [], XY),
    "names twice, by name": ("a,a\n" + PLAIN, ["--columns", "a"], "has 2 columns named 'a'. Choose by number"),
    "names that are numbers": ("2019,2020\n" + PLAIN, ["--header"], XY),
    "no name for one": ("a,\n" + PLAIN, [], XY),
    "pandas with an index": (",0,1\n0,1,2.5\n1,3,4.5\n2,7,-1\n", ["--columns", "0,1"], XY),
    "tabs in a .csv": (NAMED.replace(",", "\t"), [], XY),
    "tabs": (NAMED.replace(",", "\t"), ["--delimiter", "tab"], XY),
    "bars": (NAMED.replace(",", "|"), [], XY),
    "bars, said": (NAMED.replace(",", "|"), ["--delimiter", "|"], XY),
    "semicolons": (NAMED.replace(",", ";"), [], XY),
    "a delimiter, as Excel says it": ("sep=;\n" + SEMICOLONS, [], XY),
    "blanks, one or several": ("a b\n 1   2.5\n3 4.5 \n7\t-1\n", [], XY),
    "blanks, said": ("a b\nc  d\n", ["--delimiter", " "], "columns 'a' and 'b' hold text"),
    "words": ("a b\nc 1\nd e\n", [], "column 'a b' holds text"),
    "compressed, under another name": (gzip.compress(NAMED.encode()), [], XY),
    "a typeset minus": (NAMED.replace("-", "\u2212"), [], XY),
    "a title above": ("Figures of 2023\na,b\n1,2\n", [], "remove lines above the table, such as a title"),
    "R's write.table": ('"a","b"\n"x",1,2\n"y",3,4\n', [], 'begin line 1 with "" and a separator'),
    "integers between semicolons": ("a;b\n1;2\n3;4\n", [], [[1, 2], [3, 4]]),
    "semicolons, said": (NAMED.replace(",", ";"), ["--delimiter", ";"], XY),
    "semicolons and commas": (SEMICOLONS, [], XY),
    "semicolons and commas, said": (SEMICOLONS, ["--delimiter", ";", "--decimal", ","], XY),
    "commas in every number": ("1,5;2,5\n3,5;4,5\n", [], [[1.5, 2.5], [3.5, 4.5]]),
    "names, and commas in every number": ("a;b\n1,5;2,5\n3,5;4,5\n", ["--columns", "0"], [[1.5], [3.5]]),
    "one row of semicolons": ("1;2\n", [], "one value per channel"),
    "quoted decimal commas, found": ('a,b\n"1,0","2,5"\n3,"4,5"\n7,-1\n', [], XY),
    "quoted decimal commas": ('a,b\n"1,0","2,5"\n3,"4,5"\n7,-1\n', ["--decimal", ","], XY),
    "a wrong delimiter": (NAMED, ["--delimiter", ";"], 'separated by commas: add --delimiter ","'),
    "no delimiter": (NAMED, ["--delimiter", "ab"], "'ab' is not a delimiter"),
    "a single column": ("a\n1\n2\n4\n", [], [[1], [2], [4]]),
    "a single row": ("1,2\n", [], "one value per channel"),
    "names alone": ("a,b\n", [], "holds column names and no row"),
    "no byte": ("", [], "is empty (0 bytes)"),
    "nothing but a mark": ("\ufeff", [], "holds no row"),
    "a NUL": ("a,b\n1,2\0\n", [], "one value per channel" if HAS_NUL else "line 2"),
    "an open quote": ('a,b\n1,"2\n', [], "Close every quote"),
    "a long text beside": (f"a,b,t\n1,2.5,{LONG}\n3,4.5,x\n7,-1,y\n", ["--columns", "a,b"], XY),
    "an integer beyond 2^53": (
        "a,id\n1,9007199254740993\n2,5\n",
        [],
        "up to 2**53; got line 2, column 1 'id': 9007199254740993; subtract a whole number",
    ),
    "the last exact integer": ("a\n9007199254740992\n-9007199254740992\n", [], [[2.0**53], [-(2.0**53)]]),
    "a large number with a point": ("a\n9007199254740993.0\n1e300\n", [], [[2.0**53], [1e300]]),
}


X, Y = ([row[i] for row in XY] for i in (0, 1))
RANGE = {"index_columns": [{"kind": "range", "name": None, "start": 0, "stop": 3, "step": 1}], "columns": []}
LEVEL = "__index_level_0__"
STORED = {"index_columns": [LEVEL], "columns": []}
TWO = {"index_columns": ["day", "hour"], "columns": []}

PARQUET: dict[str, tuple[bytes, list[str], Any]] = {
    "plain": (parquet(X, Y), [], XY),
    "several row groups": (parquet(X, Y, row_group_size=1), [], XY),
    "names twice": (parquet(X, Y, names=["a", "a"]), [], XY),
    "names twice, by name": (parquet(X, Y, names=["a", "a"]), ["--columns", "a"], "has 2 columns named 'a'. Choose"),
    "nulls": (parquet(X, [1.0, None, 2.0]), [], [[1, 1], [3, np.nan], [7, 2]]),
    "nulls among integers": (parquet(X, [1, None, 2]), [], [[1, 1], [3, np.nan], [7, 2]]),
    "nulls among decimals": (parquet(X, [Decimal(1), None, Decimal(2)]), [], [[1, 1], [3, np.nan], [7, 2]]),
    "nulls beside integers beyond 2^53": (parquet(X, [None, 2**53 + 1, 2]), [], "got row 1, column 1 'b': 90071992547"),
    "nulls beside": (parquet(X, Y, [None, None, 1.0]), ["--columns", "a,b"], XY),
    "nothing but nulls": (parquet(X, pa.nulls(3)), [], [[1], [3], [7]]),
    "nothing but nulls, named": (parquet(X, pa.nulls(3)), ["--columns", "b"], "holds no value, all are missing"),
    "a dictionary": (parquet(X, pa.array(["x", "y", "x"]).dictionary_encode()), [], [[1], [3], [7]]),
    "a dictionary beside": (parquet(X, Y, pa.array(["x", "y", "x"]).dictionary_encode()), ["--columns", "0,1"], XY),
    "decimals": (parquet([Decimal(str(v)) for v in X], Y), [], XY),
    "long decimals": (parquet(pa.array([Decimal(v) for v in X], pa.decimal256(60, 0)), Y), [], XY),
    "dates": (parquet(X, pa.array([1, 2, 3], pa.date32())), [], [[1], [3], [7]]),
    "dates, named": (
        parquet(X, pa.array([1, 2, 3], pa.date32())),
        ["--columns", "b"],
        "holds date32[day], not numbers",
    ),
    "nothing but dates": (parquet(pa.array([1, 2, 3], pa.date32())), [], "no column holds numbers: column 'a' holds d"),
    "nanoseconds beside": (parquet(X, Y, pa.array([1, 2, 3], pa.timestamp("ns"))), ["--columns", "0,1"], XY),
    "lists": (parquet(X, [[1], [2], [3]]), [], [[1], [3], [7]]),
    "lists beside": (parquet(X, Y, [[1], [2], [3]]), ["--columns", "0,1"], XY),
    "structures": (parquet(X, [{"u": 1}] * 3), [], [[1], [3], [7]]),
    "no row": (parquet(pa.array([], pa.float64())), [], "holds 0 rows of 1 columns"),
    "bool and integers": (parquet([True, False, True], [1, 2, 4]), [], [[1], [2], [4]]),
    "bool, named": (parquet([True, False, True], [1, 2, 4]), ["--columns", "0,1"], [[1, 1], [0, 2], [1, 4]]),
    "halves": (parquet(pa.array(np.float16(X)), pa.array(np.float16(Y))), [], XY),
    "unsigned": (parquet(pa.array([1, 3, 7], pa.uint64())), [], [[1], [3], [7]]),
    "integers beyond 2^53": (parquet([1, 2, 2**53 + 1]), [], "got row 2, column 0 'a': 9007199254740993; subtract"),
    "integers beyond 2^53 beside others": (
        parquet(X, [-(2**63), 2, 3]),
        [],
        "got row 0, column 1 'b': -92233720368547",
    ),
    "decimals beyond 2^53": (parquet([Decimal(2**53 + 1)] * 3), [], "got row 0, column 0 'a': 9007199254740993"),
    "pandas' range": (parquet(X, Y, metadata=RANGE), [], XY),
    "pandas' index": (parquet(X, Y, [101, 205, 309], names=["a", "b", LEVEL], metadata=STORED), [], XY),
    "pandas' index of texts": (
        parquet(X, Y, list("xyz"), names=["a", "b", LEVEL], metadata=STORED),
        [],
        XY,
    ),
    "pandas' index of two": (
        parquet(X, Y, [1, 1, 2], [1, 2, 1], names=["a", "b", "day", "hour"], metadata=TWO),
        [],
        XY,
    ),
    "pandas' index alone": (
        parquet([1, 1, 2], [1, 2, 1], names=["day", "hour"], metadata=TWO),
        [],
        "all of them pandas'",
    ),
    "pandas' index, asked for": (
        parquet(X, [1, 2, 4], names=["a", "day"], metadata=TWO),
        ["--columns", "day"],
        [[1], [2], [4]],
    ),
    "a name of no letters": (
        parquet(X, Y, names=["name", "b"]).replace(b"name", b"n\xb3me"),
        [],
        "is not a whole Parquet file",
    ),
    "a note of another shape": (parquet(X, Y, metadata={"index_columns": 5, "columns": [3, None]}), [], XY),
    "a note of another kind": (parquet(X, Y, metadata=[1]), [], XY),
    "truncated": (parquet(X, Y)[:-7], [], "is not a whole Parquet file"),
    "not a table": (b"PAR1" + b"\0" * 20 + b"PAR1", [], "is not a whole Parquet file"),
    "a delimiter": (parquet(X, Y), ["--delimiter", ";"], "--delimiter is for .csv, .tsv and .txt"),
}


def saved(save: Callable[..., None], *arrays: Any, **named: Any) -> bytes:
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def encrypted() -> bytes:
    content = bytearray(saved(np.savez, a=np.eye(3)))
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + place] |= 1
    return bytes(content)


def archive_of_text() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", "hello")
    return file.getvalue()


ARRAY = np.array(XY)
PYTHON_2 = b"{'descr': '<f8', 'fortran_order': False, 'shape': (3L, 2L), }".ljust(117) + b"\n"
UNICODE = np.zeros(3, [("größe", "f8"), ("漢", "f8")])
LETTERS = npy(UNICODE, 3, 200).replace(b"'|V16'", str(UNICODE.dtype.descr).encode())

NPY: dict[str, tuple[bytes, list[str], Any]] = {
    "plain": (saved(np.save, ARRAY), [], XY),
    "something behind": (saved(np.save, ARRAY) + b"more", [], XY),
    "of Python 2": (b"\x93NUMPY\1\0" + len(PYTHON_2).to_bytes(2, "little") + PYTHON_2 + ARRAY.tobytes(), [], XY),
    "0 axes": (saved(np.save, np.float64(1)), [], "has shape (): there is nothing to average"),
    "1 axis": (saved(np.save, np.ones(3)), [], "axis 1 does not exist"),
    "no value": (saved(np.save, np.ones((0, 3))), [], "there is nothing to average"),
    "objects": (saved(np.save, np.array([[1, None]])), [], "holds Python objects"),
    "records": (saved(np.save, np.zeros(3, [("u", "f8")])), [], "records with the fields u. Save one field"),
    "records of other letters": (
        LETTERS,
        [],
        "records",
    ),
    "bool": (saved(np.save, ARRAY > 2), [], [[0, 1], [1, 1], [1, 0]]),
    "dates": (saved(np.save, np.zeros((2, 2), "M8[s]")), [], "numpy.timedelta64(1, 's')"),
    "spans of time": (saved(np.save, np.zeros((2, 2), "m8[s]")), [], "numpy.timedelta64(1, 's')"),
    "text": (saved(np.save, np.array([["1", "2"]])), [], "has dtype <U1"),
    "long double": (saved(np.save, ARRAY.astype(np.longdouble)), [], "Convert it before saving"),
    "complex": (saved(np.save, ARRAY + 1j), [], "complex numbers"),
    "integers beyond 2^53": (
        saved(np.save, np.array([[1, 2], [3, -(2**53) - 1]])),
        [],
        "up to 2**53; got -9007199254740993 at index (1, 1); subtract a whole number",
    ),
    "unsigned beyond 2^53": (saved(np.save, np.array([[1], [2**64 - 1]], np.uint64)), [], "got 18446744073709551615"),
    "integers of 2^53": (saved(np.save, np.array([[2**53], [-(2**53)]])), [], [[2.0**53], [-(2.0**53)]]),
}
NPZ: dict[str, tuple[bytes, list[str], Any]] = {
    "several arrays": (saved(np.savez, a=ARRAY, b=ARRAY), [], "holds 2 arrays (a, b)"),
    "one of them": (saved(np.savez_compressed, a=ARRAY, b=np.array(["x"])), ["--key", "a"], XY),
    "objects beside": (saved(np.savez, a=ARRAY, b=np.array([None])), ["--key", "a"], XY),
    "no array": (saved(np.savez), [], "holds no array"),
    "encrypted": (encrypted(), [], "is not a whole .npz archive (File"),
    "text": (archive_of_text(), [], "is not an .npy file"),
    "damaged beside": (
        saved(np.savez, a=ARRAY, b=np.arange(9.0)).replace(np.float64(8).tobytes(), np.float64(7).tobytes()),
        ["--key", "a"],
        "is not a whole .npz archive (Bad CRC-32",
    ),
}
FOUND = {
    **{("t.csv", case): found for case, found in TEXT.items()},
    ("t.tsv", "one column of decimal commas"): ("1,5\n2,5\n3\n", ["--decimal", ","], [[1.5], [2.5], [3]]),
    ("t.tsv", "one column, each cell with a comma"): ("1,5\n2,5\n", ["--decimal", ","], [[1.5], [2.5]]),
    **{("t.parquet", case): found for case, found in PARQUET.items()},
    **{("x.npy", case): found for case, found in NPY.items()},
    **{("x.npz", case): found for case, found in NPZ.items()},
}
NORMALIZE_ONLY = (  # explain says it, or is not concerned
    "up to 2**53",
    "one value per channel",
    "got row",
    "got 1844",
    "Bad CRC-32",
)


def test_every_file_is_read_right_or_refused(capsys: Capture) -> None:
    for (name, case), (content, options, wanted) in FOUND.items():
        cell = f"{name}: {case}"
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        target = Path("out" + Path(name).suffix)
        before = sorted(Path().iterdir())
        status = main(["normalize", name, "-o", str(target), *options])
        said = capsys.readouterr()
        if isinstance(wanted, str):
            assert (status, said.out) == (2, ""), cell
            assert wanted in " ".join(said.err.split()), f"{cell}: {said.err}"
            assert said.err.startswith(("batchnorm: ", "usage: ")), cell
            assert said.err.count("\n") == 1 or said.err.startswith("usage: "), cell
            assert sorted(Path().iterdir()) == before, cell
        else:
            assert (status, said.err) == (0, ""), f"{cell}: {said.err}"
            assert_normalized(name, target, options, np.array(wanted, float), cell)
            target.unlink()
        explained = main(["explain", name, *options])
        assert explained == (2 if isinstance(wanted, str) and not any(w in wanted for w in NORMALIZE_ONLY) else 0), cell
        assert "Traceback" not in capsys.readouterr().err, cell
        Path(name).unlink()


def assert_normalized(name: str, target: Path, options: list[str], wanted: np.ndarray, cell: str) -> None:
    reading = {o.removeprefix("--"): v for o, v in zip(options[::2], options[1::2], strict=False)}
    if "--header" in options:
        reading = {"header": True}
    if reading.get("delimiter") == "tab":
        reading["delimiter"] = "\t"
    data = open_data(name, Reading(**reading))
    assert np.array_equal(data.values, wanted, equal_nan=True), cell
    if data.table is not None and np.nan_to_num(np.abs(wanted)).max() >= 1e100:
        reading["columns"] = ",".join(map(str, data.table.chosen))  # also where all of one is NaN now
    back = open_data(target, Reading(**reading))
    small = back.values.dtype == np.float16
    if not np.abs(wanted).max() >= 1e100:  # NumPy's variance overflows there, ours does not
        with np.errstate(invalid="ignore"):
            wanted = expected(wanted)
        assert np.allclose(back.values, wanted, atol=2e-3 if small else 1e-12, equal_nan=True), cell
    if data.table is not None and data.table.arrow is None:
        assert back.table is not None
        assert (back.table.names, back.table.others) == (data.table.names, data.table.others), cell
        mark = b"\xef\xbb\xbf"
        assert Path(target).read_bytes().startswith(mark) == Path(name).read_bytes().startswith(mark), cell


def test_what_is_rounded_is_explained(capsys: Capture) -> None:
    Path("t.csv").write_text("a,id\n1,9007199254740993\n2,5\n")
    assert main(["explain", "t.csv"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "line 2, column 1 'id': 9007199254740993 was rounded: float64 holds integers up to 2^53" in out


def test_a_column_without_a_name_is_pointed_out(capsys: Capture) -> None:
    Path("t.csv").write_text(",a\n0,1\n1,5\n")
    assert main(["normalize", "t.csv", "-o", "u.csv"]) == 0
    assert "Note: column 0 was left out: it holds the numbers of the rows, under no name.\n" in capsys.readouterr().out
    assert Path("u.csv").read_text().splitlines()[2].startswith("1,0.99")
    Path("t.csv").write_text(",a\n3,1\n1,5\n")
    assert main(["normalize", "t.csv", "-o", "u.csv"]) == 0
    assert "Note: column 0 has no name; if it is no measurement, leave it out" in capsys.readouterr().out
    Path("t.csv").write_text("id,a\n1,1\n2,5\n3,4\n")
    assert main(["normalize", "t.csv", "-o", "u.csv"]) == 0
    assert "Note: column 'id' counts the rows; if it is no measurement, leave it out" in capsys.readouterr().out
    assert main(["normalize", "t.csv", "-o", "u.csv", "--columns", "a"]) == 0
    assert "Note" not in capsys.readouterr().out


def test_a_folder_that_looks_like_a_partition_adds_no_column() -> None:
    Path("year=2020").mkdir()
    Path("year=2020/t.parquet").write_bytes(parquet(X, Y))
    assert open_data("year=2020/t.parquet").names == ("a", "b")


def test_pandas_reads_back_what_it_wrote() -> None:
    """Its note names the index, and types to convert to: those of the normalized columns are the new ones."""
    note = STORED | {
        "columns": [
            {"name": n, "field_name": f, "pandas_type": "int64", "numpy_type": t, "metadata": None}
            for n, f, t in (("a", "a", "Int64"), ("b", "b", "int64"), (None, "__index_level_0__", "int64"))
        ]
    }
    content = parquet([1, 2, 4], [5, 6, 8], [101, 205, 309], names=["a", "b", LEVEL], metadata=note)
    Path("t.parquet").write_bytes(content)
    normalize_file(Request(Path("t.parquet"), Path("u.parquet"), reading=Reading(columns="a")))
    after = pq.read_table("u.parquet")
    assert after["__index_level_0__"].to_pylist() == [101, 205, 309]
    assert after["b"].to_pylist() == [5, 6, 8]
    noted = json.loads(after.schema.metadata[b"pandas"])
    assert noted["index_columns"] == ["__index_level_0__"]
    assert [c["numpy_type"] for c in noted["columns"]] == ["float64", "int64", "int64"]
    normalize_file(Request(Path("t.parquet"), Path("u.csv")))
    with open("u.csv", newline="") as file:
        assert [row[2] for row in csv.reader(file)] == ["__index_level_0__", "101", "205", "309"]


def test_other_columns_of_a_parquet_file_as_cells() -> None:
    others = {
        "text": ["x", None, "é,\r\n"],
        "whole": [1, 2, 3],
        "when": pa.array([0, 1, 1_700_000_000_000_000_001], pa.timestamp("ns")),
        "money": [Decimal("1.50"), None, Decimal("2.00")],
        "kind": pa.array(["u", "v", None]).dictionary_encode(),
    }
    Path("t.parquet").write_bytes(parquet(X, *others.values(), names=["a", *others]))
    normalize_file(Request(Path("t.parquet"), Path("u.csv"), reading=Reading(columns="a")))
    with open("u.csv", newline="") as file:
        _, *rows = csv.reader(file)
    assert [r[1:] for r in rows] == [
        ["x", "1", "1970-01-01 00:00:00.000000000", "1.50", "u"],
        ["", "2", "1970-01-01 00:00:00.000000001", "", "v"],
        ["é,\r\n", "3", "2023-11-14 22:13:20.000000001", "2.00", ""],
    ]
    Path("t.parquet").write_bytes(parquet(X, [[1], [2], [3]]))
    with pytest.raises(Refused, match=r"column 1 'b' holds list<.*> a cell|column 1 'b' holds list<") as refusal:
        normalize_file(Request(Path("t.parquet"), Path("v.csv"), reading=Reading(columns="a")))
    assert str(refusal.value).endswith("which a cell of a text table cannot hold. Write to a .parquet file.")
    assert not Path("v.csv").exists()


def test_a_table_of_another_kind_has_the_usual_form_of_its_kind() -> None:
    Path("t.csv").write_text("a;b\n1,5;2\n3,5;5\n")
    for target, form in (("u.csv", Form(";", ",")), ("u.tsv", Form("\t"))):
        normalize_file(Request(Path("t.csv"), Path(target), reading=Reading(delimiter=";", decimal=",")))
        back = open_data(target, Reading(delimiter=form.delimiter, decimal=form.decimal))
        assert np.allclose(back.values, expected(np.array([[1.5, 2], [3.5, 5]])))


def test_the_page_names_every_kind_of_file() -> None:
    page = (Path(__file__).parents[2] / "docs/command-line.md").read_text(encoding="utf-8")
    assert [suffix for suffix in FORMATS if f"`{suffix}`" not in page] == []
