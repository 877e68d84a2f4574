"""The one table of cases: every test of results takes its shapes, axes, layouts, types and options from here.

A `Case` is a line of the table: plain values, printable as a test id. `build` makes its arrays, the same ones every
time. `CASES` is a set of sweeps, each around one small shape, not the product of everything.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import zlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import oracle
from pairs import pairs

DTYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
WIDE = ("float32", "float64")
ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", ("leaky_relu", 0.2), "silu")
BENT = ("gelu", "gelu_tanh", "hardswish", "elu", ("elu", 0.5))  # they go where silu goes, and take turns
SELECTIONS = ("all", "mask", "sample_weight", "mask+sample_weight", "kept mask", "row mask", "scalar sample_weight")
LENGTHS = (2, 15, 16, 17, 31, 33, 63, 65, 97, 2047, 2048, 2049, 5000)
CHANNELS = (1, 3, 15, 16, 17, 64, 65)
EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the table."""

    shape: tuple[int, ...]
    axis: int | tuple[int, ...] = 1
    layout: str = "contiguous"
    dtype: str = "float32"
    data: str = "normal"
    select: str = "all"
    affine: str = "both"  # "none", "weight", "bias", "both"
    residual: bool = False
    activation: object = None
    eps: float = EPS
    missing: float = 0.0  # the share of cells that are NaN, and left out

    def __str__(self) -> str:
        said = [f"{'x'.join(map(str, self.shape))}@{self.axis}".replace(" ", "")]
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if value != field.default:
                said.append(
                    field.name if value is True else str(value).replace(" ", "") + "nan" * (field.name == "missing")
                )
        return "-".join(said)

    @property
    def kept(self) -> tuple[int, ...]:
        """The channel axes, as non-negative integers in the order of the array."""
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        return tuple(sorted(axis % len(self.shape) for axis in axes))

    @property
    def reduced(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.kept)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.kept)

    @property
    def reduced_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.reduced)


@dataclasses.dataclass(frozen=True, eq=False)
class Built:
    """The arrays of a case. `options` are the keyword arguments that every function of the API shares."""

    case: Case
    x: np.ndarray
    grad: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None
    mask: np.ndarray | None
    sample_weight: np.ndarray | None
    residual: np.ndarray | None
    counted: np.ndarray | None  # mask, weights and what is missing together, of the shape of x
    missing: np.ndarray | None

    @property
    def selection(self) -> dict:
        return {"mask": self.mask, "sample_weight": self.sample_weight}

    @property
    def options(self) -> dict:
        case = self.case
        policy = {} if self.missing is None else {"nan_policy": "omit"}
        return {"axis": case.axis, "eps": case.eps, "residual": self.residual, "activation": case.activation} | policy

    @property
    def problem(self) -> oracle.Problem:
        return oracle.Problem(
            x=self.at_cells(self.x, 0),
            kept=self.case.kept,
            eps=self.case.eps,
            sample_weight=self.counted,
            weight=self.weight,
            bias=self.bias,
            residual=self.residual,
            activation=self.case.activation,
        )

    def at_cells(self, values: np.ndarray, instead) -> np.ndarray:
        """`values`, with something else where cells are missing."""
        return values if self.missing is None else np.where(self.missing, np.asarray(instead, values.dtype), values)


# --- layouts: the same values, laid out in memory in another way ---


