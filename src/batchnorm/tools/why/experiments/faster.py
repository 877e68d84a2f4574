"""Faster and higher: the sigmoid network of Ioffe and Szegedy's figure 1, with batch normalization and without."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from .. import statistics as st
from ..data import Data
from ..experiment import Numbers, Panel, Plan, Runs, Series, Setting, Summary
from ..networks import batch_norm_1d, nothing, perceptron
from ..sentences import Sentence, label, say
from ..training import Tensors, accuracy, finite, mean_loss, outputs, train

NETS = {"with": "with batch norm", "without": "without it"}
GOAL = 90.0  # per cent of the test images
PERCENTILES = (15, 50, 85)  # the paper's
UNIT = 0  # of the last hidden layer; chosen before anything was run


def plan(quick: bool) -> Plan:
    """Three rates for each side: three times more than the best is too much for the network without."""
    common = {"hidden": [100, 100, 100], "weight_std": 0.1, "batch": 60, "steps": 100 if quick else 800}
    return Plan(common, [{"net": net, "rate": rate} for net in ("with", "without") for rate in (1.0, 3.0, 10.0)])


def run(setting: Setting, seed: int, data: Data) -> Numbers:
    """Train; watch the accuracy on the test images and the inputs of one sigmoid."""
    d = Tensors(data, flat=True)
    between = batch_norm_1d if setting["net"] == "with" else nothing
    model = perceptron(
        d.train_x.shape[1],
        between,
        seed,
        activation=nn.Sigmoid,
        std=setting["weight_std"],
        hidden=setting["hidden"],
    )
    seen: dict[str, list[Any]] = {"steps": [], "accuracy": [], **{f"p{p}": [] for p in PERCENTILES}}
    before_last_sigmoid = model[:-2]

    def watch(steps: int, _: float) -> None:
        if steps % (10 if steps < 100 else 50) == 0:
            seen["steps"].append(steps)
            seen["accuracy"].append(accuracy(model, d.test_x, d.test_y))
            inputs = outputs(before_last_sigmoid, d.test_x)[:, UNIT].double()
            for p in PERCENTILES:
                seen[f"p{p}"].append(finite(inputs.quantile(p / 100).item()))

    whole = train(
        model, d.train_x, d.train_y, rate=setting["rate"], steps=setting["steps"], batch=setting["batch"], seed=seed,
        watch=watch,
    )  # fmt: skip
    return {"diverged": not whole, "train_loss": mean_loss(model, d.train_x, d.train_y), **seen}


def summarize(runs: Runs) -> Summary:
    """Compare the two at the rate that was best for each, by its loss on the training images."""
    best = {net: runs.best("rate", net=net) for net in ("with", "without")}
    reached = {net: [_steps_to_goal(n) for n in runs.numbers(net=net, rate=best[net])] for net in best}
    final = {net: [acc[-1] for acc in runs.each("accuracy", net=net, rate=best[net])] for net in best}
    faster = st.verdict([-s for s in reached["with"]], [-s for s in reached["without"]])
    higher = st.verdict(final["with"], final["without"])
    steps = runs.runs[0].setting["steps"]
    sides = {net: _reached(of, steps) for net, of in reached.items()}
    finding = [
        say("faster.reached", goal=f"{GOAL:.0f}", **sides),
        *st.unclear(faster),
        say("faster.final", steps=steps, **{net: st.percent(of) for net, of in final.items()}),
        *st.unclear(higher),
        *(sentence for net, of in final.items() for sentence in st.warned(net, of)),
    ]
    reading = _reading(faster, higher, best, _rising(runs, "without", best["without"]))
    return Summary(st.together([faster, higher]), finding, reading, _panels(runs, best))


def _rising(runs: Runs, net: str, rate: float) -> bool:
    """Whether the mean accuracy gained more than a point in the last quarter of the looks."""
    curves = runs.each("accuracy", net=net, rate=rate)
    return st.spread([curve[-1] - curve[len(curve) * 3 // 4] for curve in curves]).mean > 1


def _steps_to_goal(numbers: Numbers) -> float:
    """The first step that was looked at with the goal reached; infinity where it never was."""
    pairs = zip(numbers["steps"], numbers["accuracy"], strict=True)
    return next((float(steps) for steps, accuracy in pairs if accuracy >= GOAL), math.inf)


def _reached(reached: list[float], steps: int) -> Sentence:
    done = [steps for steps in reached if steps < math.inf]
    if not done:
        return say("faster.never", steps=steps)
    after = st.spread(done).text(0)
    if len(done) == len(reached):
        return say("faster.after", steps=after)
    return say("faster.after_some", steps=after, n=len(done), of=len(reached))


def _reading(faster: str, higher: str, best: dict[str, float], climbing: bool) -> list[Sentence]:
    seen = {(st.CONFIRMS, st.CONFIRMS): "both", (st.CONFIRMS, st.TIE): "sooner"}.get((faster, higher), "neither")
    rates = {net: f"{rate:g}" for net, rate in best.items()}
    rising = [say("faster.rising")] if climbing else []
    return [say(f"faster.{seen}"), say("faster.rates", **rates), *rising, say("faster.but")]


def _panels(runs: Runs, best: dict[str, float]) -> list[Panel]:
    curves = []
    for net, rate in best.items():
        numbers = runs.numbers(net=net, rate=rate)
        accuracies = zip(*(n["accuracy"] for n in numbers), strict=True)
        curves.append(
            Series.over_seeds(
                label(f"{NETS[net]}, rate {{rate}}", rate=f"{rate:g}"), net, numbers[0]["steps"], accuracies
            )
        )
    panels = [Panel(label("Test images right"), label("steps"), label("%"), curves, band=True, y_range=(0, 100))]
    for net, rate in best.items():
        first = runs.numbers(net=net, rate=rate)[0]
        lines = [
            Series(label(f"{p}th percentile"), f"percentile{p}", first["steps"], *[first[f"p{p}"]] * 3)
            for p in reversed(PERCENTILES)
        ]
        title = label(f"Input of one sigmoid, {NETS[net]} (seed {{seed}})", seed=runs.seeds[0])
        panels.append(Panel(title, label("steps"), label("input"), lines, decimals=2, band=True))
    return panels
