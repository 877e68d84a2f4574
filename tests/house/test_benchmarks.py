"""The measurement of a checkout: what it verifies and counts, and that documents show what the results say."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm.tools.bench import results, timing
from batchnorm.tools.bench.problem import TABLE, Data, Problem, Wrong
from batchnorm.tools.bench.timing import Settings

ROOT = Path(__file__).parents[2]
BENCHMARKS, FIGURES = ROOT / "benchmarks", ROOT / "docs" / "figures"
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
ONCE = Settings(rounds=1, budget=0.0)

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the full benchmarks are in a checkout only")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules beside one another, no waiting for threads that spin, and settings put back."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(FIGURES))
    monkeypatch.setattr(timing, "SETTLE", 0.0)
    before = torch.get_num_threads(), bn.get_num_threads()
    names = {path.stem for folder in (BENCHMARKS, FIGURES) for path in folder.glob("*.py")}
    elsewhere = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}  # tests/support/networks.py, say
    yield
    torch.set_num_threads(before[0])
    bn.set_num_threads(before[1])
    for name in names & sys.modules.keys():  # they are short, and mean something here only
        del sys.modules[name]
    sys.modules.update(elsewhere)


def part(name: str) -> Any:
    return import_module(name)


def cells(table: str) -> list[list[str]]:
    """The lines of a table of Markdown, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def small(name: str) -> list[Problem]:
    """A part's problems, few and with few numbers; each kind of layout, dtype and `what` stays."""
    found: dict[tuple[Any, ...], Problem] = {}
    for p in part("rows").PARTS[name].problems:
        shape = (
            (8, 3, 32, 32)
            if name == "networks"
            else (16, 8)
            if len(p.shape) == 2
            else (8, 8, *(4,) * (len(p.shape) - 2))
        )
        found.setdefault((p.layout, p.dtype, p.what), p._replace(shape=shape))
    return list(found.values())


def measured(name: str, problems: list[Problem]) -> dict[str, Any]:
    module, _, function = part("rows").PARTS[name].measure.rpartition(".")
    call = getattr(part(module), function)
    return results.document(name, [results.row(p, call(p, ONCE)) for p in problems])


def shown(name: str, problems: list[Problem] | None = None) -> dict[str, list[list[str]]]:
    """Measure a part in small, and return its tables by their marks."""
    document = measured(name, problems or small(name))
    again = json.loads(json.dumps(document))
    return {mark: cells(text) for _, mark, text in part("render").parts({name: again})}


# --- every part is verified, measured and shown


@pytest.mark.slow
def test_functions_are_shown_by_dtype_and_layout() -> None:
    tables = shown("functions")
    assert [line[:3] for line in tables["groups"]][:3] == [
        ["float32", "contiguous", "1"],
        ["float32", "channels-last", "1"],
        ["float32", TABLE, "1"],
    ]
    assert len(tables["groups"]) == len(tables["groups-rows"]) == len(tables["speed-table"]) == 9
    assert all(len(line) == 12 for line in tables["groups-rows"])
    assert len(tables["arrays"]) == 3


