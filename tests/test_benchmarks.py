"""The full benchmarks of a checkout: what they count and verify, what they write and draw. Times are not tested."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm.bench import ratios, timing
from batchnorm.bench.contestants import everybody
from batchnorm.bench.data import Data
from batchnorm.bench.document import Settings, read, run, written
from batchnorm.bench.problem import OPERATIONS, Problem, Shape, problems, read_shapes

ROOT = Path(__file__).parents[1]
BENCHMARKS, FIGURES = ROOT / "benchmarks", ROOT / "docs" / "figures"
PAGE = "docs/performance.md"
ONCE = Settings(rounds=1, budget=0.0)

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the full benchmarks are in a checkout only")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules beside one another, no waiting for threads that spin, and settings put back."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(FIGURES))
    monkeypatch.setattr(timing, "SETTLE", 0.0)
    monkeypatch.setattr(timing, "TURN", 0.0)
    before = torch.get_num_threads(), bn.get_num_threads()
    loaded = set(sys.modules)
    yield
    torch.set_num_threads(before[0])
    bn.set_num_threads(before[1])
    for name in set(sys.modules) - loaded:  # their names are short, and mean something here only
        if str(getattr(sys.modules[name], "__file__", "")).startswith((str(BENCHMARKS), str(FIGURES))):
            del sys.modules[name]


def part(name: str) -> Any:
    return import_module(name)


def cells(table: str) -> list[list[str]]:
    """The lines of a table of Markdown, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def survives_json(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(written(document))
    assert read(path).keys() == document.keys()


# --- networks and their steps


@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [("MobileNetV2", 3_504_872, 52), ("ResNet-18", 11_689_512, 20), ("ResNet-50", 25_557_032, 53)],
)
def test_networks_have_the_published_sizes(name: str, parameters: int, layers: int) -> None:
    model = part("published").NETWORKS[name]()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()) == layers


def small_network() -> torch.nn.Module:
    """What the networks are made of, once."""
    published = part("published")
    layers = [*published.conv_bn(3, 8, 3, 2), torch.nn.ReLU(inplace=True), published.basic(8, 16, 2)]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(16 * 8 * 8, published.CLASSES))


def test_steps_are_verified_timed_and_tabled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    end_to_end, steps = part("end_to_end"), part("steps")
    monkeypatch.setitem(part("published").NETWORKS, "small", small_network)
    monkeypatch.setattr(end_to_end, "peak_in_a_process", lambda *_: 2**20)
    ways = (*steps.EAGER, *steps.LIMIT)
    document = end_to_end.measure(("small",), ways, end_to_end.Sizes(8, 32, 1, 0.0), dtypes=("float32", "bfloat16"))
    cases = [
        ("float32", "contiguous"),
        ("float32", "channels_last"),
        ("bfloat16", "contiguous"),
        ("bfloat16", "channels_last"),
    ]
    assert [(row["dtype"], row["layout"]) for row in document["rows"]] == cases
    for row in document["rows"]:
        assert set(row["times"]) == set(row["first"]) == {"stock", "accelerated", "fused", "limit"}
        assert set(row["peak"]) == ({"stock", "accelerated", "fused"} if row["dtype"] == "float32" else set())
    assert not bnt.status().active
    survives_json(document, tmp_path)
    (table,) = end_to_end.tables(document).values()
    assert [(line[2], line[3], line[8]) for line in cells(table)[:2]] == [
        ("contiguous", "PyTorch's own", "1.00"),
        ("contiguous", "`bnt.accelerate()`", "1.00"),
    ]


def test_groups_are_verified_timed_and_tabled(tmp_path: Path) -> None:
    groups = part("groups")
    given = [
        groups.Case((8, 16, 6, 6), "channels-last", "bfloat16"),
        groups.Case((4, 5, 3, 3), "contiguous", "float32"),
        groups.Case((64, 16), "(N, C)", "float16"),
    ]
    document = groups.measure(given, 1)
    assert not bnt.status().active
    survives_json(document, tmp_path)
    for row in document["rows"]:
        assert set(row["median_s"]) == {"warm", "in turn"}
        row["median_s"]["warm"]["stock"] = {operation: 6.0 for operation in groups.OPERATIONS}
        row["median_s"]["warm"]["accelerated"] = {operation: 2.0 for operation in groups.OPERATIONS}
        row["median_s"]["warm"]["memory"] = {"read": 0.25, "memcpy": 0.5, "streaming copy": 1.0}
    summary, each = (cells(table) for table in groups.tables(document).values())
    assert [line[:6] for line in summary] == [
        ["float32", "contiguous", "1", "3.00", "3.00", "3.00"],
        ["bfloat16", "channels-last", "1", "3.00", "3.00", "3.00"],
        ["float16", "(N, C)", "1", "3.00", "3.00", "3.00"],
    ]
    assert [line[5::3] for line in each] == [
        ["2.67", "2.00", "4.00"],
        ["4.00", "4.00", "4.00"],
        ["2.67", "2.00", "4.00"],
    ]


