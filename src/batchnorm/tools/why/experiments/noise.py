"""Noise after batch normalization: the distribution shifts again at every step; does the gain go with it?"""

from __future__ import annotations

import math

import torch
from torch import nn

from .. import statistics as st
from ..data import Data
from ..experiment import Numbers, Panel, Plan, Runs, Series, Setting, Summary
from ..networks import NOISE, Between, batch_norm_1d, generator, nothing, perceptron
from ..sentences import Sentence, label, say
from ..training import Tensors, accuracy, finite, train

Tensor = torch.Tensor
#: In the results, and how they are drawn.
NETS = {
    "with": ("with", "with batch norm"),
    "with, then noise": ("other", "with noise after it"),
    "without": ("without", "without it"),
}


def plan(quick: bool) -> Plan:
    """The network of learning-rates, at a rate at which it trains with and without."""
    noise = {"unit_mean": 0.5, "unit_factor": 1.25, "sample_mean": 0.1, "sample_factor": 0.1}
    common = {"hidden": [100, 100, 100], "batch": 60, "rate": 0.1, "noise": noise}
    return Plan({**common, "steps": 60 if quick else 300, "every": 10 if quick else 20}, [{"net": net} for net in NETS])


class Noise(nn.Module):
    """In training: at each step a new mean and factor for every unit, and around them new ones for every sample."""

    def __init__(self, sizes: dict[str, float], random: torch.Generator) -> None:
        super().__init__()
        self.sizes, self.random = sizes, random

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        unit, sample = (1, x.shape[1]), x.shape
        mean = self._around_zero(unit, "unit_mean") + self._around_zero(sample, "sample_mean")
        factor = 1 + (self.sizes["unit_factor"] - 1) * torch.rand(unit, generator=self.random)
        return x * (factor + self._around_zero(sample, "sample_factor")) + mean

    def _around_zero(self, shape: tuple[int, ...], size: str) -> Tensor:
        return self.sizes[size] * (2 * torch.rand(shape, generator=self.random) - 1)


class Shift:
    """How far a unit's mean goes from one training batch to the next, in standard deviations; the mean of all units."""

    def __init__(self, model: nn.Module) -> None:
        self.moved: list[float] = []
        self._means: dict[nn.Module, Tensor] = {}
        for layer in model.modules():
            if isinstance(layer, nn.ReLU):
                layer.register_forward_pre_hook(self._look)

    def _look(self, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        if not layer.training:
            return
        std, mean = torch.std_mean(inputs[0].detach(), 0)
        if layer in self._means:
            self.moved.append(((mean - self._means[layer]).abs() / std.clamp(min=1e-12)).mean().item())
        self._means[layer] = mean

    def taken(self) -> float:
        """Return the mean since the last call."""
        moved, self.moved = self.moved, []
        return math.fsum(moved) / len(moved) if moved else math.nan


def run(setting: Setting, seed: int, data: Data) -> Numbers:
    """Train; watch the accuracy on the test images, without noise, and how far the distributions shift."""
    d = Tensors(data, flat=True)
    model = perceptron(d.train_x.shape[1], _between(setting, seed), seed, activation=nn.ReLU, hidden=setting["hidden"])
    shift = Shift(model)
    steps_seen: list[int] = []
    accuracies: list[float] = []
    shifts: list[float | None] = []

    def watch(steps: int, _: float) -> None:
        if steps and steps % setting["every"] == 0:
            steps_seen.append(steps)
            accuracies.append(accuracy(model, d.test_x, d.test_y))
            shifts.append(finite(shift.taken()))

    whole = train(
        model, d.train_x, d.train_y, rate=setting["rate"], steps=setting["steps"], batch=setting["batch"], seed=seed,
        watch=watch,
    )  # fmt: skip
    return {"diverged": not whole, "steps": steps_seen, "accuracy": accuracies, "shift": shifts}


def _between(setting: Setting, seed: int) -> Between:
    if setting["net"] == "without":
        return nothing
    if setting["net"] == "with":
        return batch_norm_1d
    random = generator(seed, NOISE)
    return lambda channels: nn.Sequential(batch_norm_1d(channels), Noise(setting["noise"], random))


def summarize(runs: Runs) -> Summary:
    """Compare the shift, and the accuracy as a mean over the way of training."""
    accuracies = {net: [_mean(of) for of in runs.each("accuracy", net=net)] for net in NETS}
    shifts = {net: [_mean(of) for of in runs.each("shift", net=net)] for net in NETS}
    plain, noisy, without = NETS
    unsteady = st.verdict(shifts[noisy], shifts[without])
    better = st.verdict(accuracies[noisy], accuracies[without])
    cost = st.verdict(accuracies[plain], accuracies[noisy])
    finding = [
        say("noise.shift", noisy=st.spread(shifts[noisy]).text(2), without=st.spread(shifts[without]).text(2)),
        *st.unclear(unsteady),
        say("noise.right", noisy=st.percent(accuracies[noisy]), without=st.percent(accuracies[without])),
        *st.unclear(better),
        *st.warned("without", accuracies[without]),
    ]
    verdict = st.together([unsteady, better])
    return Summary(verdict, finding, _reading(unsteady, better, cost), _panels(runs))


def _mean(of: list[float | None]) -> float:
    """The mean over the way; infinite where a network diverged."""
    return math.fsum(math.inf if value is None else value for value in of) / len(of)


def _reading(unsteady: str, better: str, cost: str) -> list[Sentence]:
    kinds = {(st.CONFIRMS, st.CONFIRMS): "stays", (st.CONFIRMS, st.CONTRADICTS): "gone"}
    seen = say(f"noise.{kinds.get((unsteady, better), 'open')}")
    return [seen, *st.judged(cost, "noise.cost", "noise.gain", "noise.free"), say("noise.but")]


def _panels(runs: Runs) -> list[Panel]:
    panels = []
    for key, title, unit, decimals in (
        ("accuracy", "Test images right", "%", 1),
        ("shift", "Shift of the units from batch to batch", "standard deviations", 2),
    ):
        curves = []
        for net, (style, name) in NETS.items():
            numbers = runs.numbers(net=net)
            each = zip(*(n[key] for n in numbers), strict=True)
            curves.append(Series.over_seeds(label(name), style, numbers[0]["steps"], each))
        panels.append(Panel(label(title), label("steps"), label(unit), curves, decimals=decimals, band=True))
    return panels