@pytest.mark.slow
def test_layers_are_shown_with_what_follows_and_what_they_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise of the documents: one pass keeps x and a few numbers a channel; PyTorch keeps y, too."""
    monkeypatch.setattr(torch, "compile", lambda layer: layer)
    kinds = part("rows").KINDS
    tables = shown("layers", [Problem((16, 8, 9, 9), what=kind) for kind in kinds])
    assert [line[2] for line in tables["layers"]] == list(kinds)
    x = 16 * 8 * 81 * 4 / 2**20
    kept = {line[0]: [round(float(value) / x) for value in line[2:]] for line in tables["saved"]}
    masked = part("layers").layer(Problem((16, 8, 9, 9)), ONCE, masked=True)  # as on a GPU
    assert {"module, mask", "compiled module, mask"} <= masked["times"].keys()
    assert kept == {
        "batch norm": [1, 1, 1],
        "+ ReLU": [2, 2, 1],
        "+ ReLU6": [2, 2, 1],
        "+ SiLU": [2, 2, 1],
        "+ add + ReLU": [2, 2, 2],
    }


def test_tiny_calls_are_shown() -> None:
    lines = shown("tiny", part("rows").PARTS["tiny"].problems[:4:3])["tiny"]
    assert [line[:2] for line in lines[:4]] == [
        ["5×5", "forward + backward"],
        ["5×5", "forward"],
        ["5×5", "evaluation"],
        ["8×16×8×8", "forward + backward"],
    ]
    assert torch.get_num_threads() == bn.get_num_threads()


def small_network() -> torch.nn.Module:
    """What the networks are made of, once."""
    mobile, networks = part("mobile"), part("networks")
    layers = [*mobile.conv_bn(3, 8, 3, 2), torch.nn.ReLU(inplace=True), networks.Bottleneck(8, 4, 2)]
    return torch.nn.Sequential(
        *layers, mobile.InvertedResidual(16, 16, 1, 2), torch.nn.Flatten(), torch.nn.Linear(1024, 5)
    )


@pytest.mark.slow
def test_steps_are_shown_beside_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = part("networks")
    monkeypatch.setattr(networks, "CLASSES", 5)
    for name in networks.NETWORKS:
        monkeypatch.setitem(networks.NETWORKS, name, small_network)
    tables = shown("networks", small("networks")[:4])
    assert not bnt.status().active
    assert [line[1:3] for line in tables["torch-speed-table"]] == [
        [dtype, layout] for dtype in ("float32", "bfloat16") for layout in ("contiguous", "channels-last")
    ]
    assert [line[3] for line in tables["steps"][:4]] == ["PyTorch", "accelerated", "fused", "limit"]
    kept = [float(line[8]) for line in tables["steps"][:4]]
    assert kept[0] >= kept[2] > kept[3]


def test_networks_have_the_published_sizes() -> None:
    networks = part("networks")
    for name, parameters, layers in (("MobileNetV2", 3_504_872, 52), ("ResNet-50", 25_557_032, 53)):
        with torch.device("meta"):
            model = networks.NETWORKS[name]()
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()) == layers
        bare = networks.bare(model)
        assert not any(isinstance(m, (torch.nn.BatchNorm2d, torch.nn.ReLU, torch.nn.ReLU6)) for m in bare.modules())


def test_contexts_are_verified_and_shown() -> None:
    lines = shown("contexts")["contexts"]
    assert [line[2] for line in lines] == ["hold", "one_update", "adapt"] * 2 + ["masked"]
    assert all(line[1] == "torch.nn" for line in lines[:3])
    assert all(len(line) == 6 and "–" not in line for line in lines)


@pytest.mark.slow
def test_flax_is_shown_with_its_errors() -> None:
    pytest.importorskip("flax", reason="flax is measured by hand")
    tables = shown("jax")
    assert len(tables["jax"]) == 3 * 3
    errors = {line[0]: [float(cell) for cell in line[1:]] for line in tables["jax-errors"]}
    stock, ours, fast, two_passes = errors["1e3"]
    assert ours < 1e-6 < 1e-5 < min(stock, two_passes)
    assert fast > 0.01


@pytest.mark.slow
def test_options_and_standard_scaler_are_shown() -> None:
    lines = shown("variants")["variants"]
    assert len(lines) == 2 * len(small("variants"))
    assert all(len(line) == 3 + 6 for line in lines)
    lines = shown("missing")["missing"]
    assert [line[2] for line in lines] == ["moments", "forward", "backward"] * 3
    tables = shown("scaler")
    assert [line[3] for line in tables["scaler"]] == ["fit", "transform"] * 5
    assert {line[2] for line in tables["scaler"]} == {"", "F order", "NaN", "weights"}
    errors = {tuple(line[:2]): [float(cell) for cell in line[2:]] for line in shown("offsets")["offsets"]}
    assert len(errors) == 8
    sklearn, ours = errors["float32", "1e4"]
    assert ours < 1e-6 < 1e-5 < sklearn


def test_what_the_page_says_of_standard_scaler() -> None:
    """Its table has what the sentences above it promise of a million rows and more."""
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8").partition("<!-- scaler -->")[2]
    lines = [line.strip("| ").split(" | ") for line in text.partition("<!-- /scaler -->")[0].splitlines()]
    large = [line for line in lines if line[0].startswith(("1000000×", "10000000×"))]
    assert len(large) >= 10
    for size, dtype, what, step, *figures in large:
        faster, memory = float(figures[2].strip("*")), int(figures[5])
        rows, columns = map(int, size.split("×"))
        beyond = memory - (step == "transform") * rows * columns * int(dtype.removeprefix("float")) / 8 / 2**20
        assert faster >= (8 if step == "fit" else 2.5), (size, what, step)
        assert beyond <= (16 if what == "weights" else 8), (size, what, step)


@pytest.mark.slow
def test_recalibration_is_exact_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    networks, recalibration = part("networks"), part("recalibration")
    lines = shown("recalibrated", part("rows").RECALIBRATED)["recalibrated"]
    assert len(lines) == 4
    assert all(float(line[-2]) < 6e-4 and line[-1] == "1–1" for line in lines)
    for name in networks.NETWORKS:
        monkeypatch.setitem(recalibration.NETWORKS, name, small_network)
    lines = shown("recalibration", [p._replace(shape=(2, 3, 32, 32)) for p in part("rows").RECALIBRATION[:1]])
    (line,) = lines["recalibration"]
    assert line[0] == "MobileNetV2"
    assert len(line) in (8, 9)  # with fvcore, or without


@pytest.mark.slow
def test_every_way_trains_to_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise of docs/trust.md, for the first steps: the same bits for all our ways, near PyTorch's."""
    trust, rows, render = part("trust"), part("rows"), part("render")
    monkeypatch.setattr(trust, "BEFORE", 2)
    torch.set_num_threads(1)  # so small a network waits for threads longer than it computes
    for problem, near in zip(rows.TRUST, (1e-6, 1e-13), strict=False):
        losses = trust.row_of(problem, Settings(5))["losses"]
        accelerated, *others = (losses[who] for who in render.WAYS)
        assert len(set(accelerated)) == 5
        assert others == [accelerated, accelerated]
        assert max(render.differences(losses, render.WAYS[0])) < near


