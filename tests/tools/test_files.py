"""Files in and out: the numbers are NumPy's, what was not asked for is unchanged, and an output is whole or absent."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import stat
import zipfile
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchnorm as bn
from batchnorm import _blocks as blocks
from batchnorm.tools.files import Reading, Refused, Request, arrays, atomic, normalize_file, open_data
from batchnorm.tools.files.progress import progress_on
from batchnorm.tools.files.saved_moments import SavedMoments, check_fit, read_moments, write_moments
from batchnorm.tools.files.table import choose, columns_option


def expected(x: np.ndarray, axis: int | tuple[int, ...] = 1, eps: float = 1e-5) -> np.ndarray:
    """Batch normalization in float64, by NumPy alone."""
    kept = {a % x.ndim for a in ([axis] if isinstance(axis, int) else axis)}
    reduced = tuple(a for a in range(x.ndim) if a not in kept)
    x = x.astype(np.float64)
    return (x - x.mean(axis=reduced, keepdims=True)) / np.sqrt(x.var(axis=reduced, keepdims=True) + eps)


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# Blocks


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("size", [1, 7, 24, 100, 1 << 20])
@pytest.mark.parametrize("shape", [(5, 3, 4), (1, 60), (60, 1), (7,), (2, 1, 3, 5)])
def test_blocks_cover_every_value_once_and_are_small(
    shape: tuple[int, ...], size: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", size)
    x = np.zeros(shape, order=order)
    seen = np.zeros(shape, int)
    for block in blocks.blocks(x):
        seen[block] += 1
        assert x[block].size <= size
    assert (seen == 1).all()


def test_blocks_follow_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 10)
    for x in (np.arange(60).reshape(4, 3, 5), np.arange(60).reshape(5, 3, 4).T):
        firsts = [x[b].min() for b in blocks.blocks(x)]
        assert firsts == sorted(firsts)


@pytest.mark.parametrize("axis", [0, 1, 2, (0, 2), (), (0, 1, 2)])
@pytest.mark.parametrize("size", [1, 7, 40, 1 << 20])
def test_gathered_moments_are_those_of_the_whole(
    axis: int | tuple[int, ...], size: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", size)
    x = rng.normal(50, 2, (6, 5, 7))
    kept = (axis,) if isinstance(axis, int) else axis
    m, whole = blocks.gather(x, kept), bn.moments(x, kept)
    assert np.array_equal(m.count, whole.count)
    assert np.allclose(m.mean, whole.mean, rtol=1e-15)
    assert np.allclose(m.m2, whole.m2, rtol=1e-12, atol=1e-25)
    if x.size <= size:
        assert m == whole


# Arrays


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("axis", [None, (0,), (-1,), (1, 3), ()])
@pytest.mark.parametrize("size", [50, 1 << 22])
def test_npy_to_npy(
    axis: tuple[int, ...] | None,
    fortran: bool,
    size: int,
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", size)
    x = np.asarray(rng.normal(3, 2, (6, 3, 4, 5)), order="F" if fortran else "C")
    np.save(tmp_path / "in.npy", x)
    normalize_file(Request(tmp_path / "in.npy", tmp_path / "out.npy", axis=axis))
    y = np.load(tmp_path / "out.npy")
    assert np.allclose(y, expected(x, (1,) if axis is None else axis), atol=1e-13)
    assert y.flags.f_contiguous == fortran
    assert listing(tmp_path) == ["in.npy", "out.npy"]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8", "i4", "u1", "?", ">i2"])
def test_npy_of_every_dtype(dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.integers(0, 2 if dtype == "?" else 90, (40, 3)).astype(dtype)
    np.save(tmp_path / "in.npy", x)
    said = normalize_file(Request(tmp_path / "in.npy", tmp_path / "out.npy"))
    y = np.load(tmp_path / "out.npy")
    integer = np.dtype(dtype).kind in "iub"
    assert y.dtype == (np.float64 if integer else np.dtype(dtype).newbyteorder("="))
    assert np.allclose(y, expected(x), atol={2: 1e-3, 4: 1e-6}.get(y.itemsize, 1e-12))
    assert any("converted to float64" in line for line in said) == integer


def test_a_file_of_one_block_has_the_bits_of_batch_norm(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 3, 7)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    normalize_file(Request(tmp_path / "x.npy", tmp_path / "y.npy"))
    assert np.array_equal(np.load(tmp_path / "y.npy"), bn.batch_norm(x)[0])


def test_npz_to_npy_and_to_npz(tmp_path: Path, rng: np.random.Generator) -> None:
    x, other = rng.normal(size=(20, 3)), np.array([["text", "kept"]])
    np.savez_compressed(tmp_path / "in.npz", x=x, other=other)
    normalize_file(Request(tmp_path / "in.npz", tmp_path / "out.npy", reading=Reading(key="x")))
    assert np.allclose(np.load(tmp_path / "out.npy"), expected(x), atol=1e-13)
    normalize_file(Request(tmp_path / "in.npz", tmp_path / "out.npz", reading=Reading(key="x")))
    with np.load(tmp_path / "out.npz") as out, zipfile.ZipFile(tmp_path / "out.npz") as archive:
        assert list(out) == ["x", "other"]
        assert np.allclose(out["x"], expected(x), atol=1e-13)
        assert np.array_equal(out["other"], other)
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_DEFLATED}


def test_the_only_array_of_an_npz_needs_no_key(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", only=np.eye(3, order="F"))
    data = open_data(tmp_path / "one.npz")
    assert data.key == "only"
    assert np.array_equal(data.values, np.eye(3))
    assert str(data).endswith("one.npz, array 'only'")


def test_npy_is_mapped_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3)))
    assert isinstance(open_data(tmp_path / "x.npy").values, np.memmap)


# Tables


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1,2\n3,4\n", None),
        ("a,b\n1,2\n3,4\n", ("a", "b")),
        ("a,b\r\n1,2\r\n3,4\r\n", ("a", "b")),
        ("a,b\r1,2\r3,4\r", ("a", "b")),
        ("\ufeffa,b\n1,2\n3,4\n", ("a", "b")),
        ("a,b\n1,2\n3,4\n\n\n   \n", ("a", "b")),
        ('"a","b"\n"1","2"\n"3","4"', ("a", "b")),
        (" a ,b\n 1 , 2\n3,4e0\n", ("a", "b")),
        ('"a\nb","c,d"\n1,2\n3,4\n', ("a\nb", "c,d")),
    ],
)
def test_csv_as_people_write_it(text: str, names: tuple[str, ...] | None, tmp_path: Path) -> None:
    data = open_data(write(tmp_path / "t.csv", text))
    assert data.values.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert data.names == names
    assert data.remarks == ()


def test_tsv(tmp_path: Path) -> None:
    data = open_data(write(tmp_path / "t.tsv", "a\tb, c\n1\t2\n"))
    assert data.names == ("a", "b, c")


def test_nan_and_infinity_are_numbers(tmp_path: Path) -> None:
    values = open_data(write(tmp_path / "t.csv", "a,b\nnan,inf\n1,-Infinity\n")).values
    assert np.array_equal(values, [[np.nan, np.inf], [1, -np.inf]], equal_nan=True)


def test_header_on_request(tmp_path: Path) -> None:
    years = write(tmp_path / "years.csv", "2019,2020\n1,2\n3,5\n")
    assert len(open_data(years).values) == 3
    assert open_data(years, Reading(header=True)).names == ("2019", "2020")
    mixed = write(tmp_path / "mixed.csv", "5.1,3.5,setosa\n4.9,3.0,setosa\n")
    data = open_data(mixed, Reading(columns="0,1"))
    assert data.names is None  # what is written first comes again: it is no name
    assert data.remarks == ("line 1 was taken as data; if it holds names, add --header",)
    years = write(tmp_path / "years.csv", "country,2019\nA,1\nB,2\n")
    assert open_data(years).names == ("2019",)
    assert open_data(years).remarks[0] == (
        "line 1 was taken as column names, although one cell is a number; if it is data, add --no-header"
    )
    assert open_data(mixed, Reading(columns="0,1", header=False)).values.tolist() == [[5.1, 3.5], [4.9, 3.0]]


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [(None, (0, 1, 2)), ("b", (1,)), ("2,0", (2, 0)), ('"c,d", a', (2, 0)), ("1", (0,)), (" b ,2", (1, 2))],
)
def test_choosing_columns(columns: str | None, chosen: tuple[int, ...]) -> None:
    names = ("a", "b", "c,d") if columns != "1" else ("1", "0", "x")  # a name wins over a number
    assert choose(columns, names, "t.csv") == chosen


def test_columns_are_quoted_for_the_shell_and_read_back() -> None:
    names = ("sepal length (cm)", "a,b", 'say "c"', "it's")
    option = columns_option(names)
    import shlex

    flag, text = shlex.split(option)
    assert flag == "--columns"
    assert choose(text, names, "t.csv") == (0, 1, 2, 3)


def test_csv_to_csv_keeps_names_order_and_other_columns(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(5, 3, (9, 2))
    rows = [[f"{a!r}", f"00{i}", f"{b!r}", 'text, "quoted"\nand broken'] for i, (a, b) in enumerate(x.tolist())]
    with open(tmp_path / "in.csv", "w", newline="") as file:
        csv.writer(file).writerows([["a", "id", "b", "note"], *rows])
    normalize_file(Request(tmp_path / "in.csv", tmp_path / "out.csv", reading=Reading(columns="b,a")))
    with open(tmp_path / "out.csv", newline="") as file:
        header, *out = csv.reader(file)
    assert header == ["a", "id", "b", "note"]
    assert [[r[1], r[3]] for r in out] == [[r[1], r[3]] for r in rows]
    y, _ = bn.batch_norm(x)
    assert [[float(r[0]), float(r[2])] for r in out] == y.tolist()  # the text gives the same bits back


def test_tables_from_every_kind_to_every_kind(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(9, 2))
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["a", "b", "name"], *([*map(repr, r), f"n{i}"] for i, r in enumerate(x.tolist()))])
    y, _ = bn.batch_norm(x)
    normalize_file(Request(tmp_path / "t.csv", tmp_path / "t.tsv", reading=Reading(columns="a")))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    pq.write_table(pa.table({"a": x[:, 0], "b": x[:, 1], "name": [f"n{i}" for i in range(9)]}), tmp_path / "t.parquet")
    for source in (".csv", ".tsv", ".csv.gz", ".parquet"):
        for target in (".csv", ".tsv", ".tsv.gz", ".parquet"):
            normalize_file(Request(tmp_path / f"t{source}", tmp_path / f"out{target}", reading=Reading(columns="b")))
            back = open_data(tmp_path / f"out{target}", Reading(columns="b")).table
            assert back is not None
            assert back.values[:, 0].tolist() == y[:, 1].tolist()
            others = back.others[2] if back.arrow is None else back.arrow.column(2).to_pylist()
            assert others == [f"n{i}" for i in range(9)]


def test_a_table_without_names_stays_without(tmp_path: Path) -> None:
    write(tmp_path / "in.csv", "1,2\n3,5\n")
    normalize_file(Request(tmp_path / "in.csv", tmp_path / "out.csv"))
    assert len(open_data(tmp_path / "out.csv").values) == 2


def parquet_table() -> pa.Table:
    fields = [
        pa.field("half", pa.float16()),
        pa.field("single", pa.float32(), metadata={"unit": "cm"}),
        pa.field("whole", pa.int32()),
        pa.field("when", pa.timestamp("ms")),
        pa.field("maybe", pa.float64()),
        pa.field("text", pa.string()),
        pa.field("money", pa.decimal128(8, 2)),
    ]
    from decimal import Decimal

    columns = [
        np.array([1, 2, 4], np.float16),
        np.array([1, 2, 6], np.float32),
        [10, 20, 30],
        [0, 1, 2],
        [1.0, None, 2.0],
        ["x", None, "z"],
        [Decimal("1.50"), Decimal("2.50"), Decimal("4.00")],
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, fields, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata={"made": "by hand"}))


@pytest.mark.parametrize(
    ("columns", "dtype"),
    [("single", "f4"), ("half", "f2"), ("whole", "f8"), ("half,single", "f8"), ("money,whole", "f8")],
)
def test_parquet_dtypes(columns: str, dtype: str, tmp_path: Path) -> None:
    pq.write_table(parquet_table(), tmp_path / "t.parquet")
    data = open_data(tmp_path / "t.parquet", Reading(columns=columns))
    assert blocks.working_dtype(data.values.dtype) == np.dtype(dtype)
    names = columns.split(",")
    assert np.array_equal(data.values, np.transpose([parquet_table()[n].to_pylist() for n in names]).astype(float))


def test_parquet_to_parquet_keeps_types_and_metadata(tmp_path: Path) -> None:
    before = parquet_table()
    pq.write_table(before, tmp_path / "in.parquet")
    normalize_file(Request(tmp_path / "in.parquet", tmp_path / "out.parquet", reading=Reading(columns="single")))
    after = pq.read_table(tmp_path / "out.parquet")
    assert after.schema.names == before.schema.names
    assert after.schema.metadata == before.schema.metadata
    assert after.schema.field("single").metadata == {b"unit": b"cm"}
    assert after.drop_columns(["single"]).equals(before.drop_columns(["single"]))
    x = np.array([[1], [2], [6]], np.float32)
    assert after["single"].to_pylist() == bn.batch_norm(x)[0][:, 0].tolist()


# Saved moments


def test_saved_moments_give_the_same_bits_back(tmp_path: Path, rng: np.random.Generator) -> None:
    m = bn.moments(rng.normal(1e8, 1, (40, 3, 5)) * [1e-300, 1, 1e100, 3, np.pi], (1, 2))
    write_moments(tmp_path / "m.json", SavedMoments(m, (1, 2), None))
    saved = read_moments(tmp_path / "m.json")
    assert saved.moments == m
    assert saved.moments.mean_low.any()
    assert (saved.axis, saved.names) == ((1, 2), None)


@pytest.mark.parametrize("values", [[[1.0, np.nan], [2.0, 3.0]], [[1.0, np.inf], [2.0, 3.0]]])
def test_saved_moments_are_strict_json_even_when_not_finite(values: list[list[float]], tmp_path: Path) -> None:
    m = bn.moments(values)
    write_moments(tmp_path / "m.json", SavedMoments(m, (1,), ("a", "ü")))
    json.loads((tmp_path / "m.json").read_text("utf-8"), parse_constant=lambda c: pytest.fail(c))
    saved = read_moments(tmp_path / "m.json")
    assert saved.moments == m
    assert saved.names == ("a", "ü")


def test_moments_of_training_data_normalize_new_data(tmp_path: Path, rng: np.random.Generator) -> None:
    train, new = rng.normal(3, 2, (50, 3)), rng.normal(3, 2, (1, 3))  # a single row: no moments of its own
    np.save(tmp_path / "train.npy", train)
    np.save(tmp_path / "new.npy", new)
    normalize_file(Request(tmp_path / "train.npy", tmp_path / "a.npy", save_moments=tmp_path / "m.json"))
    normalize_file(Request(tmp_path / "new.npy", tmp_path / "b.npy", use_moments=tmp_path / "m.json"))
    assert np.array_equal(np.load(tmp_path / "b.npy"), bn.normalize(new, bn.moments(train)))


def test_evaluation_takes_the_saved_axis(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 5, 3))
    np.save(tmp_path / "x.npy", x)
    normalize_file(Request(tmp_path / "x.npy", tmp_path / "a.npy", axis=(2,), save_moments=tmp_path / "m.json"))
    normalize_file(Request(tmp_path / "x.npy", tmp_path / "b.npy", use_moments=tmp_path / "m.json"))
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


DAMAGED = {
    "not JSON": ("{", "it is not JSON"),
    "not ours": ('{"mean": [1]}', '"format" must be "batchnorm moments"'),
    "newer": ('{"format": "batchnorm moments", "version": 2}', "has version 2; this batchnorm reads version 1"),
    "incomplete": ('{"format": "batchnorm moments", "version": 1, "count": [1]}', "'mean' is missing"),
    "text for a number": ({"mean": ["x", 0]}, "'x' stands where a number is needed"),
    "true for a number": ({"mean": [True, 0]}, "True stands where a number is needed"),
    "two shapes": ({"mean": [0.0]}, "do not have one shape"),
    "ragged": ({"mean": [[0.0], [0.0, 1.0]]}, "is damaged"),
    "negative": ({"m2": [-1.0, 0.0]}, "a count or m2 is negative"),
    "axis": ({"axis": 1}, "axis is 1, not a list of integers"),
    "names": ({"names": ["a"]}, "1 names for 2 channels"),
    "names of numbers": ({"names": [1, 2]}, "names is not a list of texts"),
    "count not finite": ({"count": ["inf", 1.0]}, "count must be finite"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_moments_are_refused(case: str, tmp_path: Path) -> None:
    content, message = DAMAGED[case]
    if isinstance(content, dict):
        whole = {"format": "batchnorm moments", "version": 1, "axis": [1], "names": None}
        whole |= {name: [1.0, 1.0] for name in ("count", "mean", "mean_low", "m2")}
        content = json.dumps(whole | content)
    with pytest.raises(Refused) as refusal:
        read_moments(write(tmp_path / "m.json", content))
    assert message in str(refusal.value)
    assert str(refusal.value).startswith(str(tmp_path / "m.json"))


@pytest.mark.parametrize(
    ("shape", "names", "message"),
    [
        ((3,), None, "holds moments of 2 channels, and t.csv has 3 channels"),
        ((2, 1), None, "holds moments of 2 channels, and t.csv has channels of shape (2, 1)"),
        (
            (2,),
            ("b", "a"),
            "another order: column 0 is 'a' there and 'b' in t.csv. Choose them with --columns a,b.",
        ),
        ((2,), ("a", "c"), "other columns: column 1 is 'b' there and 'c' in t.csv"),
    ],
)
def test_moments_of_other_channels_are_refused(
    shape: tuple[int, ...], names: tuple[str, ...] | None, message: str
) -> None:
    saved = SavedMoments(bn.moments(np.eye(2)), (1,), ("a", "b"))
    with pytest.raises(Refused) as refusal:
        check_fit(saved, "m.json", shape, names, "t.csv")
    assert message in str(refusal.value)
    check_fit(saved, "m.json", (2,), ("a", "b"), "t.csv")
    check_fit(saved, "m.json", (2,), None, "t.npy")


# Outputs: whole or absent


def test_a_failure_leaves_the_old_output_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")

    def fail_half_way() -> None:
        with atomic.replacing(tmp_path / "out") as temporary:
            temporary.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert listing(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "old"


def test_the_output_appears_when_it_is_complete(tmp_path: Path) -> None:
    with atomic.replacing(tmp_path / "out") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "out").exists()
        assert temporary.parent == tmp_path
    assert listing(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "new"


def test_permissions_follow_the_umask_or_the_old_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic.replacing(tmp_path / "new"):
            pass
    finally:
        os.umask(before)
    write(tmp_path / "old", "").chmod(0o604)
    with atomic.replacing(tmp_path / "old"):
        pass
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")]
    assert modes == [0o640, 0o604]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "real")
    with atomic.replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "real").read_text() == "new"


def no_space(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve space for a file")
def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.eye(4))
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(Refused, match="could not be written: No space left on device"):
        normalize_file(Request(tmp_path / "x.npy", tmp_path / "y.npy"))
    assert listing(tmp_path) == ["x.npy"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve space for a file")
def test_a_file_system_that_cannot_reserve_space_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> NoReturn:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    np.save(tmp_path / "x.npy", np.eye(4))
    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    normalize_file(Request(tmp_path / "x.npy", tmp_path / "y.npy"))
    assert np.array_equal(np.load(tmp_path / "y.npy"), bn.batch_norm(np.eye(4))[0])


def test_a_disk_that_fails_at_the_end_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.eye(4))
    write(tmp_path / "y.npy", "old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(Refused, match="No space left"):
        normalize_file(Request(tmp_path / "x.npy", tmp_path / "y.npy", save_moments=tmp_path / "m.json"))
    assert listing(tmp_path) == ["x.npy", "y.npy"]
    assert (tmp_path / "y.npy").read_text() == "old"


def test_space_is_reserved_for_the_whole_array(tmp_path: Path) -> None:
    array = arrays.create_npy(tmp_path / "x.npy", (1000, 100), np.dtype(float), fortran=False)
    assert (tmp_path / "x.npy").stat().st_size == 128 + array.nbytes
    if hasattr(os, "posix_fallocate"):
        assert (tmp_path / "x.npy").stat().st_blocks * 512 >= array.nbytes


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.csv", "x.parquet"])
def test_the_output_may_be_the_input(
    name: str, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 10)
    x = rng.normal(size=(20, 2))
    path = tmp_path / name
    if name == "x.npy":
        np.save(path, x)
    elif name == "x.npz":
        np.savez(path, x=x)
    elif name == "x.csv":
        write(path, "\n".join(f"{a!r},{b!r}" for a, b in x.tolist()))
    else:
        pq.write_table(pa.table({"a": x[:, 0], "b": x[:, 1]}), path)
    normalize_file(Request(path, path))
    assert np.allclose(open_data(path).values, expected(x), atol=1e-13)
    assert listing(tmp_path) == [name]


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_has_two_phases_that_end_complete(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 10)
    np.save(tmp_path / "x.npy", rng.normal(size=(20, 2)))
    phases: dict[str, list[int]] = {}

    def progress(phase: str, total: int) -> blocks.Advance:
        phases[phase] = [total, 0]

        def advance(done: int) -> None:
            phases[phase][1] += done

        return advance

    normalize_file(Request(tmp_path / "x.npy", tmp_path / "y.npy"), progress)
    assert phases == {"gathering moments": [40, 40], "normalizing": [40, 40]}


def test_bars_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = {}
    for stream in (Terminal(), io.StringIO()):
        with progress_on(stream) as progress:
            progress("gathering moments", 10)(10)
        shown[type(stream)] = stream.getvalue()
    assert "gathering moments" in shown[Terminal]
    assert shown[io.StringIO] == ""
