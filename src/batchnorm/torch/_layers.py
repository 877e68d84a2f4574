"""`BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d`: torch.nn's, and what those cannot do."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch

from .._options import (
    Activation,
    Correction,
    NormalizeWith,
    OnNonfinite,
    OnSingleValue,
    Option,
    activation_code,
    check_all_without_running,
    check_spelling,
    check_without_running,
)
from .._renorm import Renorm
from . import _activations, _operands, _operations, _options, _plain, _positions, _running, _shared
from ._backend import (
    is_alone,
    is_jit_trace,
    is_native,
    is_recomputation,
    is_traced,
    is_transformed,
    recorder,
)
from ._options import DEFAULTS

Tensor = torch.Tensor

#: How many batches a layer had counted when a block of `masked` gave it back.
masked_until: weakref.WeakKeyDictionary[torch.nn.Module, int] = weakref.WeakKeyDictionary()


class _Extended(_running.KeepsCount):
    """What our layers add to torch.nn's. The defaults are the class's: a layer whose class is swapped has them."""

    activation: Activation = DEFAULTS["activation"]
    on_single_value: OnSingleValue = DEFAULTS["on_single_value"]
    on_nonfinite: OnNonfinite = DEFAULTS["on_nonfinite"]
    running_correction: Correction = DEFAULTS["running_correction"]
    virtual_batch_size: int | None = DEFAULTS["virtual_batch_size"]
    renorm: Renorm | None = DEFAULTS["renorm"]
    normalize_with: NormalizeWith = DEFAULTS["normalize_with"]
    update_running_stats: bool | None = DEFAULTS["update_running_stats"]
    train_affine: bool = DEFAULTS["train_affine"]

    _settable: ClassVar[Mapping[str, Option]] = _options.MODULE
    _fused_with: str = ""  # for the repr of a layer in a fused model
    _masked: Any = None  # inside of `masked`: its mask
    _prior: float | None = None  # inside of `adapt`: how many positions the running statistics count as

    def __init__(
        self,
        num_features: int,
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
        given = locals()
        without: dict[str, Any] = {} if bias else {"bias": bias}  # older versions of PyTorch have no such argument
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **without)
        for name in DEFAULTS:
            setattr(self, name, given[name])

    if not TYPE_CHECKING:  # torch.nn's says which values have any name

        def __setattr__(self, name: str, value: Any) -> None:
            """As torch.nn's; an option is checked before, and so is a name that looks like one misspelt."""
            if name in self._settable:
                value = self._settable[name].checked(value, type(self).__name__)
                if getattr(self, "running_mean", None) is None:
                    check_without_running(name, value, type(self).__name__)
            elif name[:1] != "_" and not hasattr(self, name):
                check_spelling(name, value, self._settable, type(self).__name__)
            super().__setattr__(name, value)

    def __prepare_scriptable__(self) -> NoReturn:
        raise TypeError(
            f"torch.jit.script: our layers call operators that scripts do not know; got {type(self).__name__}; use "
            "batchnorm.torch.revert(model) first, or torch.jit.trace, or torch.export"
        )

    def forward(
        self,
        input: Tensor,
        mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """``activation(batch_norm(input) + residual)``; mask and sample_weight say which positions count.

        Parameters
        ----------
        input
            The layer's input, any strides; a dense memory format is kept.
        mask
            Bool; broadcastable to the input without its channel axis, or with it as length one. False positions do not
            count in the statistics; every position is normalized. In evaluation it changes nothing.
        sample_weight
            Non-negative floats, shaped like `mask`: the weight of each position.
        residual
            Added before the activation. With the input's shape and dtype in the same pass, else as PyTorch adds.
        """
        plain = mask is None and sample_weight is None and residual is None
        if plain and is_alone(input) and (y := self._usual(input)) is not None:
            return y
        if is_traced(input):
            node: Tensor = self._as_leaf(input, mask, sample_weight, residual)
            return node
        self._check_input(input)
        masked = self._masked
        if masked is not None and mask is None:
            mask = masked.over(self, input)
        activation = (0, 0.0) if self.activation is None else activation_code(self.activation)
        if residual is None or _operands.is_like(residual, input):
            y = self._normalize(input, mask, sample_weight, residual, activation)
        else:
            _operands.check_residual(type(self).__name__, input, residual, activation[0])
            y = self._normalize(input, mask, sample_weight, None, (0, 0.0)) + residual
            y = _activations.activate(y, *activation)
        return y if masked is None else masked.of_output(self, input, y, mask)

    def _check_input(self, input: Tensor) -> None:
        """Refuse another rank or number of channels than the layer's."""
        try:
            self._check_input_dim(input)
            fits = is_jit_trace() or input.shape[1] == self.num_features
        except (AttributeError, RuntimeError):  # of no tensor, or of a nested one
            _operands.check_input(type(self).__name__, input)
            raise
        if not fits:
            raise ValueError(
                f"{type(self).__name__}: expected {self.num_features} channels on axis 1; got an input of shape "
                f"{tuple(input.shape)}. Build the layer for {input.shape[1]} channels, or move the channels to axis 1"
            )

    def _normalize(
        self,
        x: Tensor,
        mask: Tensor | None,
        sample_weight: Tensor | None,
        residual: Tensor | None,
        activation: tuple[int, float],
    ) -> Tensor:
        if mask is None and sample_weight is None and (common := self._common(x, residual, activation)) is not None:
            return common
        if x.layout is _operands.ONEDNN:  # there and back
            added = None if residual is None else residual.to_dense()
            return self._normalize(x.to_dense(), mask, sample_weight, added, activation).to_mkldnn()
        selection = None
        if mask is not None or sample_weight is not None:
            selection = _positions.weights_like(x, mask, sample_weight, type(self).__name__)
        batch, updates = self._choices()
        empty = not is_jit_trace() and x.numel() == 0
        if (batch or updates) and _positions.has_single_value(self, x, selection):
            batch = updates = False
        updates = updates and not empty and not self._is_again(batch)
        if updates and self._collects is not None:
            self._collects.check()
        adapts = bool(self._prior) and not batch and not empty
        selection = selection if batch or updates or adapts else None
        ghost_size = self.virtual_batch_size or 0 if batch and self.training and not empty else 0
        parts = _positions.parts_of(self, x, selection, ghost_size) if ghost_size else []
        native = is_native(x) and not empty
        if not native or self.renorm is not None:
            self._check_operands(x, residual, updates or not batch)
        if adapts:
            return self._adapted(x, selection, residual, activation)
        if not native and self._is_as_torch(x, selection, batch, updates):
            y = self._by_torch_batch_norm(x, batch, updates)
            return _activations.activate(y if residual is None else y + residual, *activation)
        if parts:
            return self._by_parts(parts, x, selection, residual, activation, updates, ghost_size, native)
        if not native or not batch:  # the kernels count where the batch normalizes
            _positions.check(x, selection, ghost_size, 2)
        y, table = self._by_tables(x, selection, residual, activation, batch, updates, ghost_size, native)
        if updates:
            _running.move(self, table, native, selection is not None)
        return y

    def _adapted(
        self, x: Tensor, selection: Tensor | None, residual: Tensor | None, activation: tuple[int, float]
    ) -> Tensor:
        """y by the running statistics and the batch together."""
        assert self._prior is not None
        mean, var, _ = _running.statistics(self)
        part, options = _shared.Part(x, selection, residual), _shared.Options(self.eps, *activation)
        return _shared.with_prior(part, self._prior, mean, var, *self._affine(), options)

    def _check_operands(self, x: Tensor, residual: Tensor | None, needs_running: bool) -> None:
        """Refuse what our operations would, where PyTorch's are to compute: those may find out when some has moved."""
        who = type(self).__name__
        _operands.check_input(who, x)
        weight, bias = self._weight_and_bias()
        _operands.check_together(who, x, weight=weight, bias=bias, residual=residual)
        if needs_running or self.renorm is not None:
            mean, var, count = self.running_mean, self.running_var, self.running_count
            _operands.check_together(who, x, running_mean=mean, running_var=var, running_count=count)
        if self.renorm is not None:
            if self.num_batches_tracked is None:
                raise ValueError(
                    f"{who}: the limits of renorm follow num_batches_tracked; got None. Set it to torch.tensor(0)"
                )
            _operands.check_together(who, x, num_batches_tracked=self.num_batches_tracked)

    def _usual(self, x: Tensor) -> Tensor | None:
        """y of a call without masks, residual or activation by the shortest way, or None, with nothing changed.

        Python takes a third of a small step, and is seldom in the caches: so each thing is asked once. The call is
        alone (`_backend.is_alone`).
        """
        eps, how, updates = self.eps, self.normalize_with, self.update_running_stats
        if updates or self.activation is not None or self.renorm is not None or not eps > 0:
            return None
        if self._masked is not None or self._prior is not None:
            return None
        self._check_input_dim(x)
        channels = self.num_features
        if x.shape[1] != channels:
            return None
        if how == "auto" and self.training:
            if self.virtual_batch_size is not None or not (self.train_affine and self.track_running_stats):
                return None
            weight, bias = self._weight_and_bias()
            if x.numel() <= channels or (found := _operations.step(x, weight, bias, None, None, eps)) is None:
                return None
            if updates is None and not (self._collects is None and _running.is_moved_directly(self, found[1])):
                _running.move(self, found[1], True, weighted=False)
            return found[0]
        mean, var, _ = _running.statistics(self)
        if mean is None or var is None or mean.requires_grad or var.requires_grad or x.numel() == 0:
            return None
        if how != "auto" and not (how == "running" and updates is False):
            return None
        found = _operations.step(x, *self._affine(), mean, var, eps)
        return None if found is None else found[0]

    def _common(self, x: Tensor, residual: Tensor | None, activation: tuple[int, float]) -> Tensor | None:
        """A call without rare options, or None: then there is more to decide, and time to do it."""
        eps, how, updates = self.eps, self.normalize_with, self.update_running_stats
        if updates or self.renorm is not None or self._prior is not None or not (eps > 0 and is_native(x)):
            return None
        if not self.training if how == "auto" else how == "running" and updates is False:
            mean, var, _ = _running.statistics(self)
            if mean is None or var is None or mean.requires_grad or var.requires_grad or x.numel() == 0:
                return None
            return _operations.forward(x, *self._affine(), mean, var, None, residual, eps, *activation)[0]
        if how != "auto" or self.virtual_batch_size is not None or not (self.train_affine and self.track_running_stats):
            return None
        if x.numel() <= self.num_features or is_recomputation():
            return None
        weight, bias = self._weight_and_bias()
        y, table = _operations.forward(x, weight, bias, None, None, None, residual, eps, *activation)
        if updates is None:
            _running.move(self, table, True, weighted=False)
        return y

    def _choices(self) -> tuple[bool, bool]:
        """Whether the batch's statistics normalize, and whether the running ones move."""
        if self.running_mean is None:
            check_all_without_running(self, type(self).__name__)
        batch = self.training or (self.running_mean is None and self.running_var is None)
        if self.normalize_with != "auto":
            batch = self.normalize_with == "batch"
        batch = batch or self._prior == 0
        if batch and not self.eps > 0:
            _options.POSITIVE_EPS.checked(self.eps, type(self).__name__)
        updates = self.update_running_stats
        return batch, self.training and self.track_running_stats if updates is None else updates

    def _is_again(self, batch: bool) -> bool:
        """Whether a checkpoint computes a forward again, whose statistics have moved; ValueError where they matter."""
        if not is_recomputation():
            return False
        self._check_masked_again()
        if batch and (self.renorm is None or not self.training):
            return True
        updates = self.update_running_stats
        raise ValueError(
            f"{type(self).__name__}: a checkpoint's second forward must normalize as its first did, whose running "
            "statistics have moved since; got one with "
            + ("renorm" if batch else f"normalize_with={self.normalize_with!r}, update_running_stats={updates!r}")
            + ". Leave the layer out of the checkpoint, or set update_running_stats=False for the steps with it"
        )

    def _check_masked_again(self) -> None:
        """Refuse a checkpoint's second forward without the mask of its first."""
        until = masked_until.get(self)
        if until is not None and self._masked is None and until == int(self.num_batches_tracked or 0):
            raise ValueError(
                f"{type(self).__name__}: a checkpoint computes its forward again in the backward, with the mask of the "
                "block of masked that it was in; got a backward after that block; call it inside"
            )

    def _is_as_torch(self, x: Tensor, selection: Tensor | None, batch: bool, updates: bool) -> bool:
        """Whether PyTorch's own function, as a whole, does what the options ask for."""
        options = (self.running_correction, self.on_nonfinite, self.keep_count, self.train_affine)
        variant = self.training and (self.virtual_batch_size is not None or self.renorm is not None)
        common = selection is None and options == (1, "propagate", False, True) and not variant
        frozen = self.momentum is None and recorder(x)  # which asks for the value of the count
        moves = batch and not frozen and self._collects is None and not is_transformed()
        return common and (not updates or moves)

    def _by_tables(
        self,
        x: Tensor,
        selection: Tensor | None,
        residual: Tensor | None,
        activation: tuple[int, float],
        batch: bool,
        updates: bool,
        ghost_size: int,
        native: bool,
    ) -> tuple[Tensor, Tensor]:
        """y, and the moments that move the running statistics."""
        backend: Any = _operations if native else _plain
        weight, bias = self._affine()
        options = (self.eps, *activation)
        if not batch:
            mean, var = self.running_mean, self.running_var
            _operands.check_constant(type(self).__name__, mean, var)
            if updates and not native:
                assert mean is not None
                assert var is not None
                mean, var = _operations.as_they_are(mean), _operations.as_they_are(var)
            y, table = backend.forward(x, weight, bias, mean, var, None, residual, *options)
            return y, backend.moments(x.detach(), selection) if updates else table
        known = None
        if self.renorm is not None and self.training:
            known = backend.moments(x.detach(), selection, ghost_size)
            weight, bias = _running.renormalized(self, known, weight, bias)
        y, table = backend.forward(x, weight, bias, None, None, selection, residual, *options, known, ghost_size)
        return y, table

    def _by_parts(
        self,
        parts: list[_positions.Part],
        x: Tensor,
        selection: Tensor | None,
        residual: Tensor | None,
        activation: tuple[int, float],
        updates: bool,
        ghost_size: int,
        native: bool,
    ) -> Tensor:
        """y of ghosts, in some of which one value counts: running statistics normalize those, and they add nothing."""
        outputs, tables = [], []
        for part in parts:
            of_x, w, r = (part.of(t, x) for t in (x, selection, residual))
            assert of_x is not None
            size = ghost_size if part.batch else 0
            if not native or not part.batch:
                _positions.check(of_x, w, ghost_size, 1 + part.batch)
            y, table = self._by_tables(of_x, w, r, activation, part.batch, updates, size, native)
            outputs.append(y)
            tables += [table] if part.batch else []
        if updates and tables:
            _running.move(self, torch.cat(tables, 1), native, selection is not None)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias; constants where they are not to be trained."""
        given = self._weight_and_bias()
        if self.train_affine:
            return given
        return tuple(None if p is None else p.detach() for p in given)  # type: ignore[return-value]

    def _weight_and_bias(self) -> tuple[Tensor | None, Tensor | None]:
        """What the attributes say, looked for where it usually is: torch.nn looks elsewhere first."""
        own = self._parameters
        if "weight" in own and "bias" in own:
            return own["weight"], own["bias"]
        return self.weight, self.bias  # parametrized, say

    def _by_torch_batch_norm(self, x: Tensor, batch: bool, updates: bool) -> Tensor:
        """As torch.nn's layer does it, but that a call that is refused is not counted."""
        count = self.num_batches_tracked if updates else None
        momentum = _running.weight_of_batch(self, count)
        mean, var = (self.running_mean, self.running_var) if updates or not batch else (None, None)
        y = torch.nn.functional.batch_norm(x, mean, var, self.weight, self.bias, batch, momentum, self.eps)
        if count is not None:
            count.add_(1)
        return y

    def _as_leaf(self, x: Any, *rest: object) -> Any:
        """One node of the graph that torch.fx traces, as torch.nn's own layers are."""
        names = ("mask", "sample_weight", "residual")
        given = {name: value for name, value in zip(names, rest, strict=True) if value is not None}
        return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), given)

    def extra_repr(self) -> str:
        """As torch.nn's, and the extra options that are not at their defaults; in a fused model, what comes along."""
        said = [f"{name}={value!r}" for name, default in DEFAULTS.items() if (value := getattr(self, name)) != default]
        said += [f"fused with {self._fused_with}"] if self._fused_with else []
        return ", ".join([super().extra_repr(), *said])


