"""Padding: digits as sequences of their rows, of different lengths, with the padding in the statistics and without."""

from __future__ import annotations

import torch
from torch import nn

import batchnorm.torch as bnt

from .. import statistics as st
from ..data import Data
from ..experiment import Numbers, Panel, Plan, Runs, Series, Setting, Summary
from ..networks import CLASSES, SHIFT, WEIGHTS, drawn, generator, normalizations
from ..sentences import Sentence, label, say
from ..training import Tensors, batches, finite, right, step

Tensor = torch.Tensor
MASKED, PLAIN = "mask", "no mask"
STYLES = {MASKED: "with", PLAIN: "without"}
MIXED = "mixed"  # every batch padded to another length, as batches are when each is as long as its longest


def plan(quick: bool) -> Plan:
    """Padded lengths are multiples of the image's height; the mask is all that the two sides differ in.

    Both have two rates to choose from, by the loss on the training images in evaluation.
    """
    common = {"channels": [16, 16], "batch": 32, "steps": 60 if quick else 300, "shortest": 0.75}
    varied = [
        {"net": net, "padded": padded, "rate": rate}
        for padded in ([1, MIXED] if quick else [1, 4, MIXED])
        for net in STYLES
        for rate in (0.1, 0.3)
    ]
    return Plan({**common, "times": [1, 2, 4, 8]}, varied)


class RowNetwork(nn.Module):
    """Convolutions along the rows; padding is set to zero before each and left out of the mean over positions.

    So padding can reach the result through the statistics of batch normalization, and in no other way.
    """

    def __init__(self, inputs: int, channels: list[int], masked: bool, seed: int) -> None:
        super().__init__()
        random = generator(seed, WEIGHTS)
        self.masked = masked
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for outputs in channels:
            self.convolutions.append(drawn(nn.Conv1d(inputs, outputs, 3, padding=1), None, random))
            self.norms.append(bnt.BatchNorm1d(outputs, activation="relu"))
            inputs = outputs
        self.last = drawn(nn.Linear(inputs, CLASSES), None, random)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``x``: (N, C, L); ``mask``: (N, L)."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x * mask[:, None]), mask=mask if self.masked else None)
        mean = (x * mask[:, None]).sum(2) / mask.sum(1, keepdim=True)
        logits: Tensor = self.last(mean)
        return logits


def sequences(images: Tensor, lengths: Tensor, padded: int) -> tuple[Tensor, Tensor]:
    """Return the first rows of each image, as (N, width, padded) with zeros behind them, and the mask."""
    x = images.new_zeros(len(images), images.shape[3], padded)
    x[:, :, : images.shape[2]] = images[:, 0].transpose(1, 2)
    mask = torch.arange(padded) < lengths[:, None]
    return x * mask[:, None], mask


def run(setting: Setting, seed: int, data: Data) -> Numbers:
    """Train on padded batches; test, and see what more padding does to one batch in training."""
    d = Tensors(data)
    height = data.size[0]
    model = RowNetwork(data.size[1], setting["channels"], setting["net"] == MASKED, seed)
    random = generator(seed, SHIFT)
    shortest = round(setting["shortest"] * height)
    lengths = torch.randint(shortest, height + 1, (len(d.train_y),), generator=random)
    test_lengths = torch.randint(shortest, height + 1, (len(d.test_y),), generator=random)
    times = setting["times"]
    for chosen in batches(len(d.train_x), setting["batch"], setting["steps"], seed):
        drawn_times = times[int(torch.randint(len(times), (), generator=random))]
        padded = height * (drawn_times if setting["padded"] == MIXED else setting["padded"])
        x, mask = sequences(d.train_x[chosen], lengths[chosen], padded)
        step(model, x, d.train_y[chosen], setting["rate"], mask)
    change = [_change(model, d.train_x[:32], lengths[:32], height, height * t) for t in times]
    model.eval()
    with torch.no_grad():
        train_logits = model(*sequences(d.train_x, lengths, height))
        logits = model(*sequences(d.test_x, test_lengths, height))
    train_loss = finite(nn.functional.cross_entropy(train_logits, d.train_y).item())
    return {"train_loss": train_loss, "accuracy": right(logits, d.test_y), "output_change": change}


