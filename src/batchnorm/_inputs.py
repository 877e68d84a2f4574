"""Every refusal of the front end: the rule, what came, the fix. What passes here, the kernels trust."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _refusals
from ._foreign import content
from ._memory import empty_like
from ._plan import Axis, Plan, make_plan

Array = NDArray[Any]
Doubles = NDArray[np.float64]

_OF_PARAMETERS = {np.dtype(np.float64), np.dtype(np.float32)}
_OF_DATA = {*_OF_PARAMETERS, np.dtype(np.float16)}
_DTYPES = "float64, float32, float16 or bfloat16"
_OR_CELLS = {"mask": ", or be of the input's shape, a mask per cell", "sample_weight": ""}
_MAX_EXACT_COUNT = 2**53  # counts are float64


class Data(NamedTuple):
    """An input that the kernels can take."""

    x: Array
    buffer: Array  # x, or its bits where NumPy cannot export the dtype (bfloat16)
    plan: Plan
    who: str


class Selection(NamedTuple):
    """What counts in the statistics: weights broadcast to the input's shape, and how many positions have one."""

    position_weight: Array | None
    positions: int
    cells: Array | None = None  # a mask of x's shape, besides


def described(x: Array) -> str:
    """Shape and dtype, as every message names them."""
    return f"shape {x.shape}, dtype {x.dtype}"


def _is_taken(dtype: np.dtype[Any]) -> bool:
    if dtype in _OF_DATA:
        return True
    is_bfloat16 = dtype.name == "bfloat16" and dtype.itemsize == 2 and dtype.isnative
    if is_bfloat16:
        _OF_DATA.add(dtype)  # ml_dtypes registers one dtype; remember it
    return is_bfloat16


def _bits(x: Array) -> Array:
    return x if x.dtype.char in "dfe" else x.view(np.uint16)


def _as_array(value: object, name: str, who: str) -> Array:
    if isinstance(value, np.ndarray):
        return value if type(value) is np.ndarray else _plain(value, name, who)
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        is_tensor = hasattr(value, "detach")  # on another device, with gradients, or of a dtype that NumPy has not
        fix = f"use {name}.detach().cpu().float().numpy()" if is_tensor else "pass numbers, in rows of equal length"
        raise TypeError(
            f"{who}: {name} must be an array of {_DTYPES}; got {type(value).__name__} ({error}); {fix}"
        ) from None


def _plain(value: NDArray[Any], name: str, who: str) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{who}: {name} is a numpy masked array, whose mask would be lost; pass {name}.data and, for the "
            f"statistics, mask=~np.ma.getmaskarray({name})"
        )
    return np.asarray(value)


def _refuse_dtype(x: Array, name: str, who: str) -> None:
    if not x.dtype.isnative and x.dtype.newbyteorder("=") in _OF_DATA:
        fix = f"convert it with {name}.astype({name}.dtype.newbyteorder('='))"
        raise TypeError(f"{who}: {name} must be in native byte order; got {described(x)}; {fix}")
    holds, fix = content(x, name)
    raise TypeError(f"{who}: {name} must be {_DTYPES}; got {holds} ({described(x)}); {fix}")


def _refuse_layout(x: Array, name: str, who: str) -> None:
    raise ValueError(
        f"{who}: {name} must be aligned, with strides that are whole elements; got strides {x.strides} for "
        f"{described(x)} (a field of a packed structure, or a map of a file?); copy it with np.array({name})"
    )


def _loadable(value: object, name: str, who: str) -> Array:
    """An array the kernels can read."""
    x = _as_array(value, name, who)
    if not _is_taken(x.dtype):
        _refuse_dtype(x, name, who)
    if not x.flags.carray and is_odd(x):
        _refuse_layout(x, name, who)
    return x


def is_odd(x: Array) -> bool:
    """Whether an element, or a step to the next one, does not start where its dtype's elements do."""
    return not x.flags.aligned or any(s % x.itemsize for s in x.strides)


def data(value: object, who: str, axis: Axis, channels: tuple[int, ...] | None = None) -> Data:
    """Check an input; `channels`, where given, is the shape its channels must have."""
    x = _loadable(value, "x", who)
    try:
        plan = make_plan(x.shape, axis)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{who}: {error}") from None
    if plan.m > _MAX_EXACT_COUNT:
        raise ValueError(f"{who}: at most 2**53 positions a channel count exactly; got {plan.m} ({described(x)})")
    if channels is not None and plan.channel_shape != channels:
        raise ValueError(
            f"{who}: expected {_channels(channels)} on {_axes(plan.axis)}; got an input of {described(x)}, which has "
            f"{_channels(plan.channel_shape)} there. Build the layer for that number, or give the axis of the channels"
        )
    return Data(x, _bits(x), plan, who)