class BatchNorm1d(_Extended, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` for (N, C) and (N, C, L), with more options.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        As torch.nn's, with its defaults. Of older versions of PyTorch, which have no `bias`, it must be True.
    activation
        None, "relu", "relu6", "leaky_relu" (slope 0.01), ("leaky_relu", slope), "silu", "gelu"
        (with erf), "gelu_tanh", "hardswish", "elu" (alpha 1) or ("elu", alpha): applied in the same pass.
    on_single_value
        What happens to one value per channel in training. "error": it is refused. "running": it is normalized with the
        running statistics, which do not move. The same holds for a ghost of one value.
    on_nonfinite
        What happens to a batch that would store NaN or infinity in the running statistics. "propagate": they are
        stored. "skip": the statistics and the count stay as they were. "raise": ValueError.
    running_correction
        1: running_var is unbiased, as PyTorch's. 0: biased, as in Keras, Flax and ONNX.
    virtual_batch_size
        Size of the ghost batches (Hoffer, Hubara and Soudry 2017): in training, this many consecutive samples are
        normalized by themselves (the last ghost may have fewer); running statistics move once, by the moments of all.
        None: the whole batch.
    renorm
        Batch renormalization (Ioffe 2017): a `batchnorm.Renorm`, whose limits follow `num_batches_tracked`.
    normalize_with
        What normalizes: "auto" (the batch's in training, the running ones in evaluation), "batch" or "running".
    update_running_stats
        Whether a call moves the running statistics. None: in training mode.
    train_affine
        False: weight and bias are constants of the backward.
    keep_count
        True: a buffer `running_count` (in `state_dict`, too) makes both variances of `running_variance` exact. It is
        float64 whatever the layer is cast to.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> layer = bnt.BatchNorm1d(2, activation="relu")
    >>> layer(torch.tensor([[1.0, 10.0], [3.0, 30.0]])).detach().round(decimals=3)
    tensor([[0., 0.],
            [1., 1.]])
    >>> mask = torch.tensor([True, True, False])  # the last sample is padding
    >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0], [99.0, 99.0]])
    >>> layer(x, mask=mask)[:2].detach().round(decimals=3)
    tensor([[0., 0.],
            [1., 1.]])
    >>> ghosts = bnt.BatchNorm1d(1, virtual_batch_size=2)
    >>> ghosts(torch.tensor([[1.0], [3.0], [10.0], [70.0]])).detach().flatten().round(decimals=3)
    tensor([-1.,  1., -1.,  1.])
    """


class BatchNorm2d(_Extended, torch.nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` for (N, C, H, W); the extra options are those of `BatchNorm1d`.

    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> bnt.BatchNorm2d(3, activation="relu6")
    BatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True, activation='relu6')
    """


class BatchNorm3d(_Extended, torch.nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` for (N, C, D, H, W); the extra options are those of `BatchNorm1d`.

    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> bnt.BatchNorm3d(3)(torch.randn(2, 3, 4, 4, 4)).shape
    torch.Size([2, 3, 4, 4, 4])
    """
