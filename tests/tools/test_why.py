"""``batchnorm why``: the same bits every time, findings that follow the numbers, and refusals before anything runs."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from batchnorm.tools.cli import main
from batchnorm.tools.files import Refused
from batchnorm.tools.text.language import ENGLISH, LANGUAGES, Words
from batchnorm.tools.text.lines import cells
from batchnorm.tools.why import statistics as st
from batchnorm.tools.why.catalogue import ENTRIES, NAMES, experiment
from batchnorm.tools.why.data import Data, load
from batchnorm.tools.why.experiment import Run, Runs, Summary
from batchnorm.tools.why.report import found, read
from batchnorm.tools.why.sentences import Sentence, told
from batchnorm.tools.why.workers import Task, do

Capture = pytest.CaptureFixture[str]
FAST = ["smoother-loss", "noise"]  # the two that a quick run does in a second or two


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a directory of its own and with the default width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)


def listing() -> list[str]:
    return sorted(p.name for p in Path().iterdir())


# What comes out


@pytest.mark.slow
def test_the_same_bits_on_a_second_run_and_for_any_number_of_jobs(capsys: Capture) -> None:
    threads = torch.get_num_threads()
    for jobs in ("1", "2"):
        assert main(["why", *FAST, "--quick", "--jobs", jobs, "--json", f"{jobs}.json", "--html", f"{jobs}.html"]) == 0
    assert torch.get_num_threads() == threads
    assert Path("1.json").read_bytes() == Path("2.json").read_bytes()
    assert Path("1.html").read_bytes() == Path("2.html").read_bytes()
    out = " ".join(capsys.readouterr().out.split())  # lines break anywhere
    assert "The command wrote 2.json and 2.html." in out
    assert "This was a quick run" in out
    assert listing() == ["1.html", "1.json", "2.html", "2.json"]


def test_a_run_uses_no_random_numbers_but_its_own() -> None:
    data = load("digits")
    setting = experiment("noise").plan(True).settings()[1]
    first = experiment("noise").run(setting, 0, data)
    before = torch.random.get_rng_state()
    torch.manual_seed(77)
    assert experiment("noise").run(setting, 0, data) == first
    assert experiment("noise").run(setting, 1, data) != first
    torch.random.set_rng_state(before)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_of_an_experiment_runs(name: str) -> None:
    """Two steps, or a few images, of each network: whole runs are slow tests."""
    settings = {(s.get("part"), s.get("net")): s for s in experiment(name).plan(True).settings()}
    for setting in settings.values():
        short = {key: few for key, few in {"steps": 2, "images": 64}.items() if key in setting}
        assert short or setting["part"] == "exact"
        assert experiment(name).run({**setting, **short}, 0, load("digits"))


def test_both_sides_begin_with_the_same_weights_and_see_the_same_batches() -> None:
    from batchnorm.tools.why.networks import batch_norm_2d, convolutional, group_norm, nothing
    from batchnorm.tools.why.training import batches

    models = [convolutional(between, 3, (8, 8)) for between in (batch_norm_2d, group_norm, nothing)]
    weights = [[m.weight for m in model if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)] for model in models]
    for others in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], others, strict=True))
    one, two = ([b.tolist() for b in batches(10, 4, 5, seed)] for seed in (3, 4))
    assert one == [b.tolist() for b in batches(10, 4, 5, 3)]
    assert one != two
    assert len(set(one[0] + one[1])) == 8  # an epoch takes no image twice


def test_list_names_every_experiment_and_runs_nothing(capsys: Capture) -> None:
    assert main(["why", "--list"]) == 0
    out = capsys.readouterr().out
    for entry in ENTRIES:
        assert entry.name in out
        assert f"The claim is from {entry.paper.authors} ({entry.paper.year})" in " ".join(out.split())
        assert entry.paper.arxiv in out
    assert max(map(len, out.splitlines())) <= 80
    assert listing() == []


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from batchnorm.tools.cli import main; main(['why', '--help']); main(['why', '--list']); "
        "sys.exit(str([m for m in ('torch', 'sklearn', 'matplotlib') if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1)
    assert done.stderr.strip() == ""
    assert max(map(len, done.stdout.splitlines())) <= 80


# The mathematics of "scale"


@pytest.mark.parametrize("factor", [0.1, 3.0, 100.0])
def test_scaled_weights_leave_the_output_and_divide_the_gradient(factor: float) -> None:
    data = load("digits")
    setting = {"hidden": [100, 100, 100], "batch": 60, "part": "exact", "net": "with", "eps": 1e-12, "factor": factor}
    numbers = experiment("scale").run(setting, 0, data)
    assert numbers["output_change"] < 1e-6
    assert numbers["gradient_error"] < 1e-6
    assert numbers["gradient_ratio"] == pytest.approx(1 / factor, rel=1e-6)
    without = experiment("scale").run({**setting, "net": "without", "eps": None}, 0, data)
    assert without["output_change"] > 0.1


def test_a_mask_makes_padding_invisible() -> None:
    """With a mask, batches that are padded train the network that those without padding train."""
    data, module = load("digits"), experiment("padding")
    settings = [s for s in module.plan(True).settings() if s["net"] == "mask" and s["rate"] == 0.1]
    bare, padded = (module.run({**s, "steps": 20}, 0, data) for s in settings)
    assert max(*bare["output_change"], *padded["output_change"]) < 1e-6
    assert padded["train_loss"] == pytest.approx(bare["train_loss"], rel=1e-5)


# Findings follow the numbers

Maker = Callable[[dict[str, Any], float], dict[str, Any]]


def curve(*values: float) -> dict[str, Any]:
    return {"steps": [0, 10, 20], "accuracy": list(values)}


def faster(with_: list[float], without: list[float]) -> Maker:
    percentiles = {f"p{p}": [0.0, 0.0, 0.0] for p in (15, 50, 85)}

    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        values = with_ if s["net"] == "with" else without
        return {"diverged": False, "train_loss": 0.1 + jitter, **percentiles, **curve(*(v + jitter for v in values))}

    return numbers


def by_net(of: dict[str, dict[str, Any]]) -> Maker:
    """Numbers that depend on the net alone; numbers and lists of numbers get the seed's jitter."""

    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        def moved(value: Any) -> Any:
            return [v + jitter for v in value] if isinstance(value, list) else value + jitter

        return {"diverged": False, "train_loss": 0.1, "steps": [10, 20]} | {
            k: moved(v) for k, v in of[s["net"]].items()
        }

    return numbers


