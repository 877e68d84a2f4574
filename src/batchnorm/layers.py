"""The layers: running statistics, modes and state around the functions."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _checks
from ._checks import Activation
from ._plan import Axis, channel_axes
from .functional import Arguments, Gradients, run_backward, run_forward
from .moments import Moments

Array = NDArray[Any]


class _Forward(NamedTuple):
    """What backward needs of the last forward: references, no copies."""

    data: _checks.Data
    moments: Moments
    mask: ArrayLike | None
    weights: ArrayLike | None
    residual: ArrayLike | None
    training: bool


class BatchNorm:
    """Batch normalization of any shape, with learned scale and shift and running statistics.

    In training, ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with the batch's mean and biased variance, and::

        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var  = (1 - momentum) * running_var  + momentum * M2 / (m - running_correction)

    In evaluation y is computed with running_mean and running_var. (Ioffe and Szegedy 2015; running_correction=1 is
    PyTorch's rule, 0 that of Keras, Flax and ONNX.)

    Parameters
    ----------
    num_features
        Number of channels; for several channel axes, a tuple of their lengths.
    axis
        The axis, or axes, of the channels.
    eps
        Added to the variance; positive.
    momentum
        Weight of the *new* batch in the running statistics, from 0 to 1; None weighs all batches so far equally.
    affine
        Whether there are weight and bias.
    track_running_stats
        False: no running statistics; evaluation uses the batch's, too.
    running_correction
        1: running_var is unbiased (PyTorch). 0: biased.
    activation
        None, "relu", "relu6", "leaky_relu" (slope 0.01), ("leaky_relu", slope) or "silu".
    dtype
        Of parameters and running statistics: float32 or float64.

    Attributes
    ----------
    weight, bias, running_mean, running_var
        Arrays of `num_features` values, or None; assign to their elements, or replace them.
    num_batches_tracked
        int64 array of no axes.
    training
        The mode; set by `train` and `eval`.

    Examples
    --------
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> layer = bn.BatchNorm(2, axis=-1)
    >>> x = np.array([[[1.0, 2.0], [3.0, 6.0]]], dtype=np.float32)
    >>> layer(x)[0, :, 0].round(3)
    array([-1.,  1.], dtype=float32)
    >>> layer.running_mean
    array([0.2, 0.4], dtype=float32)
    """

    weight: Array | None
    bias: Array | None
    running_mean: Array | None
    running_var: Array | None
    num_batches_tracked: Array | None

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
        axis: Axis = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        running_correction: int = 1,
        activation: Activation = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        who = type(self).__name__
        shape = _checks.channel_shape(num_features, who)
        if math.prod(shape) == 0:
            raise ValueError(f"{who}: num_features must be at least 1; got {num_features!r}")
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise TypeError(
                f"{who}: dtype (of parameters and running statistics) must be float32 or float64; got "
                f"{np.dtype(dtype)}; inputs may be float16 or bfloat16 all the same"
            )
        if running_correction not in (0, 1):
            raise ValueError(
                f"{who}: running_correction must be 1 (unbiased, as PyTorch) or 0 (biased); got {running_correction!r}"
            )
        _checks.activation(activation, who)
        self.num_features = num_features
        self.axis = channel_axes(axis)
        self.eps = _checks.epsilon(eps, who)
        self.momentum = _checked_momentum(momentum, who)
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        self.running_correction = int(running_correction)
        self.activation = activation
        self.dtype = np.dtype(dtype)
        self.training = True
        self._shape = shape
        self._last: _Forward | None = None
        self.weight = np.ones(shape, dtype) if affine else None
        self.bias = np.zeros(shape, dtype) if affine else None
        self.running_mean = self.running_var = self.num_batches_tracked = None
        self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """Set the running statistics to mean 0, variance 1, no batches."""
        if self.track_running_stats:
            self.running_mean = np.zeros(self._shape, self.dtype)
            self.running_var = np.ones(self._shape, self.dtype)
            self.num_batches_tracked = np.zeros((), np.int64)

    def train(self, mode: bool = True) -> BatchNorm:
        """Normalise with the batch's statistics from now on, and update the running ones; return the layer."""
        self.training = bool(mode)
        return self

    def eval(self) -> BatchNorm:
        """Normalise with the running statistics from now on; return the layer."""
        return self.train(False)

    def __call__(
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        residual: ArrayLike | None = None,
    ) -> Array:
        """Normalise `x`; see `batch_norm` for mask, weights and residual.

        A reference to x (and to mask, weights and residual) is kept for `backward`; do not write to them before.
        """
        return self.forward(x, mask, weights, residual)

    def forward(
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        residual: ArrayLike | None = None,
    ) -> Array:
        """The same as calling the layer."""
        d = _checks.data(x, type(self).__name__, self._channel_axis(x), self._shape)
        updates = self.training and self.track_running_stats
        use_batch = self.training or not self.track_running_stats
        m = None if use_batch else self._running_moments()
        y, m = run_forward(d, self._arguments(mask, weights, residual), m)
        if updates:
            self._update(m)
        self._last = _Forward(d, m, mask, weights, residual, use_batch)
        return y

    def backward(self, grad_y: ArrayLike) -> Gradients:
        """Gradients through the last forward, by x, weight, bias and residual; parameters are left as they are.

        Raises
        ------
        ValueError
            Where no forward has run.
        """
        if self._last is None:
            raise ValueError(
                f"{type(self).__name__}: backward needs a forward before it, whose input it differentiates; call the "
                "layer on x first"
            )
        d, m, mask, weights, residual, training = self._last
        return run_backward(d, grad_y, m, self._arguments(mask, weights, residual), training)

    def _arguments(self, mask: ArrayLike | None, weights: ArrayLike | None, residual: ArrayLike | None) -> Arguments:
        return Arguments(self.weight, self.bias, self.eps, mask, weights, residual, self.activation)

    def _running_moments(self) -> Moments:
        assert self.running_mean is not None
        assert self.running_var is not None
        return Moments.from_statistics(self.running_mean, self.running_var)

    def _channel_axis(self, x: ArrayLike) -> Axis:
        return self.axis

    def _update(self, m: Moments) -> None:
        """Move the running statistics towards the batch's; all of them, or none."""
        if self.running_correction and not (m.count > 1).all():
            raise ValueError(
                f"{type(self).__name__}: running_var is M2 / (count - 1), which needs weights that sum to more than 1; "
                f"got a sum of {m.count.min():g}. Scale the weights (only their ratios matter for y), or use "
                "running_correction=0"
            )
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        batches = self.num_batches_tracked + 1
        a = 1 / float(batches) if self.momentum is None else self.momentum
        with np.errstate(over="ignore", invalid="ignore"):  # a variance beyond float32 is infinite there, as in PyTorch
            mean = ((1 - a) * self.running_mean.astype(np.float64) + a * m.mean).astype(self.dtype)
            var = ((1 - a) * self.running_var.astype(np.float64) + a * m.var(self.running_correction)).astype(
                self.dtype
            )
        self.running_mean[...], self.running_var[...], self.num_batches_tracked[...] = mean, var, batches

    def state_dict(self) -> dict[str, Array]:
        """Copies of parameters and running statistics, under PyTorch's names."""
        return {name: value.copy() for name, value in self._state().items()}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take parameters and running statistics from `state_dict()` of a layer like this one, here or in PyTorch.

        Raises
        ------
        ValueError
            Where names are missing or unexpected, or a value has another shape or kind; nothing is loaded then.
        """
        who = type(self).__name__
        own = self._state()
        missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
        if missing or unexpected:
            differences = {"missing": missing, "unexpected": unexpected}
            parts = [f"{what} {sorted(names)}" for what, names in differences.items() if names]
            raise ValueError(
                f"{who}: a state must have the names {sorted(own)}; {', '.join(parts)}. affine and track_running_stats "
                "decide which names a layer has"
            )
        new = {name: _loaded(who, name, state[name], value) for name, value in own.items()}
        for name, value in new.items():
            own[name][...] = value

    def _state(self) -> dict[str, Array]:
        names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}  # a copy has its own forward before its backward

    def __copy__(self) -> BatchNorm:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchNorm:
        new = object.__new__(type(self))
        new.__dict__.update(self.__getstate__())
        for name, value in self._state().items():
            setattr(new, name, value.copy())
        return new

    def __repr__(self) -> str:
        options = [f"{self.num_features}"]
        if type(self) is BatchNorm:
            options.append(f"axis={self.axis}")
        options += [f"eps={self.eps:g}", f"momentum={self.momentum}", f"affine={self.affine}"]
        options.append(f"track_running_stats={self.track_running_stats}")
        if self.activation is not None:
            options.append(f"activation={self.activation!r}")
        return f"{type(self).__name__}({', '.join(options)}; {self._rule()})"

    def _rule(self) -> str:
        if not self.track_running_stats:
            return "no running statistics: always the batch's"
        var = "batch var * m/(m-1)" if self.running_correction else "batch var"
        if self.momentum is None:
            return f"running = mean over all batches of (batch mean, {var})"
        return f"running = {1 - self.momentum:g} * running + {self.momentum:g} * (batch mean, {var})"


def _checked_momentum(momentum: object, who: str) -> float | None:
    if momentum is None:
        return None
    if isinstance(momentum, bool) or not isinstance(momentum, numbers.Real) or not 0 <= float(momentum) <= 1:
        raise ValueError(
            f"{who}: momentum is the weight of the new batch, from 0 to 1, or None for the mean over all batches; got "
            f"{momentum!r}. (Keras, Flax and ONNX name the weight of the old value: use 1 minus it)"
        )
    return float(momentum)


def _loaded(who: str, name: str, value: ArrayLike, own: Array) -> Array:
    a = np.asarray(value)
    kinds = "iu" if own.dtype.kind == "i" else "f"
    if a.dtype.kind not in kinds or a.shape != own.shape:
        raise ValueError(
            f"{who}: {name} must have shape {own.shape} and hold {own.dtype.name}; got {_checks.described(a)}"
        )
    return a.astype(own.dtype)


class _Ranked(BatchNorm):
    """A layer with channels on axis 1 that takes certain ranks only."""

    _shapes: dict[int, str] = {}  # noqa: RUF012  # a constant of each subclass

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        running_correction: int = 1,
        activation: Activation = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(
            num_features,
            axis=1,
            eps=eps,
            momentum=momentum,
            affine=affine,
            track_running_stats=track_running_stats,
            running_correction=running_correction,
            activation=activation,
            dtype=dtype,
        )

    def _channel_axis(self, x: ArrayLike) -> Axis:
        shape = np.shape(x)
        if len(shape) in self._shapes:
            return 1
        self._refuse(shape)

    def _refuse(self, shape: tuple[int, ...]) -> NoReturn:
        accepted = " or ".join(self._shapes.values())
        others = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
        other = others.get(len(shape), "BatchNorm")
        raise ValueError(
            f"{type(self).__name__}: expected an input of shape {accepted}; got {len(shape)} axes, shape {shape}. "
            f"Use {other if other != type(self).__name__ else 'BatchNorm'}, or BatchNorm(C, axis=...) for any shape"
        )


class BatchNorm1d(_Ranked):
    """`BatchNorm` for (N, C) and (N, C, L), channels on axis 1.

    Also takes a shape that becomes one of these when its axes of length one are dropped, as the worked example does.

    Examples
    --------
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> B = np.array([[i + j for j in range(5)] for i in range(1, 6)], dtype=np.float32).reshape(5, 1, 5, 1)
    >>> bn.BatchNorm1d(5)(B)[:, 0, 0, 0].round(4)
    array([-1.4142, -0.7071,  0.    ,  0.7071,  1.4142], dtype=float32)
    """

    _shapes = {2: "(N, C)", 3: "(N, C, L)"}  # noqa: RUF012

    def _channel_axis(self, x: ArrayLike) -> Axis:
        shape = np.shape(x)
        if len(shape) not in self._shapes:
            long = [i for i, n in enumerate(shape) if n != 1]
            if len(long) not in self._shapes:
                self._refuse(shape)
            return long[1]
        return 1


class BatchNorm2d(_Ranked):
    """`BatchNorm` for (N, C, H, W), channels on axis 1.

    >>> import numpy as np
    >>> import batchnorm as bn
    >>> bn.BatchNorm2d(3)(np.zeros((2, 3, 4, 4), np.float32)).shape
    (2, 3, 4, 4)
    """

    _shapes = {4: "(N, C, H, W)"}  # noqa: RUF012


class BatchNorm3d(_Ranked):
    """`BatchNorm` for (N, C, D, H, W), channels on axis 1.

    >>> import numpy as np
    >>> import batchnorm as bn
    >>> bn.BatchNorm3d(3)(np.zeros((2, 3, 4, 4, 4), np.float32)).shape
    (2, 3, 4, 4, 4)
    """

    _shapes = {5: "(N, C, D, H, W)"}  # noqa: RUF012
