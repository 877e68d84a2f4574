"""Training or running statistics: one trained network, tested with statistics from four sources."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .. import statistics as st
from ..data import Data
from ..experiment import Numbers, Panel, Plan, Runs, Series, Setting, Summary
from ..networks import batch_norm_2d, convolutional
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
    better = ("recalibrating helps", "recalibrating hurts")
    finding = (
        f"on the way with batches of {largest} {st.percent(early[RUNNING])} right with running statistics, "
        f"{st.percent(early[RECALIBRATED])} recalibrated: {st.judged(soon, *better)}; at the end, with batches of "
        f"{smallest}, {st.percent(end[RUNNING])} running, {st.percent(end[RECALIBRATED])} recalibrated: "
        f"{st.judged(late, *better)} ({st.count(runs.seeds)})"
    )
    return Summary(
        st.together([soon, late]), finding[0].upper() + finding[1:], _reading(soon, late, noisy, smallest, largest),
        _panels(runs, smallest, largest),
    )  # fmt: skip


def _reading(soon: str, late: str, noisy: str, smallest: int, largest: int) -> tuple[str, str]:
    lag = st.judged(
        soon,
        "On the way the running statistics lag behind the network they belong to",
        "On the way the running statistics did better than fresh ones",
        "On the way the running statistics were not clearly behind the network they belong to",
    )
    small = st.judged(
        late,
        "at the end of small batches they were too noisy",
        "at the end of small batches they were the better ones",
        "at the end of small batches they were no clear problem",
    )
    chance = st.judged(
        noisy,
        "Statistics of the test batch make an answer depend on its neighbors, and were worse",
        "Statistics of the test batch make an answer depend on its neighbors, yet were better",
        "Statistics of the test batch make an answer depend on its neighbors, though not clearly for the worse",
    )
    return (
        f"{lag}; {small}.",
        f"{chance} with batches of {smallest}; with larger momentum or longer training the lag is another one, and the "
        "training images' statistics are a good stand-in only while the test images are alike.",
    )


def _panels(runs: Runs, smallest: int, largest: int) -> list[Panel]:
    sizes = runs.values("batch")
    ends = [
        Series.over_seeds(name, style, sizes, [[of[-1] for of in runs.each(name, batch=b)] for b in sizes])
        for name, style in STYLES.items()
    ]
    panels = [Panel("Test images right, at the end", "batch size of training", "%", ends, x_scale="log2")]
    images = runs.numbers(batch=largest)[0]["images"]
    way = [
        Series.over_seeds(
            name, style, [i // largest for i in images], zip(*runs.each(name, batch=largest), strict=True)
        )
        for name, style in STYLES.items()
    ]
    return [*panels, Panel(f"On the way, batches of {largest}", "steps", "%", way)]