def rates(with_: float, without: float) -> Maker:
    """Up to a largest rate, which differs by side, all is well."""

    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        well = s["rate"] <= (with_ if s["net"] == "with" else without)
        return {"diverged": not well, "train_loss": 0.1 if well else None, "accuracy": 95 + jitter if well else 0.0}

    return numbers


def scale(with_: float, without: float, error: float = 1e-9) -> Maker:
    """Every scale but the usual one costs a side so many points."""

    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        if s["part"] == "exact":
            return {"output_change": error, "gradient_ratio": 1 / s["factor"], "gradient_error": error}
        usual = s.get("factor") == 1.0 or s.get("inputs") == "as they are"
        value = 95.0 if usual else 95.0 + jitter - (with_ if s["net"] == "with" else without)
        return {"diverged": False, "accuracy": value, "accuracy_recalibrated": value}

    return numbers


def running(recalibrated: float) -> Maker:
    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        two = [80 + 5 * jitter] * 2
        return {"images": [32, 64], "running": two, "recalibrated": [v + recalibrated for v in two],
                "test batch": two, "whole test set": two}  # fmt: skip

    return numbers


def shifted(gain: float) -> Maker:
    shifts = ("none", "contrast × 0.3", "brightness + 0.5", "noise 0.3", "negative")

    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        one = {s["net"]: 50 + jitter}
        if s["net"] == "batch norm":
            one |= {"batch norm, recalibrated": 50 + jitter + gain, "recalibrated on two classes": 50.0}
        return {"accuracy": {shift: one for shift in shifts}}

    return numbers


