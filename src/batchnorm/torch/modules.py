"""`BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d`: torch.nn's, and what those cannot do."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from .._checks import Activation
from . import _operations, _options, _plain, _positions

Tensor = torch.Tensor

OPTIONS = ("activation", "on_single_value", "on_nonfinite", "running_correction")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _is_jit_trace() -> bool:
    """Whether torch.jit.trace runs this; sizes are tensors then, and a decision on one would be frozen."""
    return torch._C._get_tracing_state() is not None


def _is_ours(x: Tensor) -> bool:
    """Whether our CPU kernels compute this; else PyTorch's own operations do, with the same meaning."""
    if x.device.type != "cpu" or x.dtype not in _DTYPES:
        return False
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting()  # an exported model must not need us
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and not _is_jit_trace()
    )


def _is_traced(x: object) -> bool:
    """Whether torch.fx records what is done to it."""
    return isinstance(x, torch.fx.Proxy)


def _is_recomputation() -> bool:
    """Whether a backward pass is running, as it is when a checkpoint computes its forward again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class _Extended(_BatchNorm):
    """What our layers add to torch.nn's. The defaults are the class's: a layer whose class is swapped has them."""

    activation: Activation = None
    on_single_value: str = "error"
    on_nonfinite: str = "propagate"
    running_correction: int = 1

    def __init__(
        self,
        *args: Any,
        activation: Activation = None,
        on_single_value: str = "error",
        on_nonfinite: str = "propagate",
        running_correction: int = 1,
        **kwargs: Any,
    ) -> None:
        who = type(self).__name__
        _options.activation(activation, who)
        _options.check(who, on_single_value, on_nonfinite, running_correction)
        super().__init__(*args, **kwargs)
        self.activation = activation
        self.on_single_value = on_single_value
        self.on_nonfinite = on_nonfinite
        self.running_correction = running_correction

    def forward(
        self,
        input: Tensor,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """``activation(batch_norm(input) + residual)``; mask and weights say which positions count in the statistics.

        Parameters
        ----------
        input
            The layer's input, any strides; a dense memory format is kept.
        mask
            Bool; broadcastable to the input without its channel axis, or with it as length one. False positions do not
            count in the statistics; every position is normalised. In evaluation it changes nothing.
        weights
            Non-negative floats, shaped like `mask`: the weight of each position.
        residual
            Added before the activation. With the input's shape and dtype in the same pass, else as PyTorch adds.
        """
        if _is_traced(input):
            node: Tensor = self._as_leaf(input, mask, weights, residual)
            return node
        self._check_input_dim(input)
        if not _is_jit_trace() and input.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: expected {self.num_features} channels on axis 1; got an input of shape "
                f"{tuple(input.shape)}. Build the layer for {input.shape[1]} channels, or move the channels to axis 1"
            )
        if residual is not None and (residual.shape != input.shape or residual.dtype != input.dtype):
            z = self._normalise(input, mask, weights, None, (0, 0.0)) + residual
            return _options.activate(z, *_options.activation(self.activation, type(self).__name__))
        return self._normalise(
            input, mask, weights, residual, _options.activation(self.activation, type(self).__name__)
        )

    def _normalise(
        self,
        x: Tensor,
        mask: Tensor | None,
        weights: Tensor | None,
        residual: Tensor | None,
        activation: tuple[int, float],
    ) -> Tensor:
        selection = None
        if mask is not None or weights is not None:
            selection = _positions.weights_like(x, mask, weights, type(self).__name__)
        batch = self.training or (self.running_mean is None and self.running_var is None)
        empty = not _is_jit_trace() and x.numel() == 0
        updates = self.training and self.track_running_stats and not empty
        if self.training and not _is_jit_trace() and self._has_single_value(x, selection):
            batch = updates = False
        updates = updates and not _is_recomputation()
        if _is_ours(x) and not empty:
            return self._by_kernels(x, selection if batch else None, residual, activation, batch, updates)
        return self._by_torch(x, selection if batch else None, residual, activation, batch, updates)

    def _has_single_value(self, x: Tensor, selection: Tensor | None) -> bool:
        """Whether running statistics stand in for those of one value a channel; ValueError where they may not."""
        C = x.shape[1]
        if x.numel() == C and C > 0:
            positions = 1
        elif selection is None or self.on_single_value == "error":
            return False  # for a selection, the kernels count
        else:
            positions = int((selection > 0).expand(x.shape[0], 1, *x.shape[2:]).sum())
        if positions > 1:
            return False
        if self.on_single_value == "running" and self.running_mean is not None:
            return True
        raise ValueError(
            f"{type(self).__name__}: one value per channel in training (input {tuple(x.shape)}, channels on axis 1), "
            "so its variance is 0 and the output would be the bias alone. Use a batch of at least 2, drop the last "
            "incomplete batch, or on_single_value='running'"
            + ("" if self.on_single_value == "error" else ", which needs track_running_stats=True")
        )

    def _by_kernels(
        self,
        x: Tensor,
        selection: Tensor | None,
        residual: Tensor | None,
        activation: tuple[int, float],
        batch: bool,
        updates: bool,
    ) -> Tensor:
        mean, var = (None, None) if batch else (self.running_mean, self.running_var)
        y, stats = _operations.differentiable_forward(
            x, self.weight, self.bias, mean, var, selection, residual, self.eps, *activation
        )
        if updates:
            _operations.update_(
                self.running_mean, self.running_var, self.num_batches_tracked, stats, self.momentum,
                self.running_correction, _options.ON_NONFINITE[self.on_nonfinite],
            )  # fmt: skip
        return y

    def _by_torch(
        self,
        x: Tensor,
        selection: Tensor | None,
        residual: Tensor | None,
        activation: tuple[int, float],
        batch: bool,
        updates: bool,
    ) -> Tensor:
        if selection is None and self.running_correction == 1 and self.on_nonfinite == "propagate":
            y = self._by_torch_batch_norm(x, batch, updates)
            return _options.activate(y if residual is None else y + residual, *activation)
        if batch:
            count, mean, var = _plain.moments(x, selection)
            if updates:
                with torch.no_grad():
                    self._update(count, mean, var)
        else:
            assert self.running_mean is not None
            assert self.running_var is not None
            mean, var = self.running_mean, self.running_var
        return _plain.normalize(x, mean, var, self.weight, self.bias, residual, self.eps, *activation)

    def _by_torch_batch_norm(self, x: Tensor, batch: bool, updates: bool) -> Tensor:
        """As torch.nn's layer does it."""
        momentum = 0.0 if self.momentum is None else self.momentum
        if updates:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        mean, var = (self.running_mean, self.running_var) if updates or not batch else (None, None)
        return torch.nn.functional.batch_norm(x, mean, var, self.weight, self.bias, batch, momentum, self.eps)

    def _update(self, count: Tensor, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics: all of them, or none."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        finite = torch.isfinite(mean).all() & torch.isfinite(var).all()
        if self.on_nonfinite == "raise" and not bool(finite):
            raise ValueError(
                f"{type(self).__name__}: the batch's mean or variance is not finite; running statistics are left as "
                "they were (on_nonfinite='raise')"
            )
        moves = finite | (self.on_nonfinite == "propagate")
        batches = self.num_batches_tracked + moves.to(self.num_batches_tracked.dtype)
        a = 1.0 / batches.to(mean.dtype) if self.momentum is None else self.momentum
        unbiased = var * (count / (count - self.running_correction))
        for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.copy_(torch.where(moves, a * value + (1 - a) * running, running))
        self.num_batches_tracked.copy_(batches)

    def _as_leaf(self, x: Any, *rest: object) -> Any:
        """One node of the graph that torch.fx traces, as torch.nn's own layers are."""
        names = ("mask", "weights", "residual")
        given = {name: value for name, value in zip(names, rest, strict=True) if value is not None}
        return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), given)

    def extra_repr(self) -> str:
        """As torch.nn's, and the extra options that are not at their defaults."""
        own = {
            name: getattr(self, name)
            for name in ("activation", "on_single_value", "on_nonfinite", "running_correction")
        }
        said = [f"{name}={value!r}" for name, value in own.items() if value != getattr(_Extended, name)]
        return ", ".join([super().extra_repr(), *said])


class BatchNorm1d(_Extended, torch.nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` for (N, C) and (N, C, L), with more to it.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype
        As torch.nn's, with its defaults.
    activation
        None, "relu", "relu6", "leaky_relu" (slope 0.01), ("leaky_relu", slope) or "silu": applied in the same pass.
    on_single_value
        What one value per channel in training does: "error", or "running" to normalise with the running statistics.
    on_nonfinite
        What a batch with NaN or infinity does to the running statistics: "propagate", "skip" or "raise".
    running_correction
        1: running_var is unbiased, as PyTorch's. 0: biased, as in Keras, Flax and ONNX.

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
