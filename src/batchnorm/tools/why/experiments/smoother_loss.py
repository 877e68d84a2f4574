"""A smoother loss: the loss and its gradient along the direction of the gradient, at points on the way of training."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import nn

from .. import statistics as st
from ..data import Data
from ..experiment import Numbers, Panel, Plan, Runs, Series, Setting, Summary
from ..networks import batch_norm_1d, nothing, perceptron
from ..sentences import Sentence, label, say
from ..training import Tensors, accuracy, batches, finite, step

NETS = {"with": "with batch norm", "without": "without it"}
#: What is measured at each point: its name in the results, and in the figure.
MEASURES = {
    "loss_range": "Range of the loss",
    "gradient_change": "Change of the gradient (l2)",
    "relative_change": "Relative change of the gradient",
}


def plan(quick: bool) -> Plan:
    """One rate for both, at which both train (see learning-rates); a quarter to four times of it are looked at."""
    common = {
        "hidden": [100, 100, 100],
        "batch": 60,
        "rate": 0.1,
        "along": [0.025, 0.05, 0.1, 0.2, 0.4],
        "steps": 40 if quick else 200,
        "every": 10,
    }
    return Plan(common, [{"net": net} for net in NETS])


def run(setting: Setting, seed: int, data: Data) -> Numbers:
    """Train; every few steps, walk along the gradient of the coming batch, and come back."""
    d = Tensors(data, flat=True)
    between = batch_norm_1d if setting["net"] == "with" else nothing
    model = perceptron(d.train_x.shape[1], between, seed, activation=nn.ReLU, hidden=setting["hidden"])
    seen: dict[str, list[float | None]] = {"steps": [], **{name: [] for name in MEASURES}}
    for i, chosen in enumerate(batches(len(d.train_x), setting["batch"], setting["steps"], seed)):
        x, y = d.train_x[chosen], d.train_y[chosen]
        if i % setting["every"] == 0:
            measured = _along_the_gradient(model, x, y, setting["along"])
            seen["steps"].append(i)
            for name, value in measured.items():
                seen[name].append(finite(value))
        step(model, x, y, setting["rate"])
    return {**seen, "accuracy": accuracy(model, d.test_x, d.test_y)}


def _along_the_gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor, sizes: list[float]) -> dict[str, float]:
    """How far the loss and the gradient of one batch go over steps of these sizes against the gradient."""
    loss, gradient = _loss_and_gradient(model, x, y, None, 0.0)
    walk = [_loss_and_gradient(model, x, y, gradient, size) for size in sizes]
    losses = [loss, *(loss for loss, _ in walk)]
    change = max(math.sqrt(_squares(a - b for a, b in zip(there, gradient, strict=True))) for _, there in walk)
    length = math.sqrt(_squares(gradient))
    return {
        "loss_range": max(losses) - min(losses) if all(map(math.isfinite, losses)) else math.inf,
        "gradient_change": change,
        "relative_change": change / length if length > 0 else math.nan,
    }


def _loss_and_gradient(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, direction: list[torch.Tensor] | None, size: float
) -> tuple[float, list[torch.Tensor]]:
    """The loss and its gradient at a point ``size`` times ``direction`` away, on a copy of the model."""
    there = copy.deepcopy(model)  # the running statistics of the model itself stay as they are
    parameters = list(there.parameters())
    with torch.no_grad():
        for parameter, d in zip(parameters, direction or (), strict=direction is not None):
            parameter.sub_(d, alpha=size)
    loss = nn.functional.cross_entropy(there(x), y)
    return loss.item(), list(torch.autograd.grad(loss, parameters))


def _squares(of: Iterator[torch.Tensor] | list[torch.Tensor]) -> float:
    return math.fsum(t.double().square().sum().item() for t in of)


def summarize(runs: Runs) -> Summary:
    """Compare each measure's mean over the way of training."""
    means = {name: {net: [_mean(of) for of in runs.each(name, net=net)] for net in NETS} for name in MEASURES}
    verdicts = {name: st.verdict(of["without"], of["with"]) for name, of in means.items()}
    finding = []
    for name, of in means.items():
        sides = {net: st.spread(values).text(2) for net, values in of.items()}
        finding += [say(f"smoother-loss.{name}", **sides), *st.unclear(verdicts[name])]
    finding += [sentence for net in NETS for sentence in st.warned(net, runs.each("accuracy", net=net))]
    verdict = st.together(list(verdicts.values()))
    return Summary(verdict, finding, _reading(verdict), _panels(runs))


def _mean(of: list[float | None]) -> float:
    """The mean over the points looked at; infinite where the loss was not finite at one of them."""
    return math.fsum(math.inf if value is None else value for value in of) / len(of)


def _reading(verdict: str) -> list[Sentence]:
    seen = {st.CONFIRMS: "less", st.CONTRADICTS: "more"}.get(verdict, "mixed")
    return [say(f"smoother-loss.{key}") for key in (seen, "where", "but")]


def _panels(runs: Runs) -> list[Panel]:
    panels = []
    for name, title in MEASURES.items():
        curves = []
        for net, words in NETS.items():
            numbers = runs.numbers(net=net)
            each = zip(*(n[name] for n in numbers), strict=True)
            curves.append(Series.over_seeds(label(words), net, numbers[0]["steps"], each))
        panels.append(Panel(label(title), label("steps"), None, curves, y_scale="log", decimals=2, band=True))
    return panels
