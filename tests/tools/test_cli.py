"""The command: what it prints, what it refuses and how, and that an interruption leaves nothing half-written."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import FLOATS, Capture, listing, parquet, refused, save, write, write_table
from sklearn.datasets import load_digits, load_iris

import batchnorm as bn
from batchnorm.tools.cli import main
from batchnorm.tools.text import terminal
from batchnorm.tools.text.lines import line

pytestmark = pytest.mark.usefixtures("here")


def run(*args: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-m", "batchnorm", *args], capture_output=True, encoding="utf-8", env=env, check=False
    )


# explain


def test_explain_without_a_file_is_the_worked_example(capsys: Capture) -> None:
    assert main(["explain"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(" Batch normalization of the worked example\n 5 rows, 5 columns · float64 · eps 1e-5\n")
    assert "mean = (1 + 2 + 3 + 4 + 5) / 5 = 3\n" in out
    assert "batchnorm explain FILE" in out


def test_explain_piped_has_no_colors_and_fits_eighty_columns() -> None:
    done = run("explain")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_columns_have_their_names_whichever_way_the_axis_is_said(capsys: Capture) -> None:
    write("t.csv", "left,right\n1,2\n3,5\n")
    shown = []
    for axis in ([], ["--axis=1"], ["--axis=-1"]):
        assert main(["explain", "t.csv", *axis]) == 0
        shown.append(capsys.readouterr().out)
    assert "left" in shown[0]
    assert shown == shown[:1] * 3


def test_explain_iris(capsys: Capture) -> None:
    iris = load_iris()
    names = [*iris.feature_names, "species"]
    path = write_table("iris.csv", iris.data, names, [str(iris.target_names[t]) for t in iris.target])
    assert main(["explain", path, "--columns", "0,1,2,3", "--channel", "petal length (cm)"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "4 columns" in out
    assert "m = 150" in out
    assert "with the numbers of column 'petal length (cm)'" in out
    assert "mean = (1.4 + 1.4 + 1.3 + 1.5 + 1.4 + … + 5.1) / 150 = 3.758\n" in out
    row = next(row for row in out.splitlines() if row.startswith("    petal length (cm)"))
    assert row.split()[3:7] == ["3.758", "1.759", "1", "6.9"]
    assert row.split()[-2:] == ["0.0000", "1.0000"]


def test_explain_digits_points_at_the_constant_pixels(capsys: Capture) -> None:
    digits = load_digits().data
    assert main(["explain", write_table("digits.csv", digits)]) == 0
    out = capsys.readouterr().out
    out = " ".join(out.split())
    assert "Column 0 is 0 everywhere" in out
    assert "The same is true of column 32 and column 39." in out
    assert np.flatnonzero(digits.std(axis=0) == 0).tolist() == [0, 32, 39]
    assert "m = 1797" in out


def test_explain_images(capsys: Capture, rng: np.random.Generator) -> None:
    x = rng.normal(1, 2, (8, 16, 14, 14)).astype(np.float32)
    np.save("x.npy", x)
    assert main(["explain", "x.npy", "--channel", "3", "--json"]) == 0
    d = json.loads(capsys.readouterr().out)
    assert d["plan"]["m"] == 8 * 14 * 14
    assert d["channels"][3]["mean"] == pytest.approx(x[:, 3].mean(dtype=float), rel=1e-7)
    assert d["formulas"]["channel"] == 3


def test_explain_channels_last_and_several_axes(capsys: Capture, rng: np.random.Generator) -> None:
    np.save("x.npy", rng.normal(size=(4, 5, 3, 2)))
    for axis, words in (
        ("-1", "Axis 3 is kept and holds 2 channels"),
        ("1,3", "Axes 1 and 3 are kept and hold 10 channels"),
    ):
        assert main(["explain", "x.npy", "--axis", axis]) == 0
        assert words in " ".join(capsys.readouterr().out.split())
    assert main(["explain", "x.npy", "--axis=-1,-3"]) == 0
    assert "Axes 1 and 3 are kept" in capsys.readouterr().out
    assert main(["explain", "x.npy", "--axis", "none"]) == 0
    assert "All 120 values have one mean" in capsys.readouterr().out
    assert main(["explain", "--axis", "none"]) == 0  # of the example, too
    assert "All 25 values have one mean" in capsys.readouterr().out


def test_explain_every_kind_of_file_says_the_same(capsys: Capture, rng: np.random.Generator) -> None:
    x = rng.normal(size=(12, 3))
    np.save("x.npy", x)
    np.savez("x.npz", x=x, other=np.ones(2))
    write_table("x.csv", x, ["a", "b", "c"])
    write("x.tsv", "\n".join("\t".join(map(repr, row)) for row in x.tolist()))
    pq.write_table(pa.table({name: x[:, i] for i, name in enumerate("abc")}), "x.parquet")
    seen = []
    for args in (["x.npy"], ["x.npz", "--key", "x"], ["x.csv"], ["x.tsv"], ["x.parquet"]):
        assert main(["explain", *args, "--json", "--eps", "0.001"]) == 0
        d = json.loads(capsys.readouterr().out)
        seen.append(
            (
                {k: v for k, v in d.items() if k not in ("source", "channels", "nan_policy")},
                [c["mean"] for c in d["channels"]],
            )
        )
    assert all(one == seen[0] for one in seen)


def test_explain_writes_a_page(capsys: Capture) -> None:
    write("t.csv", "a,b\n1,2\n3,5\n")
    assert main(["explain", "t.csv", "--html", "t.html"]) == 0
    assert capsys.readouterr().out == "t.html: open it in a browser.\n"
    page = Path("t.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert (data["tensors"][0]["names"], data["tensors"][0]["shape"]) == (["a", "b"], [2, 2])
    assert main(["explain", "--html", "t.html"]) == 0  # the worked example, over the old page
    data = json.loads(Path("t.html").read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0])
    assert (data["tensors"][0]["id"], data["whole"]) == ("table", None)
    assert listing() == ["t.csv", "t.html"]


def test_a_page_is_written_whole_or_not_at_all(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    write("t.csv", "a,b\n1,2\n3,5\n")
    for page in ("no/t.html", "t.csv", "./t.csv"):
        assert main(["explain", "t.csv", "--html", page]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert "the directory" in said.err
    assert said.err.count("is the data itself. Name another file for the page.") == 2

    def interrupted(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("batchnorm.tools.explain.Explanation.to_html", interrupted)
    assert main(["explain", "t.csv", "--html", "t.html"]) == 130
    assert listing() == ["t.csv"]
    assert Path("t.csv").read_text() == "a,b\n1,2\n3,5\n"


def test_json_is_strict_and_names_what_json_lacks(capsys: Capture) -> None:
    assert main(["explain", write("x.csv", "a,b\n1,nan\n2,3\n"), "--json", "--nan-policy", "propagate"]) == 0
    d = json.loads(capsys.readouterr().out, parse_constant=lambda c: pytest.fail(c))
    assert [c["mean"] for c in d["channels"]] == [1.5, "nan"]
    assert d["source"] == "x.csv"


def test_rows_all_shows_every_channel(capsys: Capture, rng: np.random.Generator) -> None:
    np.save("x.npy", rng.normal(size=(5, 40)))
    main(["explain", "x.npy"])
    assert "28 more are not shown. --rows all shows every one" in capsys.readouterr().out
    main(["explain", "x.npy", "--rows", "all"])
    assert "more are not shown" not in capsys.readouterr().out


def test_integers_are_converted_and_that_is_said(capsys: Capture) -> None:
    np.save("x.npy", np.arange(12).reshape(4, 3))
    main(["explain", "x.npy"])
    assert "Note: int64 was converted to float64." in capsys.readouterr().out
    main(["normalize", "x.npy", "-o", "y.npy"])
    assert "The input is int64; it was converted to float64." in capsys.readouterr().out


def test_a_header_that_may_be_data_is_pointed_out(capsys: Capture) -> None:
    write("x.csv", "1.5,2.5,x\n3,4,y\n5,7,z\n")
    main(["explain", "x.csv", "--columns", "0,1"])
    assert "Note: line 1 was taken as column names, although 2 cells are numbers; if it" in capsys.readouterr().out
    main(["explain", "x.csv", "--columns", "0,1", "--no-header"])
    out = capsys.readouterr().out
    assert "Note" not in out
    assert "m = 3" in out


# normalize


def test_normalize_says_what_it_did(capsys: Capture, rng: np.random.Generator) -> None:
    x = rng.normal(size=(6, 3, 4)).astype(np.float32)
    np.save("x.npy", x)
    assert main(["normalize", "x.npy", "-o", "y.npy", "--save-moments", "m.json"]) == 0
    captured = capsys.readouterr()
    assert captured.out == (
        "y.npy: shape (6, 3, 4), float32, channels on axis 1.\n"
        "Normalized with the moments of this file: 3 channels of 24 values each.\n"
        "Moments saved in m.json.\n"
    )
    assert captured.err == ""
    assert np.array_equal(np.load("y.npy"), bn.batch_norm(x)[0])
    assert main(["normalize", "x.npy", "-o", "z.npy", "--use-moments", "m.json"]) == 0
    assert "with the moments saved in m.json" in capsys.readouterr().out
    assert np.array_equal(np.load("z.npy"), np.load("y.npy"))


def test_normalize_says_which_channels_became_nan(capsys: Capture) -> None:
    write("x.csv", "a,b\n1,nan\n2,3\n4,5\n")
    assert main(["normalize", "x.csv", "-o", "y.csv", "--nan-policy", "propagate"]) == 0
    assert "1 of the channels hold NaN or infinity; all their outputs are NaN." in capsys.readouterr().out


# moments


def test_moments_of_several_files_are_those_of_all_rows(capsys: Capture, rng: np.random.Generator) -> None:
    x = rng.normal(3, 2, (30, 2))
    write_table("whole.csv", x, ["a", "b"])
    write_table("one.csv", x[:7], ["a", "b"])
    pq.write_table(pa.table({"b": x[7:, 1], "name": ["x"] * 23, "a": x[7:, 0]}), "two.parquet")
    assert main(["moments", "one.csv", "two.parquet", "-o", "m.json", "--eps", "0.5"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "m.json: the moments of 2 files together: 2 channels of 30 values each.\nNote: column 'a' has var = "
    )
    assert "not large beside eps = 0.5" in said
    m, whole = bn.load_moments("m.json"), bn.moments(x)
    assert np.allclose([m.count, m.mean, m.m2], [whole.count, whole.mean, whole.m2], rtol=1e-13)
    assert main(["normalise", "whole.csv", "-o", "y.csv", "--use-moments", "m.json"]) == 0
    y = np.loadtxt("y.csv", delimiter=",", skiprows=1)
    assert np.allclose(y, bn.normalize(x, whole, eps=0.5), atol=1e-13)


def test_moments_of_one_file_are_those_that_normalize_saves(capsys: Capture) -> None:
    write("t.csv", "a,b,c\n1,2,x\n,5,y\n3,9,z\n")
    assert main(["normalize", "t.csv", "-o", "u.csv", "--save-moments", "m.json"]) == 0
    capsys.readouterr()
    assert main(["moments", "t.csv", "-o", "n.json"]) == 0
    assert capsys.readouterr().out == (
        "n.json: the moments of t.csv: 2 channels of 2 to 3 values each.\n"
        "Note: column 'c' was left out: it holds text.\n"
        "Note: 1 missing cell is left out of the statistics, in column 'a'.\n"
    )
    assert Path("m.json").read_bytes() == Path("n.json").read_bytes()


@pytest.mark.parametrize("name", ["two.csv", "two.parquet"])
def test_a_column_may_be_missing_in_one_of_several_files(name: str, capsys: Capture) -> None:
    write("one.csv", "a,b\n1,2\n5,4\n")
    if name == "two.csv":
        write(name, "a,b\n,2\nNA,7\n")
    else:
        pq.write_table(pa.table({"a": pa.nulls(2), "b": [2, 7]}), name)
    assert main(["moments", "one.csv", name, "-o", "m.json"]) == 0
    assert f"Note: {name}: 2 missing cells are left out of the statistics, in column 'a'." in capsys.readouterr().out
    assert bn.load_moments("m.json").count.tolist() == [2, 4]
    assert main(["normalize", name, "-o", f"out{name[3:]}", "--use-moments", "m.json"]) == 0
    capsys.readouterr()
    refused(
        ["moments", name, name, "-o", "n.json", "--columns", "a,b"],
        [f"{name} and the files before it: column 'a' holds no value"],
        capsys,
    )
    write("one.npy", save(np.array([[np.nan], [np.nan]])))
    refused(
        ["moments", "one.npy", "-o", "n.json", "--nan-policy", "omit"], ["one.npy: channel 0 holds no value"], capsys
    )


def test_moments_refuses(capsys: Capture) -> None:
    write("x.npy", FLOATS)
    np.save("y.npy", np.ones((4, 2)))
    write("t.csv", "a,b\n1,2\n3,5\n")
    write("u.csv", "a,c\n1,2\n3,5\n")
    for arguments, parts in (
        (["x.npy", "y.npy", "-o", "m.json"], ["x.npy holds moments of 3 channels, and y.npy has 2 channels"]),
        (["t.csv", "u.csv", "-o", "m.json"], ["u.csv has no column 'b'"]),
        (["t.csv", "-o", "m.csv"], ["-o: the file's name must end in .json or .safetensors; got m.csv"]),
        (["t.csv", "-o", "no/m.json"], ["the directory", "does not exist"]),
        (["t.csv", "-o", "m.json", "--eps", "0"], ["eps must be positive"]),
        (["t.csv", "none.csv", "-o", "m.json"], ["none.csv does not exist"]),
    ):
        refused(["moments", *arguments], parts, capsys)


def test_without_pyarrow_the_message_says_what_to_install(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    write("x.parquet", parquet(a=[1.0]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(["explain", "x.parquet"], ["need pyarrow", "pip install pyarrow"], capsys)


def test_file_options_without_a_file(capsys: Capture) -> None:
    refused(["explain", "--key", "a"], ["--key is for a file", "batchnorm explain FILE"], capsys)
    refused(["explain", "--no-header"], ["--no-header is for a file"], capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["explian"], "invalid choice: 'explian'"),
        (
            ["explain", "--axis", "x"],
            "'x' is not an axis: give an integer such as 1 or -1, several such as 1,3, or none",
        ),
        (["explain", "--rows", "0"], "'0' is not a number of rows"),
        (["explain", "--eps", "small"], "invalid float value: 'small'"),
        (["normalize", "x.npy"], "the following arguments are required: -o/--output"),
    ],
)
def test_wrong_usage(argv: list[str], message: str, capsys: Capture) -> None:
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_help_and_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"batchnorm {bn.__version__}\n"
    for argv in (
        ["--help"],
        ["explain", "--help"],
        ["normalize", "--help"],
        ["moments", "--help"],
        ["why", "--help"],
        ["bench", "--help"],
    ):
        assert main(argv) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_name_cannot_write_to_the_terminal(capsys: Capture) -> None:
    """Control characters in a file never reach the screen."""
    write("x.csv", "\x1b[31m,b\n1,x\n")
    assert main(["explain", "x.csv", "--columns", "z"]) == 2
    assert "\x1b" not in capsys.readouterr().err
    write("y.csv", "\x1b[31m,b\n1,2\n3,4\n")
    assert main(["explain", "y.csv"]) == 0
    assert "\x1b" not in capsys.readouterr().out


# Terminals and pipes


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


LINES = [line("a ", ("b", "lit"), " √2")]


@pytest.mark.parametrize(
    ("variables", "colored"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"rich": ""}, False)],
)
def test_colors_on_a_terminal(variables: dict[str, str], colored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm-256color"} | variables).items():
        monkeypatch.setenv(name, value)
    if "rich" in variables:  # not installed: the same text, without colors
        monkeypatch.setitem(sys.modules, "rich.console", None)
    stream = Terminal()
    terminal.show(LINES, stream)
    text = stream.getvalue()
    assert ("\x1b[" in text) == colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == "a b √2\n"


def test_width_is_the_terminals_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, expected in (("40", 60), ("90", 90), ("400", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        assert terminal.columns_of(Terminal()) == expected
        assert terminal.columns_of(io.StringIO()) == expected
    monkeypatch.delenv("COLUMNS")
    assert terminal.columns_of(io.StringIO()) == 80


def test_a_stream_without_unicode_gets_ascii() -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    for options in ([], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "batchnorm", "explain", *options], capture_output=True, env=env, check=True
        )
        assert done.stdout.isascii()
        assert done.stderr == b""
    json.loads(done.stdout)


def test_nobody_may_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    for closed in (["stdout"], ["stdout", "stderr"]):
        with monkeypatch.context() as patched:
            for name in closed:
                patched.setattr(sys, name, None)
            assert main(["explain"]) == 0
            assert main(["explain", "none.csv"]) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk here")
def test_a_full_disk_is_said(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for argv in (["explain"], ["why", "--list"]):
        with monkeypatch.context() as patched, Path("/dev/full").open("w", encoding="utf-8") as full:
            patched.setattr(sys, "stdout", full)
            assert main(argv) == 2
        said = capsys.readouterr().err
        assert said.startswith("batchnorm: standard output cannot be used: No space left on device. Check names,")


def test_names_that_are_long_no_text_or_a_dash(capsys: Capture) -> None:
    long = "a" * 250
    write("a.csv", "a,b\n1,2\n3,5\n")
    assert main(["normalize", "a.csv", "-o", f"{long}.csv"]) == 0
    capsys.readouterr()
    refused(["explain", f"{long}{long}.csv"], [f"{long}.csv cannot be used: File name too long. Check names"], capsys)
    refused(["explain", "--html", "-"], ["it cannot be standard output; got -. Name a file."], capsys)
    if sys.platform == "linux":
        name = os.fsdecode(b"b\xff.csv")
        Path("a.csv").rename(name)
        assert main(["explain", name, "--html", "p.html"]) == main(["explain", name, "--json", "j.json"]) == 0
        assert "b?.csv" in Path("p.html").read_text(encoding="utf-8")
        assert json.loads(Path("j.json").read_text(encoding="utf-8"))["source"] == name
    assert not [path for path in Path().iterdir() if path.suffix == ".tmp"]


def test_a_column_of_nan_alone_holds_no_value(capsys: Capture) -> None:
    write("a.csv", "a,b\nnan,1\nNA,2\n")
    assert main(["explain", "a.csv"]) == 0
    assert "Note: column 'a' was left out: it holds no value." in capsys.readouterr().out


def test_a_closed_pipe_is_not_a_fault() -> None:
    command = [sys.executable, "-m", "batchnorm", "explain"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # long before the first line comes
        assert process.stderr.read() == b""
    assert process.returncode == 141


# Interruptions

# Once the moments are gathered, blocks become so small that writing takes many seconds.
SLOW = """
import sys
from batchnorm.tools.cli import main
from batchnorm import _blocks as blocks

