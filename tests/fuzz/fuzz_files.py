"""Draws files in random formats and dialects, sends them through the commands, and compares with NumPy.

``python tests/fuzz/fuzz_files.py --seconds 600`` runs for ten minutes; a failure names its seed, and
``--seed N --cases 1`` repeats it. A slice runs with the tests.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "support"))  # also where this runs as a program

import drawing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import batchnorm as bn
from batchnorm.tools.cli import main

Rng = np.random.Generator

LETTERS = list("abcxyz \"',;|\t\r\n\0éß漢🙂\u2028\ufeff%#-")
TOLERANCE = {8: 1e-9, 4: 1e-6, 2: 4e-3}  # of y, relative to the larger of 1 and y
EPS = 1e-5


@dataclass
class Found:
    """A file, how to read it, and what its reader must find."""

    name: str
    content: bytes
    values: np.ndarray  # as float64 or narrower, exactly
    axis: tuple[int, ...] = (1,)
    options: list[str] = field(default_factory=list)
    read: Callable[[bytes], np.ndarray] = lambda content: np.load(io.BytesIO(content))  # what was written
    rest: Callable[[bytes], Any] = lambda content: None  # what must come back equal


def numbers(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    """Values as they occur: far from zero, of any scale, constant, whole, or not finite."""
    x = rng.normal(size=shape)
    match rng.integers(7):
        case 0:
            x = x * 10.0 ** rng.integers(-6, 7) + 10.0 ** rng.integers(-3, 7)
        case 1:
            x = rng.integers(-9, 10, shape).astype(float)
        case 2:
            x = np.full(shape, x.flat[0] if x.size else 0.0)
        case 3:
            x = rng.integers(-(2**53), 2**53, shape).astype(float)
        case 4 if x.size:
            x.flat[rng.integers(x.size)] = rng.choice([np.nan, np.inf, -np.inf])
        case 5:
            x = x.round(rng.integers(0, 5))
    return x


# Arrays


def header(x: np.ndarray, rng: Rng) -> bytes:
    """An .npy of any version, whose header has any length and any spaces."""
    version = int(rng.integers(1, 4))
    fortran = bool(x.flags.f_contiguous and not x.flags.c_contiguous)
    about = {"descr": x.dtype.str, "fortran_order": fortran, "shape": x.shape}
    text = (" " * int(rng.integers(4)) + str(about)).strip().ljust(int(rng.integers(70, 140))) + "\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text.encode()


def draw_array(rng: Rng) -> tuple[np.ndarray, tuple[int, ...]]:
    """An array of any dtype that is read, and axes for its channels."""
    shape = tuple(int(n) for n in rng.integers(1, 6, rng.integers(1, 5)))
    dtype = np.dtype(str(rng.choice(["f8", "f4", "f2", ">f8", ">f4", ">f2", "i8", ">i4", "i1", "u8", "u2", "?"])))
    with np.errstate(all="ignore"):
        x = numbers(rng, shape)
        if dtype.kind in "iub":
            x = np.nan_to_num(x, nan=0, posinf=1, neginf=0)
            low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, min(np.iinfo(dtype).max, 2**53))
            x = np.clip(x, max(low, -(2**53)), high)
        x = np.asarray(x.astype(dtype), order=str(rng.choice(["C", "F"])))
    axes = rng.permutation(x.ndim)[: rng.integers(0, x.ndim + 1)]
    return x, tuple(sorted(int(a) for a in axes))


def draw_npy(rng: Rng) -> Found:
    x, axis = draw_array(rng)
    content = header(x, rng) + x.tobytes("A") + bytes(int(rng.integers(3)))
    return Found("x.npy", content, x, axis, [f"--axis={','.join(map(str, axis)) or 'none'}"])


def draw_npz(rng: Rng) -> Found:
    x, axis = draw_array(rng)
    others = {f"other{i}": draw_array(rng)[0] for i in range(rng.integers(3))} | {"text": np.array(["a", "é"])}
    file = io.BytesIO()
    (np.savez if rng.integers(2) else np.savez_compressed)(file, x=x, **others)  # type: ignore[arg-type]
    options = [f"--axis={','.join(map(str, axis)) or 'none'}", "--key", "x"]
    return Found(
        "x.npz", file.getvalue(), x, axis, options,
        read=lambda content: np.load(io.BytesIO(content))["x"],
        rest=lambda content: [(k, v.tobytes()) for k, v in np.load(io.BytesIO(content)).items() if k != "x"],
    )  # fmt: skip


# Tables


def text(rng: Rng, most: int = 8) -> str:
    return "".join(rng.choice(LETTERS, rng.integers(most)))


def names_of(rng: Rng, count: int) -> list[str]:
    """Names, some of them twice, none a number."""
    names = [f"n{text(rng)}" for _ in range(count)]
    if count > 1 and rng.random() < 0.2:
        names[1] = names[0]
    return names


def chosen_of(rng: Rng, count: int) -> list[int]:
    return [int(i) for i in rng.permutation(count)[: rng.integers(1, count + 1)]]


def written_as(rng: Rng, value: float, decimal: str) -> str:
    """A number as some program writes it."""
    shown = str(rng.choice([repr(value), f"{value:.17g}", f"{value:+.6e}", f" {value!r} ", f"{value:.4f}"]))
    return shown.replace(".", decimal)


def draw_text(rng: Rng) -> Found:
    rows, count = int(rng.integers(1, 9)), int(rng.integers(1, 6))
    decimal, mark = str(rng.choice([".", ","])), bool(rng.integers(2))
    kind, usual = (".csv", ",") if rng.integers(2) else (".tsv", "\t")
    delimiter = str(rng.choice([usual, usual, ";", "|", "\t"]))
    chosen, named = chosen_of(rng, count), bool(rng.integers(4))
    x = numbers(rng, (rows, count))
    cells = [[text(rng) for _ in range(count)] for _ in range(rows)]
    for i, j in np.ndindex(rows, len(chosen)):
        cells[i][chosen[j]] = written_as(rng, float(x[i, chosen[j]]), decimal)
    file = io.StringIO()
    quoting = csv.QUOTE_ALL if rng.integers(2) else csv.QUOTE_MINIMAL
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\r\n")
    heading = names_of(rng, count)
    writer.writerows([heading, *cells] if named else cells)
    ended = file.getvalue() if rng.integers(2) else file.getvalue().removesuffix("\r\n")
    options = ["--columns", ",".join(map(str, chosen)), "--header" if named else "--no-header"]
    if delimiter != usual or rng.integers(2):
        options += ["--delimiter", "tab" if delimiter == "\t" else delimiter]
    if decimal != "." or rng.integers(2):
        options += ["--decimal", decimal]

    def table(content: bytes) -> list[list[str]]:
        return list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter))

    def read(content: bytes) -> np.ndarray:
        body = table(content)[named:]
        return np.array([[float(r[c].replace(decimal, ".")) for c in chosen] for r in body])

    content = ended.encode("utf-8-sig" if mark else "utf-8")
    return Found(
        f"t{kind}", content, read(content), options=options, read=read,
        rest=lambda written: (
            written.startswith(b"\xef\xbb\xbf") or table(written)[0][0].startswith("\ufeff"),
            table(written)[:named],
            [[cell for i, cell in enumerate(r) if i not in chosen] for r in table(written)[named:]],
        ),
    )  # fmt: skip


def column(rng: Rng, x: np.ndarray) -> pa.Array:
    """A column of numbers, of any type that holds them."""
    if np.isfinite(x).all() and (x == x.round()).all() and abs(x).max() <= 2**53:
        whole = [int(v) for v in x]
        kinds: list[Callable[[], pa.Array]] = [
            lambda: pa.array(whole, pa.int64()),
            lambda: pa.array([Decimal(v) for v in whole], pa.decimal128(20, 0)),
            lambda: pa.array([Decimal(v) for v in whole], pa.decimal256(40, 2)),
        ]
        return kinds[rng.integers(len(kinds))]()
    return pa.array(x, rng.choice([pa.float64(), pa.float32()])) if rng.integers(2) else pa.array(x)


def other_column(rng: Rng, rows: int) -> pa.Array:
    values: list[Any] = [
        [text(rng) for _ in range(rows)],
        [None if rng.integers(2) else int(rng.integers(99)) for _ in range(rows)],
        pa.array(rng.integers(0, 2**62, rows), pa.timestamp("ns")),
        pa.array([text(rng, 2) for _ in range(rows)]).dictionary_encode(),
        [[1] * int(rng.integers(3)) for _ in range(rows)],
        pa.nulls(rows),
    ]
    found = values[rng.integers(len(values))]
    return found if isinstance(found, pa.Array) else pa.array(found)


def draw_parquet(rng: Rng) -> Found:
    rows, count = int(rng.integers(1, 9)), int(rng.integers(1, 6))
    chosen, names = chosen_of(rng, count), names_of(rng, count)
    with np.errstate(over="ignore"):
        columns = [column(rng, numbers(rng, (rows,))) if i in chosen else other_column(rng, rows) for i in range(count)]
    options = ["--columns", ",".join(map(str, chosen))]
    table = pa.Table.from_arrays(columns, names)
    if rng.integers(2):  # as pandas writes it: all columns but the index are data
        chosen = [int(i) for i in np.arange(count) if i in chosen]
        note = {"index_columns": ["index 0", "index 1"], "columns": [], "pandas_version": "2"}
        table = pa.Table.from_arrays(
            [*(columns[i] for i in chosen), pa.array(range(rows)), other_column(rng, rows)],
            [*(names[i] for i in chosen), *note["index_columns"]],  # type: ignore[misc]
        ).replace_schema_metadata({"pandas": json.dumps(note), "more": "kept"})
        chosen, options = list(range(len(chosen))), []
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=int(rng.integers(1, 9)))

    def read(content: bytes) -> np.ndarray:
        back = pq.ParquetFile(io.BytesIO(content)).read()
        parts = [back.column(i) for i in chosen]
        wide = [p.cast(pa.float64()) if pa.types.is_decimal(p.type) else p for p in parts]
        return np.transpose([p.to_numpy() for p in wide])

    def rest(content: bytes) -> Any:
        back = pq.ParquetFile(io.BytesIO(content)).read()
        note = json.loads((back.schema.metadata or {}).get(b"pandas", b"{}"))
        others = [back.column(i) for i in range(back.num_columns) if i not in chosen]
        return back.column_names, note, [(c.type, str(c.combine_chunks())) for c in others]

    content = file.getvalue()
    return Found("t.parquet", content, read(content), options=options, read=read, rest=rest)


# What must hold


def reference(x: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    """The formula in NumPy's widest type."""
    reduced = tuple(a for a in range(x.ndim) if a not in axis)
    wide = x.astype(np.longdouble)
    centered = wide - wide.mean(axis=reduced, keepdims=True)
    return np.asarray(centered / np.sqrt((centered**2).mean(axis=reduced, keepdims=True) + EPS))


