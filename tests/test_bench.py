"""The benchmarks: what they verify, count, write and say. How long anything takes is not tested."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import batchnorm as bn
from batchnorm.bench import command, document, ratios, timing
from batchnorm.bench.contestants import everybody, onednn_library, present
from batchnorm.bench.contestants.contract import Contestant, Prepared, Unable
from batchnorm.bench.contestants.ours import Ours
from batchnorm.bench.data import Data
from batchnorm.bench.document import Settings, read, run, written
from batchnorm.bench.problem import OPERATIONS, Problem, problems, read_shapes
from batchnorm.bench.table import table
from batchnorm.bench.timing import Runner, measure
from batchnorm.bench.traffic import floor
from batchnorm.bench.verification import Wrong
from batchnorm.cli import main
from batchnorm.explanation.lines import plain
from batchnorm.files import Refused

ROOT = Path(__file__).parents[1]
SHAPES = ROOT / "benchmarks" / "shapes"
ONCE = Settings(rounds=1, budget=0.0)
Capture = pytest.CaptureFixture[str]

in_a_checkout = pytest.mark.skipif(not SHAPES.is_dir(), reason="the lists of shapes are in a checkout only")


@pytest.fixture(autouse=True)
def _threads_put_back() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.txt"
    path.write_text("# two\nimages, 4x5x3x2, 3 layers\n\na table, 16x8  # comment\n")
    return path


def tiny_problems(tiny: Path, dtypes: tuple[str, ...], threads: tuple[int, ...] = (1, 2)) -> list[Problem]:
    return list(problems(read_shapes(tiny), dtypes, tuple(OPERATIONS), threads))


def text_of(d: dict[str, Any], columns: int = 100) -> str:
    return "\n".join(map(plain, table(d, columns)))


# --- problems


def test_a_list_is_read_and_every_combination_made(tiny: Path) -> None:
    images, tabular = read_shapes(tiny)
    assert (images.name, images.sizes, images.layers) == ("images", (4, 5, 3, 2), 3)
    assert images.layouts == ("contiguous", "channels_last")
    assert (tabular.name, tabular.layers, tabular.layouts) == ("a table", 1, ("contiguous",))
    rows = tiny_problems(tiny, ("float32", "float64"))
    assert len(rows) == len(set(rows)) == 3 * 2 * 2 * len(OPERATIONS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("images 4x5", "'images 4x5'"),
        ("a, 4", "'a, 4'"),
        ("a, 4x0x2", "'a, 4x0x2'"),
        ("a, 1x5", "two positions a channel"),
        (f"a, {'9' * 5000}x2", "two positions a channel"),
        ("a, 4x5, contiguous", "'a, 4x5, contiguous'"),
    ],
)
def test_a_line_that_is_no_shape_is_refused(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"good, 2x3\n{line}\n")
    with pytest.raises(Refused, match="line 2: a shape is written as") as refusal:
        read_shapes(path)
    assert said in str(refusal.value)


def test_a_list_that_is_empty_or_missing_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n")
    with pytest.raises(Refused, match="names no shape"):
        read_shapes(empty)
    with pytest.raises(Refused, match="cannot be read"):
        read_shapes(tmp_path / "missing.txt")


@pytest.mark.parametrize("sizes", ["65536x65536x1024x1024", "999999999999999999x999999999999999999"])
def test_a_shape_beyond_memory_is_refused_before_anything_is_allocated(
    sizes: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"small, 4x5\nlarge, {sizes}\n")
    monkeypatch.setattr(document, "Data", lambda problem: pytest.fail("tensors were made"))
    assert main(["bench", "--shapes", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"list.txt: shapes must fit into memory; large, {sizes} takes " in said.err
    assert said.err.endswith("Make it smaller, or put # before its line.\n")


def test_memory_that_does_not_suffice_is_said(tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs may hold the memory that the machine has."""

    def full(problem: Problem) -> Data:
        raise MemoryError("Unable to allocate 16.0 GiB")

    monkeypatch.setattr(document, "Data", full)
    assert main(["bench", "--shapes", str(tiny)]) == 2
    assert "the memory does not suffice (Unable to allocate 16.0 GiB). Name smaller" in capsys.readouterr().err


