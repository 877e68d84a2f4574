"""`SyncBatchNorm`: statistics of the batch of all processes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from .. import _refusals
from .._options import Activation, Correction, NormalizeWith, OnNonfinite, OnSingleValue, activation_code
from .._renorm import Renorm
from . import _activations, _backend, _operands, _operations, _options, _plain, _positions, _running, _shared
from ._contexts import outside
from ._layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, _Extended
from ._norms import check_model
from ._options import DEFAULTS
from ._ranks import Ranks, Whole, world_size

Tensor = torch.Tensor

_OF_ALL = " in the batches of all ranks together"


class SyncBatchNorm(_Extended):
    """`torch.nn.SyncBatchNorm` on any device, with more options: statistics of all processes' batches together.

    In training every rank gathers the moments of all (one collective of O(num_features) numbers), and in the backward
    the two sums of the gradient (another one). They are merged in the order of ranks, so that all ranks have the same
    bits. Batches may differ in size, or be empty; masks and sample weights count as they would in one batch. Evaluation
    needs no other process, and without a process group, or with one process, this is `BatchNorm1d`, `2d` or `3d`.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, process_group, device, dtype, bias
        As torch.nn's. `process_group` None: all processes.
    reproducible
        The same bits of y, of the gradient by x and of the running statistics for any number of processes, one
        included, and any contiguous split of a batch: moments are gathered sample by sample and merged in one order.
        Costs a collective more in the forward, and O(N num_features) numbers.
    activation, on_single_value, on_nonfinite, running_correction, renorm, normalize_with, update_running_stats,
    train_affine, keep_count
        As of `BatchNorm1d`. (Not virtual_batch_size: a ghost batch is a part of one process's.)

    Notes
    -----
    A rank whose input is refused says so to the others, and all raise together. Where a rank ends, or does not come
    within the timeout of the process group, the others raise RuntimeError. In either case nothing is changed.

    As in torch.nn's layer, gradients of weight and bias are each rank's own; DistributedDataParallel averages them.
    Gradients of gradients take a few more collectives.

    Not a subclass of torch.nn.SyncBatchNorm, though it has its arguments, state_dict and repr:
    DistributedDataParallel refuses instances of that on the CPU.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> layer = bnt.SyncBatchNorm(2)  # in a script of torchrun, after torch.distributed.init_process_group()
    >>> layer(torch.tensor([[1.0, 10.0], [3.0, 30.0]])).detach().round(decimals=3)
    tensor([[-1., -1.],
            [ 1.,  1.]])
    """

    process_group: Any = None
    reproducible: bool = False
    _settable = _options.SYNC
    _kind: Any = None  # what `convert_sync` found, for `revert`

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: Activation = None,
        on_single_value: OnSingleValue = "error",
        on_nonfinite: OnNonfinite = "propagate",
        running_correction: Correction = 1,
        renorm: Renorm | None = None,
        normalize_with: NormalizeWith = "auto",
        update_running_stats: bool | None = None,
        train_affine: bool = True,
        keep_count: bool = False,
        reproducible: bool = False,
    ) -> None:
        given = locals()
        extra = {name: given[name] for name in DEFAULTS if name in given}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, **extra)
        self.process_group = process_group
        self.reproducible = reproducible

    @classmethod
    def convert_sync_batchnorm(cls, module: Any, process_group: Any | None = None) -> Any:
        """As `convert_sync`, silently; torch.nn's name for it."""
        synchronize(module, process_group, reproducible=False, who="convert_sync_batchnorm")
        return module

    def _check_input_dim(self, input: Tensor) -> None:
        if self._kind is not None:
            self._kind._check_input_dim(self, input)
        elif input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(
        self,
        input: Tensor,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """As that of `BatchNorm1d`, with the statistics of all ranks."""
        if _backend.is_traced(input) or not self._exchanges():
            return super().forward(input, mask, sample_weight, residual)
        y = self._synchronized(input, mask, sample_weight, residual, activation_code(self.activation))
        return y if self._masked is None else self._masked.of_output(self, input, y, mask)

    def _normalize(
        self, x: Tensor, mask: Tensor | None, sample_weight: Tensor | None, residual: Tensor | None,
        activation: tuple[int, float],
    ) -> Tensor:  # fmt: skip
        """One pass of a fused model."""
        if self._exchanges():
            return self._synchronized(x, mask, sample_weight, residual, activation)
        self._check_input_dim(x)
        return super()._normalize(x, mask, sample_weight, residual, activation)

    def _exchanges(self) -> bool:
        """Whether this forward takes part in a collective, or in the order of one."""
        batch, updates = self._choices()
        if not self.training or not (batch or updates):
            return False
        return self.reproducible or world_size(self.process_group) > 1

    def _synchronized(
        self, x: Tensor, mask: Tensor | None, sample_weight: Tensor | None, residual: Tensor | None,
        activation: tuple[int, float],
    ) -> Tensor:  # fmt: skip
        ranks = Ranks(self.process_group, self.reproducible, type(self).__name__)
        part, whole = self._gathered(ranks, x, mask, sample_weight, residual, activation[0])
        batch, updates = self._choices()
        if whole.positions == 1:  # on_single_value="running", or it would have been refused
            batch = updates = False
        if residual is None or part.residual is not None:
            y = self._by_whole(ranks, whole.moments, part, _shared.Options(self.eps, *activation), batch)
        else:
            y = self._by_whole(ranks, whole.moments, part, _shared.Options(self.eps, 0, 0.0), batch)
            y = _activations.activate(y + residual, *activation)
        if updates and whole.positions and not self._is_again(True):
            _running.move(self, whole.moments, _backend.is_native(x), True)
        return y

    def _gathered(
        self, ranks: Ranks, x: Tensor, mask: Tensor | None, sample_weight: Tensor | None, residual: Tensor | None,
        activation: int,
    ) -> tuple[_shared.Part, Whole]:  # fmt: skip
        """This rank's part and the moments of all; where one rank's input is refused, all ranks raise."""
        refusal: Exception | None = None
        part = _shared.Part(x, None, None)
        positions: Tensor | int = 0
        try:
            self._check_input(x)
            self._check_operands(x, residual, True)
            self._check_exchangeable(x, residual)
            in_pass = residual
            if residual is not None and not _operands.is_like(residual, x):
                _operands.check_residual(type(self).__name__, x, residual, activation)
                in_pass = None
            part = _shared.Part(x, self._selection(x, mask, sample_weight), in_pass)
            table = _shared.gather(part, ranks.ghost_size)
            positions = _positions.counted(x, part.position_weight)
        except (TypeError, ValueError) as error:
            if ranks.world == 1:
                raise
            refusal = error
            shape, device = (
                (4, *((0,) if ranks.ghost_size else ()), self.num_features),
                "cpu" if x.is_meta else x.device,
            )
            table = torch.zeros(shape, dtype=_plain.table_dtype(x), device=device)
        samples = x.shape[0] if refusal is None and x.numel() else 0
        whole = ranks.moments(table, positions, samples, refusal is not None)
        if refusal is not None:
            raise refusal
        self._check_whole(whole)
        return part, whole

    def _check_exchangeable(self, x: Tensor, residual: Tensor | None) -> None:
        """Refuse what other processes cannot be told of: transforms, records, and tensors without values."""
        operands = (x, residual, self.weight, self.bias)
        found = _backend.recorder(*operands) or (_backend.is_transformed() and "torch.func")
        if not found and any(t is not None and _backend.is_dual(t) for t in operands):
            found = "forward-mode differentiation"
        if found or not _backend.has_values(x):
            raise ValueError(
                f"{type(self).__name__}: training exchanges values with other processes (with reproducible=True, as "
                f"if it did), which no transform or record can do; got {found or 'a meta tensor or a fake one'}. Use "
                "BatchNorm1d, 2d or 3d there, or evaluation"
            )

    def _selection(self, x: Tensor, mask: Tensor | None, sample_weight: Tensor | None) -> Tensor | None:
        if mask is None and self._masked is not None:
            mask = self._masked.over(self, x)
        if mask is None and sample_weight is None:
            return None
        return _positions.weights_like(x, mask, sample_weight, type(self).__name__)

    def _check_whole(self, whole: Whole) -> None:
        """Refuse what all ranks refuse, since all know it."""
        who = type(self).__name__
        if whole.refused:
            raise ValueError(
                f"{who}: the input of rank {', '.join(map(str, whole.refused))} of the process group was refused, so "
                "all ranks refuse; see the error there. Nothing is changed"
            )
        if whole.positions == 1 and not (self.on_single_value == "running" and self.running_mean is not None):
            said = _refusals.too_few(1, False, _OF_ALL, "on_single_value='running'")
            raise ValueError(f"{who}: {said}")
        if whole.positions == 0 and whole.samples:
            raise ValueError(f"{who}: {_refusals.too_few(0, True, _OF_ALL)}")

    def _by_whole(
        self, ranks: Ranks, moments: Tensor, part: _shared.Part, options: _shared.Options, batch: bool
    ) -> Tensor:
        weight, bias = self._affine()
        if batch:
            if self.renorm is not None:
                weight, bias = _running.renormalized(self, moments, weight, bias)
            return _shared.normalize(ranks, moments, weight, bias, [part], options)[0]
        native = _backend.is_native(part.x) and part.x.numel() > 0
        backend = _operations if native else _plain
        mean, var = self.running_mean, self.running_var
        y: Tensor = backend.forward(part.x, weight, bias, mean, var, None, part.residual, *options)[0]
        return y

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        """A copy in the same process group, which itself cannot be copied."""
        memo[id(self.process_group)] = self.process_group
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(outside(self, self.__dict__), memo))
        return new

    def extra_repr(self) -> str:
        """As torch.nn's, and the options that are not at their defaults."""
        return super().extra_repr() + (", reproducible=True" if self.reproducible else "")


# --- layers of a model that become synchronized ---

OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
THEIRS = {ours: theirs for theirs, ours in OURS.items()} | {SyncBatchNorm: nn.SyncBatchNorm}


def synchronize(model: nn.Module, process_group: Any, reproducible: bool, who: str) -> list[str]:
    """Make every batch normalization of a model a `SyncBatchNorm`, in place; return the names of those that became."""
    check_model(model, who)
    kinds = (*OURS, *OURS.values(), nn.SyncBatchNorm)
    found = [(n, module) for n, module in model.named_modules() if type(module) in kinds and not why_unfit(module)]
    for name, module in found:
        if getattr(module, "virtual_batch_size", None) is not None:
            raise ValueError(
                f"{who}: {name or 'the model itself'} has ghost batches (virtual_batch_size="
                f"{module.virtual_batch_size}), which are parts of one process's batch; set it to None first"
            )
    for _, module in found:
        module.__dict__.setdefault("process_group", None)
        module.__dict__["_kind"] = type(module)
        module.__class__ = SyncBatchNorm
    for layer in model.modules():
        if type(layer) is SyncBatchNorm:
            layer.process_group = layer.process_group if process_group is None else process_group
            layer.reproducible = layer.reproducible or reproducible
    return [name for name, _ in found]


def why_unfit(module: nn.Module) -> str:
    """Why a layer of torch.nn's cannot be one of ours: a value that ours refuses, or a name that means an option."""
    if type(module) in THEIRS:
        return ""
    for option in (_options.EPS, _options.MOMENTUM):
        try:
            option.checked(getattr(module, option.name), "its value is refused")
        except (TypeError, ValueError) as error:
            return str(error)
    own = [name for name in DEFAULTS if hasattr(module, name)]
    return f"its own attribute {own[0]} would be an option of ours; rename it" if own else ""