def padding(mask: float, none: float, moved: float = 1.0) -> Maker:
    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        masked = s["net"] == "mask"
        change = [0.0] * 4 if masked else [moved * (1 + jitter / 10)] * 4
        return {"train_loss": 0.1, "accuracy": (mask if masked else none) + jitter, "output_change": change}

    return numbers


def smooth(value: float) -> dict[str, Any]:
    return {name: [value, value] for name in ("loss_range", "gradient_change", "relative_change")}


def small(batch: float, group: float, variants: float = 70.0) -> Maker:
    nets = {"batch norm": batch, "group norm": group, "frozen batch norm": 80.0}
    nets |= {"batch renorm": variants, "ghosts of 4": variants}
    return by_net({net: {"accuracy": accuracy} for net, accuracy in nets.items()})


def smoother(with_: float, without: float) -> Maker:
    return by_net({"with": smooth(with_) | {"accuracy": 90}, "without": smooth(without) | {"accuracy": 90}})


def after_noise(accuracy: float, shift: float) -> Maker:
    """What noise does, where the network without batch normalization has an accuracy of 90 and a shift of 4."""
    nets = {"with": (97.0, 0.1), "with, then noise": (accuracy, shift), "without": (90.0, 4.0)}
    return by_net({net: {"accuracy": [a, a], "shift": [s, s]} for net, (a, s) in nets.items()})


CASES: list[tuple[str, Maker, str, list[str]]] = [
    ("faster", faster([10, 95, 97], [10, 20, 92]), st.CONFIRMS,
     ["right after 10 steps, and without it after 20 steps.", "At the end, after 100 steps, it had 97.1"]),
    ("faster", faster([10, 20, 92], [10, 95, 97]), st.CONTRADICTS, ["after 20 steps, and without it after 10 st"]),
    ("faster", faster([10, 95, 97], [10, 95, 97]), st.TIE, ["after 10 steps. The seeds do not agree on this"]),
    ("faster", faster([10, 95, 97], [10, 95, 92]), st.PARTLY, ["steps. The seeds do not", "92.1 % (92.0–92.2) w"]),
    ("faster", faster([10, 95, 97], [10, 20, 30]), st.CONFIRMS, ["and without it in none of its 100 steps. At"]),
    ("learning-rates", rates(10, 0.1), st.CONFIRMS, ["was 10 with batch norm. Without it, the largest was 0.1."]),
    ("learning-rates", rates(0.1, 10), st.CONTRADICTS, ["was 0.1 with batch norm. Without it, the largest was 10."]),
    ("learning-rates", rates(1, 1), st.TIE, ["the largest was 1. The seeds do not agree"]),
    ("learning-rates", rates(1, 0), st.CONFIRMS, ["the largest was none."]),
    ("smoother-loss", smoother(1, 9), st.CONFIRMS, ["ranged over 1.10 (1.00–1.20) with batch norm, and over 9.10"]),
    ("smoother-loss", smoother(9, 1), st.CONTRADICTS, ["ranged over 9.10"]),
    ("smoother-loss", smoother(1, 1), st.TIE, ["The seeds do not agree"]),
    ("noise", after_noise(96, 9), st.CONFIRMS, ["moved by 9.10 (9.00–9.20) standard dev", "with the noise, and 90.1"]),
    ("noise", after_noise(80, 1), st.CONTRADICTS, ["moved by 1.10", "had 80.1"]),
    ("noise", after_noise(90, 4), st.TIE, ["4.10 (4.00–4.20). The seeds do not agree"]),
    ("scale", scale(2, 60), st.CONFIRMS, ["equal within 1e-09", "cost 1.9 (1.8–2.0) points of accuracy with"]),
    ("scale", scale(60, 2), st.PARTLY, ["cost 59.9"]),
    ("scale", scale(60, 2, error=0.1), st.CONTRADICTS, ["within 1e-01"]),
    ("scale", scale(5, 5, error=0.1), st.CONTRADICTS, ["points without it. The seeds do not agree"]),
    ("small-batches", small(50, 80), st.CONFIRMS,
     ["had 50.1 % (50.0–50.2) right with batch norm, 80.1", "at 1, 4 and 32, and batch norm was clearly better at no"]),
    ("small-batches", small(80, 50), st.CONTRADICTS, ["at none, and batch norm was clearly better at 1, 4 and 32."]),
    ("small-batches", small(80, 80), st.TIE, ["frozen. The seeds do not agree"]),
    ("running-statistics", running(1), st.CONFIRMS, ["running statistics, and 81.5"]),
    ("running-statistics", running(-1), st.CONTRADICTS, ["running statistics, and 79.5"]),
    ("running-statistics", running(0), st.TIE, ["The seeds do not agree"]),
    ("shifted-test", shifted(20), st.CONFIRMS,
     ["“negative”, the network had 50.1", "better for 4 of 4 shifts, and clearly worse for 0"]),
    ("shifted-test", shifted(-20), st.CONTRADICTS, ["better for 0 of 4 shifts, and clearly worse for 4"]),
    ("shifted-test", shifted(0), st.TIE,
     ["better for 0 of 4 shifts, and clearly worse for 0", "The seeds do not agree"]),
    ("padding", padding(90, 60), st.CONFIRMS, ["padded to another length, the network had 90.1", "60.1"]),
    ("padding", padding(60, 90), st.PARTLY, ["padded to another length, the network had 60.1"]),
    ("padding", padding(60, 90, moved=0.0), st.CONTRADICTS, ["padded to another length, the network had 60.1"]),
]  # fmt: skip