def command(*arguments: str) -> tuple[int, str, str]:
    """Run the command in this process; an exception is a failure."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(arguments)
    return status, out.getvalue(), err.getvalue()


def check(found: Found) -> str:
    """Send a file through all commands, in the current folder; return what came of it, in a word."""
    path, target = Path(found.name), Path("out" + Path(found.name).suffix)
    path.write_bytes(found.content)
    x, axis = found.values, found.axis
    per_channel = x.size // max(1, int(np.prod([x.shape[a] for a in axis])))
    found.options += ["--nan-policy", "propagate"]
    explained = command("explain", found.name, "--json", *found.options)
    assert explained[0] == 0, explained[2]
    status, _, err = command("normalize", found.name, "-o", str(target), *found.options, "--save-moments", "m.json")
    if per_channel == 1:
        assert status == 2, "one value per channel"
        assert "one value per channel" in err, err
        assert sorted(os.listdir()) == [found.name], "a refusal leaves nothing"
        return "refused"
    assert status == 0, err
    written = target.read_bytes()
    with np.errstate(all="ignore"):
        wanted = reference(x, axis)
        narrow = x.dtype if x.dtype.kind == "f" else np.dtype(float)
        wanted, y = wanted.astype(float), found.read(written).astype(float)
        if x.dtype.itemsize == 2 and x.dtype.kind == "f":
            wanted = wanted.astype(np.float16).astype(float)
        close = abs(y - wanted) <= TOLERANCE[narrow.itemsize] * np.maximum(1, abs(wanted))
        assert (close | (np.isnan(y) & ~np.isfinite(wanted)) | (y == wanted)).all(), (y, wanted)
    assert found.rest(written) == found.rest(found.content), "what was not asked for has changed"
    status, _, err = command("normalize", found.name, "-o", str(target), *found.options, "--use-moments", "m.json")
    assert status == 0, err
    assert np.array_equal(found.read(target.read_bytes()), found.read(written), equal_nan=True)
    check_moments(found, json.loads(explained[1]))
    return "read"


def check_moments(found: Found, explained: dict[str, Any]) -> None:
    """What was saved, explained and gathered are the moments of the values."""
    x, axis = found.values, found.axis
    saved = bn.load_moments("m.json")
    native = x.astype(float) if x.dtype.kind in "iub" else x.astype(x.dtype.newbyteorder("="))
    gathered = bn.gather_moments(x, axis, threads=2)
    assert gathered == bn.moments(native, axis)
    if found.name.endswith(".npy"):
        assert bn.gather_moments(np.load(found.name, mmap_mode="r"), axis) == gathered
    if x.dtype.kind != "f" or x.itemsize == 8 or found.name.startswith("x"):
        assert saved == gathered
    means = [float(c["mean"]) for c in explained["channels"]]
    assert np.array_equal(means, saved.mean.ravel(), equal_nan=True), (means, saved.mean)


def check_damaged(found: Found, rng: Rng) -> str:
    """Damage a file: the command answers or refuses in one paragraph, and leaves nothing half-written."""
    content = bytearray(found.content)
    for _ in range(rng.integers(1, 6)):
        content[rng.integers(len(content))] = rng.integers(256)
    del content[rng.integers(len(content)) if rng.integers(3) == 0 else len(content) :]
    Path(found.name).write_bytes(content)
    target = Path("out" + Path(found.name).suffix)
    for arguments in (["explain", found.name], ["normalize", found.name, "-o", str(target)]):
        status, _, err = command(*arguments, *found.options)
        assert status in (0, 2), status
        assert (status == 0) == (err == ""), err
        assert err.count("\n") <= 1, err
    kept = {found.name} | ({str(target)} if status == 0 else set())
    assert set(os.listdir()) == kept, os.listdir()
    return "damaged"


DRAWS = (draw_npy, draw_npz, draw_text, draw_text, draw_parquet)


def one(seed: int) -> str:
    """Draw and check one file in the current folder, which is left empty."""
    rng = np.random.default_rng(seed)
    found = DRAWS[rng.integers(len(DRAWS))](rng)
    try:
        outcome = check_damaged(found, rng) if rng.integers(4) == 0 else check(found)
    except BaseException as error:
        error.add_note(f"seed {seed}: {found.name} with {found.options}")
        raise
    for name in os.listdir():
        os.unlink(name)
    return f"{Path(found.name).suffix} {outcome}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        drawing.run(one, "files", __doc__)
