"""What is said of running statistics, each sentence once with holes for its numbers, and what a record tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ._records import CONVENTIONS, Doubles, LayerRecord

CONSTANT, DEAD = 1e-6, 1e-3  # of the layer's median: of a variance, of a weight
RUNAWAY = 1e3  # what a channel is multiplied by
HALF = 1.25  # what float16 may make of var + eps

Say = Callable[..., str]  # a sentence of a language, by its key and what fills the holes

_RECALIBRATE = "call bnt.recalibrate(model, train)"
_WIDER = "keep it in float32: after model.half() call layer.float(), then load its state again"
_CAUSED = "({cause}: variance ×{factor}, mean off by {distance} std)"

#: Of a finding by its code, and of the fix it comes with; of the report around them.
SENTENCES = {
    "non-finite": ("{n} of {channels} channels have NaN or infinity; channel {c} has mean {mean} and variance {var}"),
    "non-finite: fix": "find the batch with on_nonfinite='raise', then " + _RECALIBRATE,
    "overflow fp16": (
        "{n} of {channels} channels are infinite in float16, which ends at {end}; channel {c} has mean {mean} and "
        "variance {var}"
    ),
    "overflow fp16: fix": _WIDER + ", or " + _RECALIBRATE,
    "negative variance": "channel {c} has variance {var}",
    "negative variance: fix": _RECALIBRATE,
    "never-updated": "every channel has mean 0 and variance {var}, so it was never updated, or never saved",
    "never-updated: fix": "load the state that has them, or " + _RECALIBRATE,
    "ranks differ": (
        "its running statistics are not the same on all ranks; those of rank {rank} and rank {other} differ by a "
        "factor of {factor} in variance and by {distance} std in mean"
    ),
    "ranks differ: fix": _RECALIBRATE + " on all ranks, each with its data, or load one state on all",
    "left in training": "it is in training mode and the model is not, so in evaluation it normalizes with the batch",
    "left in training: fix": "call model.eval() last, or bnt.freeze for a layer that should not change",
    "shared": (
        "it is called {calls} times per batch, and no running average fits all: call {call} has {factor} times the "
        "variance of the first, and a mean {distance} std away"
    ),
    "shared: fix": "give each call a batch normalization of its own; they may share weight and bias",
    "lag": "its running statistics are not those that the update rule gives at these weights " + _CAUSED,
    "lag: fix": (_RECALIBRATE + "; if lag comes back, look at momentum, and at what changes weights later"),
    "dropout": "its running statistics were gathered with dropout on, but evaluation has it off " + _CAUSED,
    "dropout: fix": "put dropout after batch normalization, or " + _RECALIBRATE,
    "batching": "its running statistics are those of single batches, which differ from those of all data " + _CAUSED,
    "batching: fix": "use larger or better shuffled batches or bnt.SyncBatchNorm, or " + _RECALIBRATE,
    "shift": "its running statistics are those of data unlike the test data " + _CAUSED,
    "shift: fix": "preprocess the test data as in training, or call bnt.recalibrate with data like the test data",
    "and that costs": "{sentence}; that costs {cost} of loss",
    "eps decides": "{n} of {channels} channels have a variance below eps={eps}, which sets their scale",
    "eps decides: fix": "channels that hardly vary say little; keep eps when you port the layer",
    "other eps": "it has eps={eps}, and most layers of the model have eps={usual}",
    "other eps: fix": (
        "keep the eps that the layer was trained with, or change it by bnt.set_eps, which keeps evaluation the same; "
        "{keras} is the default of Keras, {torch} that of PyTorch and Flax"
    ),
    "constant channels": (
        "{n} of {channels} channels hardly vary; channel {c} has variance {var}, and the layer's median is {median}"
    ),
    "constant channels: fix": "look for what sends them the same value for every sample",
    "dead channels": (
        "{n} of {channels} channels have weights of nearly zero; channel {c} gives its bias for every input"
    ),
    "dead channels: fix": ("such channels can be pruned; look for weight decay on the weights of batch normalization"),
    "runaway channels": (
        "{n} of {channels} channels are multiplied by more than {most}; channel {c} is multiplied by {gain}"
    ),
    "runaway channels: fix": "look for inputs that hardly vary, and for a learning rate that is too large",
    "large momentum": (
        "momentum={momentum} is the weight of the new batch, so the statistics are those of the last one or two batches"
    ),
    "large momentum: fix": _RECALIBRATE + " before evaluation; {others} call 1 - momentum by this name",
    "start": (
        "{share} of the statistics still come from their start values, after {batches} batches with momentum={momentum}"
    ),
    "start: fix": _RECALIBRATE + ", or set a larger momentum",
    "few positions": "a batch has {m} positions of a channel, too few for good statistics",
    "few positions: fix": "use larger batches, bnt.SyncBatchNorm, or Renorm",
    "beyond fp16": (
        "{n} of {channels} channels would not survive model.half(); channel {c} has mean {mean} and variance {var}, "
        "and would have {half_mean} and {half_var}"
    ),
    "beyond fp16: fix": _WIDER,
    "never called": "neither evaluation nor training of these data calls it, so nothing is known of it",
    "never called: fix": "pass data that reach it, or remove it from the model",
    # the report
    "the loss": (
        "the loss is {running} in evaluation, {batch} with batch statistics and {after} after recalibration, so the "
        "running statistics cost {cost}"
    ),
    "the batches": (
        "{n} batches of training data were used; they must have the size and order of training, or lag and batching "
        "are confused"
    ),
    "heads": (
        "(m: values of a channel in a batch, worth m_eff independent ones; mean off: how far the means lie apart;\n"
        " variance ×: the stored one over that of the test data, which is the product of the four beside it)"
    ),
    "no fault": "no fault was found",
    "of a layer": "{layer}: {sentence}",
    "layer": "layer {name}",
    "itself": "the model itself",
    "left": "left {name} ({kind}): {reason}",
    "left without statistics": "it has no running statistics (track_running_stats=False)",
    "left by switch": "it is frozen (update_running_stats=False)",
    "left by freeze": "it is frozen (by freeze)",
    "left alone": "no batch reached it",
    # recalibrations
    "recalibrated": "recalibrated {layers} ({how}: {definition}) from {samples} samples in {batches}, in {passes}",
    "how whole": "the whole data as one batch",
    "how pooled": "the moments of all batches, merged",
    "how batches": "the mean over batches",
    "norms one": "1 batch normalization",
    "norms many": "{n} batch normalizations",
    "batches one": "one batch",
    "batches many": "{n} batches",
    "passes one": "one pass",
    "passes many": "{n} passes",
    "moved": (
        "the mean of {layer} moved most, by {distance}; the variance of {other} changed most, by a factor of {factor}"
    ),
    "std one": "1 standard deviation",
    "std many": "{n} standard deviations",
    "batches skipped": "left out {batches} with NaN or infinity",
    "wrapped": "{kind}: the model inside was used",
    "again memory": "{passes} passes over the data: memory did not allow one",
    "again state": "{passes} passes over the data: the model keeps values on its modules",
    "again threads": (
        "{passes} passes over the data: the model changes autocast or the like around its layers, so each batch needs "
        "a thread"
    ),
    # heads of columns, and marks of the drawing
    "head layer": "layer",
    "head channel": "channel",
    "head variance": "variance",
    "head variance ×": "variance ×",
    "head mean off": "mean off",
    "head loss": "loss",
    "cause lag": "lag",
    "cause dropout": "dropout",
    "cause batching": "batching",
    "cause shift": "shift",
    "mark variance": "var",
    "mark mean": "mean",
    # the page
    "page wrong": "What is wrong with the running statistics",
    "page well": "No fault was found",
    "page findings": "Findings, the worst first",
    "page variance": "running variance",
    "page mean": "running mean",
    "page off": "off by {distance} std",
    "page positions": "{m} in a batch, worth {worth}",
    "page put back": "put back alone",
    "page loss": "loss {loss}, {cost}",
    "page factors": "factors of the variance: {factors}",
    "page channels": "The channels",
    "page extremes": "The {n} of {channels} channels that are off by most",
}


def english(key: str, **values: object) -> str:
    """Say a sentence in English."""
    return SENTENCES[key].format(**values)


def reason_key(reason: str) -> str:
    """The key of a reason why a layer was left."""
    return next(key for key, text in SENTENCES.items() if key.startswith("left ") and text == reason)


class Finding(NamedTuple):
    """Something that is wrong with a layer, or, as a remark, that may be."""

    code: str
    layer: str
    sentence: str
    fix: str
    is_remark: bool = False
    numbers: Mapping[str, str] = {}  # in the sentence, by what they are


def finding(code: str, layer: str, numbers: Mapping[str, object], is_remark: bool = False) -> Finding:
    """Make a finding from its numbers, or words; with a cost, the sentence ends with it."""
    said = {name: str(value) for name, value in numbers.items()}
    return Finding(code, layer, *told(code, said), is_remark, said)


def told(code: str, numbers: Mapping[str, str], say: Say = english) -> tuple[str, str]:
    """A finding's sentence and its fix."""
    sentence = say(code, **numbers)
    if "cost" in numbers:
        sentence = say("and that costs", sentence=sentence, cost=numbers["cost"])
    return sentence, say(f"{code}: fix", **numbers)


