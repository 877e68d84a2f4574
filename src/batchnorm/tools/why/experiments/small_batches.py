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
from ..training import Tensors, accuracy, recalibrate, train

BATCH, RENORM, GHOSTS = "batch norm", "batch renorm", "ghosts of 4"
GROUP, FROZEN = "group norm", "frozen batch norm"
STYLES = {BATCH: "with", RENORM: "fourth", GHOSTS: "fifth", GROUP: "without", FROZEN: "other"}
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
    finding = (
        f"batches of {smallest}: {st.percent(right[BATCH][smallest])} right with batch norm, "
        f"{st.percent(right[GROUP][smallest])} with group norm, {st.percent(right[FROZEN][smallest])} frozen: "
        f"{st.judged(worse[smallest], 'group norm is better', 'batch norm is better')}; of the sizes {_listed(sizes)}, "
        f"group norm is clearly better at {_listed(lost)}, batch norm at {_listed(won)} ({st.count(runs.seeds)})"
    )
    reading = _reading(worse[smallest], frozen[smallest], smallest)
    variants = (
        f"Of the variants, batch renormalization had {st.percent(right[RENORM][smallest])} right with batches of "
        f"{smallest}: {st.judged(renormed, 'it helped', 'it made it worse')}; ghosts of {GHOST} in batches of {USUAL} "
        f"had {st.percent(right[GHOSTS][USUAL])} right, the whole batch {st.percent(right[BATCH][USUAL])}: "
        f"{st.judged(split, 'ghosts are better', 'ghosts are worse')}."
    )
    panels = _panels(right)
    return Summary(worse[smallest], finding[0].upper() + finding[1:], (f"{reading[0]} {variants}", reading[1]), panels)


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes)) or "none"


def _reading(worse: str, frozen: str, smallest: int) -> tuple[str, str]:
    seen = st.judged(
        worse,
        f"With batches of {smallest}, statistics of one batch are too poor to learn from and unlike the running ones",
        f"Even batches of {smallest} were enough for batch normalization here",
        f"With batches of {smallest}, batch and group normalization were not clearly apart",
    )
    ice = st.judged(frozen, "freezing helped", "freezing made it worse", "freezing made no clear difference")
    return (
        f"{seen}; {ice}.",
        "What counts is the number of values behind each mean, and a batch of images brings many: in a fully connected "
        "network a batch of 2 has two, where this network has 8 in its last layer on the digits and 128 in its first. "
        "All saw the same few images, so large batches took few steps, and at one rule for the rate: a rate of its own "
        "for each might move single points.",
    )


def _panels(right: dict[str, dict[int, list[float]]]) -> list[Panel]:
    curves = [
        Series.over_seeds(net, style, list(right[net]), list(right[net].values())) for net, style in STYLES.items()
    ]
    return [Panel("Test images right", "batch size", "%", curves, x_scale="log2", y_range=(0, 100))]