def summary_of(name: str, numbers: Maker, seeds: int = 3) -> Summary:
    settings = experiment(name).plan(True).settings()
    runs = [Run(s, seed, numbers(s, 0.1 * seed)) for seed in range(seeds) for s in settings]
    return experiment(name).summarize(Runs(runs))


def text_of(sentences: list[Sentence], language: str = "en") -> str:
    """What a report says."""
    words = Words(language)
    return words.sentences(told(sentences, words))


@pytest.mark.parametrize(("name", "numbers", "verdict", "parts"), CASES, ids=lambda value: str(value)[:24])
def test_the_finding_follows_the_numbers(name: str, numbers: Maker, verdict: str, parts: list[str]) -> None:
    summary = summary_of(name, numbers)
    assert summary.verdict == verdict
    for part in parts:
        assert part in text_of(summary.finding)
    for sentence in (*summary.finding, *summary.reading):
        english, chinese = text_of([sentence]), text_of([sentence], "zh")
        assert re.fullmatch(r"[A-Z].*\.", english), english
        assert chinese.endswith("。"), chinese
        assert "{" not in english + chinese


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_speak_both_languages(name: str, seeds: int) -> None:
    for numbers in (numbers for other, numbers, *_ in CASES if other == name):
        for panel in summary_of(name, numbers, seeds).panels:
            for words in map(Words, LANGUAGES):
                assert "say" not in str(told(asdict(panel), words))
            chinese = told([panel.title, panel.x_label, *(s.name for s in panel.series)], Words("zh"))
            assert all(re.search(r"[\u4e00-\u9fff]", text) for text in chinese)


@pytest.mark.parametrize(
    ("variants", "said"),
    [(90, "That is clearly better."), (50, "That is clearly worse."), (70, "That is no clear difference.")],
)
def test_what_is_said_of_the_variants_follows_the_numbers(variants: float, said: str) -> None:
    seen = text_of(summary_of("small-batches", small(70, 70, variants)).reading)
    for sentence in (
        "batch renormalization had {0} right. {1} With",
        "normalized together, and {0} if every 4 samples were normalized by themselves (ghost batches). {1} What",
    ):
        number = f"{variants + 0.1:.1f} % ({variants:.1f}–{variants + 0.2:.1f})"
        assert sentence.format(number, said) in seen


