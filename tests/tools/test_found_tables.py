"""Tables as they are found: what is made of each, and what is said of it."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from found import NAMED, SEMICOLONS, XY, expected, parquet

import batchnorm as bn
from batchnorm.tools.cli import main
from batchnorm.tools.files import Reading, open_data

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("here")


IRIS = [f"{5 + i / 10},{3 + i % 3 / 5},{'setosa' if i < 4 else 'virginica'}\n" for i in range(9)]
SAID = "Note: {}.\n"
WILD: dict[str, tuple[str, str | bytes, list[str], list[str]]] = {  # name, content, names of the numbers, remarks
    "a text column": (
        "t.csv",
        "length,width,species\n" + "".join(IRIS),
        ["length", "width"],
        ["column 'species' was left out: it holds text"],
    ),
    "R's numbers of rows": (
        "t.csv",
        '"","length","species"\n' + "".join(f'"{i + 1}",{5 + i / 10},"setosa"\n' for i in range(9)),
        ["length"],
        ["2 columns were left out: column 0 (the numbers of the rows, under no name), column 'species' (text)"],
    ),
    "no names": (
        "t.csv",
        "".join(IRIS),
        [],
        ["line 1 was taken as data; if it holds names, add --header", "column 2 was left out: it holds text"],
    ),
    "missing cells of several kinds": (
        "t.csv",
        "name,age,fare\nA,22,7.25\nB,,71.28\nC,NA,\nD,35,53.1\n",
        ["age", "fare"],
        [
            "column 'name' was left out: it holds text",
            "3 missing cells are left out of the statistics, 2 in column 'age', 1 in column 'fare'",
        ],
    ),
    "Excel in German": (
        "t.csv",
        "Datum;Größe;Gewicht\r\n1.2.2023;1,75;70,5\r\n2.2.2023;1,62;58,25\r\n3.2.2023;1,80;81\r\n".encode("cp1252"),
        ["Größe", "Gewicht"],
        [
            "the text is in Windows-1252, cells are separated by semicolons and decimals stand after a comma",
            "column 'Datum' was left out: it holds dates",
        ],
    ),
    "Excel's Unicode text": (
        "t.txt",
        "Name\tHeight\tWeight\r\nÅsa\t1.62\t58\r\nBjörn\t1.80\t77\r\nCleo\t1.71\t66\r\n".encode("utf-16"),
        ["Height", "Weight"],
        ["the text is in UTF-16", "column 'Name' was left out: it holds text"],
    ),
    "Excel's line for itself, and a mark": (
        "t.csv",
        "\ufeffsep=;\r\na;b\r\n1,5;2\r\n3,5;5\r\n5,5;9\r\n",
        ["a", "b"],
        ["decimals stand after a comma"],
    ),
    "units, money and thousands": (
        "t.csv",
        'x,weight,price,share,people\n1,12 kg,"$1,200",5%,"1,234,567"\n2,13 kg,$9,7%,"2,345,678"\n4,15.5 kg,$3,9%,9\n',
        ["x"],
        [
            "4 columns were left out: column 'weight' (numbers with units, such as '12 kg'), column 'price' (numbers "
            "with units, such as '$1,200'), column 'share' (numbers with units, such as '5%'), column 'people' "
            "(numbers with separators of thousands, such as '1,234,567'); take such signs out of the cells to have "
            "them counted"
        ],
    ),
    "blank lines and a row of totals": (
        "t.csv",
        "region;units;revenue\nNorth;10;100.5\n\nSouth;20;200.5\nWest;5;50\nEast;7;70\n\nTotal;42;421\n\n",
        ["units", "revenue"],
        [
            "cells are separated by semicolons",
            "2 blank lines were skipped, the first is line 3",
            "column 'region' was left out: it holds text",
            "the last row (line 8) is the sum of those above; it was counted like the others: remove it if it is a "
            "total",
        ],
    ),
    "numbers of rows, the last of which is their sum": (
        "t.csv",
        "n,name\n0,a\n1,b\n2,c\n3,d\n",
        ["n"],
        [
            "column 'name' was left out: it holds text",
            "column 'n' counts the rows; if it is no measurement, leave it out with --columns",
        ],
    ),
    "points that may separate thousands": (
        "t.csv",
        "n;people\n0;999\n1;1.234\n2;12.345\n3;850\n",
        ["n", "people"],
        [
            "cells are separated by semicolons",
            "'1.234' was read with decimals; if its point separates thousands, remove it",
            "column 'n' counts the rows; if it is no measurement, leave it out with --columns",
        ],
    ),
    "dates, times and booleans": (
        "t.csv.gz",
        gzip.compress(b"day,hour,open,up\n2024-01-02,9:30,10.5,true\n2024-01-03,10:00,11,no\n2024-01-04,9:45,10,true\n"),
        ["open"],
        ["3 columns were left out: columns 'day' and 'hour' (dates), column 'up' (booleans)"],
    ),
    "a slip among numbers": (
        "t.csv",
        "a,b\n" + "".join(f"{i * i},{i}\n" for i in range(100)) + "7,1O\n",
        ["a"],
        [
            "column 'b' was left out: it holds numbers, but '1O' in line 102; correct what is not a number, or leave "
            "the cell empty, to have the column counted"
        ],
    ),
    "decimal commas that the first lines do not show": (
        "t.csv",
        "a;b\n" + "".join(f"{i * i};{i % 7}\n" for i in range(100)) + "1;1,5\n",
        ["a"],
        [
            "cells are separated by semicolons",
            "column 'b' was left out: it holds numbers with commas, such as '1,5'; if commas stand before decimals, "
            'add --decimal ","; if they separate thousands, remove them',
        ],
    ),
    "pandas' table in Parquet": (
        "t.parquet",
        parquet(["x", "y", "z"], [1.5, None, 2.0], [True, False, None], pa.array([1, 2, 3], pa.timestamp("us"))),
        ["b"],
        [
            "3 columns were left out: column 'a' (text), column 'c' (booleans), column 'd' (dates)",
            "1 missing cell is left out of the statistics, in column 'b'",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WILD)
def test_a_table_as_it_is_found(case: str, capsys: Capture) -> None:
    name, content, names, remarks = WILD[case]
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    out = f"out{name[1:]}"
    assert main(["explain", name]) == 0
    explained = " ".join(capsys.readouterr().out.split())
    assert main(["normalize", name, "-o", out]) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines(keepends=True) if line.startswith("Note")] == [*map(SAID.format, remarks)]
    for remark in remarks:
        assert f"Note: {remark}." in explained
    before, after = open_data(name), open_data(out)
    assert (before.names or ()) == (after.names or ()) == tuple(names)
    assert np.allclose(after.values, expected(before.values), equal_nan=True)
    assert before.table is not None
    assert after.table is not None
    if before.table.arrow is None:
        assert (after.table.form, after.table.others, after.table.gaps) == (
            before.table.form, before.table.others, before.table.gaps,
        )  # fmt: skip
    else:
        assert after.table.arrow.drop_columns(names) == before.table.arrow.drop_columns(names)
        assert after.table.arrow["b"].null_count == before.table.arrow["b"].null_count


def test_standard_input_is_a_table(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (NAMED.encode(), gzip.compress(SEMICOLONS.encode())):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert main(["normalize", "-", "-o", "out.csv"]) == 0
        assert "out.csv: shape (3, 2)" in capsys.readouterr().out
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert main(["explain", "-"]) == 0
        assert "Batch normalization of standard input" in capsys.readouterr().out
    assert np.allclose(open_data("out.csv", Reading(decimal=",")).values, expected(np.array(XY)))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main(["explain", "-"]) == 2
    assert "standard input is empty (0 bytes)" in capsys.readouterr().err


def test_narrow_columns_are_pointed_out(capsys: Capture) -> None:
    Path("t.csv").write_text("a,b,c,d\n0.001,5,1,0.001\n0.002,5,2,0.004\n0.004,5,5,0.003\n")
    for options in (["--save-moments", "m.json"], ["--use-moments", "m.json"]):
        assert main(["normalize", "t.csv", "-o", "u.csv", *options]) == 0
        said = capsys.readouterr().out
        assert "Note: column 'b' is constant" in said
        known = "is constant in the data of the moments, so what differs from its mean is multiplied by 1/√eps = 316.\n"
        assert (known if options[0] == "--use-moments" else "is constant, so all its output is 0.\n") in said
        assert (
            "Note: column 'a' has var = 1.56e-06, not large beside eps = 1e-05: its std becomes 0.367, not 1; so is "
            "column 'd'; scale it up, or take a smaller --eps.\n"
        ) in said
    assert main(["normalize", "t.csv", "-o", "u.csv", "--eps", "1e-12"]) == 0
    assert "not large" not in capsys.readouterr().out


@pytest.mark.parametrize("policy", ["propagate", "omit", "raise"])
def test_nan_policy(policy: str, capsys: Capture) -> None:
    x = np.array([[1, 2.5], [np.nan, 4.5], [7, -1]])
    np.save("x.npy", x)
    Path("x.csv").write_text("a,b\n1,2.5\n,4.5\n7,-1\n")
    for name in ("x.npy", "x.csv"):
        for command in (["explain", name, "--json"], ["normalize", name, "-o", f"out{name[1:]}"]):
            status = main([*command, "--nan-policy", policy])
            said = capsys.readouterr()
            assert status == (2 if policy == "raise" else 0), said.err
            if policy == "raise":
                place = "index (1, 0) is NaN" if name == "x.npy" else "line 3, column 0 'a' is empty"
                assert f"{name}, {place}. With --nan-policy raise no value may be missing." in said.err
            elif command[0] == "explain":
                found = json.loads(said.out)["channels"][0]
                assert (found["mean"], found["count"]) == ((4, 2) if policy == "omit" else ("nan", 3))
    if policy != "raise":
        wanted = expected(x)
        if policy == "propagate":
            wanted[:, 0] = np.nan
        assert np.allclose(np.load("out.npy"), wanted, equal_nan=True)
        assert np.allclose(open_data("out.csv", Reading(columns="0,1")).values, wanted, equal_nan=True)


# Moments and eps, saved and used


@pytest.mark.parametrize("moments", ["m.json", "m.safetensors"])
def test_use_moments_computes_what_training_did(moments: str, capsys: Capture, rng: np.random.Generator) -> None:
    np.save("x.npy", rng.normal(3, 0.1, (20, 3)))
    assert main(["normalize", "x.npy", "-o", "a.npy", "--eps", "0.5", "--save-moments", moments]) == 0
    assert main(["normalize", "x.npy", "-o", "b.npy", "--use-moments", moments]) == 0
    assert "Note: eps" not in capsys.readouterr().out
    assert Path("a.npy").read_bytes() == Path("b.npy").read_bytes()
    assert main(["normalize", "x.npy", "-o", "b.npy", "--use-moments", moments, "--eps", "0.25"]) == 0
    assert "Note: eps is 0.25, as asked; the moments were saved with 0.5.\n" in capsys.readouterr().out
    assert np.array_equal(np.load("b.npy"), bn.normalize(np.load("x.npy"), bn.load_moments(moments), eps=0.25))


@pytest.mark.parametrize("moments", ["m.json", "m.safetensors"])
def test_moments_without_eps_are_used_with_the_default_and_that_is_said(moments: str, capsys: Capture) -> None:
    x = np.array(XY)
    np.save("x.npy", x)
    for eps, said in ((None, f"Note: {moments} holds no eps; 1e-05 was added to the variance.\n"), (0.001, "")):
        bn.save_moments(moments, bn.moments(x), eps=eps)
        assert main(["normalize", "x.npy", "-o", "y.npy", "--use-moments", moments]) == 0
        assert capsys.readouterr().out.partition("Note")[2] == said.removeprefix("Note")
        assert np.array_equal(np.load("y.npy"), bn.normalize(x, bn.moments(x), eps=eps or 1e-5))
    assert bn.load_moments(moments) == bn.moments(x)


@pytest.mark.parametrize(
    ("eps", "error"), [(0.0, ValueError), (-1, ValueError), (np.nan, ValueError), ("1", TypeError)]
)
def test_an_eps_that_cannot_be_saved(eps: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="save_moments: eps must be"):
        bn.save_moments("m.json", bn.moments(np.eye(3)), eps=eps)
    assert not Path("m.json").exists()


def test_training_moments_cannot_be_overwritten_by_mistake(capsys: Capture) -> None:
    np.save("x.npy", np.array(XY))
    assert main(["normalize", "x.npy", "-o", "y.npy", "--save-moments", "m.json"]) == 0
    before = Path("m.json").read_bytes()
    for old in (["--moments", "m.json"], ["--moments", "m.json", "--eval"], ["--eval"], ["--moments=m.json"]):
        assert main(["normalize", "x.npy", "-o", "z.npy", *old]) == 2
        err = " ".join(capsys.readouterr().err.split())
        assert "does not exist: --save-moments FILE saves the moments of IN, --use-moments FILE normalizes with" in err
    assert main(["normalize", "x.npy", "-o", "z.npy", "--save-moments", "m.json", "--use-moments", "m.json"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err
    assert Path("m.json").read_bytes() == before
    assert not Path("z.npy").exists()
    for damaged in ("0", "-1", '"x"', "true"):
        Path("n.json").write_text(before.decode().replace('"eps": 1e-05', f'"eps": {damaged}'))
        assert main(["normalize", "x.npy", "-o", "z.npy", "--use-moments", "n.json"]) == 2
        assert "n.json is damaged: eps" in capsys.readouterr().err