def test_what_pytorch_gets_wrong_is_right_here_and_shown() -> None:
    rows, render = part("rows"), part("render")
    problems = [p._replace(shape=(4, 2, 8, 8)) if p.shape == rows.IMAGE else p for p in rows.TRUST[2:]]
    tables = shown("trust", problems)
    lines = [*tables["wrong-table"], *tables["wrong-layers-table"]]
    assert len(lines) == len(problems)
    assert {p.what for p in problems} == rows.WRONG.keys()
    for what, truth, _, ours, _, off in lines:
        assert float(ours) == pytest.approx(float(truth), rel=2e-6), what
        assert float(off) <= 4e-7 * max(1.0, abs(float(truth))), what
    for row in render.results()["trust"]["rows"][2:]:
        stock, ours = row["off"].values()
        assert stock > 1000 * ours, row["what"]


def test_what_docs_say_of_the_experiments_is_what_their_results_say() -> None:
    why = part("why")
    text = why.PAGE.read_text(encoding="utf-8")
    document = why.told(why.read_results(why.RESULTS), why.ENGLISH)
    assert why.page(document, text) == text, "run python docs/figures/why.py"
    for experiment in document["experiments"]:
        drawn = (FIGURES / f"why_{experiment['name']}.svg").read_text(encoding="utf-8")
        for panel in experiment["panels"]:
            assert f">{panel['title']}</text>" in drawn
            for series in panel["series"]:
                assert f">{series['name']}</text>" in drawn


@pytest.mark.slow
def test_two_processes_are_verified_and_shown() -> None:
    (line,) = shown("sync", [Problem((5, 4, 3, 5))])["sync"]
    assert line[:3] == ["5×4×3×5", "contiguous", "forward + backward"]
    assert len(line) == 3 + 5


# --- what is wrong is not timed


def test_a_fast_wrong_answer_is_not_timed() -> None:
    layers, networks, sync = part("layers"), part("networks"), part("sync")
    given = Problem((6, 3, 4), "channels-last", what="w")
    right = {"PyTorch": [np.ones((2, 2))], "module": [np.full((2, 2), 1.00001)]}
    layers.agree(given, right)
    networks.verify(given, {"PyTorch": [7.0, 3.0], "fused": [7.0001, 3.01]})
    for wrong in (1.1, np.nan):
        with pytest.raises(Wrong, match="module disagrees"):
            layers.agree(given, {**right, "module": [np.full((2, 2), wrong)]})
        for step in ([7 * wrong, 3.0], [7.0, 3 * wrong]):
            with pytest.raises(Wrong, match=r"fused: .* of the first step is off by"):
                networks.verify(given, {"PyTorch": [7.0, 3.0], "fused": step})
    x, g = layers.tensors(given, 2)
    own = torch.nn.BatchNorm1d(3)
    alone = layers.stepper(own, [x[:3].requires_grad_()], g[:3])()
    whole = layers.stepper(own, [x.requires_grad_()], g)()
    sync.verify([t[:3] for t in whole], given, 0)
    with pytest.raises(Wrong, match=r"y of rank 0 is off"):
        sync.verify(alone, given, 0)
    with pytest.raises(Wrong, match=r"the gradient of rank 0 is off"):
        sync.verify([whole[0][:3], alone[1]], given, 0)


def test_a_variant_that_is_wrong_is_not_timed() -> None:
    others = part("others")
    data = Data(Problem((8, 3, 2, 4), "channels-last"))
    choices = others.choices(data.x)
    for name, options in choices.items():
        y = bn.batch_norm(data.x, data.weight, data.bias, **options)[0]
        others.verify(name, data, y, options)
        for off, given in [(1e-3, options), *((0.0, o) for other, o in choices.items() if other != name)]:
            with pytest.raises(Wrong, match=f"{name} on .*: y is off by"):
                others.verify(name, data, y + off, given)


