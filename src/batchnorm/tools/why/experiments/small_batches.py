"""Small batches: batch normalization, its variants and group normalization, for the same images seen."""

from __future__ import annotations

import math

from torch import nn

import batchnorm.torch as bnt

from ...._renorm import Renorm
from .. import statistics as st
from ..data import Data
from ..experiment import Numbers, Panel, Plan, Runs, Series, Setting, Summary
from ..networks import Between, batch_norm_2d, convolutional, group_norm, normalizations
from ..sentences import Sentence, label, say
from ..training import Tensors, accuracy, recalibrate, train

BATCH, RENORM, GHOSTS = "batch norm", "batch renorm", "ghosts of 4"
GROUP, FROZEN = "group norm", "frozen batch norm"
STYLES = {BATCH: "with", RENORM: "fourth", GHOSTS: "fifth", GROUP: "without", FROZEN: "other"}
APART = tuple(f"small-batches.{key}" for key in ("better", "worse", "equal"))
USUAL = 32
GHOST = 4
CALIBRATION = 256  # training images that give a frozen network its statistics, before training


def plan(quick: bool) -> Plan:
    """One rule for the rate, the root of the batch size, for all.

    It was chosen after trials on the digits with seeds 0 to 2, where rates in proportion to the batch suited batch
    normalization, group normalization and frozen statistics at different sizes. No side was tuned by itself.
    """
    common = {
        "channels": [8, 16, 32],
        "images": 256 if quick else 1024,
        "calibration": CALIBRATION,
        "rate_at_32": 0.1,
    }
    sizes = [1, 4, USUAL] if quick else [1, 2, 4, 8, USUAL]
    return Plan(common, [{"net": net, "batch": size} for size in sizes for net in STYLES if _differs(net, size)])


def _differs(net: str, size: int) -> bool:
    """Whether a network is one of its own at this size: a batch within one ghost has nothing to split."""
    return net != GHOSTS or size > GHOST


def run(setting: Setting, seed: int, data: Data) -> Numbers:
    """Train on one batch size; batch normalization is tested with its running statistics."""
    d = Tensors(data)
    batch = setting["batch"]
    rate, steps = setting["rate_at_32"] * math.sqrt(batch / USUAL), setting["images"] // batch
    between = {GROUP: group_norm, GHOSTS: _with_ghosts, RENORM: _renormalized(steps)}.get(setting["net"], batch_norm_2d)
    model = convolutional(between, seed, data.size, channels=setting["channels"])
    if setting["net"] == FROZEN:
        recalibrate(model, d.train_x[: setting["calibration"]])
        model = Frozen(model)
    whole = train(model, d.train_x, d.train_y, rate=rate, steps=steps, batch=batch, seed=seed)
    return {"diverged": not whole, "accuracy": accuracy(model, d.test_x, d.test_y)}


def _with_ghosts(channels: int) -> nn.Module:
    return bnt.BatchNorm2d(channels, virtual_batch_size=GHOST)


def _renormalized(steps: int) -> Between:
    """Batch renormalization on the paper's schedule, at this scale: plain for an eighth of the steps, then by the half.

    In the paper: plain for 5000 steps, limits fully grown at 40000, of some 130000.
    """
    schedule = Renorm(r_max=3.0, d_max=5.0, start=steps // 8, r_end=steps // 2, d_end=steps // 2)
    return lambda channels: bnt.BatchNorm2d(channels, renorm=schedule)


class Frozen(nn.Sequential):
    """A model whose batch normalizations stay in evaluation while it trains: their weight and bias still learn."""

    def train(self, mode: bool = True) -> Frozen:
        """Set the mode of everything but the batch normalizations."""
        super().train(mode)
        for layer in normalizations(self):
            layer.eval()
        return self


def summarize(runs: Runs) -> Summary:
    """The claim is that batch normalization loses to group normalization at the smallest batches."""
    sizes = runs.values("batch")
    right = {
        net: {size: runs.each("accuracy", net=net, batch=size) for size in sizes if _differs(net, size)}
        for net in STYLES
    }
    worse = {size: st.verdict(right[GROUP][size], right[BATCH][size]) for size in sizes}
    frozen = {size: st.verdict(right[FROZEN][size], right[BATCH][size]) for size in sizes}
    smallest = sizes[0]
    renormed = st.verdict(right[RENORM][smallest], right[BATCH][smallest])
    split = st.verdict(right[GHOSTS][USUAL], right[BATCH][USUAL])
    lost = [size for size in sizes if worse[size] == st.CONFIRMS]
    won = [size for size in sizes if worse[size] == st.CONTRADICTS]
    finding = [
        say(
            "small-batches.right",
            size=smallest,
            batch=st.percent(right[BATCH][smallest]),
            group=st.percent(right[GROUP][smallest]),
            frozen=st.percent(right[FROZEN][smallest]),
        ),
        *st.unclear(worse[smallest]),
        say("small-batches.sizes", sizes=_listed(sizes), lost=_listed(lost), won=_listed(won)),
        *st.warned("with", right[BATCH][smallest]),
        *st.warned("group", right[GROUP][smallest]),
    ]
    reading = [
        *st.judged(worse[smallest], *(f"small-batches.{key}" for key in ("poor", "enough", "open"))),
        *st.judged(frozen[smallest], *(f"small-batches.{key}" for key in ("froze_well", "froze_badly", "froze"))),
        say("small-batches.renorm", right=st.percent(right[RENORM][smallest]), size=smallest),
        *st.judged(renormed, *APART),
        say(
            "small-batches.ghosts",
            ghost=GHOST,
            usual=USUAL,
            ghosts=st.percent(right[GHOSTS][USUAL]),
            whole=st.percent(right[BATCH][USUAL]),
        ),
        *st.judged(split, *APART),
        say("small-batches.but"),
    ]
    for sentence in reading[:1]:
        sentence["size"] = smallest
    return Summary(worse[smallest], finding, reading, _panels(right))


def _listed(sizes: list[int]) -> list[int] | Sentence:
    return sizes or say("none")


def _panels(right: dict[str, dict[int, list[float]]]) -> list[Panel]:
    curves = [
        Series.over_seeds(label(net), style, list(right[net]), list(right[net].values()))
        for net, style in STYLES.items()
    ]
    return [
        Panel(label("Test images right"), label("batch size"), label("%"), curves, x_scale="log2", y_range=(0, 100))
    ]
