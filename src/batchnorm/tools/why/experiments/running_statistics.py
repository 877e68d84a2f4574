"""Training or running statistics: one trained network, tested with statistics from four sources."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .. import statistics as st
from ..data import Data
from ..experiment import Numbers, Panel, Plan, Runs, Series, Setting, Summary
from ..networks import batch_norm_2d, convolutional
from ..sentences import Sentence, label, say
from ..training import Tensors, accuracy, recalibrate, right, train

RUNNING, RECALIBRATED, BATCH, WHOLE = "running", "recalibrated", "test batch", "whole test set"
STYLES = {RUNNING: "without", RECALIBRATED: "with", BATCH: "other", WHOLE: "fourth"}
USUAL = 32


def plan(quick: bool) -> Plan:
    """The rate is in proportion to the batch; momentum is the layer's default, 0.1."""
    common = {"channels": [8, 16, 32], "images": 512 if quick else 1280, "rate_at_32": 0.3}
    return Plan(common, [{"batch": size} for size in ([4, USUAL] if quick else [2, 8, USUAL])])


def run(setting: Setting, seed: int, data: Data) -> Numbers:
    """Train on batches of one size; on the way and at the end, test with statistics from each source."""
    d, batch = Tensors(data), setting["batch"]
    model = convolutional(batch_norm_2d, seed, data.size, channels=setting["channels"])
    steps = setting["images"] // batch
    looks = {round(steps * i / 6) for i in range(1, 7)}
    seen: dict[str, list[float]] = {"images": [], **{source: [] for source in STYLES}}

    def watch(done: int, _: float) -> None:
        if done in looks:
            seen["images"].append(done * batch)
            for source, value in _tested(model, d, batch).items():
                seen[source].append(value)

    rate = setting["rate_at_32"] * batch / USUAL
    whole = train(model, d.train_x, d.train_y, rate=rate, steps=steps, batch=batch, seed=seed, watch=watch)
    return {"diverged": not whole, **seen}


def _tested(model: nn.Module, d: Tensors, batch: int) -> dict[str, float]:
    """The accuracy with each kind of statistics, on a copy: the training goes on as if nobody had looked."""
    there = copy.deepcopy(model)
    running = accuracy(there, d.test_x, d.test_y)
    there.train()
    with torch.no_grad():
        parts = torch.cat([there(part) for part in d.test_x.split(batch)])
        whole = there(d.test_x)
    recalibrate(there, d.train_x)
    return {
        RUNNING: running,
        RECALIBRATED: accuracy(there, d.test_x, d.test_y),
        BATCH: right(parts, d.test_y),
        WHOLE: right(whole, d.test_y),
    }


def summarize(runs: Runs) -> Summary:
    """The claim is that recalibrated statistics are better than running ones: on the way, and after small batches."""
    smallest, largest = min(runs.values("batch")), max(runs.values("batch"))
    early = {s: [sum(of[:-1]) / len(of[:-1]) for of in runs.each(s, batch=largest)] for s in STYLES}
    end = {s: [of[-1] for of in runs.each(s, batch=smallest)] for s in STYLES}
    soon, late = (st.verdict(of[RECALIBRATED], of[RUNNING]) for of in (early, end))
    noisy = st.verdict(end[RUNNING], end[BATCH])
    way = {"running": st.percent(early[RUNNING]), "fresh": st.percent(early[RECALIBRATED])}
    last = {"running": st.percent(end[RUNNING]), "fresh": st.percent(end[RECALIBRATED])}
    finding = [
        say("running-statistics.way", size=largest, **way),
        *st.unclear(soon),
        say("running-statistics.end", size=smallest, **last),
        *st.unclear(late),
        *st.warned("with", end[RECALIBRATED]),
    ]
    reading = _reading(soon, late, noisy, smallest)
    return Summary(st.together([soon, late]), finding, reading, _panels(runs, smallest, largest))


def _reading(soon: str, late: str, noisy: str, smallest: int) -> list[Sentence]:
    def judged(verdict: str, *keys: str) -> list[Sentence]:
        return st.judged(verdict, *(f"running-statistics.{key}" for key in keys))

    chance = judged(noisy, "chance_worse", "chance_better", "chance")
    return [
        *judged(soon, "lag", "lead", "even"),
        *judged(late, "noisy", "good", "fine"),
        say("running-statistics.neighbors"),
        *(sentence | {"size": smallest} for sentence in chance),
        say("running-statistics.but"),
    ]


def _panels(runs: Runs, smallest: int, largest: int) -> list[Panel]:
    sizes = runs.values("batch")
    ends = [
        Series.over_seeds(label(name), style, sizes, [[of[-1] for of in runs.each(name, batch=b)] for b in sizes])
        for name, style in STYLES.items()
    ]
    title, where = label("Test images right, at the end"), label("batch size of training")
    panels = [Panel(title, where, label("%"), ends, x_scale="log2")]
    images = runs.numbers(batch=largest)[0]["images"]
    way = [
        Series.over_seeds(
            label(name), style, [i // largest for i in images], zip(*runs.each(name, batch=largest), strict=True)
        )
        for name, style in STYLES.items()
    ]
    return [*panels, Panel(label("On the way, batches of {size}", size=largest), label("steps"), label("%"), way)]