def test_groups_that_are_wrong_are_not_timed() -> None:
    groups = part("groups")
    case, right = groups.Case((2, 2), "(N, C)", "float32"), [torch.ones(2, 2)]
    groups.verify(case, [torch.full((2, 2), 1.0001)], right)
    for wrong in (1.1, math.nan):
        with pytest.raises(SystemExit, match="accelerated disagrees"):
            groups.verify(case, [torch.full((2, 2), wrong)], right)


def test_a_step_that_is_wrong_is_not_timed() -> None:
    end_to_end = part("end_to_end")
    end_to_end.verify({"stock": [7.0, 3.0], "fused": [7.0001, 3.01]}, 1)
    for wrong in ([7.1, 3.0], [7.0, 3.3], [math.nan, 3.0], [7.0, math.nan]):
        with pytest.raises(SystemExit, match=r"fused: .* of the first step is"):
            end_to_end.verify({"stock": [7.0, 3.0], "fused": wrong}, 1)


@pytest.mark.slow
def test_peak_memory_holds_what_is_saved_for_the_backward() -> None:
    end_to_end, saved, steps = part("end_to_end"), part("saved"), part("steps")
    if not end_to_end.CLEAR.exists():
        assert end_to_end.peak_in_a_process("ResNet-18", "contiguous", "stock", end_to_end.Sizes(8, 64)) is None
        return
    peak = end_to_end.peak_in_a_process("ResNet-18", "contiguous", "stock", end_to_end.Sizes(8, 64))
    given, model = steps.batch(8, 64, "contiguous"), steps.network("ResNet-18", "stock", "contiguous")
    kept = saved.saved_bytes(model, lambda: saved.loss(model, given))
    assert 0.8 * kept < peak < 10 * kept


# --- bytes for the backward


def test_each_storage_is_counted_once_and_parameters_are_not() -> None:
    saved = part("saved")
    layer, x = torch.nn.Linear(3, 5), torch.ones(7, 3, requires_grad=True)
    assert saved.saved_bytes(layer, lambda: layer(x)) == 7 * 3 * 4  # x, for the weight's gradient
    assert saved.saved_bytes(layer, lambda: layer(x) + layer(x)) == 7 * 3 * 4


@pytest.mark.parametrize("what", ["batch norm", "batch norm + ReLU", "batch norm + ReLU6"])
def test_fused_layers_keep_x_and_a_few_numbers_a_channel(what: str) -> None:
    """The promise of the documents, for what the benchmark counts: PyTorch keeps y, too, where ReLU follows."""
    sizes = (4, 6, 9, 9)
    x, C = math.prod(sizes) * 4, sizes[1]
    (row,) = [row for row in part("saved").layers(sizes) if row["what"] == what]
    assert x < row["saved"]["fused"] <= x + 64 * C
    tensors = 1 if what == "batch norm" else 2
    assert tensors * x < row["saved"]["stock"] <= tensors * x + 64 * C
    assert tensors * x < row["saved"]["accelerated"] <= tensors * x + 64 * C


@pytest.mark.slow
def test_fusing_mobilenet_keeps_less(tmp_path: Path) -> None:
    saved = part("saved")
    document = saved.measure(2, 64, ("MobileNetV2",), (2, 3, 4, 4))
    kept = document["rows"][-1]["saved"]
    assert kept["fused"] < 0.75 * kept["stock"]
    assert len(cells(saved.tables(document)["saved"])) == 5
    survives_json(document, tmp_path)


# --- threads, calls, variants


