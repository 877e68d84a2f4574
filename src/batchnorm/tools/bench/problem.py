"""What is timed: a shape, a layout, a dtype, a number of threads; and its tensors with what is exact for them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import _reference
from ..._moments import Moments
from ..files import Refused

Array = NDArray[Any]
LAYOUTS = CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels-last"
TABLE = "(N, C)"  # where both layouts are the same memory
OPERATIONS = ("forward", "backward", "evaluation")
EPS = 1e-5
BYTES_A_VALUE = 60  # that measuring takes at least: inputs, every contestant's outputs, copies

#: What batchnorm bench measures unless it is given a list: beyond the caches, in the last one, small planes, a table.
SHAPES = ((32, 64, 56, 56), (16, 256, 56, 56), (32, 256, 14, 14), (64, 512, 7, 7), (8192, 256))
#: Relative to the largest value: what sums in single precision, or 16-bit results, may be off by.
CLOSE = {"float64": 1e-11, "float32": 1e-4, "float16": 2**-8, "bfloat16": 2**-5}


class Problem(NamedTuple):
    """One row of the results; `what` is more of it, where a part has several of a shape."""

    shape: tuple[int, ...]
    layout: str = CONTIGUOUS
    dtype: str = "float32"
    threads: int = 0  # 0: as many as the machine has
    what: str = ""

    @property
    def title(self) -> str:
        """In words."""
        return " ".join(filter(None, ("×".join(map(str, self.shape)), self.layout, self.dtype, self.what)))


def layouts(shape: Sequence[int]) -> tuple[str, ...]:
    """Both, or the one of a table."""
    return LAYOUTS if len(shape) > 2 else (TABLE,)


class Data:
    """Random tensors of a problem."""

    def __init__(self, problem: Problem) -> None:
        rng, C = np.random.default_rng(0), problem.shape[1]
        self.x, self.g = (in_layout(_random(rng, problem), problem.layout) for _ in range(2))
        wide = np.float64 if problem.dtype == "float64" else np.float32
        self.weight, self.var = (rng.uniform(0.5, 1.5, C).astype(wide) for _ in range(2))
        self.bias, self.mean = (rng.normal(size=C).astype(wide) for _ in range(2))
        self.running = Moments.from_statistics(self.mean, self.var)  # what evaluation is given


def _random(rng: np.random.Generator, problem: Problem) -> Array:
    dtype: Any = problem.dtype
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    a: Array = rng.standard_normal(problem.shape, dtype=np.float32).astype(dtype)
    return a


def in_layout(a: Array, layout: str) -> Array:
    """The same array (N, C, …), in the memory order of the layout."""
    if layout != CHANNELS_LAST:
        return np.ascontiguousarray(a)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)


class Wrong(ValueError):
    """Results that are not the specification's."""


def check(what: str, got: Any, want: Any, close: float) -> None:
    """Raise `Wrong` unless all that was computed is as close to what is exact, in parts of its largest value."""
    off = float(np.max(np.abs(got - want)) / np.max(np.abs(want)))
    if not off <= close:  # NaN is wrong, too
        raise Wrong(f"{what} is off by {off:.2g} of its scale; allowed is {close:.2g}")


def verify(who: str, data: Data, dtype: str, results: dict[str, Any]) -> None:
    """Compare what the steps returned with the float64 specification, on some sixteen channels."""
    some = sixteen(data.x.shape)
    x, g = (_reference.arrange(a[:, some], 1) for a in (data.x, data.g))
    weight, bias, mean, var = (a[some].astype(np.float64) for a in (data.weight, data.bias, data.mean, data.var))
    _, own_mean, own_var = _reference.moments(x)
    xhat, y = _reference.normalize(x, own_mean, own_var, weight, bias, EPS)
    exact = {
        "forward": (y,),
        "backward": _reference.backward(g, xhat, own_var, weight, EPS),
        "evaluation": (_reference.normalize(x, mean, var, weight, bias, EPS)[1],),
    }
    for operation, result in results.items():
        found = result if isinstance(result, (tuple, list)) else (result,)
        for got, want in zip(found, exact[operation], strict=True):
            a = as_array(got, some)
            check(f"{who}: {operation}", _reference.arrange(a, 1) if a.ndim > 1 else a, want, CLOSE[dtype])


def as_array(a: Any, some: slice) -> Array:
    """Some channels of an array or tensor, in float64."""
    if not isinstance(a, np.ndarray) and a.is_mkldnn:
        a = a.to_dense()
    a = a[:, some] if a.ndim > 1 else a[some]
    if not isinstance(a, np.ndarray):
        a = a.detach().cpu().double().numpy()
    wide: Array = a.astype(np.float64)
    return wide


def sixteen(shape: Sequence[int]) -> slice:
    """Some sixteen channels, all over the tensor: they are enough to see that a result is wrong."""
    return slice(None, None, max(1, shape[1] // 16))


LINE = re.compile(r"(?:[^,]+,)?\s*(\d{1,18}(?:x\d{1,18})+)")


def read_shapes(path: Path, memory: int | None) -> list[tuple[int, ...]]:
    """Read a list: ``32x64x56x56`` or ``name, 32x64x56x56`` a line; ``#`` begins a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path} cannot be read as text ({error}). Name a file with a shape on each line.") from error
    found = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = LINE.fullmatch(text)
        shape = tuple(map(int, match[1].split("x"))) if match else (0, 0)
        if 0 in shape or shape[0] * math.prod(shape[2:]) < 2:
            raise Refused(
                f"{path}, line {number}: a shape is written as 32x64x56x56 (N, C and the other axes, at least two "
                f"positions a channel); got {text[:80]!r}. Correct the line, or put # before it."
            )
        needed = math.prod(shape) * BYTES_A_VALUE
        if memory is not None and needed > memory:
            raise Refused(
                f"{path}, line {number}: shapes must fit into memory; {text[:80]} takes {needed // 2**30} GiB, and "
                f"there are {memory // 2**30}. Make it smaller, or put # before it."
            )
        found.append(shape)
    if not found:
        raise Refused(f"{path} names no shape. Write one on each line, as 32x64x56x56.")
    return found