@pytest.mark.parametrize(
    ("name", "numbers", "who", "right"),
    [
        ("faster", faster([10, 95, 97], [10, 9, 9]), "without batch norm", "9.1 % (9.0–9.2)"),
        ("learning-rates", rates(10, 0), "without batch norm", "0.0 %"),
        ("noise", by_net({n: {"accuracy": [a, a], "shift": [1, 1]} for n, a in
                          {"with": 97, "with, then noise": 96, "without": 12}.items()}), "without batch norm", "12.1"),
        ("small-batches", small(15, 80), "with batch norm", "15.1"),
        ("small-batches", small(80, 15), "with group norm", "15.1"),
        ("padding", padding(90, 11), "without a mask", "11.1"),
    ],
)  # fmt: skip
def test_nothing_is_compared_with_a_network_that_learned_nothing_without_a_word(
    name: str, numbers: Maker, who: str, right: str
) -> None:
    finding = text_of(summary_of(name, numbers).finding)
    assert f"Beware: the network {who} learned next to nothing. It had {right}" in finding
    assert "guessing has 10 %" in finding
    for other, fine, *_ in CASES[:1] + CASES[9:10]:
        assert "Beware" not in text_of(summary_of(other, fine).finding)


def test_a_repair_that_only_guesses_is_none() -> None:
    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        of = shifted(1)(s, jitter)["accuracy"]
        low = {net: value - 42 for net, value in of["negative"].items()}
        return {"accuracy": of | {"negative": low}}

    finding = text_of(summary_of("shifted-test", numbers).finding)
    assert "and 9.1 % (9.0–9.2) with new ones. That is no better than guessing, which has 10 %" in finding
    assert finding.count("guessing") == 1


def test_there_are_synthetic_numbers_for_every_experiment() -> None:
    assert {name for name, *_ in CASES} == set(NAMES)
    for name in NAMES:
        assert {st.CONFIRMS, st.CONTRADICTS} <= {verdict for other, _, verdict, _ in CASES if other == name}


def test_one_seed_is_no_evidence() -> None:
    summary = summary_of("learning-rates", rates(10, 0.1), seeds=1)
    assert summary.verdict == st.ONE_SEED
    assert "do not agree" not in text_of(summary.finding)
    for quick in (False, True):
        said = {"verdict": summary.verdict, "finding": summary.finding}
        assert found(said, {"quick": quick}, ENGLISH).endswith("One seed allows no judgement.")


@pytest.mark.parametrize("verdict", [st.CONFIRMS, st.PARTLY, st.CONTRADICTS, st.TIE])
def test_a_quick_run_only_suggests(verdict: str) -> None:
    said = {"verdict": verdict, "finding": [], "reading": []}
    whole, quick = (found(said, {"quick": quick}, ENGLISH) for quick in (False, True))
    assert "suggest" not in whole
    assert quick.startswith("This suggests ")
    assert "confirm" not in quick
    assert "contradict" not in quick
    assert read(said, {"quick": True}, ENGLISH) == "If a full run agrees, this is how to read it:"


def test_a_network_that_diverged_everywhere_is_reported() -> None:
    nothing = {name: [None, None] for name in ("loss_range", "gradient_change", "relative_change")}

    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        return {"steps": [10, 20], "accuracy": 90.0, **(smooth(1 + jitter) if s["net"] == "with" else nothing)}

    summary = summary_of("smoother-loss", numbers)
    assert summary.verdict == st.CONFIRMS
    assert "over ∞ without it" in text_of(summary.finding)
    assert summary.panels[0].series[1].mean == [None, None]


@pytest.mark.parametrize(
    ("high", "low", "verdict"),
    [
        ([2, 11], [1, 10], st.CONFIRMS),
        ([1, 10], [2, 11], st.CONTRADICTS),
        ([1, 3], [2, 2], st.TIE),
        ([2, 10], [1, 10], st.TIE),
        ([math.nan, 3], [1, 1], st.TIE),
        ([3], [1], st.ONE_SEED),
    ],
)
def test_a_difference_is_clear_when_every_seed_says_the_same(high: list[float], low: list[float], verdict: str) -> None:
    assert st.verdict(high, low) == verdict