def test_the_roofline_is_measured_and_tabled(tmp_path: Path) -> None:
    roofline = part("roofline")
    document = roofline.measure(roofline.Sizes((0.25, 0.5), 1, 0.0))
    (tmp_path / "roofline.json").write_text(written(document), encoding="utf-8")
    assert len(cells(roofline.tables(read(tmp_path / "roofline.json"))["roofline"])) == len(document["rows"])
    row = {"times": {n: {"median_s": s} for n, s in (("read", 0.6), ("memcpy", 2.0), ("streaming copy", 1.0))}}
    assert roofline.floor(row).near == (1.0, pytest.approx(1.2))
    assert roofline.floor(row).far == (pytest.approx(1.6), pytest.approx(2.4))


def test_batch_norms_between_convolutions(tmp_path: Path) -> None:
    threads = part("threads")
    document = threads.measure(threads.Sizes((2, 4, 6, 6), 2, (2, 4, 6, 6), 1, 0.0, 0.05))
    counts = sorted({1, torch.get_num_threads()})
    assert [row["threads"] for row in document["rows"]] == counts
    names = {f"{norm}, {where}" for norm in threads.NAMES for where in ("alone", "between")}
    assert all(set(row["times"]) == {"convolutions", *names} for row in document["rows"])
    assert all(row["one"] > 0 and row["two"] > 0 for row in document["callers"])
    assert len(cells(threads.tables(document)["threads"])) == 3 * len(counts) + 2 * len(counts) + 2
    survives_json(document, tmp_path)


def test_two_callers_make_no_more_threads() -> None:
    """A call that finds the pool busy runs on its own thread: the pool does not grow with the callers."""
    threads = part("threads")
    if not threads.TASKS.exists():
        pytest.skip("threads of a process are counted on Linux only")
    bn.set_num_threads(2)
    x = np.random.default_rng(0).normal(size=(8, 32, 28, 28)).astype(np.float32)
    _, one = threads.rate(lambda i: bn.batch_norm(x), 1, 0.3)
    _, four = threads.rate(lambda i: bn.batch_norm(x), 4, 0.3)
    assert four - one <= 3  # the callers


@pytest.mark.parametrize("call", ["batch_norm", "normalize", "batch_norm_backward", "layer", "layer.backward"])
def test_the_kernel_beside_a_call_is_the_one_it_makes(call: str) -> None:
    overhead = part("overhead")
    native = overhead.functional._native
    with overhead.recording() as recorder:
        overhead.numpy_calls((6, 3))[call]()
    assert recorder.last[0] is getattr(native, "backward" if "backward" in call else "forward")
    assert overhead.functional._native is native
    assert overhead._usual._forward is native.usual.forward
    assert overhead._usual._backward is native.usual.backward
    kernel = overhead.kernel_of(overhead.numpy_calls((6, 3))[call])
    kernel()
    kernel()


def test_a_failing_call_leaves_the_kernels_in_place() -> None:
    overhead = part("overhead")
    native = overhead.functional._native
    with pytest.raises(SystemExit, match="no kernel was called"):
        overhead.kernel_of(lambda: None)
    with pytest.raises(ZeroDivisionError):
        overhead.kernel_of(lambda: 1 / 0)
    assert overhead.functional._native is native


def test_calls_are_tabled_beside_their_kernels(tmp_path: Path) -> None:
    overhead = part("overhead")
    document = overhead.measure(overhead.Sizes(((5, 5),), 1, 0.0))
    table = cells(overhead.tables(document)["overhead"])
    assert [line[1] for line in table[:5]] == [f"`{name}`" for name in overhead.numpy_calls((5, 5))]
    for _, _, whole, kernel, beyond in table[:5]:
        assert float(beyond) == pytest.approx(float(whole) - float(kernel), abs=0.11)
    survives_json(document, tmp_path)


def test_variants_are_verified_and_tabled(tmp_path: Path) -> None:
    variants = part("variants")
    document = variants.measure([Shape("a", (6, 4, 3, 5)), Shape("b", (9, 3))], variants.Settings(1, 0.0))
    assert len(document["rows"]) == 3 * 2
    for row in document["rows"]:
        assert set(row["times"]) == {"plain", "mask, random", "mask, padding", "weights", "ghost batches"}
    assert len(cells(variants.tables(document)["variants"])) == 6
    survives_json(document, tmp_path)


