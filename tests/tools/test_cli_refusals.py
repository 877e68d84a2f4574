"""What the commands refuse: rule, what came, fix; status 2, one paragraph, no traceback, nothing written."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from commands import FLOATS, Capture, listing, parquet, refused, save, write

from batchnorm.tools.cli import main

pytestmark = pytest.mark.usefixtures("here")


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def savez(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


RECORDS = np.zeros(3, dtype=[("x", "f8"), ("y", "f8")])
IRIS = "a,b,species\n5.1,3.5,setosa\n4.9,3.0,setosa\n"

# name of the file, its content (None: there is none), further arguments, what the message must say
BAD_FILES = {
    "missing": ("x.npy", None, [], ["x.npy does not exist", "Check the name"]),
    "directory": ("folder.csv", None, [], ["folder.csv is a directory", "Name a file in it"]),
    "unknown extension": (
        "x.xlsx",
        b"..",
        [],
        ["the extension .xlsx", ".npy, .npz, .csv, .tsv, .txt, .csv.gz", "Save the sheet as CSV"],
    ),
    "no extension": ("data", b"1,2", [], ["data has no extension", "can be read"]),
    "empty npy": ("x.npy", b"", [], ["x.npy is empty (0 bytes)", "Write it again"]),
    "empty csv": ("x.csv", b"", [], ["x.csv is empty (0 bytes)"]),
    "blank csv": ("x.csv", b"\n\n", [], ["x.csv is empty: it holds no row", "at least one row"]),
    "truncated gzip": (
        "x.csv.gz",
        gzip.compress(b"a,b\n1,2\n")[:-9],
        [],
        ["is not a whole gzip file", "Compress the table again"],
    ),
    "not an npy": ("x.npy", b"hello, world", [], ["is not an .npy file", "numpy.save"]),
    "truncated mark": ("x.npy", b"\x93NU", [], ["is not an .npy file"]),
    "truncated header": ("x.npy", FLOATS[:60], [], ["its header is damaged or truncated", "numpy.save"]),
    "truncated npy": (
        "x.npy",
        FLOATS[:-1],
        [],
        ["is truncated: shape (4, 3) of float64 needs 96 bytes, and 95 are there"],
    ),
    "unknown version": ("x.npy", b"\x93NUMPY\x09\x00" + FLOATS[8:], [], ["unknown version (9, 0)"]),
    "sizes that overflow": (
        "x.npy",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296, 2), }"),
        [],
        ["the header says shape (4294967296, 4294967296, 2), which no file can hold", "damaged"],
    ),
    "negative size": (
        "x.npy",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-4, 3), }"),
        [],
        ["which no file can hold"],
    ),
    "huge size": (
        "x.npy",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 3), }"),
        [],
        ["needs 24000000000 bytes, and 0 are there"],
    ),
    "no values": ("x.npy", save(np.ones((0, 3))), [], ["has shape (0, 3): there is nothing to average"]),
    "a scalar": ("x.npy", save(np.float64(3)), [], ["has shape (): there is nothing to average"]),
    "objects": (
        "x.npy",
        save(np.array([1, "x", None], object)),
        [],
        ["Python objects", "never done", "astype(numpy.float64)"],
    ),
    "complex": (
        "x.npy",
        save(np.ones((2, 2), complex)),
        [],
        ["complex numbers (dtype complex128)", "real and imaginary parts"],
    ),
    "records": ("x.npy", save(RECORDS), [], ["records with the fields x, y", "Save one field"]),
    "raw bytes": (
        "x.npy",
        save(np.zeros((2, 2), "V2")),
        [],
        ["raw bytes (dtype |V2)", "bfloat16", "astype(numpy.float32)"],
    ),
    "texts": ("x.npy", save(np.array([["a"]])), [], ["has dtype <U1", "can be read"]),
    "dates": (
        "x.npy",
        save(np.zeros((2, 2), "M8[s]")),
        [],
        ["datetime64[s]", "Count them in seconds before saving", "numpy.timedelta64"],
    ),
    "npz without a key": ("x.npz", savez(a=np.eye(2), b=np.eye(3)), [], ["holds 2 arrays (a, b)", "--key a"]),
    "npz with a wrong key": ("x.npz", savez(a=np.eye(2), b=np.eye(3)), ["--key", "c"], ["no array 'c'", "a, b"]),
    "npz without arrays": ("x.npz", savez(), [], ["holds no array"]),
    "not an npz": ("x.npz", b"PK or not", [], ["not a whole .npz archive", "numpy.savez"]),
    "damaged npz": (
        "x.npz",
        savez(a=np.eye(9)).replace(b"\xf0?", b"\x00?"),
        [],
        ["not a whole .npz archive (Bad CRC-32"],
    ),
    "objects in npz": ("x.npz", savez(a=np.array([None])), [], ["array 'a' holds Python objects"]),
    "key for a table": (
        "x.csv",
        b"1,2\n3,4\n",
        ["--key", "a"],
        ["--key chooses an array of an .npz", "Leave --key out"],
    ),
    "columns of an array": ("x.npy", FLOATS, ["--columns", "0"], ["--columns chooses columns of a table", "--axis"]),
    "header of an array": ("x.npy", FLOATS, ["--no-header"], ["--header and --no-header are for .csv, .tsv and .txt"]),
    "a text column": (
        "x.csv",
        IRIS,
        ["--columns", "a,b,species"],
        [
            "line 2, column 2 'species': 'setosa' is not a number",
            "choosing the others, by name or number: --columns 0,1.",
        ],
    ),
    "a text cell": (
        "x.csv",
        "a,b\n1,2\n3,4x\n",
        ["--columns", "0,1"],
        ["line 3, column 1 'b': '4x' is not a number", "--columns 0."],
    ),
    "a text cell without header": (
        "x.csv",
        "1,2\n3,x\n",
        ["--columns", "0,1"],
        ["line 2, column 1: 'x' is not a number"],
    ),
    "an underscore": ("x.csv", "1,2\n3,1_000\n", ["--columns", "0,1"], ["line 2, column 1: '1_000' is not a number"]),
    "a decimal comma": (
        "x.csv",
        "a;b\n1,5;2\n",
        ["--delimiter", ","],
        [
            "line 2: expected 1 cell as in line 1, found 2. The cells seem to be separated by semicolons",
            'and decimals by a comma: add --delimiter ";" --decimal ",".',
        ],
    ),
    "semicolons": (
        "x.csv",
        "a;b\n1;2\n",
        ["--delimiter", ","],
        ["no column holds numbers", 'separated by semicolons: add --delimiter ";".'],
    ),
    "an empty cell": (
        "x.csv",
        "a,b\n1,2\n,4\n",
        ["--nan-policy", "raise"],
        ["line 3, column 0 'a' is empty", "no value may be missing. Fill it in, remove the row", "--nan-policy omit"],
    ),
    "nothing but texts": ("x.csv", "a,b\nx,u\n", [], ["no column holds numbers: columns 'a' and 'b' hold text"]),
    "nothing but units": ("x.csv", "a\n1 kg\n2 kg\n", [], ["such as '1 kg'. Take such signs out of the cells"]),
    "an Excel workbook": ("x.csv", b"PK\3\4..", [], ["is an Excel workbook", "Save the table as text (CSV) first"]),
    "a mark that lies": ("x.csv", b"\xef\xbb\xbfa\n\xff\n", [], ["is not text in UTF-8, as its first bytes say"]),
    "a short row": ("x.csv", "a,b\n1,2\n3\n", [], ["line 3: expected 2 cells as in line 1, found 1", "quote a cell"]),
    "a long row": ("x.csv", "1,2\n3,4\n5,6,7\n", [], ["line 3: expected 2 cells as in line 1, found 3"]),
    "a row after broken quotes": (
        "x.csv",
        '"a\nb",c\n1,2\n3\n',
        [],
        ["line 4: expected 2 cells as in line 2, found 1"],
    ),
    "an open quote": ("x.csv", 'a,b\n1,"2\n', [], ["line 2: not a row of a table", "Close every quote"]),
    "names only": ("x.csv", "a,b\n", [], ["holds column names and no row", "--no-header"]),
    "an unknown column": (
        "x.csv",
        IRIS,
        ["--columns", "a,z"],
        ["has no column 'z'; it has 3: a, b, species", "0 to 2"],
    ),
    "a column too far": ("x.csv", IRIS, ["--columns", "7"], ["has no column '7'"]),
    "a column twice": ("x.csv", IRIS, ["--columns", "a,0"], ["--columns a,0 names column 0 ('a') twice"]),
    "no column": ("x.csv", IRIS, ["--columns", ""], ["names no column", "--columns 0,1,2"]),
    "columns of one name": (
        "x.csv",
        "a,a\n1,2\n3,4\n",
        ["--columns", "a"],
        ["has 2 columns named 'a'", "counts from 0"],
    ),
    "not a parquet": ("x.parquet", b"PAR1....PAR1", [], ["is not a whole Parquet file"]),
    "truncated parquet": ("x.parquet", parquet(a=[1.0, 2.0])[:-9], [], ["is not a whole Parquet file"]),
    "parquet without rows": ("x.parquet", parquet(a=pa.array([], pa.float64())), [], ["holds 0 rows of 1 columns"]),
    "a text column in parquet": (
        "x.parquet",
        parquet(a=[1.0], b=["x"]),
        ["--columns", "a,b"],
        ["column 1 'b' holds string", "--columns 0."],
    ),
    "missing values in parquet": (
        "x.parquet",
        parquet(a=[1.0, 2.0, None, None]),
        ["--nan-policy", "raise"],
        ["row 2, column 0 'a' is missing", "Fill it in"],
    ),
    "nothing but missing values in parquet": (
        "x.parquet",
        parquet(a=pa.nulls(2, pa.float64())),
        ["--columns", "a"],
        ["missing", "eave it out"],
    ),
    "axis out of range": ("x.npy", FLOATS, ["--axis", "2"], ["axis 2 does not exist", "(4, 3)", "0 to 1"]),
    "axis of a list": ("x.npy", save(np.ones(5)), [], ["axis 1 does not exist", "(5,)"]),
    "axis twice": ("x.npy", FLOATS, ["--axis", "1,-1"], ["names each axis of the channels once"]),
    "no eps": ("x.npy", FLOATS, ["--eps", "0"], ["eps", "must be positive"]),
    "nan for eps": ("x.npy", FLOATS, ["--eps", "nan"], ["eps", "must be positive"]),
}

EXPLAIN_ONLY = {
    "channel out of range": ("x.npy", FLOATS, ["--channel", "3"], ["channel 3 does not exist", "3 channels", "0 to 2"]),
    "negative channel": ("x.npy", FLOATS, ["--channel=-1"], ["channel -1 does not exist", "0 to 2"]),
    "unknown channel": (
        "x.csv",
        "a,b\n1,2\n",
        ["--channel", "z"],
        ["no channel 'z'; its columns are a, b", "counted from 0"],
    ),
    "a name for an array": ("x.npy", FLOATS, ["--channel", "a"], ["no channel 'a'", "counted from 0"]),
}


def make(name: str, content: str | bytes | None) -> str:
    if content is not None:
        write(name, content)
    elif name.startswith("folder"):
        Path(name).mkdir()
    return name


@pytest.mark.parametrize("case", [*BAD_FILES, *EXPLAIN_ONLY])
def test_explain_refuses(case: str, capsys: Capture) -> None:
    name, content, options, parts = (BAD_FILES | EXPLAIN_ONLY)[case]
    refused(["explain", make(name, content), *options], parts, capsys)


@pytest.mark.parametrize("case", BAD_FILES)
def test_normalize_refuses(case: str, capsys: Capture) -> None:
    name, content, options, parts = BAD_FILES[case]
    refused(["normalize", make(name, content), "-o", "out" + "".join(Path(name).suffixes), *options], parts, capsys)


def test_a_pickle_is_never_run(capsys: Capture) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, ("sprung",)

    for name, content in (("x.npy", save(np.array([Trap()]))), ("x.npz", savez(a=np.array([Trap()])))):
        refused(["explain", write(name, content)], ["Python objects"], capsys)
    assert "sprung" not in listing()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["-o", "nowhere/y.npy"], ["the directory", "nowhere does not exist", "Create it first"]),
        (["-o", "folder.npy"], ["folder.npy is a directory"]),
        (["-o", "y.csv"], ["y.csv has the extension .csv", "from a .npy file these can be written: .npy."]),
        (["-o", "y"], ["y has no extension"]),
        (["-o", "pipe.npy"], ["is not a regular file", "by renaming"]),
        (["-o", "y.npy", "--save-moments", "x.npy"], ["--save-moments x.npy is also the input or the output"]),
        (["-o", "y.npy", "--save-moments", "y.npy"], ["--save-moments y.npy is also the input or the output"]),
        (["-o", "y.npy", "--save-moments", "nowhere/m.json"], ["nowhere does not exist"]),
        (["-o", "y.npy", "--use-moments", "m.json"], ["m.json does not exist", "Save moments first"]),
        (["-o", "y.npy", "--use-moments", "folder.json"], ["folder.json cannot be read: Is a directory"]),
        (
            ["-o", "y.npy", "--use-moments", "m.txt"],
            ["--use-moments: ", "end in .json or .safetensors; got m.txt"],
        ),
        (["-o", "y.npy", "--save-moments", "m"], ["--save-moments: ", "must end in .json or .safetensors; got m"]),
        (
            ["-o", "y.npy", "--use-moments", "other.json"],
            ["holds moments of 2 channels", "has 3 channels", "--axis"],
        ),
        (["-o", "y.npy", "--use-moments", "nothing.json"], ["has a channel of no values"]),
        (["-o", "y.npy", "--axis", "0,1"], ["one value per channel", "(0, 1)", "--use-moments FILE"]),
    ],
)
def test_normalize_refuses_outputs_and_moments(options: list[str], parts: list[str], capsys: Capture) -> None:
    write("x.npy", FLOATS)
    Path("folder.npy").mkdir()
    Path("folder.json").mkdir()
    os.mkfifo("pipe.npy")
    np.save("two.npy", np.eye(2))
    main(["normalize", "two.npy", "-o", "two.npy", "--save-moments", "other.json"])
    write("nothing.json", re.sub(r'("count": ).*?\]', r"\1[0.0, 0.0, 0.0]", Path("other.json").read_text()))
    text = json.loads(Path("nothing.json").read_text())
    write("nothing.json", json.dumps(text | {k: [0.0] * 3 for k in ("count", "mean", "mean_low", "m2")}))
    capsys.readouterr()
    refused(["normalize", "x.npy", *options], parts, capsys)


@pytest.mark.parametrize("locked", ["folder", "folder/y.npy"])
def test_normalize_refuses_what_may_not_be_written(
    locked: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The permission is denied by a stand-in for os.access, because tests may run as a user who may write anywhere."""
    write("x.npy", FLOATS)
    Path("folder").mkdir()
    write("folder/y.npy", "old")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != Path(locked).resolve())
    reason = "no file may be created in" if locked == "folder" else "exists and may not be written"
    refused(["normalize", "x.npy", "-o", "folder/y.npy"], [reason, "Change its permissions"], capsys)
    assert Path("folder/y.npy").read_text() == "old"


