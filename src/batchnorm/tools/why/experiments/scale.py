"""What it makes irrelevant: the scale of weights, exactly and over a training; the scale and shift of the inputs."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .. import statistics as st
from ..data import Data
from ..experiment import Numbers, Panel, Plan, Runs, Series, Setting, Summary
from ..networks import batch_norm_1d, normalizations, nothing, perceptron
from ..training import Tensors, accuracy, batches, recalibrate, train

NETS = ("with", "without")
#: What is done to the inputs, before training and before testing alike: a factor, then a shift.
INPUTS = {
    "as they are": (1.0, 0.0),
    "× 0.01": (0.01, 0.0),
    "× 100": (100.0, 0.0),
    "+ 10": (1.0, 10.0),
    "+ 100": (1.0, 100.0),
}
LAYER = 0  # the linear map whose weights are scaled alone
TINY = 1e-12  # an eps that is nothing beside any variance here


def plan(quick: bool) -> Plan:
    """Nothing is tuned anew for a scale: that is the question."""
    common = {"hidden": [100, 100, 100], "batch": 60}
    training = {"rate": 0.1, "steps": 60 if quick else 200}
    factors = [0.1, 1.0, 10.0] if quick else [0.01, 0.1, 1.0, 10.0, 100.0]
    exact = [
        {"part": "exact", "net": net, "eps": eps, "factor": factor}
        for net, eps in (("with", TINY), ("with", 1e-5), ("without", None))
        for factor in factors
    ]
    weights = [{"part": "weights", "net": net, "factor": factor, **training} for net in NETS for factor in factors]
    inputs = [{"part": "inputs", "net": net, "inputs": name, **training} for net in NETS for name in INPUTS]
    return Plan(common, [*exact, *weights, *inputs])


def run(setting: Setting, seed: int, data: Data) -> Numbers:
    """One of three: an exact comparison of one batch, a training from scaled weights, or one on scaled inputs."""
    d = Tensors(data, flat=True)
    between = batch_norm_1d if setting["net"] == "with" else nothing
    model = perceptron(d.train_x.shape[1], between, seed, activation=nn.ReLU, hidden=setting["hidden"])
    if setting["part"] == "exact":
        chosen = next(batches(len(d.train_x), setting["batch"], 1, seed))
        return _exact(model, d.train_x[chosen], d.train_y[chosen], setting["factor"], setting["eps"])
    if setting["part"] == "weights":
        with torch.no_grad():
            for layer in list(model)[:-1]:  # the last has no batch normalization behind it
                if isinstance(layer, nn.Linear):
                    layer.weight.mul_(setting["factor"])
    factor, shift = INPUTS[setting.get("inputs", "as they are")]
    train_x, test_x = (x * factor + shift for x in (d.train_x, d.test_x))
    whole = train(
        model, train_x, d.train_y, rate=setting["rate"], steps=setting["steps"], batch=setting["batch"], seed=seed
    )
    numbers = {"diverged": not whole, "accuracy": accuracy(model, test_x, d.test_y)}
    recalibrate(model, train_x)
    return numbers | {"accuracy_recalibrated": accuracy(model, test_x, d.test_y)}


def _exact(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor, factor: float, eps: float | None) -> Numbers:
    """Scale one layer's weights and compare outputs and its gradient with those before; all of it in float64."""
    for layer in normalizations(model):
        assert eps is not None
        layer.eps = eps
    model.double()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        weight = scaled.get_parameter(f"{LAYER}.weight")
        weight.mul_(factor)
    (before, gradient_before), (after, gradient_after) = (
        _outputs_and_gradient(m, x.double(), y) for m in (model, scaled)
    )
    return {
        "output_change": ((after - before).abs().max() / before.abs().max()).item(),
        "gradient_ratio": (gradient_after.norm() / gradient_before.norm()).item(),
        "gradient_error": ((factor * gradient_after - gradient_before).norm() / gradient_before.norm()).item(),
    }


def _outputs_and_gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(x)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y), [model.get_parameter(f"{LAYER}.weight")])
    return logits.detach(), gradient