def test_floors_equal_a_count_by_hand() -> None:
    """A tensor of 2 × 3 × 4 float32 is 96 bytes; bfloat16 half of that."""
    tensors = {  # those that pass, where the second reading is free, and where it is not
        "forward": (2, 3),  # x, y; x again
        "evaluation": (2, 2),
        "backward": (3, 5),  # g, x, dx; g and x again
        "forward + relu": (2, 3),
        "backward + relu": (3, 5),
        "forward + add + relu": (3, 4),  # x, residual, y; x again
        "backward + add + relu": (5, 8),  # g, x, residual, dx, its gradient; three again
    }
    assert set(tensors) == set(OPERATIONS)
    for operation, (cached, streamed) in tensors.items():
        for dtype, size in (("float32", 96), ("bfloat16", 48), ("float64", 192)):
            problem = Problem("p", (2, 3, 4), "contiguous", dtype, operation, 1)
            assert floor(problem) == (cached * size, streamed * size)


# --- contestants


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", [("float32",), ("float64", "float16"), ("bfloat16",)], ids=str)
def test_every_problem_is_verified_and_timed_by_everybody_who_can(
    tiny: Path, dtypes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "SETTLE", 0.0)  # times do not matter here
    monkeypatch.setattr(timing, "TURN", 0.0)
    rows = tiny_problems(tiny, dtypes)
    here, absent = present(everybody(compiled=()))
    d = run(rows, here, ONCE)
    assert len(d["rows"]) == len(rows)
    assert not absent.keys() & {"memcpy", "ours", "numpy", "eager"}
    for row in d["rows"]:
        assert {"memcpy fresh", "memcpy reused", "ours fresh", "ours reused", "eager fresh"} <= set(row["times"])
        assert set(row["times"]) | set(row["unable"]) == {c.key for c in here}
        assert set(row["times"]) == set(row["errors"])
        assert not [reason for reason in row["unable"].values() if reason.startswith("wrong")], row["unable"]
        assert all(t["median_s"] > 0 and t["rounds"] == 1 for t in row["times"].values())
        alone = "numpy fresh" in row["times"]
        assert alone == (row["threads"] == 1)
    scaled = [row for row in d["rows"] if "scikit-learn fresh" in row["times"]]
    assert {(row["operation"], len(row["shape"]), row["threads"]) for row in scaled} <= {
        ("forward", 2, 1),
        ("evaluation", 2, 1),
    }


@pytest.mark.slow
def test_compiled_is_verified_where_asked_for(tiny: Path) -> None:
    rows = [Problem("t", (16, 8), "contiguous", "float32", op, 1) for op in ("forward", "backward + add + relu")]
    contestants = [c for c in everybody(compiled={("backward + add + relu", 1)}) if c.name in ("ours", "compiled")]
    first, second = run(rows, contestants, ONCE)["rows"]
    assert first["unable"] == {"compiled fresh": "not compiled in this run, to save time"}
    reason = second["unable"].get("compiled fresh", "")
    assert "compiled fresh" in second["times"] or reason.startswith("torch.compile failed")  # where no C++ compiler is


class Broken(Ours):
    """Ours, with one value of one result off."""

    def __init__(self, name: str, result: str, value: float) -> None:
        super().__init__("fresh")
        self.name, self.result, self.value = name, result, value

    def prepare(self, problem: Problem, data: Data) -> Prepared:
        whole = super().prepare(problem, data)

        def read(results: Any) -> dict[str, np.ndarray]:
            found = {name: a.copy() for name, a in whole.read(results).items()}
            found[self.result].flat[-1] += self.value
            return found

        return Prepared(whole.call, read)


