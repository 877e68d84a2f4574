"""`batchnorm bench`: what it verifies, writes and says. How long anything takes is not tested."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.tools.bench import functions, problem, results, table, timing
from batchnorm.tools.bench.problem import LAYOUTS, TABLE, Data, Problem, Wrong, read_shapes, verify
from batchnorm.tools.bench.timing import IN_TURN, WARM, Contestant, Settings, measure
from batchnorm.tools.cli import main
from batchnorm.tools.files import Refused
from batchnorm.tools.text.lines import plain

ONCE = Settings(rounds=1, budget=0.0)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import torch

    monkeypatch.setattr(timing, "SETTLE", 0.0)
    monkeypatch.setattr(timing, "keep_memory", lambda: None)  # for the whole process
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.txt"
    path.write_text("# two\nimages, 4x5x3x2\n\n16x8  # comment\n")
    return path


# --- lists


def test_lists_are_read_or_refused(tiny: Path, tmp_path: Path) -> None:
    assert read_shapes(tiny, None) == [(4, 5, 3, 2), (16, 8)]
    path = tmp_path / "list.txt"
    for line in ("images 4x5", "a, 4", "a, 4x0x2", "a, 1x5", f"a, {'9' * 5000}x2", "a, 4x5, contiguous"):
        path.write_text(f"good, 2x3\n{line}\n")
        with pytest.raises(Refused, match="line 2: a shape is written as"):
            read_shapes(path, None)
    path.write_text("# nothing\n")
    with pytest.raises(Refused, match="names no shape"):
        read_shapes(path, None)
    path.write_text("small, 4x5\nlarge, 65536x65536x1024x1024\n")
    with pytest.raises(Refused, match="line 2: shapes must fit into memory; large, 65536x65536x1024x1024 takes"):
        read_shapes(path, 2**34)
    with pytest.raises(Refused, match="cannot be read"):
        read_shapes(tmp_path / "missing.txt", None)


# --- contestants


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", *(pytest.param(t, marks=pytest.mark.slow) for t in ("float64", "float16"))]
)
def test_everybody_who_can_is_verified_and_timed(dtype: str) -> None:
    for shape, layout in (((4, 5, 3, 2), LAYOUTS[0]), ((4, 40, 3, 2), LAYOUTS[1]), ((16, 8), TABLE)):
        row = functions.row_of(Problem(shape, layout, dtype, 1), ONCE)
        who = {"memory", *functions.MAKERS}
        assert set(row["times"]) | set(row["unable"]) == who, (shape, layout)
        assert not any(reason.startswith("wrong") for reason in row["unable"].values()), row["unable"]
        assert row["unable"].keys() <= {"oneDNN"}
        for name, steps in row["times"].items():
            assert set(steps) == ({"read", *functions.COPIES} if name == "memory" else set(problem.OPERATIONS))
            assert all(set(modes) == {IN_TURN, WARM} for modes in steps.values())


def test_accelerated_calls_are_served_by_us_and_others_are_not() -> None:
    import batchnorm.torch as bnt

    given = Problem((4, 5, 3, 2))
    for name, ours in ((functions.PYTORCH, False), (functions.ACCELERATED, True)):
        contestant = functions.MAKERS[name](given, Data(given))
        with contestant.within():
            assert bnt.status().active == ours, name
            for call in contestant.steps.values():
                call()
    assert not bnt.status().active


def test_wrong_results_are_not_timed_and_ours_end_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tiny: Path
) -> None:
    def broken(of: Problem, data: Data) -> Contestant:
        whole = functions.arrays(of, data)
        return whole._replace(steps={**whole.steps, "evaluation": lambda: data.x})

    given = Problem((4, 5, 3, 2))
    monkeypatch.setitem(functions.MAKERS, "PyTorch", broken)
    row = functions.row_of(given, ONCE)
    assert "PyTorch" not in row["times"]
    assert row["unable"]["PyTorch"].startswith("wrong: PyTorch: evaluation is off by")
    monkeypatch.setitem(functions.MAKERS, functions.OURS, broken)
    assert main(["bench", "--shapes", str(tiny), "--quick"]) == 2
    assert "That is a fault of this library: please report it" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0.05, np.nan, np.inf])
def test_one_value_of_any_result_that_is_off_is_wrong(value: float) -> None:
    given = Problem((6, 3, 2, 2), LAYOUTS[1])
    data = Data(given)
    steps = functions.arrays(given, data).steps
    found = {name: call() for name, call in steps.items()}
    verify("ours", data, "float32", found)
    for operation, number in (("forward", 0), ("evaluation", 0), ("backward", 0), ("backward", 1), ("backward", 2)):
        arrays = [a.copy() for a in (found[operation] if operation == "backward" else [found[operation]])]
        arrays[number].flat[-1] += value * np.abs(arrays[number]).max()
        with pytest.raises(Wrong, match=f"ours: {operation} is off by"):
            verify("ours", data, "float32", {operation: arrays})


def test_without_pytorch_there_are_copies_and_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as old:  # one that batchnorm.torch refuses
        old.setitem(sys.modules, "batchnorm.torch", None)
        row = functions.row_of(Problem((4, 5)), ONCE)
        assert functions.PYTORCH in row["times"]
        assert "batchnorm.torch" in row["unable"][functions.ACCELERATED]
    monkeypatch.setattr(functions, "find_spec", lambda name: None)
    row = functions.row_of(Problem((4, 5)), ONCE)
    assert set(row["times"]) == {"memory", functions.OURS}
    assert set(row["unable"].values()) == {"PyTorch is not installed"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_copies_copy_every_byte_and_no_other(streaming: bool, threads: int, rng: np.random.Generator) -> None:
    bn.set_num_threads(threads)
    for isa in bn._native.available_isas():
        bn._native.force_isa(isa)
        for size in (0, 1, 63, 64, 65, 4095, 1_000_003):
            for start in (0, 4, 60):
                source, to = rng.integers(0, 256, size, dtype=np.uint8), np.zeros(size + 128, np.uint8)
                bn._native.copy(to[start : start + size], source, streaming)
                assert np.array_equal(to[start : start + size], source)
                assert not to[:start].any()
                assert not to[start + size :].any()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_reading_adds_up_every_byte(threads: int, rng: np.random.Generator) -> None:
    bn.set_num_threads(threads)
    for isa in bn._native.available_isas():
        bn._native.force_isa(isa)
        for size in (0, 1, 7, 63, 64, 511, 512, 513, 1_000_003):
            for start in (0, 4, 60):
                source = rng.integers(0, 256, start + size, dtype=np.uint8)[start:]
                words = np.concatenate([source, np.zeros(-size % 8, np.uint8)]).view("<u8")
                assert bn._native.read(source) == int(words.sum(dtype=np.uint64))


# --- turns


def test_turns_are_all_steps_twice_in_both_orders_and_inside_of_what_is_asked_for() -> None:
    said: list[str] = []

    @contextmanager
    def within() -> Iterator[None]:
        said.append("(")
        yield
        said.append(")")

    contestants = {
        "a": Contestant({"x": lambda: said.append("x"), "y": lambda: said.append("y")}),
        "b": Contestant({"z": lambda: said.append("z")}, "torch", within),
    }
    times = measure(contestants, Settings(rounds=2, budget=1.0))
    assert "".join(said) == "xyxy(zz)" + "(zz)xyxy"
    assert set(times["a"]) == {"x", "y"}
    said.clear()
    assert set(measure(contestants, Settings(1, 1.0, calls=3, modes=(IN_TURN,)))["b"]["z"]) == {IN_TURN}
    assert "".join(said) == "xxxyyy(zzz)"


def test_the_budget_ends_the_rounds_but_not_before_three() -> None:
    for rounds, made in ((50, 3), (2, 2)):
        calls: list[int] = []
        measure({"a": Contestant({"x": lambda calls=calls: calls.append(1)})}, Settings(rounds, 0.0))  # type: ignore[misc]
        assert len(calls) == 2 * made


# --- documents and tables


def made(ours: float = 4e-3, stock: float = 3e-3, layout: str = "contiguous") -> dict[str, Any]:
    """A document of one row, with these seconds."""

    def of(seconds: float, names: tuple[str, ...] = problem.OPERATIONS) -> dict[str, Any]:
        return {name: {WARM: [seconds, 0.9 * seconds, 1.1 * seconds]} for name in names}

    memory = of(1.5e-3, ("read",)) | of(2e-3, ("memcpy",)) | of(3e-3, ("streaming copy",))
    times = {"memory": memory, functions.OURS: of(ours), functions.PYTORCH: of(stock), functions.ACCELERATED: of(2e-3)}
    unable = {"oneDNN": "PyTorch was built without oneDNN"}
    row = results.row(Problem((32, 64, 56, 56), layout, threads=2), {"times": times, "unable": unable})
    return results.document("functions", [row])


def text_of(document: dict[str, Any], columns: int = 80) -> str:
    return "\n".join(map(plain, table.functions(document, columns)))


def test_the_least_is_counted_by_passes() -> None:
    """A copy takes 2 ms, reading 1.5 ms: forward, backward and evaluation."""
    for layout, expected in (("contiguous", (2, 3, 2)), ("channels-last", (3.5, 6, 2))):
        (row,) = made(layout=layout)["rows"]
        assert [round(1e3 * table.least(row, o), 6) for o in problem.OPERATIONS] == list(expected)


def test_the_table_says_what_the_numbers_say_and_marks_what_is_lost() -> None:
    text = text_of(made())
    assert "32×64×56×56 · contiguous · float32 · 2 threads" in text
    row = next(one for one in text.splitlines() if one.startswith("  backward"))
    # ms, spread, in copies, above the least, PyTorch lost, accelerated won, no oneDNN
    assert row.split() == ["backward", "4.00", "±10", "%", "2.00", "1.33", "0.75!", "1.50", "–"]
    said = " ".join(text.split())
    assert "arrays beside PyTorch: geometric mean 0.75; lost 3 of 3." in said
    assert "accelerated beside PyTorch: geometric mean 1.50; lost 0 of 3." in said
    assert "oneDNN: PyTorch was built without oneDNN." in said
    assert max(map(len, text.splitlines())) <= 80
    assert table.times(0.996) == "1.00"
    lines = table.markdown(table.Table(["a", "b"], [["x", table.times(0.9)], ["y", table.times(1.1)]], 1, "note"))
    assert lines == "| a | b |\n| --- | ---: |\n| x | **0.90** |\n| y | 1.10 |\n\nnote"


def test_a_document_survives_json_and_what_is_none_is_refused(tmp_path: Path) -> None:
    path, document = tmp_path / "b.json", made()
    results.write(document, path)
    assert len(path.read_text(encoding="utf-8").splitlines()) < 30  # a row a line
    assert text_of(results.read(path)) == text_of(document)
    assert {"cpu", "system", "python", "numpy", "torch", "kernels", "commit"} <= set(document["machine"])
    for text, message in (("{", "cannot be read as JSON"), ('{"format": 0}', "Measure again"), ("[]", "Measure again")):
        path.write_text(text)
        with pytest.raises(Refused, match=message):
            results.read(path)


# --- the command


def test_the_command_is_light() -> None:
    heavy = ("torch", "sklearn", "rich", "ml_dtypes")
    code = f"import sys, batchnorm.tools.bench.command; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_prints_and_writes(tiny: Path, capsys: Capture, tmp_path: Path) -> None:
    target, before = tmp_path / "out.json", bn.get_num_threads()
    assert main(["bench", "--quick", "--shapes", str(tiny), "--threads", "2,1,2", "--json", str(target)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "4×5×3×2 · contiguous · float32 · 1 thread\n" in out
    rows = results.read(target)["rows"]
    assert [(len(row["shape"]), row["threads"]) for row in rows] == [(4, 1), (4, 2), (2, 1), (2, 2)]
    assert bn.get_num_threads() == before
    options = ["bench", "--shapes", str(tiny), "--threads", "1", "--json", str(target)]
    assert main(options) == 0
    assert [row["layout"] for row in results.read(target)["rows"]] == [*LAYOUTS, TABLE]


def test_the_command_refuses_and_changes_nothing(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    place = tmp_path / "empty"
    place.mkdir()
    monkeypatch.chdir(place)
    for arguments, said in (
        (["--threads", "0"], "'0' is not a list of numbers of threads"),
        (["--threads", "1,,2"], "give integers from 1 to 4096, such as 1,2"),
        (["--shapes", "missing.txt"], "missing.txt cannot be read"),
        (["--json", "no/such/dir.json"], "does not exist"),
    ):
        assert main(["bench", *arguments]) == 2
        out, err = capsys.readouterr()
        assert said in " ".join(err.split())
        assert out == ""
    before = bn.get_num_threads()
    for error, code, message in (
        (MemoryError("no room"), 2, "the memory does not suffice (no room). Name smaller"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ):

        def fail(*_: Any, error: BaseException = error) -> Any:
            raise error

        monkeypatch.setattr(functions, "Data", fail)
        assert main(["bench", "--shapes", str(tiny), "--threads", "1", "--json", "out.json"]) == code
        assert message in " ".join(capsys.readouterr().err.split())
        assert bn.get_num_threads() == before
    assert os.listdir(place) == []