def test_spreads_in_words() -> None:
    assert st.percent([96.75, 97.25]) == "97.0 % (96.8–97.2)"
    assert st.spread([2.0, 2.0]).text(0) == "2"
    assert st.number(1.5e-7) == "1.5e-7"
    assert st.number(0.0) == "0.0"


# Files that nobody named


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, answer: str | None, *options: str) -> str:
    """Draw saved results, on a terminal where there is an answer; what is printed."""
    Path("saved").mkdir(exist_ok=True)
    summary = summary_of("learning-rates", rates(10, 0.1))
    entry = ENTRIES[1]
    one = {"name": entry.name, "title": entry.title, "question": entry.question, "paper": asdict(entry.paper),
           **asdict(summary), "settings": {}, "runs": []}  # fmt: skip
    document = {"format": "batchnorm why", "version": 2, "versions": {"batchnorm": "1"}, "quick": False,
                "data": {"name": "digits", "image": [8, 8], "train": 1, "test": 1}, "seeds": [0, 1, 2],
                "experiments": [one]}  # fmt: skip
    Path("saved/all.json").write_text(json.dumps(document), encoding="utf-8")
    out = io.StringIO() if answer is None else Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stdin", io.StringIO() if answer is None else Terminal(answer))
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["why", "--from", "saved/all.json", *options]) == 0
    return out.getvalue()


def test_no_file_is_written_that_was_not_named_nor_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    question = "Do you want the report with figures in why.html? [y/N]"
    out = drawn(monkeypatch, None)
    assert question not in out
    assert "No file was written." in out
    assert "with --html why.html." in " ".join(out.split())
    for answer in ("n\n", "\n", ""):
        out = drawn(monkeypatch, answer)
        assert question in out
        assert "No file was written." in out
        assert listing() == ["saved"]
    for answer, options in (("y\n", ()), ("Yes\n", ()), ("", ("--html", "other.html"))):
        assert "The command wrote " in drawn(monkeypatch, answer, *options)
    assert listing() == ["other.html", "saved", "why.html"]
    assert "why.html exists already; a yes replaces it." in drawn(monkeypatch, "n\n")


def test_a_whole_run_asks_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("batchnorm.tools.why.study.do", ran)
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["why", "noise", "--quick"]) == 130
    assert out.getvalue() == "Do you want the report with figures in why.html, and all numbers in why.json? [y/N] "
    assert listing() == []


def test_the_report_speaks_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    out = drawn(monkeypatch, None, "--lang", "zh", "--html", "zh.html")
    assert "网络能答对 90 % 的最大学习率，有批归一化时是 10" in out
    assert "这证实了论文的说法。" in "".join(out.split())
    page = Path("zh.html").read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in page
    assert "更大的学习率" in page
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert drawn(monkeypatch, None, "--html", "zh.html") == out
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(cells, drawn(monkeypatch, None).splitlines())) <= 60


# The data


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    header = [0x800 + array.ndim if magic is None else magic, *array.shape]
    return struct.pack(f">{len(header)}I", *header) + array.astype(np.uint8).tobytes()


def mnist(**replaced: bytes | None) -> Path:
    """Write four files of tiny images; some as given instead, or not at all."""
    rng = np.random.default_rng(5)
    folder = Path("mnist")
    folder.mkdir(exist_ok=True)
    for part, count in (("train", 70), ("t10k", 20)):
        files = {
            f"{part}-images-idx3-ubyte": idx(rng.integers(0, 256, (count, 8, 8))),
            f"{part}-labels-idx1-ubyte": idx(np.arange(count) % 10),
        }
        for name, content in files.items():
            given = replaced.get(name.replace("-", "_"), content)
            if given is not None:
                (folder / name).write_bytes(given)
    return folder