def summarize(runs: Runs) -> Summary:
    """The claim is that accuracy depends less on scales with batch normalization: how far it falls at worst."""
    exact = [n for f in runs.values("factor") for n in runs.numbers(part="exact", eps=TINY, factor=f)]
    output, gradient = (max(n[key] for n in exact) for key in ("output_change", "gradient_error"))
    weights = {net: _lost(runs, net, "weights", "factor", 1.0) for net in NETS}
    inputs = {net: _lost(runs, net, "inputs", "inputs", "as they are") for net in NETS}
    verdicts = [st.verdict(of["without"], of["with"]) for of in (weights, inputs)]
    proven = st.CONFIRMS if max(output, gradient) < 1e-6 else st.CONTRADICTS
    finding = (
        f"one layer's weights times a: outputs equal within {output:.0e}, gradient 1/a within {gradient:.0e}; lost at "
        f"the worst scale of the weights {_points(weights['with'])} with, {_points(weights['without'])} without: "
        f"{st.judged(verdicts[0], 'matters less', 'matters more')}; of the inputs {_points(inputs['with'])} with, "
        f"{_points(inputs['without'])} without: {st.judged(verdicts[1], 'matters less', 'matters more')} "
        f"({st.count(runs.seeds)})"
    )
    verdict = st.together([proven, *verdicts])
    return Summary(
        verdict, finding[0].upper() + finding[1:], _reading(proven, verdicts, weights, inputs), _panels(runs)
    )


def _lost(runs: Runs, net: str, part: str, key: str, usual: object) -> list[float]:
    """How many points of accuracy each seed lost at the scale that was worst for it."""
    scales = [scale for scale in runs.values(key) if scale != usual]
    at_usual = runs.each("accuracy", net=net, part=part, **{key: usual})
    each = [runs.each("accuracy", net=net, part=part, **{key: scale}) for scale in scales]
    return [usual - min(worst) for usual, *worst in zip(at_usual, *each, strict=True)]


def _points(lost: list[float]) -> str:
    return st.spread(lost).text(1) + " points"


def _reading(
    proven: str, verdicts: list[str], weights: dict[str, list[float]], inputs: dict[str, list[float]]
) -> tuple[str, str]:
    exact = "is exact" if proven == st.CONFIRMS else "did not come out exact"
    seen = st.judged(
        st.together(verdicts),
        "in training, scales that ruin the plain network cost the other one less",
        "in training, scales cost the network with batch normalization more",
        "in training, the two did not differ clearly everywhere",
    )
    if max(spread_of := [st.spread(of["with"]).mean for of in (weights, inputs)]) > 5:
        worst = "weights" if spread_of[0] >= spread_of[1] else "inputs"
        seen += f", but not nothing: up to {max(spread_of):.0f} points, with scaled {worst}"
    return (
        f"The invariance {exact} while eps is small beside the variance; {seen}.",
        "Larger weights get smaller gradients, so they learn more slowly at the same rate; a shift of the inputs "
        "drops out of every training step, but the running mean used in evaluation lags behind its jumps: gathering "
        "the statistics anew (recalibrated) shows how much of a loss is that.",
    )


def _panels(runs: Runs) -> list[Panel]:
    factors = runs.values("factor")
    sides = (("with, eps 1e-12", "with", TINY), ("with, eps 1e-5", "other", 1e-5), ("without", "without", None))
    outputs_moved = [
        Series.over_seeds(name, style, factors, [_exactly(runs, "output_change", eps, f) for f in factors])
        for name, style, eps in sides
    ]
    gradients = [
        Series.over_seeds(name, style, factors, [_exactly(runs, "gradient_ratio", eps, f) for f in factors])
        for name, style, eps in sides
    ]
    weights, inputs = _trained(runs, "weights", "factor"), _trained(runs, "inputs", "inputs")
    return [
        Panel("Change of the outputs", "factor on one layer", "relative", outputs_moved, "log", "log", decimals=2),
        Panel("Length of its gradient", "factor on one layer", "relative", gradients, "log", "log", decimals=2),
        Panel("Test images right", "factor on the weights", "%", weights, "log", y_range=(0, 100)),
        Panel("Test images right", "what was done to the inputs", "%", inputs, "category", y_range=(0, 100)),
    ]


def _exactly(runs: Runs, key: str, eps: float | None, factor: float) -> list[float | None]:
    """One number of the exact comparison; None for a zero, which has no place on a logarithmic axis."""
    return [value or None for value in runs.each(key, part="exact", eps=eps, factor=factor)]


def _trained(runs: Runs, part: str, key: str) -> list[Series]:
    places = runs.values(key)
    sides = (("with", "with", "with", "accuracy"), ("with, recalibrated", "other", "with", "accuracy_recalibrated"),
             ("without", "without", "without", "accuracy"))  # fmt: skip
    return [
        Series.over_seeds(name, style, places, [runs.each(number, part=part, net=net, **{key: p}) for p in places])
        for name, style, net, number in sides
    ]