def test_memory_and_storages_are_counted_once() -> None:
    layers, networks = part("layers"), part("networks")
    layer, x = torch.nn.Linear(3, 5), torch.ones(7, 3, requires_grad=True)
    assert layers.saved_bytes(layer, lambda: layer(x)) == 7 * 3 * 4  # x, for the weight's gradient
    assert layers.saved_bytes(layer, lambda: layer(x) + layer(x)) == 7 * 3 * 4
    peak = networks.peak_bytes(lambda: np.ones(64 * 2**20, np.uint8).sum(dtype=np.int64))
    assert peak is None or 60 * 2**20 < peak < 80 * 2**20


# --- the command, and the documents


def test_parts_are_measured_by_name_or_where_no_result_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, render = part("run"), part("render")
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "keep_memory", lambda: None)
    monkeypatch.setattr(render, "main", lambda: asked.append("render"))
    asked: list[str] = []
    monkeypatch.setattr(run, "measure", lambda name, threads: asked.append(name))
    everything = [name for name, p in run.PARTS.items() if not p.named]
    results.write(results.document("tiny", []), tmp_path / "tiny.json")
    for arguments, expected in (
        ([], everything),
        (["gpu", "sync"], ["gpu", "sync"]),
        (["--resume"], [name for name in everything if name != "tiny"]),
        (["--render"], []),
    ):
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        asked.clear()
        run.main()
        assert asked == [*expected, "render"]
    monkeypatch.undo()


def test_a_part_is_written_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = part("run")
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    few = run.PARTS["variants"]._replace(problems=small("variants")[:1], settings=ONCE)
    monkeypatch.setitem(run.PARTS, "variants", few)
    run.measure("variants", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["variants.json"]
    assert results.read(tmp_path / "variants.json")["rows"][0]["threads"] == 1


def test_documents_show_what_the_results_say_and_every_result_is_shown() -> None:
    render = part("render")
    documents = render.results()
    assert {path.stem for path in (BENCHMARKS / "results").glob("*.json")} == documents.keys()
    pages = render.rendered(documents)
    assert set(PAGES) <= pages.keys()
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python benchmarks/run.py --render"
    for name in documents:
        assert len(list(render.parts({name: documents[name]}))) > 1, f"no document shows results/{name}.json"


NUMBER = r"\d[\d.]*"
#: Figures of speed: digits with a unit of speed, or beside words that compare.
FIGURE = re.compile(
    rf"{NUMBER}\s?(?:ms|µs|microseconds|milliseconds|GB/s)\b|{NUMBER}\s?(?:毫秒|微秒|倍)|"
    rf"(?:takes?|took|needs?) {NUMBER} times|"
    rf"{NUMBER}(?:×| times| ?%| per cent| percent)\s+(?:as (?:fast|long|slow)|faster|slower|longer|the (?:time|speed))"
)
#: What the renderer writes, and what tests/house/test_docs.py runs.
CHECKED = re.compile(
    r"<!-- (?!/)([\w-]+) -->\n.*?<!-- /\1 -->|<!-- figure [^>]+ -->[^<]*<!-- / -->|^```.*?^```$",
    re.DOTALL | re.MULTILINE,
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documents_quote_no_figure_that_no_result_has(page: Path) -> None:
    """What stands between marks is written from the results; elsewhere a figure of speed would only grow old."""
    text = CHECKED.sub("", page.read_text(encoding="utf-8"))
    found = [match[0] for match in FIGURE.finditer(text)]
    assert not found, f"{page.name} quotes {found}: write it as <!-- figure name -->…<!-- / -->, or without digits"


def test_figures_are_filled_in_and_nothing_else_changed() -> None:
    render = part("render")
    page = "a\n<!-- tiny -->\nold\n<!-- /tiny -->\nb"
    assert render.fill(page, "tiny", "new") == "a\n<!-- tiny -->\n\nnew\n\n<!-- /tiny -->\nb"
    text = "is <!-- figure float32 contiguous forward -->9.9<!-- / --> times"
    assert CHECKED.sub("", text) == "is  times"
    assert render.filled(text, {"float32 contiguous forward": "1.2"}) == text.replace("9.9", "1.2")
    with pytest.raises(KeyError, match="float32"):
        render.filled(text, {})


def test_the_chart_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chart = part("chart")
    monkeypatch.setattr(part("style"), "HERE", tmp_path)
    chart.draw(part("render").results()["functions"])
    text = (tmp_path / "performance.svg").read_text(encoding="utf-8")
    for words in ("float32, contiguous", "bfloat16, channels-last", "evaluation", "times faster than PyTorch"):
        assert words in text