def _channels_last(values: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    order = [axis for axis in range(values.ndim) if axis not in kept] + list(kept)
    return np.transpose(np.ascontiguousarray(np.transpose(values, order)), np.argsort(order))


def _permuted(values: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    order = [*range(1, values.ndim), 0]
    return np.transpose(np.ascontiguousarray(np.transpose(values, order)), np.argsort(order))


def _sliced(values: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """Every second element of an array that holds NaN everywhere else."""
    around = np.full([2 * length + 1 for length in values.shape], np.nan).astype(values.dtype)
    view = around[tuple(slice(1, 1 + 2 * length, 2) for length in values.shape)]
    view[...] = values
    return view


def _sliced_channels(values: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """A range of the first channel axis of a larger array: runs stay whole, samples lie further apart."""
    around_shape = list(values.shape)
    where: list[slice] = [slice(None)] * values.ndim
    if kept:
        around_shape[kept[0]] += 3
        where[kept[0]] = slice(2, 2 + values.shape[kept[0]])
    around = np.full(around_shape, np.nan).astype(values.dtype)
    view = around[tuple(where)]
    view[...] = values
    return view


def _reversed(values: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """Negative strides along every axis."""
    flip = (slice(None, None, -1),) * values.ndim
    return np.ascontiguousarray(values[flip])[flip]


def _broadcast(values: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """Stride 0 along the first axis: the first sample again and again."""
    return np.broadcast_to(np.ascontiguousarray(values[:1]), values.shape)


def _read_only(values: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    view = np.ascontiguousarray(values)[...]
    view.flags.writeable = False
    return view


def _field(values: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """A field of an array of records."""
    records = np.zeros(values.shape, dtype=np.dtype([("other", values.dtype), ("value", values.dtype)]))
    records["value"] = values
    return records["value"]


LAYOUTS: dict[str, Callable[[np.ndarray, tuple[int, ...]], np.ndarray]] = {
    "contiguous": lambda values, kept: np.ascontiguousarray(values),
    "fortran": lambda values, kept: np.asfortranarray(values),
    "channels-last": _channels_last,
    "permuted": _permuted,
    "sliced": _sliced,
    "sliced-channels": _sliced_channels,
    "reversed": _reversed,
    "broadcast": _broadcast,
    "read-only": _read_only,
    "field": _field,
}


def lay_out(values: np.ndarray, layout: str, kept: tuple[int, ...]) -> np.ndarray:
    """`values`, laid out in memory as `layout` says."""
    return LAYOUTS[layout](values, kept)


# --- data: what is in the arrays ---


def _per_channel(rng: np.random.Generator, case: Case) -> np.ndarray:
    """One normal number per channel, shaped to broadcast against x."""
    ones = [length if axis in case.kept else 1 for axis, length in enumerate(case.shape)]
    return rng.standard_normal(ones)


def _normal(rng: np.random.Generator, case: Case) -> np.ndarray:
    return rng.standard_normal(case.shape) * np.exp(_per_channel(rng, case)) + _per_channel(rng, case)


def _offset(rng: np.random.Generator, case: Case) -> np.ndarray:
    return rng.standard_normal(case.shape) + 1000.0


def _integers(rng: np.random.Generator, case: Case) -> np.ndarray:
    return rng.integers(-8, 9, case.shape).astype(np.float64)


def _constant(rng: np.random.Generator, case: Case) -> np.ndarray:
    return np.zeros(case.shape) + 0.1 + _per_channel(rng, case)


def _outlier(rng: np.random.Generator, case: Case) -> np.ndarray:
    """The first position of every channel, the one that shifts the sums, lies far from all others."""
    values = rng.standard_normal(case.shape)
    first = tuple(slice(None) if axis in case.kept else 0 for axis in range(len(case.shape)))
    values[first] = 1e4
    return values


def _steps(rng: np.random.Generator, case: Case) -> np.ndarray:
    """Levels far apart: the mean of a part says nothing about the mean of the whole."""
    return rng.standard_normal(case.shape) + 100.0 * rng.integers(-3, 4, case.shape)


DATA: dict[str, Callable[[np.random.Generator, Case], np.ndarray]] = {
    "normal": _normal,
    "offset": _offset,
    "integers": _integers,
    "constant": _constant,
    "outlier": _outlier,
    "steps": _steps,
}


def _mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """About two thirds of the positions, at least two of them."""
    mask = np.asarray(rng.random(shape) < 0.67)
    mask.flat[:1] = mask.size == 1
    mask.flat[1:3] = True
    return mask


def _weights(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Fractions and a few zeros, in all at least 2."""
    sample_weight = np.asarray(rng.random(shape) + 0.25) * (rng.random(shape) < 0.8)
    sample_weight.flat[-2:] = 1.5
    return sample_weight


def _select(rng: np.random.Generator, case: Case) -> tuple[np.ndarray | None, np.ndarray | None]:
    """`mask` and `sample_weight` as they are passed."""
    shape = case.reduced_shape
    if case.select == "mask":
        return _mask(rng, shape), None
    if case.select == "sample_weight":
        return None, _weights(rng, shape)
    if case.select == "mask+sample_weight":
        return _mask(rng, shape), _weights(rng, shape) + 0.5
    if case.select == "kept mask":
        return np.expand_dims(_mask(rng, shape), case.kept), None
    if case.select == "row mask":
        return _mask(rng, shape[:1] + (1,) * (len(shape) - 1)), None
    if case.select == "scalar sample_weight":
        return None, np.asarray(np.float32(0.75))
    return None, None


def _counted(case: Case, mask: np.ndarray | None, sample_weight: np.ndarray | None, missing) -> np.ndarray | None:
    """What they say together, for every position of x."""
    if mask is None and sample_weight is None and missing is None:
        return None
    counted = np.ones(case.shape) if missing is None else np.where(missing, 0.0, 1.0)
    for given in (mask, sample_weight):
        if given is not None:
            if given.ndim != len(case.shape):
                given = np.expand_dims(np.broadcast_to(given, case.reduced_shape), case.kept)
            counted = counted * given.astype(np.float64)
    return counted


@functools.cache
def build(case: Case) -> Built:
    """The arrays of a case: the same ones every time it is called. Copy what you change."""
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    dtype = DTYPES[case.dtype]
    mask, sample_weight = _select(rng, case)

    def draw(values: np.ndarray) -> np.ndarray:
        return lay_out(values.astype(dtype), case.layout, case.kept)

    parameters = np.float64 if case.dtype == "float64" else np.float32
    missing = None
    if case.missing:
        missing = rng.random(case.shape) < case.missing
        for axis in case.reduced:  # every channel keeps two
            if case.shape[axis] > 1:
                missing[tuple(slice(0, 2) if i == axis else slice(None) for i in range(len(case.shape)))] = False
                break

    def with_nan(values: np.ndarray) -> np.ndarray:
        return draw(values if missing is None else np.where(missing, np.nan, values))

    scale = (1.0 + 0.3 * rng.standard_normal(case.kept_shape)) * np.where(rng.random(case.kept_shape) < 0.8, 1, -1)
    shift = rng.standard_normal(case.kept_shape)
    return Built(
        case=case,
        x=with_nan(DATA[case.data](rng, case)),
        grad=with_nan(rng.standard_normal(case.shape) + 0.25),
        weight=np.asarray(scale, dtype=parameters) if case.affine in ("weight", "both") else None,
        bias=np.asarray(shift, dtype=parameters) if case.affine in ("bias", "both") else None,
        mask=mask,
        sample_weight=sample_weight,
        residual=draw(2.0 * rng.standard_normal(case.shape)) if case.residual else None,
        counted=_counted(case, mask, sample_weight, missing),
        missing=missing,
    )


@functools.cache
def exact_statistics(case: Case) -> oracle.Statistics:
    """The oracle's statistics of a case, worked out once."""
    return oracle.statistics(build(case).problem)


@functools.cache
def exact_forward(case: Case) -> oracle.Forward:
    """The oracle's forward of a case in training, worked out once."""
    return oracle.forward(build(case).problem, exact_statistics(case))


def check_gradients(built: Built, grad: np.ndarray, found: Any, exact: oracle.Backward) -> None:
    """Every gradient has the type and shape of its argument and the value of the oracle."""
    dtype = built.x.dtype
    assert found.x.dtype == dtype
    oracle.assert_within(found.x, exact.x, oracle.gradient_bound(exact.x, exact.x_terms, dtype), "gradient of x")
    for name in ("weight", "bias"):
        parameter, gradient = getattr(built, name), getattr(found, name)
        if parameter is None:
            assert gradient is None
            continue
        assert gradient.dtype == parameter.dtype
        expected = getattr(exact, name)
        bound = oracle.gradient_bound(expected, getattr(exact, f"{name}_terms"), gradient.dtype)
        oracle.assert_within(gradient, expected, bound, f"gradient of {name}")
    if built.residual is None:
        assert found.residual is None
        return
    assert found.residual.dtype == dtype
    size = np.abs(grad.astype(np.float64)) * (8.0 if oracle.bends(built.case.activation) else 1.0)
    bound = oracle.gradient_bound(exact.residual, size, dtype)
    oracle.assert_within(found.residual, exact.residual, bound, "gradient of residual")


# --- the table ---

_ONE = Case((5, 2, 5))
_PARTLY = ("none", "weight", "bias")


def _with(case: Case, **changes) -> Case:
    return dataclasses.replace(case, **changes)


def _shapes() -> list[Case]:
    """Every count of positions and of channels at which a vector loop, a block or a group begins or ends."""
    found = [Case((length, 1 if length > 1000 else 3)) for length in LENGTHS]
    found += [Case((1, 1 if length > 1000 else 2, length)) for length in LENGTHS]
    found += [Case((3, 2, length)) for length in (1, 7, 16, 49, 65)] + [Case((3, 1, 683))]
    found += [Case((5, channels)) for channels in CHANNELS]
    found += [Case((2, channels, 7)) for channels in CHANNELS]
    found += [Case((9, channels, 1, 1)) for channels in (1, 17)]
    found += [Case((2, 3, 7, 7)), Case((1, 3, 4, 1)), Case((2, 5, 3, 4, 5)), Case((1, 1, 2, 1, 1)), Case((129, 1, 17))]
    return found


def _axes() -> list[Case]:
    axes = [0, 1, 2, 3, -1, -2, (), (0,), (1, 3), (3, 1), (0, 1), (2, 3), (-1, 1), (0, 3), (1, 2, 3), (0, 2)]
    found = [Case((4, 3, 2, 5), axis) for axis in axes]
    found += [Case((7,), ()), Case((5000,), ()), Case((5, 7), 0), Case((5, 7), ()), Case((33, 65), 0), Case((3, 1, 7))]
    found += [Case((5, 1, 5, 1), axis=2), Case((2, 1, 3, 1, 4), axis=(2, 4)), Case((40, 7, 3), axis=-1)]
    return found


def _layouts() -> list[Case]:
    """Every layout with every type around one shape, and with float32 around the others."""
    first = Case((4, 5, 3, 4), residual=True, activation="leaky_relu")
    others = [Case((34, 17)), Case((2, 16, 25)), Case((4, 3, 2, 5), axis=(1, 3)), Case((6, 5), axis=())]
    found = [_with(first, layout=layout, dtype=dtype) for layout, dtype in itertools.product(LAYOUTS, DTYPES)]
    return found + [_with(other, layout=layout, residual=True) for other, layout in itertools.product(others, LAYOUTS)]


def _options() -> list[Case]:
    """Every selection with every activation, with and without a residual, in float32 or float64; fewer in 16 bits."""
    last = list(itertools.product(ACTIVATIONS, (False, True)))
    found = [*pairs(WIDE, SELECTIONS, last), *pairs(("float16", "bfloat16"), ("all", "mask+sample_weight"), last)]
    turns = itertools.cycle(itertools.product(BENT, (False, True)))
    found += [
        (dtype, select, next(turns))
        for dtype, selects in (("float32", SELECTIONS), ("float64", SELECTIONS[:5]))
        for select in selects
    ]
    found += [(dtype, "all", next(turns)) for dtype in ("float16", "bfloat16") for _ in range(4)]
    return [_with(_ONE, dtype=d, select=s, activation=a, residual=r) for d, s, (a, r) in found]


def _selections() -> list[Case]:
    shapes = [
        Case((2500, 1)),
        Case((3, 17, 5)),
        Case((4, 3, 2, 5), axis=(1, 3)),
        Case((4, 3, 2, 5), axis=()),
        Case((4, 6, 5), axis=-1),
        Case((2, 1, 1100), layout="channels-last"),
        Case((4, 3, 2, 5), layout="sliced"),
        Case((4, 16, 2, 3), layout="permuted"),
    ]
    return _wider([_with(shape, select=select) for shape, select in itertools.product(shapes, SELECTIONS[1:])])


def _distributions() -> list[Case]:
    found = [_with(_ONE, data=data, dtype=dtype) for data, dtype in itertools.product(DATA, DTYPES)]
    found += [Case((2100, 1), data=data, dtype=dtype) for data, dtype in itertools.product(("outlier", "steps"), WIDE)]
    found += [_with(_ONE, affine=affine, dtype=d) for affine, d in itertools.product(_PARTLY, DTYPES)]
    found += [_with(_ONE, eps=eps, dtype=dtype) for eps, dtype in itertools.product((1e-12, 1e-3, 10.0), WIDE)]
    return found


def _wider(found: list[Case]) -> list[Case]:
    """The same cases in float32 and float64; long ones in one of the two, to spare the oracle."""
    wide = [_with(case, dtype=dtype) for case in found for dtype in WIDE]
    return [case for case in wide if math.prod(case.shape) < 1000 or case.dtype == WIDE[len(case.shape) % 2]]


SHAPES = _wider(_shapes())
AXES = _wider(_axes())
LAYOUT_CASES = _layouts()
OPTIONS = _options()
CASES = list(dict.fromkeys(SHAPES + AXES + LAYOUT_CASES + OPTIONS + _selections() + _distributions()))
MISSING = [
    _with(case, missing=0.3)
    for case in [*LAYOUT_CASES, *OPTIONS, *_wider([Case((2500, 1)), Case((40, 17, 3)), Case((33, 65), 0)])]
    if case.layout != "broadcast"
]
MISSING += [_with(case, missing=0.6) for case in _wider([Case((2100, 2)), Case((9, 17)), Case((3, 5, 16))])]
MASKED = [case for case in CASES if case.select != "all"]
SMALL = [_ONE, _with(_ONE, dtype="float64"), Case((4, 3, 2, 5), axis=(1, 3), dtype="float64"), Case((40, 2))]
