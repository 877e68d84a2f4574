"""Findings of `why` follow the numbers."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from typing import Any

import pytest
from why_numbers import (
    Maker,
    after_noise,
    by_net,
    faster,
    padding,
    rates,
    running,
    scale,
    shifted,
    small,
    smooth,
    smoother,
    summary_of,
    text_of,
)

from batchnorm.tools.text.language import ENGLISH, LANGUAGES, Words
from batchnorm.tools.why import statistics as st
from batchnorm.tools.why.catalogue import NAMES
from batchnorm.tools.why.report import found, read
from batchnorm.tools.why.sentences import told

CASES: list[tuple[str, Maker, str, list[str]]] = [
    ("faster", faster([10, 95, 97], [10, 20, 92]), st.CONFIRMS,
     ["right on the test images after 10 steps, and without it after 20", "At the end, after 100 steps, it had 97.1"]),
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
