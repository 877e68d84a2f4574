"""Larger learning rates: a sweep over four powers of ten, with batch normalization and without."""

from __future__ import annotations

import math

from torch import nn

from .. import statistics as st
from ..data import Data
from ..experiment import Numbers, Panel, Plan, Runs, Series, Setting, Summary
from ..networks import batch_norm_1d, nothing, perceptron
from ..sentences import Sentence, label, say
from ..training import Tensors, accuracy, mean_loss, train

NETS = {"with": "with batch norm", "without": "without it"}
GOAL = 90.0  # per cent of the test images: a rate that every seed reaches this with is one that works
GUESSING = math.log(10)  # the loss of a network that knows nothing


def plan(quick: bool) -> Plan:
    """ReLUs with He's weights: a network that trains well without batch normalization, too, at the right rate."""
    rates = (0.01, 0.1, 1.0, 10.0) if quick else (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    common = {"hidden": [100, 100, 100], "batch": 60, "steps": 60 if quick else 200}
    return Plan(common, [{"net": net, "rate": rate} for net in ("with", "without") for rate in rates])


def run(setting: Setting, seed: int, data: Data) -> Numbers:
    """Train at one rate; a loss that is not finite, or no better than guessing, is a run that diverged."""
    d = Tensors(data, flat=True)
    between = batch_norm_1d if setting["net"] == "with" else nothing
    model = perceptron(d.train_x.shape[1], between, seed, activation=nn.ReLU, hidden=setting["hidden"])
    whole = train(
        model, d.train_x, d.train_y, rate=setting["rate"], steps=setting["steps"], batch=setting["batch"], seed=seed
    )
    loss = mean_loss(model, d.train_x, d.train_y)
    return {
        "diverged": not whole or loss is None or loss >= GUESSING,
        "train_loss": loss,
        "accuracy": accuracy(model, d.test_x, d.test_y),
    }


def summarize(runs: Runs) -> Summary:
    """Compare the largest rate that works, seed by seed, and the best accuracy of each side."""
    largest = {net: [_largest(runs, net, i) for i in range(len(runs.seeds))] for net in NETS}
    wider = st.verdict(largest["with"], largest["without"])
    best = {net: _best(runs, net) for net in NETS}
    right = {net: accuracies for net, (_, accuracies) in best.items()}
    higher = st.verdict(right["with"], right["without"])
    rates = {f"rate_{net}": f"{rate:g}" for net, (rate, _) in best.items()}
    finding = [
        say("learning-rates.reached", goal=f"{GOAL:.0f}", **{net: _rate(of) for net, of in largest.items()}),
        *st.unclear(wider),
        say("learning-rates.best", **{net: st.percent(of) for net, of in right.items()}, **rates),
        *st.unclear(higher),
        *(sentence for net, of in right.items() for sentence in st.warned(net, of)),
    ]
    return Summary(wider, finding, _reading(runs, wider), _panels(runs))


def _largest(runs: Runs, net: str, seed: int) -> float:
    """The largest rate with which one seed reached the goal; 0 where none did."""
    rates = runs.values("rate")
    return float(max((r for r in rates if runs.each("accuracy", net=net, rate=r)[seed] >= GOAL), default=0.0))


def _best(runs: Runs, net: str) -> tuple[float, list[float]]:
    """The best rate of a side, and its accuracies."""
    rate = runs.best("rate", net=net)
    return float(rate), runs.each("accuracy", net=net, rate=rate)


def _rate(of: list[float]) -> Sentence | str:
    """The rates of all seeds; a seed that never reached the goal has 0."""
    done = [rate for rate in of if rate]
    if not done:
        return say("none")
    low, high = min(done), max(done)
    rate = f"{low:g}" if low == high else f"{low:g}–{high:g}"
    return rate if len(done) == len(of) else say("learning-rates.some", rate=rate, n=len(done), of=len(of))


def _diverged(runs: Runs, net: str) -> list[int]:
    return [sum(runs.each("diverged", net=net, rate=rate)) for rate in runs.values("rate")]


def _reading(runs: Runs, wider: str) -> list[Sentence]:
    seen = st.judged(wider, "learning-rates.wider", "learning-rates.narrower", "learning-rates.same")
    ruined = {net: sum(_diverged(runs, net)) for net in NETS}
    total = len(runs.values("rate")) * len(runs.seeds)
    return [*seen, say("learning-rates.diverged", total=total, **ruined), say("learning-rates.but")]


def _panels(runs: Runs) -> list[Panel]:
    rates, where = runs.values("rate"), label("learning rate")
    right = [
        Series.over_seeds(label(name), net, rates, [runs.each("accuracy", net=net, rate=r) for r in rates])
        for net, name in NETS.items()
    ]
    shares = [
        Series.over_seeds(label(name), net, rates, [[100.0 * n / len(runs.seeds)] for n in _diverged(runs, net)])
        for net, name in NETS.items()
    ]
    return [
        Panel(label("Test images right"), where, label("%"), right, x_scale="log", y_range=(0, 100)),
        Panel(label("Runs that diverged"), where, label("% of seeds"), shares, x_scale="log", y_range=(0, 100)),
    ]