@pytest.mark.parametrize("value", [1e-3, np.nan, np.inf])
@pytest.mark.parametrize(
    ("operation", "result"),
    [
        ("forward", "y"),
        ("evaluation", "y"),
        ("backward", "x"),
        ("backward", "weight"),
        ("backward + add + relu", "residual"),
    ],
)
def test_wrong_results_are_caught_and_not_timed(operation: str, result: str, value: float) -> None:
    problem = Problem("p", (4, 5, 3, 2), "channels_last", "float32", operation, 1)
    value = value if not np.isfinite(value) else 0.05
    (row,) = run([problem], [Ours("fresh"), Broken("broken", result, value)], ONCE)["rows"]
    assert set(row["times"]) == {"ours fresh"}
    assert row["unable"]["broken fresh"].startswith(f"wrong: broken fresh: {result} is off by")


def test_wrong_results_of_ours_end_the_run(monkeypatch: pytest.MonkeyPatch, capsys: Capture, tiny: Path) -> None:
    problem = Problem("p", (4, 5), "contiguous", "float32", "forward", 1)
    with pytest.raises(Wrong, match="ours fresh: y is off"):
        run([problem], [Broken("ours", "y", 0.05)], ONCE)
    monkeypatch.setattr("batchnorm.bench.contestants.everybody", lambda compiled: [Broken("ours", "y", 0.05)])
    assert main(["bench", "--shapes", str(tiny)]) == 2
    assert "That is a fault of this library: please report it" in capsys.readouterr().err


def test_a_result_that_is_missing_is_wrong() -> None:
    class Half(Ours):
        name = "half"

        def prepare(self, problem: Problem, data: Data) -> Prepared:
            whole = super().prepare(problem, data)
            return Prepared(whole.call, lambda g: {"x": whole.read(g)["x"]})

    problem = Problem("p", (4, 5), "contiguous", "float32", "backward", 1)
    (row,) = run([problem], [Half("fresh")], ONCE)["rows"]
    assert "returned ['x']; the operation computes" in row["unable"]["half fresh"]


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


def test_exact_results_are_those_of_the_functions_in_float64() -> None:
    for layout in ("contiguous", "channels_last"):
        data = Data(Problem("p", (3, 4, 2, 5), layout, "float64", "forward", 1))
        assert data.x.flags.c_contiguous == (layout == "contiguous")
        y, m = bn.batch_norm(data.x, data.weight, data.bias, residual=data.residual, activation="relu")
        g = bn.batch_norm_backward(
            data.grad, data.x, m, data.weight, data.bias, residual=data.residual, activation="relu"
        )
        np.testing.assert_allclose(data.exact(OPERATIONS["forward + add + relu"]).results["y"], y, atol=1e-12)
        exact = data.exact(OPERATIONS["backward + add + relu"])
        for name, value in g._asdict().items():
            np.testing.assert_allclose(exact.results[name], value, atol=1e-12)
        assert all(np.max(slack) < 1e-9 for slack in exact.slack.values())


# --- turns


def test_calls_take_turns_in_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE", 0.0)
    monkeypatch.setattr(timing, "_calls", lambda call: 2)
    said: list[str] = []
    runners = {name: Runner(lambda name=name: said.append(name), "") for name in "abc"}  # type: ignore[misc]
    times = measure(runners, 2, 1.0)
    assert "".join(said) == "aaabbbccc" + "cccbbbaaa"  # each once untimed, twice timed
    assert {t.rounds for t in times.values()} == {2}


def test_turns_happen_inside_of_what_a_runner_asks_for() -> None:
    inside, seen = [False], []

    @contextmanager
    def within() -> Iterator[None]:
        inside[0] = True
        yield
        inside[0] = False

    runners = {
        "a": Runner(lambda: seen.append(("a", inside[0])), "", within),
        "b": Runner(lambda: seen.append(("b", inside[0])), ""),
    }
    measure(runners, 2, 1.0)
    assert set(seen) == {("a", True), ("b", False)}


