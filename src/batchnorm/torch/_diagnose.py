"""`diagnose`: what is wrong with the running statistics of a model, where, by how much, and what it costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

from .._findings import SENTENCES, Finding, finding, findings_of
from .._options import shown
from .._records import CONVENTIONS, Doubles, LayerRecord
from . import _options, _shared
from ._batches import Batches, Forward
from ._causes import CAUSES, Causes, DiagnosedLayer, typical, typical_factor
from ._contexts import check_outside
from ._definitions import Progress
from ._diagnosis import DISTANCE, FACTOR, Diagnosis
from ._layer_inputs import gather, put_back
from ._lockstep import SKIP
from ._norms import Norm, check_readable, correction_of, norms_of, record_of
from ._peers import Peers, Said
from ._recalibrate import How, recalibrate, unwrapped
from ._uses import Seen, left_in_training, of_calls

Tensor = torch.Tensor
Loss = Callable[[nn.Module, Any], Any]

WHO = "diagnose"
COST = 0.1  # of the recalibrated loss
SLIGHT = 0.5  # of FACTOR and DISTANCE, where the loss says the rest
LEAST = 16  # positions of a channel in a batch


def diagnose(
    model: nn.Module,
    train: Iterable[Any],
    *,
    test: Any = None,
    loss: Loss | None = None,
    samples: int = 1024,
    how: How = "whole",
    forward: Forward = None,
    group: Any = None,
    progress: Progress | None = None,
    verbose: bool = True,
) -> Diagnosis:
    """Find out what is wrong with the running statistics of a model, and what that costs. The model stays as it is.

    The statistics that a layer has stored are compared with those of its input on test data, in four steps, each with
    one thing changed:

    lag
        From what is stored to what the update rule gives with the present weights and these batches.
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
    group
        A process group, or None, as of `recalibrate`. All ranks call this, each with its data; whether they have the
        same running statistics is looked at, too.
    progress
        Called as ``progress(phase, total)``; returns a function that is told how much has been done since.
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
    check_readable(model, WHO)
    inner, group, _ = unwrapped(model, group)
    samples = _options.SAMPLES.checked(samples, WHO)
    known = [norm for norm in norms_of(inner) if norm.layer.running_mean is not None]
    check_outside(known, WHO, among=("_masked",))
    records = {str(norm): record_of(norm) for norm in known}
    data = _Data(inner, forward, loss)
    peers = _peers_of(known, group)
    try:
        batches, other = _halves(train, test, samples)
        losses = None if loss is None else {"running": data.loss(other)}
        more = [*_of_ranks(known, peers), *left_in_training(inner, known)]
    except BaseException:
        peers.fail()
        raise
    peers.end()
    try:
        recalibrated = recalibrate(
            inner, batches, how=how, forward=forward, group=group, progress=progress, verbose=False
        )
    except ValueError as error:
        said = str(error).removeprefix("recalibrate: ").removesuffix(f", or {SKIP}")
        raise ValueError(f"{WHO}: it compares with the recalibrated model, and there is none: {said}") from error
    with recalibrated as done:
        reached = {layer.name for layer in done.layers}
        norms = [norm for norm in norms_of(inner) if str(norm) in reached]
        costs: list[float | None] = [None] * len(norms)
        advance = (progress or _silent)("diagnosing", 3 + (0 if losses is None else 2 + len(norms)))
        if losses is not None:
            losses["batch"] = data.loss(other, norms)
            advance(1)
            losses["recalibrated"] = data.loss(other)
            advance(1)
            for i, norm in enumerate(norms):
                costs[i] = _with(norm.layer, records[str(norm)], lambda: data.loss(other))
                advance(1)
        after = [record_of(norm) for norm in norms]
        last = data.tables(other, norms, "stored")
        advance(1)
        noisy = data.tables(batches, norms, "batch", training=True)
        advance(1)
        plain = data.tables(batches, norms, "batch")
        advance(1)
        alone = {name for name, _, reason in done.left if reason == SENTENCES["left alone"]}
        more += _never_called(data, batches, [norm for norm in known if str(norm) in alone])
    most = math.inf  # of a rank; a loss that batch statistics hardly improve makes it a remark's
    if losses is not None:
        most = float(losses["recalibrated"] - losses["batch"] > COST * losses["recalibrated"])
    layers = []
    for i, norm in enumerate(norms):
        was, became, correction = records[str(norm)], after[i], correction_of(norm.layer)
        steps = [
            (was.mean, was.var),
            _of_batches(noisy[i].moments, correction),
            _of_batches(plain[i].moments, correction),
            (became.mean, became.var),
            _of_all(last[i].moments, correction),
        ]
        layers.append(_layer(was, steps, plain[i].moments, costs[i]))
        more += of_calls(was, plain[i], most)
    findings = _ranked(layers, [records[layer.name] for layer in layers], losses, more)
    found = Diagnosis(layers, findings, losses, done.left, len(batches))
    if verbose:
        print(found)
    return found


def _silent(phase: str, total: int) -> Callable[[int], None]:
    return lambda done: None


# --- data ---