def test_mnist_is_read_raw_and_gzipped() -> None:
    folder = mnist()
    raw = load(f"mnist:{folder}")
    assert raw.train_images.shape == (70, 8, 8)
    assert raw.train_images.dtype == np.float32
    assert raw.train_images.min() >= 0
    assert raw.train_images.max() <= 1
    assert raw.test_labels.tolist() == [i % 10 for i in range(20)]
    content = (folder / "train-images-idx3-ubyte").read_bytes()
    assert np.array_equal(raw.train_images.ravel() * 255, np.frombuffer(content[16:], np.uint8).astype(np.float32))
    for path in list(folder.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    zipped = load(f"mnist:{folder}")
    assert np.array_equal(raw.train_images, zipped.train_images)
    assert np.array_equal(raw.test_labels, zipped.test_labels)


def test_why_runs_on_mnist(capsys: Capture) -> None:
    folder = mnist()
    command = ["why", "smoother-loss", "--quick", "--jobs", "1", "--data", f"mnist:{folder}"]
    assert main([*command, "--json", "why.json"]) == 0
    assert "on the data set mnist" in capsys.readouterr().out
    assert json.loads(Path("why.json").read_text())["data"] == {
        "name": "mnist",
        "image": [8, 8],
        "train": 70,
        "test": 20,
    }


IMAGES, LABELS = "train_images_idx3_ubyte", "train_labels_idx1_ubyte"


@pytest.mark.parametrize(
    ("replaced", "parts"),
    [
        ({IMAGES: None}, ["has neither train-images-idx3-ubyte nor", "four files"]),
        ({IMAGES: idx(np.zeros((70, 8, 8)), 0x801)}, ["must begin with 0x00000803", "0x00000801"]),
        ({IMAGES: b"\x00\x00"}, ["fewer than four bytes"]),
        ({IMAGES: idx(np.zeros((70, 8, 8)))[:10]}, ["at least 16", "it has 10"]),
        ({IMAGES: idx(np.zeros((70, 8, 8)))[:-1]}, ["must have 4496 bytes", "it has 4495", "fetch it again"]),
        ({IMAGES: idx(np.zeros((0, 8, 8))), LABELS: idx(np.zeros(0))}, ["holds nothing"]),
        ({IMAGES: idx(np.zeros((70, 7, 8)))}, ["(7, 8)", "(8, 8)", "one size"]),
        ({LABELS: idx(np.zeros(69))}, ["70 images", "69 labels"]),
        ({LABELS: idx(np.full(70, 11))}, ["the label 11", "0 to 9"]),
    ],
)
def test_damaged_idx_files_are_refused(replaced: dict[str, bytes | None], parts: list[str]) -> None:
    folder = mnist(**replaced)
    with pytest.raises(Refused) as refusal:
        load(f"mnist:{folder}")
    assert all(part in str(refusal.value) for part in parts), refusal.value


def test_a_damaged_gzip_is_refused() -> None:
    folder = mnist(**{IMAGES: None})
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"a" * 1000)[:-20])
    with pytest.raises(Refused, match=r"ubyte\.gz cannot be read"):
        load(f"mnist:{folder}")
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(Refused, match=r"ubyte\.gz cannot be read"):
        load(f"mnist:{folder}")


# Refusals, before anything runs


