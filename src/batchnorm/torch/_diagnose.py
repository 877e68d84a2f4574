"""`diagnose`: what is wrong with the running statistics of a model, where, by how much, and what it costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

from .._records import Doubles, Finding, LayerRecord, findings_of
from . import _options, _shared
from ._batches import Batches, Forward
from ._causes import CAUSES, Causes, DiagnosedLayer, positions_said, typical, typical_factor
from ._diagnosis_page import Healthy, frame, page
from ._layer_inputs import gather, put_back
from ._norms import Norm, check_model, correction_of, layer_said, norms_of, record_of
from ._recalibrate import How, recalibrate, unwrapped

Tensor = torch.Tensor
Loss = Callable[[nn.Module, Any], Any]

WHO = "diagnose"
FACTOR, DISTANCE, COST = 1.25, 0.25, 0.1  # of a variance, of a mean in std, of the recalibrated loss
SLIGHT = 0.5  # of these, where the loss says the rest
LEAST = 16  # positions of a channel in a batch
_SAID = {
    "lag": (
        "are not those that the update rule gives at these weights",
        "call bnt.recalibrate(model, train); if lag comes back, look at momentum, and at what changes weights later",
    ),
    "dropout": (
        "were gathered with dropout on, but evaluation has it off",
        "put dropout behind batch normalization, or call bnt.recalibrate(model, train)",
    ),
    "batching": (
        "are those of single batches, which differ from those of all data",
        "use larger or better shuffled batches or bnt.SyncBatchNorm, or call bnt.recalibrate(model, train)",
    ),
    "shift": (
        "are of other data than the test",
        "prepare the test's inputs as those of training, or call bnt.recalibrate with data like the test's",
    ),
}


class Diagnosis:
    """What `diagnose` found: `print` it.

    Attributes
    ----------
    layers
        A `DiagnosedLayer` each.
    findings
        What is wrong, the worst first: code, layer, sentence, fix.
    losses
        With running, batch and recalibrated statistics; None without `loss`.
    left
        Name, class and reason of each batch normalization that was not diagnosed.
    batches
        How many batches of training data were looked at.
    """

    def __init__(
        self,
        layers: list[DiagnosedLayer],
        findings: list[Finding],
        losses: dict[str, float] | None,
        left: list[tuple[str, str, str]],
        batches: int,
    ) -> None:
        self.layers, self.findings, self.losses, self.left, self.batches = layers, findings, losses, left, batches

    def to_json(self) -> str:
        """As JSON: of each layer the typical factors and distances; what is not finite is null."""
        layers = [
            {
                "name": layer.name,
                "m": layer.m,
                "m_eff": _finite(layer.m_eff),
                "loss": _finite(layer.loss),
                "variance": {cause: _finite(typical_factor(f)) for cause, f in layer.variance._asdict().items()},
                "mean": {cause: _finite(typical(d)) for cause, d in layer.mean._asdict().items()},
            }
            for layer in self.layers
        ]
        findings = [finding._asdict() for finding in self.findings]
        left = [dict(zip(("name", "class", "reason"), each, strict=True)) for each in self.left]
        losses = None if self.losses is None else {name: _finite(value) for name, value in self.losses.items()}
        return json.dumps({"losses": losses, "layers": layers, "findings": findings, "left": left}, indent=2)

    def to_html(self) -> str:
        """As a page, one file without a script: a row for each layer, and on unfolding its extreme channels."""
        return page(self.layers, self.findings, self.losses, self.left, self._first(), Healthy(FACTOR, DISTANCE))

    def _repr_html_(self) -> str:
        return frame(self.to_html())

    def _first(self) -> list[str]:
        lines = []
        if self.losses is not None:
            running, batch, after = (self.losses[name] for name in ("running", "batch", "recalibrated"))
            lines.append(
                f"the loss is {running:.4g} in evaluation, {batch:.4g} with batch statistics and {after:.4g} after "
                f"recalibration, so the running statistics cost {running - after:.4g}"
            )
        lines.append(f"{self.batches} batches of training data were used; their sizes and order tell lag from batching")
        return lines

    def __str__(self) -> str:
        lines = self._first()
        table = [("layer", "m", "m_eff", "variance ×", *CAUSES, "mean off", *(["loss"] if self.losses else []))]
        for layer in self.layers:
            factors = [f"{typical_factor(f):.2f}" for f in (np.prod(layer.variance, axis=0), *layer.variance)]
            off = typical(np.sum(layer.mean, axis=0))
            row = (layer.name, positions_said(layer.m), positions_said(layer.m_eff), *factors, f"{off:.2f} std")
            table.append((*row, *([] if layer.loss is None else [f"{layer.loss:.4g}"])))
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        for row in table:
            cells = [
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        for n, found in enumerate(self.findings, 1):
            lines += [f"{n}  {layer_said(found.layer)}: {found.sentence}", f"   {found.fix}"]
        if not self.findings:
            lines.append("no fault was found")
        return "\n".join(lines)

    __repr__ = __str__


def diagnose(
    model: nn.Module,
    train: Iterable[Any],
    *,
    test: Any = None,
    loss: Loss | None = None,
    samples: int = 1024,
    how: How = "whole",
    forward: Forward = None,
    verbose: bool = True,
) -> Diagnosis:
    """Find out what is wrong with the running statistics of a model, and what that costs. The model stays as it is.

    The statistics that a layer has stored are compared with those of its input on test data, in four steps, each with
    one thing changed:

    lag
        From what is stored to what the update rule would give at the weights of now, with these batches.
    dropout
        From dropout on to off.
    batching
        From single batches to all data as one batch, as `recalibrate` gathers it.
    shift
        From the training data to the test data.

    The four factors of a variance multiply to the whole error, and the four distances of a mean add up to it.

    Parameters
    ----------
    model
        Any module.
    train
        Training data in batches of the size and order of training: an iterable, such as a DataLoader. A batch is a
        tensor, a tuple whose first element is one, or a dict of keyword arguments.
    test
        Other data, in batches of any size. None: the second half of the batches of `train`.
    loss
        Called as ``loss(model, batch)``; returns the mean loss of a batch. With it, each layer's running statistics are
        put back into the recalibrated model by themselves, and the layers are ranked by what that costs.
    samples
        How many samples of each to look at.
    how
        As of `recalibrate`: "pooled" for models whose batches take different branches.
    forward
        Called as ``forward(model, batch)`` in place of ``model(batch)``.
    verbose
        Print the diagnosis.

    Returns
    -------
    Diagnosis
        With `layers`, `findings`, `losses`, `to_html()`, `to_json()`; notebooks show its page.

    Raises
    ------
    TypeError, ValueError
        For fewer than two batches, and for what `recalibrate` refuses.

    Notes
    -----
    Lag does not say why: statistics that were never saved, a momentum that is too small, and weights that were averaged
    afterwards look alike. Costs of layers do not add up.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
    >>> data = [torch.randn(32, 2) * 3 + 1 for _ in range(8)]
    >>> found = bnt.diagnose(model, data, verbose=False).findings[0]
    >>> found.layer, found.code
    ('0', 'never-updated')
    """
    check_model(model, WHO)
    inner, _, _ = unwrapped(model, None)
    samples = _options.SAMPLES.checked(samples, WHO)
    batches, other = _halves(train, test, samples)
    data = _Data(inner, forward, loss)
    records = {str(norm): record_of(norm) for norm in norms_of(inner) if norm.layer.running_mean is not None}
    losses = None if loss is None else {"running": data.loss(other)}
    with recalibrate(inner, batches, how=how, forward=forward, verbose=False) as done:
        reached = {layer.name for layer in done.layers}
        norms = [norm for norm in norms_of(inner) if str(norm) in reached]
        costs: list[float | None] = [None] * len(norms)
        if losses is not None:
            losses |= {"batch": data.loss(other, norms), "recalibrated": data.loss(other)}
            costs = [_with(norm.layer, records[str(norm)], lambda: data.loss(other)) for norm in norms]
        after = [record_of(norm) for norm in norms]
        last = data.tables(other, norms, "stored")
        noisy, plain = (data.tables(batches, norms, "batch", training=on) for on in (True, False))
    layers = []
    for i, norm in enumerate(norms):
        was, became, correction = records[str(norm)], after[i], correction_of(norm.layer)
        steps = [
            (was.mean, was.var),
            _of_batches(noisy[i], correction),
            _of_batches(plain[i], correction),
            (became.mean, became.var),
            _of_all(last[i], correction),
        ]
        layers.append(_layer(was, steps, plain[i], costs[i]))
    findings = _ranked(layers, [records[layer.name] for layer in layers], losses)
    found = Diagnosis(layers, findings, losses, done.left, len(batches))
    if verbose:
        print(found)
    return found


# --- data ---


class _Data:
    """Batches through the model."""

    def __init__(self, model: nn.Module, forward: Forward, loss: Loss | None) -> None:
        self._model, self._forward, self._loss = model, forward, loss

    def tables(
        self, data: Any, norms: list[Norm], normalize_with: Literal["stored", "batch"], *, training: bool = False
    ) -> list[Tensor]:
        """For each layer the moments of all batches, (4, batches, C)."""
        found: list[list[Tensor]] = [[] for _ in norms]
        batches = Batches(self._model, data, forward=self._forward, who=WHO)
        gather(
            self._model,
            norms,
            batches,
            lambda _, i, table: found[i].append(table),
            normalize_with=normalize_with,
            training=training,
        )
        return [torch.stack(its, 1).cpu().double() for its in found]

    def loss(self, data: Any, by_batch: list[Norm] | None = None) -> float:
        """The mean over samples, with stored statistics; with those of each batch in some layers."""
        of, values = self._loss, list[float]()
        assert of is not None
        batches = Batches(
            self._model, data, forward=lambda model, batch: values.append(float(of(model, batch))), who=WHO
        )
        how: Any = "stored" if by_batch is None else "batch"
        gather(self._model, by_batch or [], batches, lambda *_: None, normalize_with=how)
        return float(np.average(values, weights=batches.sizes))


def _halves(train: Any, test: Any, samples: int | None) -> tuple[list[Any], list[Any]]:
    """Training batches, and the others to compare with."""
    batches = _taken(train, samples, "train")
    least = 2 if test is not None else 4
    if len(batches) < least:
        raise ValueError(
            f"{WHO}: train must have {least} batches at least, as in training, to tell them from each other"
            f"{'' if test is not None else ' and from the second half'}; got {len(batches)}. Pass more, or raise "
            "samples"
        )
    if test is not None:
        return batches, _taken(test, samples, "test")
    return batches[: len(batches) // 2], batches[len(batches) // 2 :]


def _taken(data: Any, samples: int | None, name: str) -> list[Any]:
    """The first batches, kept: all steps see the same."""
    if isinstance(data, (Tensor, np.ndarray, str, dict)) or not isinstance(data, Iterable):
        raise TypeError(
            f"{WHO}: {name} must be an iterable of batches, as in training; got {type(data).__name__}; use "
            "data.split(batch_size), or a DataLoader"
        )
    taken: list[Any] = []
    count = 0
    for batch in data:
        taken.append(batch)
        leaves = [leaf for leaf in _pytree.tree_leaves(batch) if hasattr(leaf, "shape") and len(leaf.shape)]
        count += int(leaves[0].shape[0]) if leaves else 1
        if samples is not None and count >= samples:
            break
    return taken


def _with(layer: Any, record: LayerRecord, run: Callable[[], float]) -> float:
    """What comes out with other statistics in a layer."""
    buffers = (layer.running_mean, layer.running_var)
    kept = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        put_back([(b, torch.from_numpy(v)) for b, v in zip(buffers, (record.mean, record.var), strict=True)])
        return run()
    finally:
        put_back(kept)


# --- from moments to causes ---


def _of_batches(tables: Tensor, correction: int) -> tuple[Doubles, Doubles]:
    """To what an average of batches would converge."""
    count, mean, low, m2 = tables.numpy()
    return (mean + low).mean(0), (m2 / (count - correction)).mean(0)


def _of_all(tables: Tensor, correction: int) -> tuple[Doubles, Doubles]:
    count, mean, low, m2 = _shared.merged(tables).numpy()
    return mean + low, m2 / (count - correction)


def _layer(record: LayerRecord, steps: list[Any], batches: Tensor, cost: float | None) -> DiagnosedLayer:
    eps = record.eps
    with np.errstate(all="ignore"):  # a variance that is negative, or not finite
        std = np.sqrt(steps[-1][1] + eps)
        pairs = list(pairwise(steps))
        variance = Causes(*((a[1] + eps) / (b[1] + eps) for a, b in pairs))
        mean = Causes(*((a[0] - b[0]) / std for a, b in pairs))
        count, means, _, m2 = batches.numpy()
        worth = (m2 / count).mean(0) / means.var(0, ddof=1)
    return DiagnosedLayer(
        record.name, variance, mean, m := float(count.mean()), min(m, float(np.nanmedian(worth))), cost
    )


def _size(variance: Doubles, mean: Doubles) -> float:
    """How much a cause does; 1 is worth a word."""
    return max(abs(math.log(typical_factor(variance))) / math.log(FACTOR), typical(mean) / DISTANCE)


# --- what to say ---


def _ranked(layers: list[DiagnosedLayer], records: list[LayerRecord], losses: dict[str, float] | None) -> list[Finding]:
    """By cost, where it is known; then by what is off."""
    found: list[tuple[float, Finding]] = []
    for layer, record in zip(layers, records, strict=True):
        own = findings_of(record)
        sizes = {cause: _size(v, m) for cause, v, m in zip(CAUSES, layer.variance, layer.mean, strict=True)}
        if (shift := sizes.pop("shift")) >= 1:  # recalibration by training data does not mend it
            found.append((shift if losses is None else 1.0, _caused(layer, "shift", None)))
        cause = max(sizes, key=lambda name: sizes[name])
        size = _size(np.prod(layer.variance[:3], axis=0), np.sum(layer.mean[:3], axis=0))  # causes may cancel
        cost, counts = None, size >= 1
        if losses is not None and layer.loss is not None:
            cost = layer.loss - losses["recalibrated"]
            counts = size >= SLIGHT and cost > COST * losses["recalibrated"]
        lags = counts and cause == "lag"  # else what is left of the start does not matter, or was replaced
        own = [each for each in own if each.code != "start" or lags]
        found += [(0.0 if each.is_remark else math.inf, each) for each in own]
        if counts and all(each.is_remark for each in own):
            found.append((size if cost is None else 1 + cost, _caused(layer, cause, cost)))
        if layer.m < LEAST:
            found.append((0.0, _few(layer)))
    return [each for _, each in sorted(found, key=lambda pair: -pair[0])]


def _caused(layer: DiagnosedLayer, cause: str, cost: float | None) -> Finding:
    i = CAUSES.index(cause)
    rule, fix = _SAID[cause]
    sentence = (
        f"its running statistics {rule} ({cause}: variance ×{typical_factor(layer.variance[i]):.3g}, mean off by "
        f"{typical(layer.mean[i]):.2g} std)"
    )
    return Finding(cause, layer.name, sentence + ("" if cost is None else f"; that costs {cost:.4g} of loss"), fix)


def _few(layer: DiagnosedLayer) -> Finding:
    return Finding(
        "few positions",
        layer.name,
        f"a batch has {layer.m:g} positions of a channel, too few for good statistics",
        "use larger batches, bnt.SyncBatchNorm, or Renorm",
        True,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