def _change(model: nn.Module, images: Tensor, lengths: Tensor, height: int, padded: int) -> float:
    """How far the outputs of one batch in training move when it is padded more, relative to the largest."""
    momenta = [norm.momentum for norm in normalizations(model)]
    for norm in normalizations(model):
        norm.momentum = 0.0  # the running statistics stay as they are
    with torch.no_grad():
        short, long = (model(*sequences(images, lengths, size)) for size in (height, padded))
    for norm, momentum in zip(normalizations(model), momenta, strict=True):
        norm.momentum = momentum
    return float((long - short).abs().max() / short.abs().max())


def summarize(runs: Runs) -> Summary:
    """The claims: padding changes the outputs, and with a mask the network tests better after padded batches."""
    paddings = runs.values("padded")
    best = {net: {p: _best(runs, net, p) for p in paddings} for net in STYLES}
    moved = {net: _moved(runs, net, paddings[-1]) for net in STYLES}
    exact = st.verdict(moved[PLAIN], moved[MASKED])
    verdicts = {p: st.verdict(best[MASKED][p], best[PLAIN][p]) for p in paddings[1:]}
    longest = runs.runs[0].setting["times"][-1]
    moves = {"mask": st.spread(moved[MASKED]).text(2), "plain": st.spread(moved[PLAIN]).text(2)}
    finding = [say("padding.moved", times=longest, **moves), *st.unclear(exact)]
    for p, verdict in verdicts.items():
        right_ones = {"mask": st.percent(best[MASKED][p]), "plain": st.percent(best[PLAIN][p])}
        finding.append(say("padding.mixed" if p == MIXED else "padding.after", times=p, **right_ones))
        finding += st.unclear(verdict)
        finding += [sentence for net in STYLES for sentence in st.warned(net, best[net][p])]
    verdict = st.together([exact, *verdicts.values()])
    return Summary(verdict, finding, _reading(moved, verdicts), _panels(runs, best, paddings))


def _best(runs: Runs, net: str, padded: int | str) -> list[float]:
    """The accuracies at the better rate."""
    return runs.each("accuracy", net=net, padded=padded, rate=runs.best("rate", net=net, padded=padded))


def _moved(runs: Runs, net: str, padded: int | str) -> list[float]:
    """The change of the outputs under the longest padding, for each seed."""
    rate = runs.best("rate", net=net, padded=padded)
    return [of[-1] for of in runs.each("output_change", net=net, padded=padded, rate=rate)]


def _reading(moved: dict[str, list[float]], verdicts: dict[int | str, str]) -> list[Sentence]:
    still = say("padding.still" if max(moved[MASKED]) < 1e-6 else "padding.moves")
    helped = [p for p, verdict in verdicts.items() if verdict == st.CONFIRMS]
    cost = say("padding.worse", n=len(helped), all=len(verdicts)) if helped else say("padding.harmless")
    return [still, say("padding.zeros"), cost, say("padding.but")]


def _panels(runs: Runs, best: dict[str, dict[int | str, list[float]]], paddings: list[int | str]) -> list[Panel]:
    places = [
        label("no padding") if p == 1 else label("mixed") if p == MIXED else label("{n} times", n=p) for p in paddings
    ]
    right_ones = [
        Series.over_seeds(label(net), style, places, [best[net][p] for p in paddings]) for net, style in STYLES.items()
    ]
    times = runs.runs[0].setting["times"]
    moves = []
    for net, style in STYLES.items():
        each = runs.each("output_change", net=net, padded=MIXED, rate=runs.best("rate", net=net, padded=MIXED))
        moves.append(Series.over_seeds(label(net), style, times, list(zip(*each, strict=True))))
    where = label("length padded to, in lengths")
    return [
        Panel(label("Test images right"), label("padding in training"), label("%"), right_ones, "category"),
        Panel(label("Change of the outputs"), where, label("relative"), moves, "log2", decimals=2),
    ]
