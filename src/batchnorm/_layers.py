"""The layers: running statistics, modes and state around the functions."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _call, _ghosts, _inputs, _layer_steps, _options
from ._layer_steps import Forward, ran
from ._moments import Moments
from ._options import Activation, Correction, NormalizeWith, OnNonfinite, OnSingleValue
from ._plan import Axis, channel_axes
from ._prepared import Arguments, Gradients, run_forward, run_moments
from ._renorm import Renorm
from ._running import KeptAttribute, RunningStatistics, checked_dtype, taken

Array = NDArray[Any]


_RARE = _options.by_name(  # a repr names them only where they are not at their defaults
    _options.ACTIVATION, _options.VIRTUAL_BATCH_SIZE, _options.RENORM, _options.NORMALIZE_WITH,
    _options.UPDATE_RUNNING_STATS, _options.TRAIN_AFFINE, _options.ON_SINGLE_VALUE, _options.ON_NONFINITE,
)  # fmt: skip
_BUILT = ("num_features", "affine", "track_running_stats", "dtype")  # what the arrays of a layer were made by


class BatchNorm(_options.Checked):
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
        None, "relu", "relu6", "leaky_relu" (slope 0.01), ("leaky_relu", slope), "silu", "gelu"
        (with erf), "gelu_tanh", "hardswish", "elu" (alpha 1) or ("elu", alpha).
    virtual_batch_size
        Ghost batches: samples normalized together in training; None: all of them. The running statistics move once,
        by the merged moments.
    renorm
        `Renorm`: batch renormalization in training.
    normalize_with
        What to normalize with: "batch", "running", or "auto": the batch in training, the running ones in evaluation.
    update_running_stats
        Whether a forward moves the running statistics: True, False, or None: in training.
    train_affine
        False: weight and bias get no gradient.
    on_single_value
        What happens to one value per channel, if the batch's statistics would normalize or move the running ones.
        "error": it is refused. "running": it is normalized with the running statistics, which do not move. So is a
        ghost of one value, while the other ghosts move them.
    keep_count, on_nonfinite
        Of the running statistics, see `RunningStatistics`.
    dtype
        Of parameters and running statistics: float32 or float64.

    Attributes
    ----------
    weight, bias, running_mean, running_var
        Arrays of `num_features` values, or None; assign to their elements, or replace them.
    num_batches_tracked
        int64 array of no axes.
    running
        The `RunningStatistics` that hold these three, or None.
    training
        The mode; set by `train` and `eval`.
    eps, momentum, activation, normalize_with, ...
        The options, as given. They may be set at any time, by the rules of the constructor. A name that is neither an
        option nor an attribute is refused.

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

    num_features: int | tuple[int, ...]
    axis: Axis
    eps: float
    affine: bool
    track_running_stats: bool
    activation: Activation
    virtual_batch_size: int | None
    renorm: Renorm | None
    normalize_with: NormalizeWith
    update_running_stats: bool | None
    train_affine: bool
    on_single_value: OnSingleValue
    dtype: np.dtype[Any]
    training: bool
    weight: Array | None
    bias: Array | None
    running: RunningStatistics | None
    running_mean = KeptAttribute()
    running_var = KeptAttribute()
    num_batches_tracked = KeptAttribute()
    running_count = KeptAttribute()
    momentum = KeptAttribute(option=True)
    running_correction = KeptAttribute(option=True)
    on_nonfinite = KeptAttribute(option=True)
    keep_count = KeptAttribute(option=True)

    _settable = _RARE | _options.by_name(
        _options.EPS, _options.MOMENTUM, _options.RUNNING_CORRECTION, _options.KEEP_COUNT, _options.TRAINING
    )

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
        axis: Axis = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        running_correction: Correction = 1,
        activation: Activation = None,
        virtual_batch_size: int | None = None,
        renorm: Renorm | None = None,
        normalize_with: NormalizeWith = "auto",
        update_running_stats: bool | None = None,
        train_affine: bool = True,
        on_single_value: OnSingleValue = "error",
        keep_count: bool = False,
        on_nonfinite: OnNonfinite = "propagate",
        dtype: DTypeLike = np.float32,
    ) -> None:
        who = type(self).__name__
        shape = _inputs.channel_shape(num_features, who)
        if math.prod(shape) == 0:
            raise ValueError(f"{who}: num_features must be at least 1; got {num_features!r}")
        self._last: Forward | None = None
        self._shape, self.training = shape, True
        self.num_features = num_features
        self.axis = axis
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        self.dtype = checked_dtype(dtype, who)
        self.weight = np.ones(shape, dtype) if affine else None
        self.bias = np.zeros(shape, dtype) if affine else None
        self.running = RunningStatistics(shape, dtype=dtype) if track_running_stats else None
        given = locals()
        for option in self._settable:
            if option in given:
                setattr(self, option, given[option])

    def _checked(self, name: str, value: Any) -> Any:
        who = type(self).__name__
        if name == "axis":
            return self._checked_axis(value)
        if name == "running":
            return self._checked_running(value)
        if name in _BUILT and name in self.__dict__:
            raise AttributeError(
                f"{who}: {name} is decided when a layer is built; got {name}={_options.shown(value)}; build another"
            )
        value = super()._checked(name, value)
        if self.__dict__.get("running") is None:
            _options.check_without_running(name, value, who)
        return value

    def _checked_running(self, value: Any) -> RunningStatistics | None:
        who = type(self).__name__
        if value is None:
            return None
        if not isinstance(value, RunningStatistics) or value._shape != self._shape:
            raise (ValueError if isinstance(value, RunningStatistics) else TypeError)(
                f"{who}: running must be RunningStatistics of channels {self._shape}, or None; got "
                f"{_options.shown(value)}"
            )
        value._who = who
        return value

    def running_variance(self, correction: Correction = 0) -> Array:
        """The biased (0) or unbiased (1) running variance, in float64; with `keep_count`, either is exact.

        Raises
        ------
        ValueError
            Where it is not the one that running_var holds, and `keep_count` is off; where there are no running
            statistics.
        """
        if self.running is None:
            raise _options.needs_running(type(self).__name__, "running_variance")
        return self.running.running_variance(correction)

    def reset_running_stats(self) -> None:
        """Set the running statistics to mean 0, variance 1, no batches."""
        if self.running is not None:
            self.running.reset()

    def train(self, mode: bool = True) -> BatchNorm:
        """Normalize with the batch's statistics from now on, and update the running ones; return the layer."""
        self.training = bool(mode)
        return self

    def eval(self) -> BatchNorm:
        """Normalize with the running statistics from now on; return the layer."""
        return self.train(False)

    def __call__(
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        residual: ArrayLike | None = None,
    ) -> Array:
        """Normalize `x`; see `batch_norm` for mask, sample_weight and residual.

        A reference to x (and to mask, sample_weight and residual) is saved for `backward`; do not write to them before.
        """
        return self.forward(x, mask, sample_weight, residual)

    def forward(
        self,
        x: ArrayLike,
        mask: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        residual: ArrayLike | None = None,
    ) -> Array:
        """The same as calling the layer."""
        if mask is None and sample_weight is None:
            y = self._common_forward(x, residual)
            if y is not None:
                return y
        axis = self._channel_axis(x)
        d = _inputs.data(x, type(self).__name__, axis, self._shape)
        uses_batch, updates = self._switches()
        if (uses_batch or updates) and self._stands_in(d, mask, sample_weight):
            uses_batch = updates = False
        a = self._arguments(mask, sample_weight, residual)
        known: Moments | None = None
        if uses_batch:
            a = a._replace(virtual_batch_size=self.virtual_batch_size if self.training else None)
            if parts := self._parts(d, a):
                assert self.running is not None
                y, last, gathered = _layer_steps.forward_by_parts(
                    d, axis, a, parts, self._known_moments, self.running.moments()
                )
                if updates and gathered is not None:
                    self.running.update(gathered)
                self._last = last
                return y
            known, a = self._known_moments(d, a)
        else:
            assert self.running is not None
            known = self.running.moments()
        y, m = run_forward(d, a, known)
        if updates and self.running is not None:
            batch = m if uses_batch else run_moments(d, a)
            self.running.update(batch if len(batch.shape) == len(self._shape) else batch.reduce())
        self._last = ran(d, axis, a, m, uses_batch)
        return y

    def _parts(self, d: _inputs.Data, a: Arguments) -> list[tuple[slice, bool]]:
        """Parts of the batch, where running statistics stand in for those of some ghosts."""
        if a.virtual_batch_size is None or self.on_single_value == "error" or self.running is None:
            return []
        return _ghosts.apart(d, _inputs.selection(d, a.mask, a.sample_weight), _ghosts.of(a.virtual_batch_size, d))

    def _common_forward(self, x: ArrayLike, residual: ArrayLike | None) -> Array | None:
        """The common call, where no rare option is set; None for any other."""
        running = self.running
        if (
            type(x) is not np.ndarray
            or running is None
            or self.normalize_with != "auto"
            or self.update_running_stats is not None
        ):
            return None
        axis = self._channel_axis(x)
        if type(axis) is not int or not -x.ndim <= axis < x.ndim or (x.shape[axis],) != self._shape:
            return None
        if not self.training:
            m = running.moments()
            y = _call.common_normalize(
                x, m._table, self.weight, self.bias, axis, self.eps, residual, self.activation, None
            )
        elif self.virtual_batch_size is not None or self.renorm is not None:
            return None
        else:
            made = _call.common_batch_norm(x, self.weight, self.bias, axis, self.eps, residual, self.activation, None)
            if made is None:
                return None
            y, m = made[0], Moments._of_table(made[1])
            running.update(m)
        if y is not None:
            self.__dict__["_last"] = Forward(x, axis, m, None, None, residual, self.training, None, None)
        return y

    def _switches(self) -> tuple[bool, bool]:
        """Whether to normalize with the batch's statistics, and whether to move the running ones."""
        if self.running is None:
            _options.check_all_without_running(self, type(self).__name__)
        uses_batch = self.training if self.normalize_with == "auto" else self.normalize_with == "batch"
        updates = self.training if self.update_running_stats is None else bool(self.update_running_stats)
        return uses_batch or self.running is None, updates

    def _stands_in(self, d: _inputs.Data, mask: ArrayLike | None, sample_weight: ArrayLike | None) -> bool:
        """Whether running statistics stand in for those of one value a channel."""
        if self.on_single_value == "error" or self.running is None:
            return False
        return d.x.size > 0 and _inputs.selection(d, mask, sample_weight).positions == 1

    def _known_moments(self, d: _inputs.Data, a: Arguments) -> tuple[Moments | None, Arguments]:
        """Under renormalization the batch's moments, and the arguments with the factors towards the running ones."""
        if self.renorm is None or not self.training:
            return None, a
        assert self.running is not None
        m, step = run_moments(d, a), int(self.running.num_batches_tracked)
        return m, a._replace(renorm_factors=self.renorm.factors(m, self.running.moments(), self.eps, step))

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
        x, axis, m, mask, sample_weight, residual, training, ghosts, factors, parts = self._last
        if mask is None and sample_weight is None and ghosts is None and factors is None and not parts:
            common = _call.common_backward(
                grad_y, x, m._table, self.weight, self.bias, axis, self.eps, residual, self.activation, training
            )
            if common is not None:
                return Gradients(*common) if self.train_affine else Gradients(common[0], None, None, common[3])
        own = self._arguments(None, None, None)
        gradients = _layer_steps.backward(self._last, grad_y, own, type(self).__name__, self._shape)
        return gradients if self.train_affine else gradients._replace(weight=None, bias=None)

    def _arguments(
        self, mask: ArrayLike | None, sample_weight: ArrayLike | None, residual: ArrayLike | None
    ) -> Arguments:
        return Arguments(self.weight, self.bias, self.eps, mask, sample_weight, residual, self.activation)

    def _checked_axis(self, axis: Axis) -> Axis:
        return channel_axes(axis, type(self).__name__)

    def _channel_axis(self, x: ArrayLike) -> Axis:
        return self.axis

    def state_dict(self) -> dict[str, Array]:
        """Copies of parameters and running statistics, under PyTorch's names."""
        return {name: value.copy() for name, value in self._state().items()}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take parameters and running statistics from `state_dict()` of a layer like this one, here or in PyTorch.

        `running_count` may be missing: then it becomes infinite, as for a fresh layer. Where the layer keeps none, it
        is left out.

        Raises
        ------
        ValueError
            Where names are missing or unexpected, or a value has another shape or kind, or does not fit the dtype;
            nothing is loaded then.
        """
        who = type(self).__name__
        own = self._state()
        if self.running_count is not None:
            state = {"running_count": np.full(self._shape, np.inf), **state}
        missing = own.keys() - state.keys()
        unexpected = state.keys() - own.keys() - {"running_count"}
        if missing or unexpected:
            differences = {"missing": missing, "unexpected": unexpected}
            parts = [f"{what} {sorted(names)}" for what, names in differences.items() if names]
            raise ValueError(
                f"{who}: a state must have the names {sorted(own)}; {', '.join(parts)}. affine and track_running_stats "
                "decide which names a layer has"
            )
        for name, value in taken(who, own, state).items():
            own[name][...] = value

    def _state(self) -> dict[str, Array]:
        parameters = {name: value for name in ("weight", "bias") if (value := getattr(self, name)) is not None}
        return parameters if self.running is None else parameters | self.running._state()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}  # a copy has its own forward before its backward

    def __copy__(self) -> BatchNorm:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchNorm:
        new = object.__new__(type(self))
        new.__dict__.update(self.__getstate__())
        for name in ("weight", "bias", "running"):
            setattr(new, name, copy.deepcopy(getattr(self, name), memo))
        return new

    def __repr__(self) -> str:
        options = [f"{self.num_features}"]
        if type(self) is BatchNorm:
            options.append(f"axis={self.axis}")
        options += [f"eps={self.eps:g}", f"momentum={self.momentum}", f"affine={self.affine}"]
        options.append(f"track_running_stats={self.track_running_stats}")
        options += [f"{name}={value!r}" for name, o in _RARE.items() if (value := getattr(self, name)) != o.default]
        rule = "no running statistics: always the batch's" if self.running is None else self.running.rule()
        return f"{type(self).__name__}({', '.join(options)}; {rule})"