class _Data:
    """Batches through the model."""

    def __init__(self, model: nn.Module, forward: Forward, loss: Loss | None) -> None:
        self._model, self._forward, self._loss = model, forward, loss

    def tables(
        self, data: Any, norms: list[Norm], normalize_with: Literal["stored", "batch"], *, training: bool = False
    ) -> list[Seen]:
        """For each layer the moments of all batches."""
        found: list[list[tuple[int, Tensor]]] = [[] for _ in norms]
        batches = Batches(self._model, data, forward=self._forward, who=WHO)
        gather(
            self._model,
            norms,
            batches,
            lambda number, i, table: found[i].append((number, table)),
            normalize_with=normalize_with,
            training=training,
        )
        return [
            Seen(torch.stack([table for _, table in its], 1).cpu().double(), [number for number, _ in its])
            for its in found
        ]

    def reached(self, data: Any, norms: list[Norm]) -> set[int]:
        """Which layers are called where all others are in training mode."""
        found: set[int] = set()
        batches = Batches(self._model, data, forward=self._forward, who=WHO)
        gather(self._model, norms, batches, lambda _, i, __: found.add(i), normalize_with="stored", training=True)
        return found

    def loss(self, data: Any, by_batch: list[Norm] | None = None) -> float:
        """The mean over samples, with stored statistics; with those of each batch in some layers."""
        of, values = self._loss, list[Any]()
        assert of is not None
        batches = Batches(self._model, data, forward=lambda model, batch: values.append(of(model, batch)), who=WHO)
        how: Any = "stored" if by_batch is None else "batch"
        gather(self._model, by_batch or [], batches, lambda *_: None, normalize_with=how)
        return float(np.average([_loss_of(value) for value in values], weights=batches.sizes))


def _loss_of(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
        raise TypeError(f"{WHO}: loss must return a number, the mean over a batch; got {got}; use its mean()") from None


def _peers_of(norms: list[Norm], group: Any) -> Peers:
    """The ranks; ValueError where they have other models."""
    layers = [norm.layer for norm in norms]
    device = layers[0].running_mean.device if layers else torch.device("cpu")
    peers = Peers(group, [layer.num_features for layer in layers] or [1], device, WHO)
    peers.check_alike()
    return peers


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


def _ranked(
    layers: list[DiagnosedLayer],
    records: list[LayerRecord],
    losses: dict[str, float] | None,
    more: list[tuple[float, Finding]],
) -> list[Finding]:
    """By cost, where it is known; then by what is off. `more`: what was found by other means."""
    found = [*more]
    shared = {each.layer for _, each in more if each.code == "shared"}
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
        is_said = cause == "batching" and layer.name in shared  # its calls are the batches that differ
        if counts and not is_said and all(each.is_remark for each in own):
            found.append((size if cost is None else 1 + cost, _caused(layer, cause, cost)))
        if layer.m < LEAST:
            found.append((0.0, finding("few positions", layer.name, {"m": f"{layer.m:g}"}, is_remark=True)))
    found += [(0.0, each) for each in _other_eps(records)]
    return [each for _, each in sorted(found, key=lambda pair: -pair[0])]


def _caused(layer: DiagnosedLayer, cause: str, cost: float | None) -> Finding:
    i = CAUSES.index(cause)
    numbers = {
        "cause": cause,
        "factor": f"{typical_factor(layer.variance[i]):.3g}",
        "distance": f"{typical(layer.mean[i]):.2g}",
    }
    return finding(cause, layer.name, numbers if cost is None else numbers | {"cost": f"{cost:.4g}"})


def _other_eps(records: list[LayerRecord]) -> list[Finding]:
    """Layers whose eps is not that of most: it may have been left behind when they were ported."""
    counts = Counter(record.eps for record in records)
    (usual, most), *_ = counts.most_common(1) or [(None, 0)]
    if usual is None or 2 * most <= len(records):
        return []
    defaults = {"keras": f"{CONVENTIONS['Keras'].eps:g}", "torch": f"{CONVENTIONS['PyTorch'].eps:g}"}
    return [
        finding("other eps", each.name, defaults | {"eps": f"{each.eps:g}", "usual": f"{usual:g}"}, is_remark=True)
        for each in records
        if each.eps != usual
    ]


def _never_called(data: _Data, batches: list[Any], norms: list[Norm]) -> list[tuple[float, Finding]]:
    """Of layers that no evaluation reaches those that training does not reach either: a head of training is well."""
    reached = data.reached(batches, norms) if norms else set()
    return [
        (0.0, finding("never called", str(norm), {}, is_remark=True))
        for i, norm in enumerate(norms)
        if i not in reached
    ]


def _of_ranks(norms: list[Norm], peers: Peers) -> list[tuple[float, Finding]]:
    """Layers whose running statistics are not the same on all ranks: how far apart, and what to say."""
    found = []
    for i, norm in enumerate(norms):
        own = torch.stack([norm.layer.running_mean, norm.layer.running_var]).detach().double()
        tables = [each.table.numpy() for each in peers.exchange(Said(i, 0, 0, own.cpu())) if each.table is not None]
        apart = [_apart(tables[0], table, norm.layer.eps) for table in tables]
        far = max(range(len(apart)), key=lambda rank: apart[rank][0])
        if apart[far][0] > 0:
            size, factor, distance = apart[far]
            numbers = {"rank": 0, "other": far, "factor": f"{factor:.3g}", "distance": f"{distance:.2g}"}
            found.append((size if size >= 1 else 0.0, finding("ranks differ", str(norm), numbers, size < 1)))
    return found


def _apart(one: Doubles, other: Doubles, eps: float) -> tuple[float, float, float]:
    """How far two ranks' mean and variance lie apart, 0 for the same bits; their factor, and their distance in std."""
    if one.tobytes() == other.tobytes():
        return 0.0, 1.0, 0.0
    with np.errstate(all="ignore"):
        factor, distance = (other[1] + eps) / (one[1] + eps), (other[0] - one[0]) / np.sqrt(one[1] + eps)
        size = _size(factor, distance)
    return math.inf if math.isnan(size) else max(size, 1e-300), typical_factor(factor), typical(distance)