def test_an_unreadable_file(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    write("x.csv", "1,2\n")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("batchnorm.tools.files.formats.read_text_table", denied)
    refused(
        ["explain", "x.csv"], ["x.csv cannot be read: Permission denied", "Check the file and its permissions"], capsys
    )


def test_moments_of_other_columns(capsys: Capture) -> None:
    write("x.csv", "a,b\n1,2\n3,5\n")
    main(["normalize", "x.csv", "-o", "y.csv", "--save-moments", "m.json"])
    write("x.csv", "c,b,a\n9,2,1\n8,5,3\n")  # the columns are found by their names
    assert main(["normalize", "x.csv", "-o", "z.csv", "--use-moments", "m.json"]) == 0
    swapped = [row.split(",") for row in Path("z.csv").read_text().split()]
    assert [f"{row[2]},{row[1]}" for row in swapped] == Path("y.csv").read_text().split()
    assert [row[0] for row in swapped] == ["c", "9", "8"]
    capsys.readouterr()
    refused(
        ["normalize", "x.csv", "-o", "z.csv", "--use-moments", "m.json", "--columns", "b,a"],
        ["another order", "--columns a,b."],
        capsys,
    )
    write("x.csv", "a,c\n1,2\n3,5\n")
    refused(["normalize", "x.csv", "-o", "z.csv", "--use-moments", "m.json"], ["x.csv has no column 'b'"], capsys)
    write("x.csv", "a,b\n1,x\n3,5\n")
    refused(["normalize", "x.csv", "-o", "z.csv", "--use-moments", "m.json"], ["line 2, column 1 'b': 'x' is"], capsys)