@pytest.mark.parametrize("name", ["plain", "mask, random", "mask, padding", "weights", "ghost batches"])
def test_a_variant_that_is_wrong_is_not_timed(name: str) -> None:
    variants = part("variants")
    data = Data(Problem("p", (8, 3, 2, 4), "channels_last", "float32", "forward", 1))
    options = variants.choices(data.x)[name]
    y = bn.batch_norm(data.x, data.weight, data.bias, **options)[0]
    variants.verify(name, data, y, options)
    for off, given in [(1e-3, options), *((0.0, o) for other, o in variants.choices(data.x).items() if other != name)]:
        with pytest.raises(SystemExit, match=f"{name} on 8×3×2×4: y is off"):
            variants.verify(name, data, y + off, given)


@pytest.mark.slow
def test_two_processes_are_verified_and_tabled(tmp_path: Path) -> None:
    sync = part("sync")
    document = sync.measure([Shape("a", (5, 4, 3, 5)), Shape("b", (9, 3))], sync.Settings(1, 1, 1))
    assert [(row["shape"], row["layout"]) for row in document["rows"]] == [
        ([5, 4, 3, 5], "contiguous"),
        ([5, 4, 3, 5], "channels_last"),
        ([9, 3], "contiguous"),
    ]
    ways = {"plain", "plain and all_reduce", "ours", "synchronised", "reproducible"}
    assert all(set(row["times"]) == ways for row in document["rows"])
    assert len(cells(sync.tables(document)["sync"])) == 3
    survives_json(document, tmp_path)


def test_a_layer_that_does_not_synchronise_is_not_timed() -> None:
    sync = part("sync")
    x, g = sync.tensors((6, 3, 4), "channels_last")
    own = torch.nn.BatchNorm1d(3)
    own_part, whole = sync.stepper(own, x[:3].requires_grad_(), g[:3])(), sync.stepper(own, x.requires_grad_(), g)()
    sync.verify([t[:3] for t in whole], (6, 3, 4), "channels_last", 0)
    with pytest.raises(SystemExit, match=r"y of rank 0 is off"):
        sync.verify(own_part, (6, 3, 4), "channels_last", 0)
    with pytest.raises(SystemExit, match=r"the gradient of rank 0 is off"):
        sync.verify([whole[0][:3], own_part[1]], (6, 3, 4), "channels_last", 0)


def test_torch_layers_are_timed_and_tabled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layers = part("torch_layers")
    monkeypatch.setattr(layers, "SETTLE", 0.0)
    monkeypatch.setattr(layers, "keep_memory", lambda: None)  # for the whole process
    document = layers.measure([Shape("a", (16, 8)), Shape("b", (4, 3, 5, 5))], 1)
    assert len(document["rows"]) == 3 * 3
    assert len(cells(layers.tables(document)["layers-table"])) == 3
    short = part("tables_layers").ways(document, "en", short=False)
    assert [line[0] for line in cells(short)] == ["16×8", "4×3×5×5", "4×3×5×5"]
    survives_json(document, tmp_path)


def test_layers_on_a_gpu_are_verified_timed_and_tabled(tmp_path: Path) -> None:
    """On the CPU, where no GPU is: what is measured differs, what is written does not."""
    gpu = part("gpu")
    document = gpu.measure([(4, 3, 8, 8)], "cpu", 1)
    assert [(row["layout"], row["dtype"]) for row in document["rows"]] == [
        (layout, dtype) for layout in ("contiguous", "channels_last") for dtype in ("float32", "bfloat16")
    ]
    survives_json(document, tmp_path)
    (table,) = gpu.tables(document).values()
    assert [line[:3] for line in cells(table)[:1]] == [["4×3×8×8", "contiguous", "float32"]]
    found = {way: [torch.ones(3)] for way in document["rows"][0]["median_s"]} | {"module": [torch.zeros(3)]}
    with pytest.raises(AssertionError, match="module disagrees with stock"):
        gpu.verify(found)


# --- parts and pages


def test_other_machines_are_measured_only_when_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    full, measured = part("run"), []
    monkeypatch.setattr(full, "measure", measured.append)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    full.main()
    assert measured == [name for name in (*full.PARTS, *full.OTHERS) if name not in full.ELSEWHERE]
    monkeypatch.setattr(sys, "argv", ["run.py", *full.ELSEWHERE])
    measured.clear()
    full.main()
    assert measured == list(full.ELSEWHERE)