def test_the_budget_ends_the_rounds_but_not_before_three() -> None:
    assert measure({"a": Runner(lambda: None, "")}, 50, 0.0)["a"].rounds == 3
    assert measure({"a": Runner(lambda: None, "")}, 2, 0.0)["a"].rounds == 2


@pytest.mark.skipif(timing.resource is None, reason="page faults are counted on Unix only")
def test_page_faults_are_counted() -> None:
    size = 64 * 2**20  # beyond what the allocator keeps: mapped anew in each call
    kept = np.ones(size, np.uint8)
    runners = {"new": Runner(lambda: np.ones(size, np.uint8), ""), "old": Runner(lambda: kept.fill(1), "")}
    times = measure(runners, 3, 0.0)
    assert times["new"].faults > times["old"].faults


# --- documents and tables


@pytest.fixture
def small(tiny: Path) -> dict[str, Any]:
    contestants = [c for c in everybody(compiled=()) if c.name in ("memcpy", "ours", "numpy", "eager", "compiled")]
    return run(tiny_problems(tiny, ("float32",), (1,)), contestants, ONCE)


def test_a_document_survives_json_and_gives_the_same_table(small: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(written(small))
    again = read(path)
    assert again == json.loads(json.dumps(small))
    assert text_of(again) == text_of(small)
    assert {"cpu", "system", "python", "numpy", "torch", "kernels", "commit"} <= set(again["machine"])


def test_what_is_no_document_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    for text, message in (("{", "cannot be read as JSON"), ('{"format": 0}', "Measure again"), ("[]", "Measure again")):
        path.write_text(text)
        with pytest.raises(Refused, match=message):
            read(path)


def made(ours: float, **others: float) -> dict[str, Any]:
    """A document of one row, with these seconds."""
    problem = Problem("p", (32, 64, 56, 56), "channels_last", "float32", "forward", 2)
    size = 32 * 64 * 56 * 56 * 4
    times = {"ours fresh": ours, "memcpy fresh": 0.002, **{name.replace("_", " "): t for name, t in others.items()}}
    row = {
        **dict(zip(("name", "shape", "layout", "dtype", "operation", "threads"), problem, strict=True)),
        "shape": list(problem.sizes),
        "bytes": {"copy": 2 * size, "floor": 2 * size, "streamed": 3 * size},
        "times": {
            key: {"median_s": t, "quartiles_s": [0.9 * t, 1.1 * t], "rounds": 3, "faults": 0.0}
            for key, t in times.items()
        },
        "errors": {},
        "unable": {"jax fresh": "JAX takes all 2 processors"},
    }
    machine = {"cpu": "A CPU x 2", "kernels": "avx2", "python": "3.11", "numpy": "2", "torch": "2.13", "commit": "abc"}
    return {"format": 1, "machine": machine, "absent": {"onednn": "not installed"}, "rows": [row]}


def test_the_table_says_what_the_numbers_say() -> None:
    d = made(0.004, eager_fresh=0.002, compiled_fresh=0.010)
    text = text_of(d)
    assert "32×64×56×56 NHWC · float32 · 2 threads · p" in text
    row = next(one for one in text.splitlines() if one.startswith("  forward"))
    # ms, spread, copies, no streaming copy, 2 tensors of 25.69 MB in 4 ms, eager lost, compiled won
    assert row.split() == ["forward", "4.00", "±10%", "2.00", "–", "12.8", "0.50!", "2.50"]
    said = " ".join(text.split())
    assert "We lose 1, the worst first: 32×64×56×56 NHWC forward (fresh, float32, 2 thr.) 0.50 eager." in said
    assert "Left out: onednn: not installed." in said
    assert "A dash in 1 cell: jax: JAX takes all 2 processors." in said
    assert "A CPU x 2, avx2 kernels, commit abc; Python 3.11, NumPy 2, PyTorch 2.13." in said


def test_a_small_difference_is_not_a_loss() -> None:
    assert not ratios.losses(made(0.0040, eager_fresh=0.0039)["rows"])
    assert "!" not in text_of(made(0.0040, eager_fresh=0.0039)).split("We", 1)[0].split("ms:")[0]


def test_unlike_outputs_are_not_compared() -> None:
    (row,) = made(0.004, eager_reused=0.001)["rows"]
    assert ratios.times_faster(row, "eager", "fresh") is None
    assert not ratios.losses([row])


def test_rows_by_shape_hold_the_most_threads(small: dict[str, Any]) -> None:
    view = ratios.by_shape(small)
    assert view["machine"]["threads"] == 1
    assert len(view["rows"]) == 3
    for row in view["rows"]:
        assert {"copy", "forward", "forward out", "forward torch", "evaluation", "backward torch"} <= set(
            row["median_s"]
        )
        assert "backward out torch" not in row["median_s"]


def test_lines_fit_the_width(small: dict[str, Any]) -> None:
    for columns in (80, 100):
        assert max(len(one) for one in text_of(small, columns).splitlines()) <= columns


# --- who is not there


def test_without_other_libraries_their_columns_are_left_out(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchnorm.bench.contestants import contract

    monkeypatch.setattr(contract, "find_spec", lambda name: None)
    monkeypatch.setattr(onednn_library, "library_file", lambda: None)
    onednn_library.loaded.cache_clear()
    d = run(tiny_problems(tiny, ("float32",), (1,)), everybody(), ONCE)
    onednn_library.loaded.cache_clear()
    assert d["absent"] == {
        "scikit-learn": "scikit-learn is not installed",
        "eager": "PyTorch is not installed",
        "compiled": "PyTorch is not installed",
        "onednn": "onednn-cpu-gomp is not installed",
        "jax": "JAX is not installed",
    }
    text = text_of(d)
    assert "Left out: eager: PyTorch is not installed." in text
    assert "eager" not in text.splitlines()[0]
    assert "NumPy" in text.splitlines()[0]


def test_bfloat16_without_its_package_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchnorm.bench.data.find_spec", lambda name: None)
    with pytest.raises(Refused, match="Install it, or leave bfloat16 out"):
        run(tiny_problems(tiny, ("bfloat16",)), [Ours("fresh")], ONCE)


def test_the_command_is_light() -> None:
    heavy = ("torch", "jax", "sklearn", "rich", "ml_dtypes")
    code = f"import sys, batchnorm.bench.command; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the command


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those that need no compiler and no other library, and one round."""
    chosen = [c for c in everybody(compiled=()) if c.name in ("memcpy", "streaming copy", "ours", "numpy")]
    monkeypatch.setattr("batchnorm.bench.contestants.everybody", lambda compiled: chosen)
    plan = command._plan
    monkeypatch.setattr(command, "_plan", lambda options, threads: (plan(options, threads)[0], ONCE))


@pytest.mark.usefixtures("cheap")
def test_the_command_prints_and_writes(tiny: Path, capsys: Capture, tmp_path: Path) -> None:
    target, before = tmp_path / "out.json", bn.get_num_threads()
    assert main(["bench", "--shapes", str(tiny), "--threads", "2,1,2", "--json", str(target)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(" " * 20)
    assert "4×5×3×2 NHWC · float32 · 1 thread · images" in out
    d = read(target)
    assert {row["threads"] for row in d["rows"]} == {1, 2}
    assert {row["operation"] for row in d["rows"]} == {"forward", "evaluation", "backward"}
    assert bn.get_num_threads() == before


@pytest.mark.usefixtures("cheap")
def test_quick_measures_less(tiny: Path, capsys: Capture, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    assert main(["bench", "--quick", "--shapes", str(tiny), "--threads", "1", "--json", str(target)]) == 0
    assert {row["operation"] for row in read(target)["rows"]} == {"forward", "backward"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threads", "0"], "'0' is not a list of numbers of threads"),
        (["--threads", "1,,2"], "give integers from 1 to 4096, such as 1,2"),
        (["--threads", "two"], "'two' is not a list"),
        (["--shapes", "missing.txt"], "missing.txt cannot be read"),
        (["--json", "no/such/dir.json"], "does not exist"),
    ],
)
def test_the_command_refuses(
    arguments: list[str], said: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert said in " ".join(err.split())
    assert out == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("cheap")
def test_an_interruption_writes_nothing(
    tiny: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(document, "measure", interrupted)
    target, before = tmp_path / "out.json", bn.get_num_threads()
    assert main(["bench", "--shapes", str(tiny), "--json", str(target), "--threads", "1"]) == 130
    assert not target.exists()
    assert bn.get_num_threads() == before
    assert "interrupted" in capsys.readouterr().err


def test_the_list_of_the_command_is_a_list() -> None:
    shapes = read_shapes(Path(command.__file__).with_name("shapes.txt"))
    assert len({shape.sizes for shape in shapes}) == len(shapes) >= 5


# --- lists and results of the repository


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def derive() -> ModuleType:
    return script(SHAPES / "derive.py")


@in_a_checkout
@pytest.mark.parametrize(
    ("network", "layers", "shapes", "some"),
    [
        ("resnet18", 20, 5, {(32, 64, 112, 112): 1, (32, 64, 56, 56): 4, (32, 512, 7, 7): 5}),
        ("resnet50", 53, 12, {(32, 256, 56, 56): 4, (32, 2048, 7, 7): 4, (32, 256, 14, 14): 11}),
        ("mobilenet_v2", 52, 19, {(32, 96, 112, 112): 1, (32, 1280, 7, 7): 1, (32, 384, 14, 14): 8}),
        ("mobilenet_v3_large", 46, 19, {(32, 960, 7, 7): 5, (32, 16, 112, 112): 3}),
        ("efficientnet_b0", 49, 19, {(32, 1152, 7, 7): 8, (32, 32, 112, 112): 2}),
        ("densenet121", 121, 65, {(16, 64, 112, 112): 1, (16, 1024, 7, 7): 1, (16, 128, 14, 14): 24}),
        ("unet", 18, 5, {(2, 64, 256, 256): 4, (2, 1024, 16, 16): 2}),
        ("unet3d", 14, 8, {(1, 32, 64, 64, 64): 1, (1, 512, 8, 8, 8): 1}),
        ("mlp", 4, 3, {(4096, 512): 2}),
    ],
)
def test_lists_hold_every_layer(
    network: str, layers: int, shapes: int, some: dict[tuple[int, ...], int], derive: ModuleType
) -> None:
    path = SHAPES / f"{network}.txt"
    assert path.read_text(encoding="utf-8") == derive.listed(network), "run benchmarks/shapes/derive.py"
    listed = Counter({shape.sizes: shape.layers for shape in read_shapes(path)})
    assert (listed.total(), len(listed)) == (layers, shapes)
    assert {sizes: listed[sizes] for sizes in some} == some


@in_a_checkout
def test_resnets_in_the_lists_are_those_of_the_tests(derive: ModuleType) -> None:
    """The same layers, in the same order, as networks.py builds in PyTorch, which has an eighth of the channels."""
    import torch

    import networks

    for name, model, thinner in (("resnet18", networks.resnet18(), 8), ("resnet50", networks.resnet50(), 16)):
        seen: list[tuple[int, int]] = []
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.register_forward_hook(lambda m, i, o, seen=seen: seen.append((o.shape[1], o.shape[2])))
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, 64, 64))
        expected = [(channels // thinner, side) for channels, side in derive.NETWORKS[name].layers(64)]
        assert Counter(seen) == Counter(expected)


def test_contestants_have_distinct_names_and_say_what_they_are() -> None:
    all_of_them = everybody()
    assert len({c.key for c in all_of_them}) == len(all_of_them)
    assert all(isinstance(c, Contestant) and c.what for c in all_of_them)
    assert issubclass(Unable, Exception)