_OTHERS = [name for name, each in CONVENTIONS.items() if each.weighs == "old" and each.momentum and "," not in name]
#: Who says momentum of the weight of the old value.
OTHERWISE = f"{', '.join(_OTHERS[:-1])} and {_OTHERS[-1]}"


def findings_of(record: LayerRecord) -> list[Finding]:
    """What a record tells by itself."""
    found = []

    def add(code: str, is_remark: bool = False, **numbers: object) -> None:
        found.append(finding(code, record.name, numbers, is_remark))

    channels = record.channels
    mean, var, eps = record.mean, record.var, record.eps or 0.0
    if mean is not None and var is not None:
        finite = np.isfinite(mean) & np.isfinite(var)
        if not finite.all():
            c = int(np.flatnonzero(~finite)[0])
            said = {"n": (~finite).sum(), "channels": channels, "c": c, "mean": f"{mean[c]:g}", "var": f"{var[c]:g}"}
            if record.dtype == "float16" and not (np.isnan(mean) | np.isnan(var)).any():
                add("overflow fp16", **said, end=f"{np.finfo(np.float16).max:g}")
            else:
                add("non-finite", **said)
        elif (var < 0).any():
            c = int(var.argmin())
            add("negative variance", c=c, var=f"{var[c]:g}")
        elif not mean.any() and (var == var[:1]).all() and var[:1] in (0, 1):
            add("never-updated", var=f"{var[0]:g}")
        elif (few := int((var < eps).sum())) > 0:
            add("eps decides", True, n=few, channels=channels, eps=f"{eps:g}")
        elif (constant := var <= CONSTANT * np.median(var)).any():
            c, median = int(var.argmin()), np.median(var)
            add(
                "constant channels",
                True,
                n=constant.sum(),
                channels=channels,
                c=c,
                var=f"{var[c]:.3g}",
                median=f"{median:.3g}",
            )
        if all(each.is_remark for each in found):
            found += _beyond_half(record.name, mean, var, eps)
    if record.weight is not None:
        sizes = np.abs(record.weight)
        dead = (sizes == 0) | (sizes < DEAD * np.median(sizes))
        if dead.any():
            add("dead channels", True, n=dead.sum(), channels=channels, c=int(np.flatnonzero(dead)[0]))
        if var is not None:
            with np.errstate(all="ignore"):  # a variance that is negative, or not finite, is said above
                gains = sizes / np.sqrt(var + eps)
            if (runaway := gains > RUNAWAY).any():
                c, n = int(np.flatnonzero(runaway)[0]), runaway.sum()
                add("runaway channels", True, n=n, channels=channels, most=f"{RUNAWAY:g}", c=c, gain=f"{gains[c]:.3g}")
    momentum, batches = record.momentum, record.batches
    if isinstance(momentum, float) and momentum >= 0.5:
        add("large momentum", True, momentum=f"{momentum:g}", others=OTHERWISE)
    elif isinstance(momentum, float) and batches and (left := (1 - momentum) ** batches) > 0.01:
        add("start", True, share=f"{left:.0%}", batches=batches, momentum=f"{momentum:g}")
    return found


def _beyond_half(name: str, mean: Doubles, var: Doubles, eps: float) -> list[Finding]:
    """Running statistics, sound ones, of which float16 makes others. PyTorch's kernels keep eps in a wider type."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        half_mean, half_var = (each.astype(np.float16).astype(np.float64) for each in (mean, var))
        factor = (half_var + eps) / (var + eps)
    lost = np.isinf(half_mean) | (factor > HALF) | (factor < 1 / HALF)
    if not lost.any():
        return []
    c = int(np.flatnonzero(lost)[0])
    numbers = {
        "n": lost.sum(),
        "channels": len(var),
        "c": c,
        "mean": f"{mean[c]:.3g}",
        "var": f"{var[c]:.3g}",
        "half_mean": f"{half_mean[c]:.3g}",
        "half_var": f"{half_var[c]:.3g}",
    }
    return [finding("beyond fp16", name, numbers, is_remark=True)]