def test_the_full_run_measures_each_shape_once() -> None:
    full = part("run")
    shapes = full.distinct(full.NETWORKS)
    assert len({shape.sizes for shape in shapes}) == len(shapes) > 100
    assert set(full.NETWORKS) <= {path.stem for path in (BENCHMARKS / "shapes").glob("*.txt")}
    for each in full.PARTS.values():
        chosen = full.contestants(each, 2)
        assert {"memcpy reused", "ours fresh", "ours reused", "eager fresh"} <= {c.key for c in chosen}
        for name in each.who or ():
            assert any(name in (c.name, c.key) for c in chosen), f"nobody is called {name}"


def test_sizes_reach_from_64_kib_to_200_mib() -> None:
    full = part("run")
    bytes_of = {2: [], 4: []}  # type: ignore[var-annotated]
    for shape in full.distinct(("sizes",)):
        bytes_of[len(shape.sizes)].append(4 * math.prod(shape.sizes))
    for sizes in bytes_of.values():
        assert sizes == sorted(sizes)
        assert (sizes[0], sizes[-1]) == (64 * 2**10, 200 * 2**20)
        assert all(after <= 2 * before * 1.6 for before, after in itertools.pairwise(sizes))


def test_results_of_the_repository_are_documents() -> None:
    full = part("run")
    paths = {path.stem: path for path in (BENCHMARKS / "results").glob("*.json")}
    assert {"core", "torch_layers"} <= paths.keys() <= {*full.PARTS, *full.OTHERS}
    for path in paths.values():
        assert read(path)["rows"]


def test_the_page_has_a_place_for_each_table() -> None:
    render = part("render")
    for page, mark, _ in render.parts():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert text.count(f"<!-- {mark} -->") == text.count(f"<!-- /{mark} -->") == 1, (page, mark)
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    marks = (
        "networks",
        "dtypes",
        "sizes",
        "end-to-end",
        "compiled",
        "saved",
        "threads",
        "overhead",
        "variants",
        "sync",
        "roofline",
    )
    for mark in marks:
        assert text.count(f"<!-- {mark} -->") == text.count(f"<!-- /{mark} -->") == 1, mark


def test_a_place_is_filled_and_nothing_else_changed() -> None:
    page = "a\n<!-- dtypes -->\nold\n<!-- /dtypes -->\nb"
    assert part("render").fill(page, "dtypes", "new") == "a\n<!-- dtypes -->\n\nnew\n\n<!-- /dtypes -->\nb"


def test_pages_show_what_the_results_say() -> None:
    """The tables of the committed results stand on the pages; render.py was run after measuring."""
    render = part("render")
    for page, mark, table in render.parts():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert render.fill(text, mark, table) == text, f"{page}, {mark}: run benchmarks/render.py"


@pytest.fixture
def small(tmp_path: Path) -> tuple[dict[str, Any], list[Shape]]:
    path = tmp_path / "small.txt"
    path.write_text("images, 4x5x3x2, 3 layers\na table, 16x8\n")
    shapes = read_shapes(path)
    contestants = [c for c in everybody(compiled=()) if c.name in ("memcpy", "ours", "eager")]
    return run(list(problems(shapes, ("float32",), tuple(OPERATIONS), (1,))), contestants, ONCE), shapes


def test_tables_of_networks_and_dtypes_add_up(small: tuple[dict[str, Any], list[Shape]]) -> None:
    document, shapes = small
    tables = part("tables")
    text = tables.networks(document, {"a network": shapes})
    time_of = {
        (len(row["shape"]), row["layout"], row["operation"]): ratios.seconds(row, "eager", "fresh")
        for row in document["rows"]
    }
    total = 3 * time_of[4, "contiguous", "forward"] + time_of[2, "contiguous", "forward"]  # three layers and one
    first, second = cells(text)
    assert first[:3] == ["a network", "4", "contiguous"]
    assert float(first[3]) == pytest.approx(total * 1e3, rel=0.01)
    assert second[:3] == ["a network", "3", "channels-last"]  # the table has one layout
    assert [line[:2] for line in cells(tables.dtypes(document))] == [
        ["float32", "contiguous"],
        ["float32", "channels-last"],
    ]


def test_the_figure_against_size_is_drawn(
    small: tuple[dict[str, Any], list[Shape]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures: ModuleType = part("performance")
    monkeypatch.setattr(part("style"), "HERE", tmp_path)
    figures.draw_sizes(small[0])
    text = (tmp_path / "performance-sizes.svg").read_text(encoding="utf-8")
    for words in ("batchnorm", "PyTorch", "oneDNN", "size of the tensor", "channels-last"):
        assert words in text
