"""Larger learning rates: a sweep over four powers of ten, with batch normalization and without."""

from __future__ import annotations

import math

from torch import nn

from .. import statistics as st
from ..data import Data
from ..experiment import Numbers, Panel, Plan, Runs, Series, Setting, Summary
from ..networks import batch_norm_1d, nothing, perceptron
from ..training import Tensors, accuracy, mean_loss, train

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
    nets = ("with", "without")
    largest = {net: [_largest(runs, net, i) for i in range(len(runs.seeds))] for net in nets}
    wider = st.verdict(largest["with"], largest["without"])
    best = {net: _best(runs, net) for net in nets}
    higher = st.verdict(best["with"][1], best["without"][1])
    finding = (
        f"{GOAL:.0f} % reached up to a rate of {_rate(largest['with'])} with, {_rate(largest['without'])} without: "
        f"{st.judged(wider, 'larger rates', 'smaller rates')}; at the best rate of each "
        f"{st.percent(best['with'][1])} with ({best['with'][0]:g}), {st.percent(best['without'][1])} without "
        f"({best['without'][0]:g}): {st.judged(higher, 'higher', 'lower')} ({st.count(runs.seeds)})"
    )
    return Summary(wider, finding, _reading(runs, wider, higher), _panels(runs))


def _largest(runs: Runs, net: str, seed: int) -> float:
    """The largest rate with which one seed reached the goal; 0 where none did."""
    rates = runs.values("rate")
    return float(max((r for r in rates if runs.each("accuracy", net=net, rate=r)[seed] >= GOAL), default=0.0))


def _best(runs: Runs, net: str) -> tuple[float, list[float]]:
    """The best rate of a side, and its accuracies."""
    rate = runs.best("rate", net=net)
    return float(rate), runs.each("accuracy", net=net, rate=rate)


def _rate(of: list[float]) -> str:
    low, high = min(of), max(of)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _diverged(runs: Runs, net: str) -> list[int]:
    return [sum(runs.each("diverged", net=net, rate=rate)) for rate in runs.values("rate")]


def _reading(runs: Runs, wider: str, higher: str) -> tuple[str, str]:
    seen = st.judged(
        wider,
        "Batch normalization trained at rates that ruin the same network without it",
        "Batch normalization narrowed the rates that work",
        "Both networks trained up to the same rates",
    )
    ruined = {net: sum(_diverged(runs, net)) for net in ("with", "without")}
    total = len(runs.values("rate")) * len(runs.seeds)
    end = st.judged(higher, "higher with it", "lower with it", "not clearly different")
    return (
        f"{seen}; {ruined['with']} of {total} runs diverged with it and {ruined['without']} without.",
        f"At the best rate of each side accuracy was {end}; how much of a gain is the larger rate's, and not the "
        "normalization's own, depends on the network, and a few hundred steps of a small one cannot settle it.",
    )


def _panels(runs: Runs) -> list[Panel]:
    rates = runs.values("rate")

    def series(key: str) -> list[Series]:
        nets = ("with", "without")
        return [Series.over_seeds(n, n, rates, [runs.each(key, net=n, rate=r) for r in rates]) for n in nets]

    shares = [
        Series.over_seeds(net, net, rates, [[100.0 * count / len(runs.seeds)] for count in _diverged(runs, net)])
        for net in ("with", "without")
    ]
    return [
        Panel("Test images right", "learning rate", "%", series("accuracy"), x_scale="log", y_range=(0, 100)),
        Panel("Runs that diverged", "learning rate", "% of seeds", shares, x_scale="log", y_range=(0, 100)),
    ]