def _channels(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return f"{shape[0]} channel{'s' * (shape[0] != 1)}"
    return f"channels of shape {shape}"


def _axes(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}"


def like(value: object, name: str, d: Data) -> Array:
    """Check an operand that must have x's shape and dtype; return what the kernels take."""
    a = _loadable(value, name, d.who)
    if a.shape != d.x.shape or a.dtype != d.x.dtype:
        raise (ValueError if a.dtype == d.x.dtype else TypeError)(
            f"{d.who}: {name} must have x's shape and dtype ({described(d.x)}); got {described(a)}"
            + (f"; convert it with {name}.astype(x.dtype)" if a.shape == d.x.shape else "")
        )
    return _bits(a)


def parameter(value: object, name: str, d: Data) -> Doubles | None:
    """Check weight or bias; return it as contiguous float64."""
    if value is None:
        return None
    plan, who = d.plan, d.who
    a = _as_array(value, name, who)
    if a.dtype not in _OF_PARAMETERS:
        raise TypeError(
            f"{who}: {name} must be float32 or float64, native byte order (parameters of 16-bit data stay float32 or "
            f"wider); got {described(a)}; convert it with np.asarray({name}, dtype=np.float32)"
        )
    if a.shape != plan.channel_shape:
        raise ValueError(
            f"{who}: {name} must have one value for each channel, shape {plan.channel_shape} (the lengths of "
            f"{_axes(plan.axis) if plan.axis else 'no axis'} of an input of shape {plan.shape}); got {described(a)}"
        )
    return np.array(a, dtype=np.float64, order="C")


def selection(d: Data, mask: object, sample_weight: object) -> Selection:
    """Check mask and sample_weight; combine them into one array of weights."""
    if mask is None and sample_weight is None:
        return Selection(None, d.plan.m)
    m = None if mask is None else _mask_array(mask, d)
    cells = m if m is not None and _is_of_cells(m, d.plan) else None
    m = None if m is None or cells is not None else _over_positions(m, "mask", d)
    w = None if sample_weight is None else _over_positions(_sample_weight_array(sample_weight, d), "sample_weight", d)
    if w is None and m is None:
        return Selection(None, d.plan.m, cells)
    if w is None:
        assert m is not None
        chosen = m
    else:
        chosen = w if m is None else np.where(m, w, w.dtype.type(0))
    repeats = d.plan.m // chosen.size if chosen.size else 0
    positions = int(np.count_nonzero(chosen)) * repeats
    return Selection(np.broadcast_to(chosen, d.x.shape), positions, cells)


def as_mask(s: Selection) -> Selection:
    """The same positions, each of which counts once."""
    if s.position_weight is None or s.position_weight.dtype == np.bool_:
        return s
    return s._replace(position_weight=s.position_weight != 0)


def only_cells(d: Data, cells: Array, zeros: Any) -> Data:
    """A copy of the input that is NaN where a mask of its cells is False, and 0 where `zeros` says so."""
    x = np.where(cells, d.x, d.x.dtype.type(np.nan))
    np.copyto(x, 0, where=zeros)
    return d._replace(x=x, buffer=_bits(x))


def _is_of_cells(mask: Array, plan: Plan) -> bool:
    return mask.shape == plan.shape and any(plan.shape[i] != 1 for i in plan.axis)


def _mask_array(mask: object, d: Data) -> Array:
    m = _as_array(mask, "mask", d.who)
    if m.dtype != np.bool_:
        raise TypeError(f"{d.who}: {_refusals.mask_dtype(described(m))}")
    return m


def _sample_weight_array(sample_weight: object, d: Data) -> Array:
    w = _as_array(sample_weight, "sample_weight", d.who)
    if not _is_taken(w.dtype):
        raise TypeError(
            f"{d.who}: sample_weight must be {_DTYPES}, native byte order; got {described(w)}; convert it with "
            "sample_weight.astype(np.float64)"
        )
    if w.dtype not in _OF_PARAMETERS:
        w = w.astype(np.float32)
    if is_odd(w):
        _refuse_layout(w, "sample_weight", d.who)
    if (broken := ~((w >= 0) & np.isfinite(w))).any():
        where = tuple(np.argwhere(broken)[0].tolist())
        raise ValueError(f"{d.who}: {_refusals.weight_value(w[where], f' at index {where}')}")
    return w


def _over_positions(a: Array, name: str, d: Data) -> Array:
    """View `a` with x's number of axes, the channel axes of length one, so that it broadcasts to x."""
    plan = d.plan
    said = _refusals.positions(name, plan.reduced_shape, described(a), plan.shape, _OR_CELLS[name])
    rule = f"{d.who}: {said}"
    if a.ndim == len(plan.shape) and plan.axis:
        if any(a.shape[i] != 1 for i in plan.axis):
            raise ValueError(rule)
    elif a.ndim > len(plan.reduced):
        raise ValueError(rule)
    else:
        a = a.reshape((1,) * (len(plan.reduced) - a.ndim) + a.shape) if a.ndim < len(plan.reduced) else a
        a = np.expand_dims(a, plan.axis)
    if any(a.shape[i] not in (1, plan.shape[i]) for i in plan.reduced):
        raise ValueError(
            f"{rule}; NumPy aligns axes from the last one: give every axis, with length one where it repeats"
        )
    return a


def trainable(d: Data, s: Selection) -> None:
    """Refuse what has no variance: no position, or one a channel."""
    positions, counted = (0, False) if d.x.size == 0 else (s.positions, s.position_weight is not None)
    if positions < 2:
        where = f" (input {d.x.shape}, {_where(d.plan)})"
        raise ValueError(f"{d.who}: {_refusals.too_few(positions, counted, where)}")


def _where(plan: Plan) -> str:
    return f"channels on {_axes(plan.axis)}" if plan.axis else "all positions in one channel"


def known_moments(mean_shape: tuple[int, ...], count: Doubles, d: Data, ghosts: tuple[int, ...] = ()) -> None:
    """Refuse moments that do not fit x or hold nothing; `ghosts` is the axis they have in front of the channels."""
    expected = ghosts + d.plan.channel_shape
    if mean_shape != expected:
        each = "for each ghost and channel" if ghosts else "for each channel"
        raise ValueError(
            f"{d.who}: the moments must have one value {each}, shape {expected} (input {d.x.shape}, {_where(d.plan)}); "
            f"got moments of shape {mean_shape}"
        )
    if not (count > 0).all():
        raise ValueError(
            f"{d.who}: cannot normalize with the moments of nothing: every channel needs a count above 0; got "
            f"{count.min():g}"
        )


def no_out(out: object, who: str) -> None:
    """Refuse an array to write to where x is a table."""
    if out is not None:
        raise TypeError(
            f"{who}: out must be left out where x is a table, as its results are a new one; got "
            f"{type(out).__name__}; or pass the values as an array"
        )


def output(out: object, d: Data, inputs: dict[str, Any]) -> tuple[Array, Array]:
    """The array to write, new or given, and what the kernels take of it.

    A given one may be exactly one of the inputs (in place), but may not overlap one in part.
    """
    if out is None:
        y = empty_like(d.x)
        return y, _bits(y)
    if not isinstance(out, np.ndarray) or type(out) not in (np.ndarray, np.memmap):
        raise TypeError(f"{d.who}: out must be a numpy array ({described(d.x)}); got {type(out).__name__}")
    if out.dtype != d.x.dtype:
        raise TypeError(f"{d.who}: out must have x's dtype {d.x.dtype}; got {described(out)}")
    if out.shape != d.x.shape:
        raise ValueError(f"{d.who}: out must have x's shape {d.x.shape}; got {described(out)}")
    if not out.flags.writeable:
        raise ValueError(f"{d.who}: out must be writable; got a read-only array ({described(out)}); pass a copy")
    if is_odd(out):
        _refuse_layout(out, "out", d.who)
    if not out.flags.forc and _overlaps_itself(out):  # a contiguous array never does
        raise ValueError(
            f"{d.who}: out must have memory of its own for each element; got a view that overlaps itself (shape "
            f"{out.shape}, strides {out.strides}); pass a new array"
        )
    for name, a in inputs.items():
        if isinstance(a, np.ndarray) and _overlap(out, a) and not _same_memory(out, a):
            raise ValueError(
                f"{d.who}: out may be {name} itself (in place) or separate memory; got an array that overlaps {name} "
                "in part; pass a separate array"
            )
    return out, _bits(np.asarray(out))


def _overlaps_itself(a: Array) -> bool:
    """Whether a step along one axis may land within what the axes of smaller steps span."""
    span = a.itemsize
    for step, length in sorted((abs(s), n) for s, n in zip(a.strides, a.shape, strict=True) if n > 1):
        if step < span:
            return True
        span += step * (length - 1)
    return False


def _same_memory(a: Array, b: Array) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.strides == b.strides
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def _overlap(a: Array, b: Array) -> bool:
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # NumPy's stub knows 0 and -1 only
    except np.exceptions.TooHardError:
        return True  # too hard to tell apart: treat as overlapping


def statistic(value: ArrayLike, name: str) -> Doubles:
    """Float64 copy of a per-channel statistic."""
    a = np.asarray(value)
    if a.dtype.kind not in "fiu" and not _is_taken(a.dtype):
        raise TypeError(f"Moments: {name} must be real numbers; got {described(a)}")
    return a.astype(np.float64)


def channel_shape(value: object, who: str) -> tuple[int, ...]:
    """Shape of the channels from a number of channels or a tuple."""
    lengths = value if isinstance(value, tuple) else (value,)
    for n in lengths:
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
            raise TypeError(
                f"{who}: num_features must be an int (or a tuple, one for each channel axis); got {value!r}"
            )
        if n < 0:
            raise ValueError(f"{who}: num_features must not be negative; got {value!r}")
    shape = tuple(int(n) for n in lengths)
    if math.prod(shape) > np.iinfo(np.intp).max // 64:
        raise ValueError(
            f"{who}: num_features={value!r} overflows what memory can address; check the number of channels"
        )
    return shape