def refused(argv: list[str], parts: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*_: object) -> None:
        pytest.fail("something ran")

    monkeypatch.setattr("batchnorm.tools.why.study.do", ran)
    before = listing()
    assert main(["why", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("batchnorm: ")
    for part in parts:
        assert part in captured.err
    assert listing() == before


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["fast"], ["no experiment 'fast'", "Did you mean faster?", "learning-rates"]),
        (["qqq"], ["no experiment 'qqq'. The experiments are:"]),
        (["--data", "cifar"], ["--data takes digits, or mnist:DIR", "'cifar'"]),
        (["--data", "mnist:"], ["--data takes digits, or mnist:DIR"]),
        (["--data", "mnist:nowhere"], ["there is no such directory"]),
        (["--json", "nowhere/x.json"], ["does not exist", "Create it first"]),
        (["--html", "folder"], ["folder is a directory"]),
        (["--html", "a", "--json", "a"], ["cannot both be"]),
        (["--from", "text.json", "--html", "folder"], ["folder is a directory"]),
        (["--from", "missing.json"], ["missing.json cannot be read"]),
        (["--from", "text.json"], ["is not JSON"]),
        (["--from", "other.json"], ['"format" must be "batchnorm why"']),
        (["--from", "newer.json"], ["has version 99"]),
        (["--from", "damaged.json"], ["damaged.json is damaged", "Run batchnorm why again"]),
        (["--from", "damaged.json", "--html", "damaged.json"], ["cannot both be"]),
        (["--from", "damaged.json", "faster"], ["name no EXPERIMENT"]),
    ],
)
def test_refusals(argv: list[str], parts: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("folder").mkdir()
    Path("text.json").write_text("{")
    Path("other.json").write_text("[]")
    Path("newer.json").write_text('{"format": "batchnorm why", "version": 99}')
    Path("damaged.json").write_text('{"format": "batchnorm why", "version": 2}')
    refused(argv, parts, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("package", "name", "distribution"),
    [
        ("torch", "PyTorch", "torch"),
        ("sklearn", "scikit-learn", "scikit-learn"),
        ("matplotlib", "matplotlib", "matplotlib"),
        ("rich", "rich", "rich"),
    ],
)
def test_what_is_missing_is_named(
    package: str, name: str, distribution: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    refused([], [f"needs {name}", f"pip install {distribution}"], capsys, monkeypatch)


@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
def test_wrong_numbers(option: str, capsys: Capture) -> None:
    assert main(["why", option, "0"]) == 2
    assert "'0' is not a positive integer" in capsys.readouterr().err


# Processes


def test_a_run_that_fails_is_named() -> None:
    data = Data("none", *(np.zeros(0, t) for t in (np.float32, np.int64, np.float32, np.int64)))  # type: ignore[arg-type]
    tasks = [Task("noise", setting, 7) for setting in experiment("noise").plan(True).settings()]
    with pytest.raises(RuntimeError, match=r"the run noise, seed 7 \(.*net=with"):
        do(tasks, data, 2, lambda task, numbers: None)


def children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_end(processes: list[int]) -> bool:
    """Whether none is left in a moment: multiprocessing's own sees a closed pipe and then goes."""
    until = time.monotonic() + 60
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, processes))


def start(*options: str, at_work: bool = True) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a run of two processes, and return it when both are at work, or there at least, and their numbers."""
    command = [sys.executable, "-m", "batchnorm", "why", "--jobs", "2", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 120
    while True:
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        found = children(process.pid)
        loaded = (b"libtorch" in Path(f"/proc/{c}/maps").read_bytes() for c in found[-2:])
        if len(found) >= 3 and (not at_work or all(loaded)):
            return process, found  # the first is multiprocessing's own
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="child processes are looked up in Linux's /proc")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interruption_ends_all_processes_and_leaves_no_file(number: int, status: int) -> None:
    Path("why.json").write_text("old")
    process, found = start()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert out == ""
    assert "Traceback" not in err
    assert ("interrupted" in err) == (number == signal.SIGINT)
    assert listing() == ["why.json"]
    assert Path("why.json").read_text() == "old"
    assert all_end(found)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="child processes are looked up in Linux's /proc")
@pytest.mark.slow
@pytest.mark.parametrize("at_work", [True, False], ids=["at work", "as it starts"])
def test_a_process_that_dies_is_an_error_that_names_its_run(at_work: bool) -> None:
    process, found = start(at_work=at_work)
    os.kill(found[-1], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert re.search(r"A process was ended by signal 9 in the run faster, seed \d", err)
    assert "--jobs 1" in err
    assert listing() == []
    assert all_end(found)
