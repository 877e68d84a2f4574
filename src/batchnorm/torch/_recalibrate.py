"""`recalibrate`: running statistics become those of some data, at the weights that the model has now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from .._findings import SENTENCES
from . import _options
from ._batches import Batches, Forward
from ._contexts import check_outside
from ._definitions import WHO, ByBatch, Progress, Statistics, Whole
from ._free import free_memory
from ._freeze import is_kept_in_evaluation
from ._layer_inputs import STATISTICS, put_back, statistics_of
from ._lockstep import Note
from ._norms import Norm, Only, check_readable, chosen, layer_said, norms_of
from ._peers import Peers
from ._recalibration import RecalibratedLayer, Recalibration
from ._report import Left, counted, lines_of

Tensor = torch.Tensor
How = Literal["whole", "pooled", "batches"]


def recalibrate(
    model: nn.Module,
    data: Any,
    *,
    how: How = "whole",
    samples: int | None = None,
    forward: Forward = None,
    only: Only = None,
    on_nonfinite: Literal["raise", "skip"] = "raise",
    group: Any = None,
    max_memory: int | None = None,
    progress: Progress | None = None,
    verbose: bool = True,
) -> Recalibration:
    """Compute the running statistics of a model anew from data, with the weights that it has now.

    Weights may have been averaged (EMA, SWA), replaced (schedule-free optimizers), loaded or fine-tuned since. Then the
    running statistics belong to other weights. The three definitions differ in what they call the statistics of the
    data:

    "whole"
        Those of the whole data as one batch: of what a layer gets in evaluation, with the new statistics in all layers
        before it. So in evaluation on these data the normalized output of every layer has mean 0 and variance
        ``var (n - 1) / n / (var + eps)``. Batch sizes, order and ranks do not matter.
    "pooled"
        The moments of all batches, merged, where the layers before normalize by the batch (Wu and Johnson 2021). Takes
        any control flow. The batch size matters.
    "batches"
        The mean and the variance of each batch, averaged over the batches, where the layers before normalize by the
        batch (Ioffe and Szegedy 2015, algorithm 2; `torch.optim.swa_utils.update_bn`). Each batch weighs the same,
        whatever its size.

    All other layers, such as dropout, are in evaluation mode in all three.

    Parameters
    ----------
    model
        Any module, in any mode and on any device; torch.nn's batch normalizations, their subclasses, and ours.
    data
        An iterable of batches (a DataLoader, a list); with "whole" also one tensor or array of samples. A batch is a
        tensor, a tuple whose first element is one, or a dict of keyword arguments. It is moved to the model's device.
    how
        Which definition.
    samples
        Stop after the batch that completes this number of samples. None: use all.
    forward
        Called as ``forward(model, batch)`` in place of ``model(batch)``; it may take batches of any kind.
    only
        Which layers: names or patterns (``"backbone.*"``), or a function of a name and a module. None: all.
    on_nonfinite
        What NaN or infinity in a batch does: "raise", or "skip": the batch is left out from that layer on.
    group
        A process group whose ranks each have a part of the data, or none. None: all processes, or this one where
        torch.distributed is not initialized. All ranks call this, and get the same bits.
    max_memory
        Bytes that the batches in flight may hold; "whole" reads the data several times where it needs more. None: half
        of what is free.
    progress
        Called as ``progress(phase, total)``; returns a function that is told how much has been done since.
    verbose
        Print what was done, and what was left and why.

    Returns
    -------
    Recalibration
        With `layers`, `undo()`, `to_json()`; as a context manager it undoes itself at the end.

    Raises
    ------
    TypeError, ValueError
        For data without a batch or with one position in all; a batch that fails or has NaN or infinity; with "whole"
        also for batches that take different branches, and layers that are called twice. Nothing is changed then, nor
        when it is interrupted: no buffer, mode, hook, count, or state of a random generator.

    Notes
    -----
    Layers that no batch reaches, that are frozen, or have no running statistics are left as they are, and named.
    `num_batches_tracked` becomes the number of batches. "whole" runs all batches side by side, from layer to layer;
    where that needs too much memory, or the model keeps values on its modules between calls, it reads the data again
    for each layer instead, with the same result.

    References
    ----------
    Ioffe and Szegedy (2015), Batch normalization. Wu and Johnson (2021), Rethinking "Batch" in BatchNorm.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Dropout(), torch.nn.BatchNorm1d(1))
    >>> data = [torch.tensor([[1.0], [3.0]]), torch.tensor([[9.0], [11.0], [13.0]])]
    >>> done = bnt.recalibrate(model, data, verbose=False)
    >>> model[0].running_mean, model[0].running_var  # of 1, 3, 9, 11 and 13
    (tensor([7.4000]), tensor([26.8000]))
    >>> done.undo()
    >>> model[0].running_mean
    tensor([0.])
    """
    check_readable(model, WHO)
    how = _options.HOW.checked(how, WHO)
    samples = _options.SAMPLES.checked(samples, WHO)
    max_memory = _options.MAX_MEMORY.checked(max_memory, WHO)
    skip = _options.ON_NONFINITE_BATCH.checked(on_nonfinite, WHO) == "skip"
    inner, group, notes = unwrapped(model, group)
    norms, left = _to_recalibrate(inner, only)
    batches = Batches(inner, data, forward=forward, samples=samples, who=WHO)
    if batches.is_one and how != "whole":
        raise ValueError(
            f"{WHO}: how={how!r} depends on the batches, so data must be an iterable of them; got one tensor or "
            "array. Use data.split(batch_size)"
        )
    peers = Peers(group, [norm.layer.num_features for norm in norms], batches.device, WHO)
    work = (Whole if how == "whole" else ByBatch)(norms, batches, peers, skip, progress)
    try:
        peers.check_alike(get_args(How).index(how))
        work.gather(inner, how, free_memory(batches.device) / 2 if max_memory is None else max_memory)
        with peers.agreed():
            new = {i: work.statistics(i) for i in work.found}
    except BaseException:
        peers.fail()
        raise
    peers.end()
    left += [
        (str(norm), type(norm.layer).__name__, SENTENCES["left alone"]) for i, norm in enumerate(norms) if i not in new
    ]
    layers = [_compared(norms[i], new[i]) for i in sorted(new)]
    before = _written([(norms[i], new[i], work.batches) for i in sorted(new)])
    done = Recalibration(how, layers, work.report, work.batches, work.samples, left, notes, before)
    if verbose:
        print("\n".join([str(done), *lines_of(left)]))
    return done


# --- which layers ---


def unwrapped(model: nn.Module, group: Any) -> tuple[nn.Module, Any, list[Note]]:
    """The model in its wrappers, the process group they say, and that they were taken off."""
    notes: list[Note] = []
    while True:
        kinds = {kind.__name__ for kind in type(model).__mro__}
        if kinds & {"FullyShardedDataParallel", "FSDPModule"}:
            raise ValueError(
                f"{WHO}: the model must have its parameters whole; got a {type(model).__name__}, whose parameters are "
                "spread over ranks. Load a full state_dict into a plain model, and recalibrate that"
            )
        if "DistributedDataParallel" in kinds and group is None:
            group = model.process_group
        wrapper = kinds & {"DistributedDataParallel", "DataParallel", "AveragedModel"}
        wrapper |= {kind for kind in kinds if kind.startswith("ModelEma")}
        inner = getattr(model, "_orig_mod" if "OptimizedModule" in kinds else "module", None)
        if not (wrapper or "OptimizedModule" in kinds) or not isinstance(inner, nn.Module):
            return model, group, notes
        notes.append(Note("wrapped", {"kind": type(model).__name__}))
        model = inner


def _to_recalibrate(model: nn.Module, only: Only) -> tuple[list[Norm], list[Left]]:
    for name, module in model.named_modules():
        if isinstance(module, LazyModuleMixin) and _is_lazy(module):
            raise ValueError(
                f"{WHO}: the model must have all its parameters; got {name or 'itself'} ({type(module).__name__}), "
                "which is lazy and has none yet. Call the model once first"
            )
    norms: list[Norm] = []
    left: list[Left] = []
    selected = chosen(norms_of(model), only, WHO)
    check_outside(selected, WHO, among=("_masked",))  # a mask that is passed is no change of a layer
    for norm in selected:
        if reason := _why_left(norm.layer):
            left.append((str(norm), type(norm.layer).__name__, reason))
        else:
            norms.append(norm)
    if not norms:
        found = f"{counted(len(left))}: {layer_said(left[0][0])}, {left[0][2]}" if left else "none"
        raise ValueError(
            f"{WHO}: the model must have a batch normalization that can be recalibrated, one that derives from "
            f"torch.nn's and has running statistics; got {found}"
        )
    if any(buffer.is_meta for norm in norms for buffer in statistics_of(norm.layer)):
        raise ValueError(f"{WHO}: the model must have values; got one on meta. Use model.to_empty(device=...), load it")
    return norms, left


def _is_lazy(module: Any) -> bool:
    return bool(module.has_uninitialized_params())


def _why_left(layer: Any) -> str:
    if layer.running_mean is None or layer.running_var is None:
        return SENTENCES["left without statistics"]
    if getattr(layer, "update_running_stats", None) is False:
        return SENTENCES["left by switch"]
    if is_kept_in_evaluation(layer):
        return SENTENCES["left by freeze"]
    return ""


# --- what becomes of the layers ---


def _compared(norm: Norm, new: Statistics) -> RecalibratedLayer:
    layer, (mean, var, _, positions) = norm.layer, new
    before, var_before = (t.detach().to(mean) for t in (layer.running_mean, layer.running_var))
    moved = (mean - before) / (var + layer.eps).sqrt()
    ratio = torch.where(var == var_before, 1.0, var / var_before)
    return RecalibratedLayer(str(norm), positions, moved.cpu().double(), ratio.cpu().double())


def _written(new: Sequence[tuple[Norm, Statistics, int]]) -> list[tuple[Any, str, Tensor]]:
    """Write all statistics, or none; return what was there."""
    before = [
        (norm.layer, name, getattr(norm.layer, name).detach().clone())
        for norm, *_ in new
        for name in STATISTICS
        if isinstance(getattr(norm.layer, name, None), Tensor)
    ]
    try:
        with torch.no_grad():
            for norm, (mean, var, behind, _), batches in new:
                norm.layer.running_mean.copy_(mean)
                norm.layer.running_var.copy_(var)
                for name, value in (("num_batches_tracked", batches), ("running_count", behind)):
                    if isinstance(buffer := getattr(norm.layer, name, None), Tensor):
                        buffer.copy_(value) if isinstance(value, Tensor) else buffer.fill_(value)
    except BaseException:
        put_back([(getattr(layer, name), value) for layer, name, value in before])
        raise
    return before