gather = blocks.gather

def gather_and_slow_down(*args):
    m = gather(*args)
    blocks.BLOCK = 64
    return m

blocks.gather = gather_and_slow_down
sys.exit(main(sys.argv[1:]))
"""


def interrupt_while_writing(number: int, *, existing: bool) -> subprocess.CompletedProcess[str]:
    """Send a signal to a normalize that has begun to write, and return how it ended."""
    x = np.lib.format.open_memmap("x.npy", mode="w+", dtype=np.float32, shape=(1 << 20, 16))
    x[::2] = 1
    x.flush()
    if existing:
        write("y.npy", "old")
    command = [sys.executable, "-c", SLOW, "normalize", "x.npy", "-o", "y.npy", "--save-moments", "m.json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not any(name.startswith(".y.npy.") for name in listing()):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.skipif(os.name != "posix", reason="signals are sent the POSIX way")
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_nothing_half_written(number: int, status: int, existing: bool) -> None:
    done = interrupt_while_writing(number, existing=existing)
    assert done.returncode == status
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert ("interrupted" in done.stderr) == (number == signal.SIGINT)
    assert listing() == (["x.npy", "y.npy"] if existing else ["x.npy"])
    if existing:
        assert Path("y.npy").read_text() == "old"


def test_handlers_of_signals_are_put_back(capsys: Capture) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["explain"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_in_process(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("batchnorm.tools.explain.explain", interrupted)
    assert main(["explain"]) == 130
    assert capsys.readouterr().err == "batchnorm: interrupted; unfinished files were removed.\n"


def test_explain_writes_json_to_a_file_and_never_over_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table = write("x.csv", "a,b\n1,2\n3,5\n")
    assert main(["explain", table, "--json"]) == 0
    printed = capsys.readouterr().out
    assert main(["explain", table, "--json", "x.json"]) == 0
    assert capsys.readouterr().out == ""
    assert Path("x.json").read_text(encoding="utf-8") == printed
    assert main(["explain", "--json", table]) == 2
    assert "must end in .json; got" in capsys.readouterr().err
    assert Path(table).read_text(encoding="utf-8") == "a,b\n1,2\n3,5\n"
