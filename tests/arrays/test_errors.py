"""Every refusal states the rule, what came and the fix; and nothing is changed by a call that fails.

One table for the functions (an argument, a bad value, what the message says), applied to every function that has the
argument; one for the rest.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import batchnorm as bn

FUNCTIONS = {f.__name__: f for f in (bn.moments, bn.normalize, bn.batch_norm, bn.batch_norm_backward)}
BATCH = ("batch_norm", "batch_norm_backward")  # what needs a variance
SENTINEL = np.float32(7.0)


def _good() -> dict[str, Any]:
    """A good call: every array that any function takes."""
    rng = np.random.default_rng(0)
    x, grad_y = rng.standard_normal((2, 4, 3)).astype(np.float32)
    return {"x": x, "grad_y": grad_y, "moments": bn.moments(x), "out": np.full_like(x, SENTINEL)}


class Bad(NamedTuple):
    """A bad value of an argument; `make` may use the arrays of the good call."""

    argument: str
    what: str
    make: Callable[[dict[str, Any]], Any]
    error: type[Exception]
    says: tuple[str, ...]  # regular expressions, each of which the message must match
    functions: tuple[str, ...] = tuple(FUNCTIONS)


def _swapped(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder())


def _read_only(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


def _packed_field(shape: tuple[int, ...]) -> np.ndarray:
    """A float32 field of records of five bytes."""
    return np.zeros(shape, dtype=np.dtype([("tag", np.int8), ("value", np.float32)]))["value"]


def _overlapping(values: np.ndarray) -> np.ndarray:
    """A writable array of the shape of `values` whose rows share memory with each other."""
    return np.lib.stride_tricks.sliding_window_view(np.zeros(6, dtype=values.dtype), 3, writeable=True)


def _shifted(good: dict[str, Any], name: str) -> np.ndarray:
    """Put argument `name` into the first rows of a longer array, and return the rows one further on."""
    memory = np.full((5, 3), SENTINEL)
    memory[:4] = good.get(name, good["x"])
    good[name] = memory[:4]
    return memory[1:]


_FROM_X: list[Bad] = [
    Bad(
        "x",
        "int64",
        lambda g: np.ones((4, 3), dtype=np.int64),
        TypeError,
        ("float32", r"integer", "int64", r"\(4, 3\)", "astype"),
    ),
    Bad(
        "x", "uint8", lambda g: np.ones((4, 3), dtype=np.uint8), TypeError, ("float32", "uint8", r"\(4, 3\)", "astype")
    ),
    Bad("x", "bool", lambda g: np.ones((4, 3), dtype=bool), TypeError, ("float32", "bool", r"\(4, 3\)", "astype")),
    Bad("x", "integers in lists", lambda g: [[1, 2], [3, 4]], TypeError, ("float32", "int64", r"\(2, 2\)", "astype")),
    Bad(
        "x",
        "object",
        lambda g: np.array([[1.0, None]], dtype=object),
        TypeError,
        ("float32", "object", r"\(1, 2\)", "dtype"),
    ),
    Bad("x", "ragged lists", lambda g: [[1.0], [1.0, 2.0]], TypeError, ("x must be", "float32", "list")),
    Bad("x", "None", lambda g: None, TypeError, ("x must be", "float32", "object|None")),
    Bad("x", "text", lambda g: np.array([["a", "b"]]), TypeError, ("float32", "<U1", r"\(1, 2\)")),
    Bad("x", "dates", lambda g: np.zeros((4, 3), dtype="M8[s]"), TypeError, ("float32", "datetime64", r"\(4, 3\)")),
    Bad(
        "x",
        "complex",
        lambda g: g["x"].astype(np.complex64),
        TypeError,
        ("float32", "complex64", r"\(4, 3\)", r"\.real"),
    ),
    Bad(
        "x",
        "byte-swapped",
        lambda g: _swapped(g["x"]),
        TypeError,
        ("byte order", ">f4|<f4", r"\(4, 3\)", "newbyteorder"),
    ),
    Bad(
        "x",
        "8 bits",
        lambda g: g["x"].astype(ml_dtypes.float8_e4m3fn),
        TypeError,
        ("float32", "float8_e4m3fn", r"\(4, 3\)", "astype"),
    ),
    Bad("x", "masked array", lambda g: np.ma.masked_array(g["x"], g["x"] > 0), TypeError, ("masked array", "mask=")),
    Bad("x", "a scalar", lambda g: np.float32(1.0), ValueError, ("at least one axis", r"\(\)")),
    Bad(
        "x",
        "packed records",
        lambda g: _packed_field((4, 3)),
        ValueError,
        ("aligned", "strides", r"\(4, 3\)", "copy|np.array"),
    ),
    Bad(
        "x", "too long to count", lambda g: np.broadcast_to(SENTINEL, (2**54, 3)), ValueError, (r"2\*\*53", str(2**54))
    ),
]

_FROM_AXIS: list[Bad] = [
    Bad("axis", "too large", lambda g: 2, ValueError, ("axis 2 does not exist", r"\(4, 3\)", "0 to 1")),
    Bad("axis", "too small", lambda g: -3, ValueError, ("axis -3 does not exist", r"\(4, 3\)", "-2 to -1")),
    Bad("axis", "one of two too large", lambda g: (0, 5), ValueError, ("axis 5 does not exist", r"\(4, 3\)")),
    Bad("axis", "twice", lambda g: (1, 1), ValueError, ("once", r"\(1, 1\)", r"\(4, 3\)")),
    Bad("axis", "twice, once from the end", lambda g: (1, -1), ValueError, ("once", r"\(1, -1\)", r"\(4, 3\)")),
    Bad("axis", "float", lambda g: 1.0, TypeError, ("int", r"1\.0", "float")),
    Bad("axis", "tuple with a float", lambda g: (1.0,), TypeError, ("int", r"1\.0")),
    Bad("axis", "bool", lambda g: True, TypeError, ("int", "True", "bool")),
    Bad("axis", "tuple with a bool", lambda g: (np.True_,), TypeError, ("int", "True")),
    Bad("axis", "text", lambda g: "1", TypeError, ("int", "'1'")),
    Bad("axis", "None", lambda g: None, TypeError, ("int", "None")),
]

_FROM_PARAMETERS: list[Bad] = []
for _name in ("weight", "bias"):
    _takers = ("normalize", *BATCH)
    _FROM_PARAMETERS += [
        Bad(
            _name,
            "too short",
            lambda g: np.ones(2, np.float32),
            ValueError,
            (_name, r"\(3,\)", r"\(2,\)", r"\(4, 3\)"),
            _takers,
        ),
        Bad(
            _name,
            "keepdims",
            lambda g: np.ones((1, 3), np.float32),
            ValueError,
            (_name, r"\(3,\)", r"\(1, 3\)"),
            _takers,
        ),
        Bad(_name, "scalar", lambda g: np.float32(1), ValueError, (_name, r"\(3,\)", r"\(\)"), _takers),
        Bad(
            _name,
            "int",
            lambda g: np.ones(3, np.int32),
            TypeError,
            (_name, "float32 or float64", "int32", "dtype=|astype"),
            _takers,
        ),
        Bad(
            _name,
            "float16",
            lambda g: np.ones(3, np.float16),
            TypeError,
            (_name, "float32 or float64", "float16"),
            _takers,
        ),
        Bad(
            _name,
            "complex",
            lambda g: np.ones(3, complex),
            TypeError,
            (_name, "float32 or float64", "complex128"),
            _takers,
        ),
        Bad(
            _name, "byte-swapped", lambda g: _swapped(np.ones(3)), TypeError, (_name, "byte order", ">f8|<f8"), _takers
        ),
        Bad(_name, "text", lambda g: "ones", TypeError, (_name, "float32 or float64"), _takers),
    ]

_TAKE_MASKS = ("moments", *BATCH)
_FROM_SELECTION: list[Bad] = [
    Bad("mask", "int", lambda g: np.ones(4, int), TypeError, ("mask", "bool", "int64", r"\(4,\)", "!= 0"), _TAKE_MASKS),
    Bad("mask", "float", lambda g: np.ones(4), TypeError, ("mask", "bool", "float64", "sample_weight"), _TAKE_MASKS),
    Bad(
        "sample_weight",
        "bool",
        lambda g: np.ones(4, bool),
        TypeError,
        ("sample_weight", "float", "bool", "astype"),
        _TAKE_MASKS,
    ),
    Bad(
        "sample_weight",
        "int",
        lambda g: np.ones(4, int),
        TypeError,
        ("sample_weight", "float", "int64", "astype"),
        _TAKE_MASKS,
    ),
    Bad(
        "sample_weight",
        "complex",
        lambda g: np.ones(4, complex),
        TypeError,
        ("sample_weight", "float", "complex128"),
        _TAKE_MASKS,
    ),
    Bad(
        "sample_weight",
        "text",
        lambda g: np.array(list("abcd")),
        TypeError,
        ("sample_weight", "float", "<U1"),
        _TAKE_MASKS,
    ),
    Bad(
        "sample_weight",
        "byte-swapped",
        lambda g: _swapped(np.ones(4)),
        TypeError,
        ("sample_weight", "byte order", ">f8|<f8"),
        _TAKE_MASKS,
    ),
    Bad(
        "sample_weight",
        "negative",
        lambda g: np.array([1.0, -0.5, 1, 1]),
        ValueError,
        ("sample_weight", "negative", r"-0\.5", r"[\[(]1", "0"),
        _TAKE_MASKS,
    ),
    Bad(
        "sample_weight",
        "NaN",
        lambda g: np.array([1.0, 1, np.nan, 1]),
        ValueError,
        ("sample_weight", "finite", "nan", r"[\[(]2"),
        _TAKE_MASKS,
    ),
    Bad(
        "sample_weight",
        "infinite",
        lambda g: np.array([1.0, 1, 1, np.inf]),
        ValueError,
        ("sample_weight", "finite", "inf", r"[\[(]3"),
        _TAKE_MASKS,
    ),
]
for _name, _kind in (("mask", bool), ("sample_weight", np.float64)):
    for _shape in ((3,), (5,), (4, 3) if _name == "sample_weight" else (4, 2), (3, 4), (1, 4), (4, 1, 1), (2, 1)):
        _says = (_name, "broadcast", r"\(4,\)", re.escape(str(_shape)), r"\(4, 3\)")
        _make = lambda g, shape=_shape, kind=_kind: np.ones(shape, kind)  # noqa: E731
        _FROM_SELECTION.append(Bad(_name, f"shape {_shape}", _make, ValueError, _says, _TAKE_MASKS))
    _FROM_SELECTION += [
        Bad(
            _name,
            "nothing",
            lambda g, k=_kind: np.zeros(4, k),
            ValueError,
            ("select nothing", r"\(4, 3\)", "leave out"),
            BATCH,
        ),
        Bad(
            _name,
            "one",
            lambda g, k=_kind: np.eye(4)[1].astype(k),
            ValueError,
            ("one counted value per channel", r"\(4, 3\)", "at least 2"),
            BATCH,
        ),
    ]

_FROM_OPERANDS: list[Bad] = []
for _name, _takers in (("residual", ("normalize", *BATCH)), ("grad_y", ("batch_norm_backward",))):
    _FROM_OPERANDS += [
        Bad(_name, "shape", lambda g: g["x"][:3], ValueError, (_name, r"\(4, 3\)", r"\(3, 3\)"), _takers),
        Bad(_name, "would broadcast", lambda g: g["x"][:1], ValueError, (_name, r"\(4, 3\)", r"\(1, 3\)"), _takers),
        Bad(
            _name,
            "dtype",
            lambda g: g["x"].astype(np.float64),
            TypeError,
            (_name, "float32", "float64", "astype"),
            _takers,
        ),
        Bad(_name, "int", lambda g: np.ones((4, 3), int), TypeError, (_name, "int64", r"\(4, 3\)", "astype"), _takers),
        Bad(_name, "byte-swapped", lambda g: _swapped(g["x"]), TypeError, (_name, "byte order"), _takers),
    ]
_FROM_OPERANDS.append(Bad("grad_y", "None", lambda g: None, TypeError, ("grad_y",), ("batch_norm_backward",)))

_TAKE_MOMENTS = ("normalize", "batch_norm_backward")
_FROM_MOMENTS: list[Bad] = [
    Bad(
        "moments",
        "a tuple",
        lambda g: (np.zeros(3), np.ones(3)),
        TypeError,
        ("Moments", "tuple", "from_statistics"),
        _TAKE_MOMENTS,
    ),
    Bad("moments", "None", lambda g: None, TypeError, ("Moments", "None", "bn.moments"), _TAKE_MOMENTS),
    Bad(
        "moments",
        "other channels",
        lambda g: bn.moments(g["x"][:, :2]),
        ValueError,
        (r"\(3,\)", r"\(2,\)", r"\(4, 3\)"),
        _TAKE_MOMENTS,
    ),
    Bad(
        "moments",
        "of one",
        lambda g: bn.moments(g["x"], ()),
        ValueError,
        (r"\(3,\)", r"\(\)", r"\(4, 3\)"),
        _TAKE_MOMENTS,
    ),
    Bad("moments", "of nothing", lambda g: bn.Moments.empty(3), ValueError, ("nothing", "count", "0"), _TAKE_MOMENTS),
]

_WRITERS = ("normalize", *BATCH)
_FROM_OUT: list[Bad] = [
    Bad("out", "a list", lambda g: [[0.0] * 3] * 4, TypeError, ("out", "numpy array", "list"), _WRITERS),
    Bad("out", "shape", lambda g: np.full((3, 4), SENTINEL), ValueError, ("out", r"\(4, 3\)", r"\(3, 4\)"), _WRITERS),
    Bad("out", "dtype", lambda g: np.full((4, 3), 7.0), TypeError, ("out", "float32", "float64"), _WRITERS),
    Bad(
        "out",
        "byte-swapped",
        lambda g: _swapped(g["out"]),
        TypeError,
        ("out", "float32", ">f4|<f4|byte order"),
        _WRITERS,
    ),
    Bad("out", "read-only", lambda g: _read_only(g["out"]), ValueError, ("out", "writable", "read-only"), _WRITERS),
    Bad(
        "out", "overlaps x", lambda g: _shifted(g, "x"), ValueError, ("out", "overlaps x in part", "separate"), _WRITERS
    ),
    Bad(
        "out",
        "overlaps residual",
        lambda g: _shifted(g, "residual"),
        ValueError,
        ("out", "overlaps residual in part"),
        _WRITERS,
    ),
    Bad(
        "out",
        "overlaps grad_y",
        lambda g: _shifted(g, "grad_y"),
        ValueError,
        ("overlaps grad_y in part",),
        ("batch_norm_backward",),
    ),
    Bad("out", "x reversed", lambda g: g["x"][::-1], ValueError, ("out", "overlaps x in part"), _WRITERS),
    Bad("out", "overlaps itself", lambda g: _overlapping(g["x"]), ValueError, ("out", "memory of its own"), _WRITERS),
    Bad("out", "packed records", lambda g: _packed_field((4, 3)), ValueError, ("out", "aligned|strides"), _WRITERS),
]


def _too_small(shape: tuple[int, ...], says: tuple[str, ...]) -> Bad:
    says = (*says, re.escape(str(shape)), "channels on axis 1")
    return Bad("x", f"shape {shape}", lambda g: np.zeros(shape, np.float32), ValueError, says, ("batch_norm",))


_EMPTY, _ONE = (
    ("empty batch", "evaluation"),
    ("one value per channel", "variance is 0", "batch of at least 2"),
)
_FROM_BATCH = [_too_small(shape, _EMPTY) for shape in ((0, 3), (4, 3, 0), (0, 3, 5), (0, 0, 0))]
_FROM_BATCH += [_too_small(shape, _ONE) for shape in ((1, 3), (1, 3, 1), (1, 3, 1, 1))]

TABLE = [
    *_FROM_X, *_FROM_AXIS, *_FROM_PARAMETERS, *_FROM_SELECTION, *_FROM_OPERANDS, *_FROM_MOMENTS,
    *_FROM_OUT, *_FROM_BATCH,
]  # fmt: skip


def _calls() -> list[Any]:
    """Every bad argument with every function that takes it."""
    found = []
    for bad in TABLE:
        for name in bad.functions:
            if bad.argument in inspect.signature(FUNCTIONS[name]).parameters:
                found.append(pytest.param(bad, name, id=f"{name}-{bad.argument}-{bad.what}"))
    return found


def _contents(arguments: dict[str, Any]) -> dict[str, bytes]:
    small = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray) and value.size < 1000}
    return {name: value.tobytes() for name, value in small.items()}


def _assert_says(error: BaseException, says: tuple[str, ...]) -> None:
    message = str(error)
    for pattern in says:
        assert re.search(pattern, message), f"the message does not say {pattern!r}: {message}"
    assert "\n" not in message


@pytest.mark.parametrize(("bad", "name"), _calls())
def test_functions_refuse(bad: Bad, name: str):
    arguments = _good()
    bn.moments(arguments["x"])  # a good call before, so that nothing remembered of it lets the bad one pass
    arguments[bad.argument] = bad.make(arguments)
    function = FUNCTIONS[name]
    given = {key: value for key, value in arguments.items() if key in inspect.signature(function).parameters}
    before = _contents(given)
    with pytest.raises((TypeError, ValueError)) as caught:
        function(**given)
    assert caught.type is bad.error
    _assert_says(caught.value, (re.escape(name), *bad.says))
    assert _contents(given) == before, "a refused call changes nothing"


def test_a_good_call_is_not_refused():
    """The call that the table makes bad is good."""
    for name, function in FUNCTIONS.items():
        good = _good()
        given = {key: value for key, value in good.items() if key in inspect.signature(function).parameters}
        function(**given)
        if "out" in given:
            assert (good["out"] != SENTINEL).any(), name


def test_mask_with_several_channel_axes():
    x = np.zeros((4, 3, 2, 5), dtype=np.float32)
    with pytest.raises(ValueError, match=r"\(4, 2\).*\(4, 5\).*\(4, 3, 2, 5\)"):
        bn.moments(x, (1, 3), mask=np.ones((4, 5), dtype=bool))


def test_one_position_that_a_broadcast_mask_selects():
    """A mask of shape (1,) over one row of three positions selects three; over one position it selects one."""
    mask = np.ones(1, dtype=bool)
    assert bn.batch_norm(np.ones((3, 2)), mask=mask)[1].count.tolist() == [3.0, 3.0]
    with pytest.raises(ValueError, match="one counted value"):
        bn.batch_norm(np.ones((1, 2)), mask=mask)


def test_no_channels_at_all():
    with pytest.raises(ValueError, match=r"empty batch.*\(4, 0\)"):
        bn.batch_norm(np.zeros((4, 0), dtype=np.float32))


def test_more_memory_than_there_is_is_a_memory_error():
    """An array that NumPy can describe but nobody can hold: refused where y is allocated, not a crash."""
    with pytest.raises((MemoryError, ValueError)):
        bn.normalize(np.broadcast_to(np.float32(1), (2**50, 3)), bn.Moments.from_statistics(np.zeros(3), np.ones(3)))


# --- Moments and threads ---


def _counted(count: float) -> bn.Moments:
    return bn.Moments(count, [0.0], [1.0])


OTHERS: list[tuple[str, Callable[[], Any], type[Exception], tuple[str, ...]]] = [
    (
        "merge with other channels",
        lambda: bn.Moments.empty(3) + bn.Moments.empty(2),
        ValueError,
        (r"\(3,\)", r"\(2,\)"),
    ),
    ("merge with a number", lambda: bn.Moments.empty(3).merge(1.0), TypeError, ("Moments", "float")),
    ("add a number", lambda: bn.Moments.empty(3) + 1.0, TypeError, ("Moments",)),
    ("sum from 1", lambda: sum([bn.Moments.empty(3)], 1), TypeError, ("Moments",)),
    (
        "shapes that differ",
        lambda: bn.Moments(np.ones(2), np.ones(3), np.ones(3)),
        ValueError,
        ("count", r"\(2,\)", r"\(3,\)"),
    ),
    ("negative count", lambda: bn.Moments(-1.0, [0.0], [1.0]), ValueError, ("count", "negative", "-1")),
    ("infinite count", lambda: bn.Moments(np.inf, [0.0], [1.0]), ValueError, ("count", "finite", "inf")),
    ("NaN count", lambda: bn.Moments(np.nan, [0.0], [1.0]), ValueError, ("count", "nan")),
    ("negative m2", lambda: bn.Moments(2.0, [0.0], [-1.0]), ValueError, ("m2", "negative", "-1")),
    ("complex mean", lambda: bn.Moments(2.0, [1j], [1.0]), TypeError, ("mean", "real", "complex")),
    ("text mean", lambda: bn.Moments(2.0, ["a"], [1.0]), TypeError, ("mean", "real", "<U1")),
    (
        "negative variance",
        lambda: bn.Moments.from_statistics([0.0], [-1.0]),
        ValueError,
        ("variance", "negative", "-1"),
    ),
    (
        "variance of nothing",
        lambda: bn.Moments.from_statistics([0.0], [1.0], 0),
        ValueError,
        ("count", "positive|above 0", "0"),
    ),
    (
        "mean and var of other lengths",
        lambda: bn.Moments.from_statistics([0.0] * 3, [1.0] * 2),
        ValueError,
        (r"\(3,\)", r"\(2,\)"),
    ),
    ("counts beyond float64", lambda: _counted(1e308) + _counted(1e308), ValueError, ("counts", "1.8e308", "scale")),
    (
        "ghosts whose counts are beyond float64",
        lambda: bn.Moments([1e308, 1e308], [0.0, 1.0], [1.0, 1.0]).reduce(),
        ValueError,
        ("counts", "1.8e308"),
    ),
    (
        "an M2 beyond float64",
        lambda: bn.Moments.from_statistics([0.0], [1e300], 1e300),
        ValueError,
        ("M2", "fit float64", r"1e\+300"),
    ),
    ("var of nothing", lambda: bn.Moments.empty(2).var(), ValueError, ("correction 0", "count", "0")),
    (
        "unbiased var of one",
        lambda: bn.moments(np.ones((1, 2))).var(1),
        ValueError,
        ("correction 1", "count", "channel 0"),
    ),
    (
        "unbiased std of one",
        lambda: bn.moments(np.ones((1, 2))).std(correction=1),
        ValueError,
        ("correction 1", "count"),
    ),
    ("negative channels", lambda: bn.Moments.empty(-1), ValueError, ("channels|num_features", "-1")),
    ("float channels", lambda: bn.Moments.empty(3.0), TypeError, ("channels|num_features", "int", r"3\.0")),
    ("channels that overflow", lambda: bn.Moments.empty(2**62), ValueError, ("overflow", str(2**62))),
    ("channels whose product overflows", lambda: bn.Moments.empty((2**33, 2**33)), ValueError, ("overflow",)),
    ("0 threads", lambda: bn.set_num_threads(0), ValueError, ("threads", "1 to", "0")),
    ("-1 threads", lambda: bn.set_num_threads(-1), ValueError, ("threads", "-1")),
    ("2**40 threads", lambda: bn.set_num_threads(2**40), ValueError, ("threads", str(2**40))),
    ("1.5 threads", lambda: bn.set_num_threads(1.5), TypeError, ("threads", "int", r"1\.5", "float")),
    ("True threads", lambda: bn.set_num_threads(True), TypeError, ("threads", "int", "bool")),
    ("'2' threads", lambda: bn.set_num_threads("2"), TypeError, ("threads", "int", "str")),
    ("layer of 0", lambda: bn.BatchNorm(0), ValueError, ("BatchNorm", "num_features", "at least 1", "0")),
    ("layer of -3", lambda: bn.BatchNorm1d(-3), ValueError, ("BatchNorm1d", "-3")),
    ("layer of 2.0", lambda: bn.BatchNorm2d(2.0), TypeError, ("BatchNorm2d", "int", r"2\.0")),
    ("layer of True", lambda: bn.BatchNorm2d(True), TypeError, ("BatchNorm2d", "int", "True")),
    (
        "layer of (2, 0)",
        lambda: bn.BatchNorm((2, 0), axis=(1, 2)),
        ValueError,
        ("BatchNorm", "at least 1", r"\(2, 0\)"),
    ),
    ("layer too large", lambda: bn.BatchNorm3d(2**62), ValueError, ("BatchNorm3d", "overflow", str(2**62))),
    ("dtype float16", lambda: bn.BatchNorm(3, dtype=np.float16), TypeError, ("float32 or float64", "float16")),
    ("dtype int", lambda: bn.BatchNorm(3, dtype=int), TypeError, ("float32 or float64", "int64")),
]


@pytest.mark.parametrize(("call", "error", "says"), [row[1:] for row in OTHERS], ids=[row[0] for row in OTHERS])
def test_other_refusals(call, error, says):
    threads = bn.get_num_threads()
    with pytest.raises(error) as caught:
        call()
    _assert_says(caught.value, says)
    assert bn.get_num_threads() == threads
