"""Scales that stop mattering: the scale of weights, exactly and over a training; the scale and shift of the inputs."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .. import statistics as st
from ..data import Data
from ..experiment import Numbers, Panel, Plan, Runs, Series, Setting, Summary
from ..networks import batch_norm_1d, normalizations, nothing, perceptron
from ..sentences import Sentence, label, say
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
    finding = [
        say("scale.exact", output=f"{output:.0e}", gradient=f"{gradient:.0e}"),
        say("scale.weights", **{net: st.spread(of).text(1) for net, of in weights.items()}),
        *st.unclear(verdicts[0]),
        say("scale.inputs", **{net: st.spread(of).text(1) for net, of in inputs.items()}),
        *st.unclear(verdicts[1]),
        *(s for net in NETS for s in st.warned(net, runs.each("accuracy", net=net, part="weights", factor=1.0))),
    ]
    verdict = st.together([proven, *verdicts])
    return Summary(verdict, finding, _reading(proven, verdicts, weights, inputs), _panels(runs))


def _lost(runs: Runs, net: str, part: str, key: str, usual: object) -> list[float]:
    """How many points of accuracy each seed lost at the scale that was worst for it."""
    scales = [scale for scale in runs.values(key) if scale != usual]
    at_usual = runs.each("accuracy", net=net, part=part, **{key: usual})
    each = [runs.each("accuracy", net=net, part=part, **{key: scale}) for scale in scales]
    return [usual - min(worst) for usual, *worst in zip(at_usual, *each, strict=True)]


def _reading(
    proven: str, verdicts: list[str], weights: dict[str, list[float]], inputs: dict[str, list[float]]
) -> list[Sentence]:
    reading = [say("scale.proven" if proven == st.CONFIRMS else "scale.broken")]
    reading += st.judged(st.together(verdicts), "scale.less", "scale.more", "scale.mixed") or [say("scale.mixed")]
    cost = {"weights": st.spread(weights["with"]).mean, "inputs": st.spread(inputs["with"]).mean}
    worst = max(cost, key=cost.__getitem__)
    if cost[worst] > 5:
        reading.append(say(f"scale.still {worst}", points=f"{cost[worst]:.0f}"))
    return [*reading, say("scale.but")]


def _panels(runs: Runs) -> list[Panel]:
    factors = runs.values("factor")
    sides = (
        (label("with batch norm, eps 1e-12"), "with", TINY),
        (label("with batch norm, eps 1e-5"), "other", 1e-5),
        (label("without it"), "without", None),
    )
    outputs_moved = [
        Series.over_seeds(name, style, factors, [_exactly(runs, "output_change", eps, f) for f in factors])
        for name, style, eps in sides
    ]
    gradients = [
        Series.over_seeds(name, style, factors, [_exactly(runs, "gradient_ratio", eps, f) for f in factors])
        for name, style, eps in sides
    ]
    weights, inputs = _trained(runs, "weights", "factor"), _trained(runs, "inputs", "inputs")
    factor, right = label("factor on one layer"), label("Test images right")
    return [
        Panel(label("Change of the outputs"), factor, label("relative"), outputs_moved, "log", "log", decimals=2),
        Panel(label("Length of its gradient"), factor, label("relative"), gradients, "log", "log", decimals=2),
        Panel(right, label("factor on the weights"), label("%"), weights, "log", y_range=(0, 100)),
        Panel(right, label("what was done to the inputs"), label("%"), inputs, "category", y_range=(0, 100)),
    ]


def _exactly(runs: Runs, key: str, eps: float | None, factor: float) -> list[float | None]:
    """One number of the exact comparison; None for a zero, which has no place on a logarithmic axis."""
    return [value or None for value in runs.each(key, part="exact", eps=eps, factor=factor)]


def _trained(runs: Runs, part: str, key: str) -> list[Series]:
    values = runs.values(key)
    places = [label(value) if isinstance(value, str) else value for value in values]
    sides = (
        (label("with batch norm"), "with", "with", "accuracy"),
        (label("with batch norm, recalibrated"), "other", "with", "accuracy_recalibrated"),
        (label("without it"), "without", "without", "accuracy"),
    )
    return [
        Series.over_seeds(name, style, places, [runs.each(number, part=part, net=net, **{key: v}) for v in values])
        for name, style, net, number in sides
    ]
