"""`GroupedBatchNorm1d`, `2d`, `3d`: samples of each group are normalized together, and groups apart from each other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn

from .. import _options
from .._options import Activation, Correction, NormalizeWith, OnNonfinite, OnSingleValue
from .._renorm import Renorm
from . import _backend, _positions
from ._layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from ._merge import merge_state_dicts
from ._sync import SyncBatchNorm

Tensor = torch.Tensor
Group = Tensor | Sequence[int] | int  # a label for each sample, or one for all

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
GROUPS = _options.Option("groups", None, _options._integer(1), "must be an int of at least 1, the number of groups")


class Grouped(nn.Module):
    """A layer for each group, and the labels that say which samples it gets."""

    _kind: ClassVar[Any]
    _group: Group | None = None  # inside of the context `groups`
    share_affine: bool
    layers: nn.ModuleList

    def __init__(
        self,
        num_features: int,
        groups: int,
        share_affine: bool = False,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: Activation = None,
        on_single_value: OnSingleValue = "error",
        on_nonfinite: OnNonfinite = "propagate",
        running_correction: Correction = 1,
        virtual_batch_size: int | None = None,
        renorm: Renorm | None = None,
        normalize_with: NormalizeWith = "auto",
        update_running_stats: bool | None = None,
        train_affine: bool = True,
        keep_count: bool = False,
    ) -> None:
        given = {name: v for name, v in locals().items() if name not in ("self", "groups", "share_affine", "__class__")}
        super().__init__()
        self._fill(self._kind(**given), groups, share_affine)

    def _fill(self, layer: nn.Module, groups: int, share_affine: bool) -> None:
        """Have that many layers like one, itself the first."""
        number = GROUPS.checked(groups, type(self).__name__)
        self.share_affine = _options.TRAINING.called("share_affine").checked(share_affine, type(self).__name__)
        layers = [layer, *(copy.deepcopy(layer) for _ in range(number - 1))]
        for other in layers[1:] if self.share_affine else []:
            other._parameters.update(layer._parameters)
        self.layers = nn.ModuleList(layers)

    @classmethod
    def of(cls, layer: nn.Module, groups: int, share_affine: bool) -> Grouped:
        """Groups that all begin with what a layer is; it becomes the first."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new._fill(layer, groups, share_affine)
        return new.train(layer.training)

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return len(self.layers)

    def layer(self, group: int) -> Any:
        """The layer of a group itself: a batch normalization like any other."""
        return self.layers[self._checked_label(group)]

    def pooled(self, counts: Sequence[float] | None = None) -> Any:
        """One layer for samples of unknown groups: running statistics of all groups, merged as moments.

        Parameters
        ----------
        counts
            How many positions stand behind each group (see `merge_state_dicts`). None: groups weigh as many batches as
            they had, and the variances are merged as they are.

        Returns
        -------
        BatchNorm1d, 2d or 3d
            A new layer, in the mode of this one. Weight and bias are averaged, if they are not shared.

        Raises
        ------
        ValueError
            For layers without running statistics, and for counts that `merge_state_dicts` refuses.
        """
        first: Any = self.layers[0]
        if first.running_mean is None:
            raise _options.needs_running(type(self).__name__, "pooled")
        correction, states = first.running_correction, [layer.state_dict() for layer in self.layers]
        if counts is None:
            batches = [int(state["num_batches_tracked"]) for state in states]
            counts, correction = batches if any(batches) else [1] * len(states), 0
            for state in states:
                state.pop("running_count", None)
        new = copy.deepcopy(first)
        new.load_state_dict(merge_state_dicts(states, counts, running_correction=correction))
        return new

    def forward(
        self,
        input: Tensor,
        group: Group | None = None,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Normalize the samples of each group by their own statistics, in training; by the running ones in evaluation.

        Parameters
        ----------
        input
            The layer's input, (N, C, ...).
        group
            The label of each sample, from 0 to groups - 1: a tensor of N integers, or a sequence; or one int for all.
            None: what `batchnorm.torch.groups` says.
        mask, sample_weight, residual
            As those of `BatchNorm1d`.
        """
        if _backend.is_traced(input):
            tracer: Any = input.tracer  # type: ignore[attr-defined]
            operands = (input, group, mask, sample_weight, residual)
            node: Tensor = tracer.create_proxy("call_module", tracer.path_of_module(self), operands, {})
            return node
        group, who = self._group if group is None else group, type(self).__name__
        if group is None:
            raise ValueError(
                f"{who}: needs the group of each sample; got none. Pass layer(x, labels), or call the "
                "model inside of batchnorm.torch.groups(model, labels)"
            )
        masked = getattr(self.layers[0], "_masked", None)
        if masked is not None and mask is None:  # inside of the context `masked`
            mask = masked.over(self.layers[0], input)
        if mask is not None or sample_weight is not None:
            _positions.weights_like(input, mask, sample_weight, who)  # which refuses what does not fit
            mask, sample_weight = (
                None if given is None else _positions.over_positions(input, given, name, who)
                for name, given in (("mask", mask), ("sample_weight", sample_weight))
            )
        rest = (mask, sample_weight, residual)
        if isinstance(group, int) and not self._is_synchronized():
            return _call(self.layers[self._checked_label(group)], input, rest)
        edges, order = self._sorted(group, input)
        if order is None:
            return self._by_groups(input, rest, edges)
        y = self._by_groups(*_picked(order, input, rest), edges)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        y = y.index_select(0, back)
        return y.contiguous(memory_format=_dense_format(input))

    def _by_groups(self, x: Tensor, rest: tuple[Tensor | None, ...], edges: list[int]) -> Tensor:
        """Samples that are sorted by group: each layer gets its own."""
        present = [
            (g, first, end)
            for g, (first, end) in enumerate(pairwise(edges))
            if end > first or self._is_synchronized()  # whose other ranks wait
        ]
        before = self._before(x, rest, present)
        collected = [(parts, parts.n) for g, _, _ in present if (parts := getattr(self.layers[g], "_collects", None))]
        outputs = []
        for g, first, end in present or [(0, 0, 0)]:
            try:
                part = tuple(t if t is None or len(t) != len(x) else t[first:end] for t in rest)
                outputs.append(_call(self.layers[g], x[first:end], part))
            except (TypeError, ValueError) as error:
                with torch.no_grad():
                    for buffer, value in before:
                        buffer.copy_(value)
                for parts, n in collected:  # of a block of one_update
                    parts.n = n
                raise type(error)(f"{type(self).__name__}, group {g}: {error}") from None
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _before(
        self, x: Tensor, rest: tuple[Tensor | None, ...], present: list[tuple[int, int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """What the layers keep, with a copy, where a later group may refuse what an earlier one has counted."""
        positions = x.numel() // max(x.shape[0] * x.shape[1], 1)
        may_refuse = rest[0] is not None or rest[1] is not None
        for g, first, end in present:
            may_refuse = may_refuse or (end - first) * positions < 2
            may_refuse = may_refuse or getattr(self.layers[g], "on_nonfinite", "propagate") == "raise"
            may_refuse = may_refuse or getattr(self.layers[g], "virtual_batch_size", None) is not None
        buffers = (
            [b for g, _, _ in present for b in self.layers[g].buffers()] if may_refuse and len(present) > 1 else []
        )
        return [(b, b.detach().clone()) for b in buffers]

    def _is_synchronized(self) -> bool:
        return isinstance(self.layers[0], (SyncBatchNorm, nn.SyncBatchNorm))

    def _sorted(self, group: Group, x: Tensor) -> tuple[list[int], Tensor | None]:
        """Where the samples of each group begin and end, sorted by group; and their order, if it is another."""
        who, N = type(self).__name__, x.shape[0]
        seen = group if isinstance(group, Tensor) else None
        _backend.refuse_to_look(who, "labels of samples are looked at", "one int for the whole batch", x, seen)
        labels = torch.full((N,), self._checked_label(group)) if isinstance(group, int) else labels_of(who, group)
        if labels.shape[0] != N:
            raise ValueError(
                f"{who}: needs a label for each sample; got {labels.shape[0]} labels for an input of shape "
                f"{tuple(x.shape)}. Where the model makes k samples of one, use labels.repeat_interleave(k)"
            )
        if not torch.compiler.is_compiling() and not (_backend.has_values(x) and _backend.has_values(labels)):
            raise ValueError(
                f"{who}: labels of samples are looked at, so tensors must have values; got one on meta, or a fake one; "
                "use one int for the whole batch"
            )
        labels = labels.to(x.device, torch.int64)
        ranked, order = labels.sort(stable=True)
        edges = torch.searchsorted(ranked, torch.arange(self.groups + 1, device=x.device))
        ascending = (labels[1:] >= labels[:-1]).all().long().reshape(1)
        *found, is_sorted = torch.cat([edges, ascending]).tolist()  # at once, so that a device is waited for once
        if found[0] != 0 or found[-1] != N:
            raise ValueError(_wrong_label(who, int(ranked[0] if found[0] else ranked[-1]), self.groups))
        return found, None if is_sorted else order

    def _checked_label(self, group: Any) -> int:
        if isinstance(group, bool) or not isinstance(group, int):
            raise TypeError(f"{type(self).__name__}: a group is an int; got {_options.shown(group)}; use int(group)")
        if not 0 <= group < self.groups:
            raise ValueError(_wrong_label(type(self).__name__, group, self.groups))
        return group

    def extra_repr(self) -> str:
        """The number of groups."""
        return f"groups={self.groups}, share_affine={self.share_affine}"


def labels_of(who: str, group: Tensor | Sequence[int]) -> Tensor:
    """Labels as a tensor; those that cannot be labels of samples are refused."""
    labels = torch.as_tensor(group)
    if not isinstance(group, Tensor) and labels.numel() == 0:
        labels = labels.long()
    if labels.dtype not in _INTEGERS:
        raise TypeError(f"{who}: labels of groups are integers; got dtype {labels.dtype}; use labels.long()")
    if labels.dim() != 1:
        raise ValueError(
            f"{who}: labels have one axis, a label for each sample; got shape {tuple(labels.shape)}; use "
            "labels.flatten(), or an int for all"
        )
    return labels


def _wrong_label(who: str, label: int, groups: int) -> str:
    return f"{who}: a label is from 0 to {groups - 1} with {groups} groups; got {label}. Number the groups from 0"


def _call(layer: nn.Module, x: Tensor, rest: tuple[Tensor | None, ...]) -> Tensor:
    """What a layer makes of its samples; torch.nn's take nothing besides."""
    y: Tensor = layer(x) if all(t is None for t in rest) else layer(x, *rest)
    return y


def _picked(order: Tensor, x: Tensor, rest: tuple[Tensor | None, ...]) -> tuple[Tensor, Any]:
    """The samples in another order, and what goes with them."""
    n = len(x)
    return x.index_select(0, order), tuple(t if t is None or len(t) != n else t.index_select(0, order) for t in rest)


def _dense_format(x: Tensor) -> torch.memory_format:
    """Channels-last, where that is how the input lies."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(x.dim())
    if last is not None and x.is_contiguous(memory_format=last) and not x.is_contiguous():
        return last
    return torch.contiguous_format


class GroupedBatchNorm1d(Grouped):
    """A `BatchNorm1d` for each group of samples: domains, tasks, clean and adversarial ones, splits of a batch.

    What it computes are the outputs, gradients and running statistics of that many layers, each called with the
    samples of its group. Samples are sorted by group once, and each is normalized once. A group that is not in a batch
    stays as it is.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        As those of `BatchNorm1d`.
    groups
        How many groups there are.
    share_affine
        Whether all groups have one weight and one bias.
    activation, on_single_value, on_nonfinite, running_correction, virtual_batch_size, renorm, normalize_with, \
update_running_stats, train_affine, keep_count
        Options of `BatchNorm1d`, for each group.

    Notes
    -----
    `state_dict` has the layers as ``layers.0``, ``layers.1`` and so on. They are layers of ours, so `freeze`, `hold`,
    `convert` and the other functions on models find them. `torch.compile` leaves its graph for the labels, unless the
    label is one int for the whole batch; exports and traces refuse other labels.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> layer = bnt.GroupedBatchNorm1d(1, groups=2)
    >>> layer(torch.tensor([[1.0], [10.0], [3.0], [70.0]]), torch.tensor([0, 1, 0, 1])).detach().flatten().round()
    tensor([-1., -1.,  1.,  1.])
    >>> layer.layer(1).running_mean, layer.pooled().running_mean
    (tensor([4.]), tensor([2.1000]))
    """

    _kind = BatchNorm1d


class GroupedBatchNorm2d(Grouped):
    """A `BatchNorm2d` for each group of samples; see `GroupedBatchNorm1d`.

    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> bnt.GroupedBatchNorm2d(3, groups=2)(torch.randn(4, 3, 5, 5), [0, 1, 1, 0]).shape
    torch.Size([4, 3, 5, 5])
    """

    _kind = BatchNorm2d


class GroupedBatchNorm3d(Grouped):
    """A `BatchNorm3d` for each group of samples; see `GroupedBatchNorm1d`.

    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> bnt.GroupedBatchNorm3d(3, groups=2)(torch.randn(4, 3, 2, 5, 5), 1).shape
    torch.Size([4, 3, 2, 5, 5])
    """

    _kind = BatchNorm3d
