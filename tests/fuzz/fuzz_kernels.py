"""Random problems for the kernels: shapes, axes, layouts, strides, types, options, distributions.

    python tests/fuzz/fuzz_kernels.py --problems 10000          # from seed 0 on
    python tests/fuzz/fuzz_kernels.py --first 4711 --problems 1  # one of them again

Every instruction set, with 1, 2, 3 and 5 threads and in a layout drawn at random, must give the bits of the scalar
specification on contiguous arrays; and those must be within the bounds of an oracle in extended precision.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))  # also where this runs as a program

import distributions
import numpy as np
import oracle
from canonical import same_bits
from cases import DTYPES, LAYOUTS, lay_out

import batchnorm as bn
from batchnorm import _inputs, _options

ISAS = tuple(isa for isa in bn._native.available_isas() if isa != "reference")
THREADS = (1, 2, 3, 5)
VIEWS = [name for name in LAYOUTS if name not in ("broadcast", "read-only")]
# The default of the number that goes with an activation of the kernels' list; None where there is none.
NUMBERS = {name: number if parameter else None for name, _, parameter, number in bn._native.activations()}
# Where the slope of an activation jumps: next to it, one or the other is right.
CORNERS = {"relu": (0,), "relu6": (0, 6), "leaky_relu": (0,), "hardswish": (-3, 3), "elu": (0,)}
MOST = 40_000  # elements

Results = dict[str, np.ndarray]


@dataclasses.dataclass
class Problem:
    """One problem, contiguous, and how its arrays are to be laid out."""

    x: np.ndarray
    grad: np.ndarray
    residual: np.ndarray | None
    kept: tuple[int, ...]
    parameters: tuple[np.ndarray | None, np.ndarray | None]
    select: dict[str, np.ndarray]
    options: dict
    training: bool
    group: int | None
    layouts: tuple[str, ...]
    words: str

    def __str__(self) -> str:
        return self.words


# --- drawing ---


def _shape(rng: np.random.Generator) -> list[int]:
    """Rows, images with planes of any size, or any axes; more than one block now and then."""
    channels = int(rng.choice([1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 64, 100, 257]))
    kind = rng.integers(5)
    if kind == 0:
        shape = [int(rng.choice([2, 5, 16, 17, 64, 127, 129, 500, 2047, 2049, 4500])), channels]
    elif kind == 1:
        planes = [(1, 1), (2, 3), (3, 5), (7, 7), (8, 8), (14, 14), (16, 16), (19, 27), (1, 128), (56, 56)]
        shape = [int(rng.integers(1, 40)), channels, *planes[rng.integers(len(planes))]]
    elif kind == 2:
        shape = [int(rng.integers(1, 5)), channels, int(rng.choice([15, 16, 100, 127, 128, 300, 2048, 2050, 5000]))]
    elif kind == 3:
        shape = [int(rng.integers(1, 7)) for _ in range(rng.integers(2, 7))]
    else:
        shape = [int(rng.integers(1, 9)), channels, *(int(rng.integers(1, 12)) for _ in range(rng.integers(1, 4)))]
    while math.prod(shape) > MOST:
        longest = int(np.argmax(shape))
        shape[longest] = max(1, shape[longest] * MOST // math.prod(shape))
    return shape


def _values(rng: np.random.Generator, shape: list[int], kept: tuple[int, ...], dtype: str) -> tuple[np.ndarray, str]:
    """Each channel of a kind of its own, in a unit of its own; in some problems all of one kind."""
    reduced = [axis for axis in range(len(shape)) if axis not in kept]
    m, channels = math.prod(shape[axis] for axis in reduced), math.prod(shape[axis] for axis in kept)
    names = rng.choice(list(distributions.KINDS), size=min(channels, 3))
    columns = np.concatenate([distributions.KINDS[name](rng, m, -(-channels // len(names))) for name in names], axis=1)
    columns = columns[:, :channels]
    if rng.random() < 0.3 and dtype in ("float32", "float64"):
        columns = columns * 10.0 ** rng.uniform(-30, 28, channels)
    if rng.random() < 0.2:
        columns[:, rng.integers(channels)] = rng.standard_normal() * 10
    if rng.random() < 0.1:
        columns[rng.integers(m), rng.integers(channels)] = rng.choice([np.nan, np.inf, -np.inf])
    order = reduced + list(kept)
    values = columns.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
    largest = 6e4 if dtype == "float16" else 1e150 if dtype == "float64" else 3e38
    clipped = np.clip(values, -largest, largest)
    return np.ascontiguousarray(np.where(np.isfinite(values), clipped, values).astype(DTYPES[dtype])), "+".join(names)


def _selection(rng: np.random.Generator, shape: list[int]) -> dict[str, np.ndarray]:
    """Nothing, a mask, or weights; whole blocks that count or do not are among them."""
    kind = rng.integers(7)
    w = rng.random(shape)
    if kind == 0:
        return {"mask": w < rng.random()}
    if kind == 1:
        flat = np.ones(w.size, bool)
        flat[rng.integers(w.size) :] = False
        return {"mask": flat.reshape(shape)}
    if kind == 2:
        w[w < 0.3] = 0
        flat = w.reshape(-1)
        flat[: flat.size // 2] = np.ceil(flat[: flat.size // 2] - 0.3)
        return {"sample_weight": w.astype(rng.choice(["float32", "float64"]))}
    return {}


def _lose(rng: np.random.Generator, x: np.ndarray, grad: np.ndarray, select: dict, kept: tuple[int, ...]) -> bool:
    """Make cells of x, and of grad, NaN, here and there; False where a channel has fewer than two left."""
    lost = rng.random(x.shape) < rng.choice([0.01, 0.2, 0.7, 0.99])
    counts = ~np.isnan(x) & (_counted(x.shape, select, kept) > 0)
    reduced = tuple(axis for axis in range(x.ndim) if axis not in kept)
    if np.count_nonzero(counts, axis=reduced).min() < 2:
        return False
    lost &= np.count_nonzero(counts & ~lost, axis=reduced, keepdims=True) >= 2
    x[lost] = np.nan
    if rng.random() < 0.5:
        grad[lost] = np.nan
    return True


def _activation(rng: np.random.Generator) -> str | tuple[str, float] | None:
    """Any activation of the kernels' list, a number that goes with it the default or another."""
    name = str(rng.choice(list(NUMBERS)))
    if name == "none" or rng.random() < 0.1:
        return None
    if NUMBERS[name] is None or rng.random() < 0.4:
        return name
    return name, float(rng.choice([-0.5, 0, 0.2, rng.uniform(0, 3)]))


def draw(seed: int) -> Problem | None:
    """Problem number `seed`; None where it has too few positions."""
    rng = np.random.default_rng([seed, 20150211])
    shape = _shape(rng)
    kept: tuple[int, ...] = (1,) if rng.random() < 0.7 else tuple(np.flatnonzero(rng.random(len(shape)) < 0.4).tolist())
    dtype = str(rng.choice(["float32", "float32", "float64", "float16", "bfloat16"]))
    reduced = [length for axis, length in enumerate(shape) if axis not in kept]
    if math.prod(reduced) < 2:
        return None
    x, names = _values(rng, shape, kept, dtype)
    grad, residual = rng.standard_normal((2, *shape))
    grad = (grad + rng.integers(0, 2)) * (10.0 ** rng.uniform(-25, 20) if rng.random() < 0.15 else 1)
    if rng.random() < 0.1:
        grad[...] = 0
    select = _selection(rng, reduced)
    if select and np.count_nonzero(next(iter(select.values()))) < 2:
        select = {}
    group = None
    if not select and rng.random() < 0.2 and 0 not in kept and shape[0] > 1:
        least = 1 if math.prod(reduced) > shape[0] else 2
        group = int(rng.integers(least, shape[0] + 1)) if least <= shape[0] else None
        if group and shape[0] % group == 1 and least == 2:
            group = None
    wide = np.float64 if dtype == "float64" else np.float32
    channels = [shape[axis] for axis in kept]
    parameters = rng.standard_normal((2, *channels)).astype(wide)
    given = (parameters[0] if rng.random() < 0.7 else None, parameters[1] if rng.random() < 0.7 else None)
    options = {"activation": _activation(rng), "eps": float(rng.choice([1e-5, 1e-3, 1e-12]))}
    layouts = tuple(str(name) for name in rng.choice(VIEWS, 3)) if rng.random() < 0.5 else (str(rng.choice(VIEWS)),) * 3
    with np.errstate(over="ignore"):
        grad = np.asarray(grad).astype(DTYPES[dtype])
    if rng.random() < 0.3 and group is None and _lose(rng, x, grad, select, kept):
        options["nan_policy"] = "omit"
    with np.errstate(over="ignore"):
        problem = Problem(
            x=x,
            grad=grad,
            residual=np.asarray(residual).astype(DTYPES[dtype]) if rng.random() < 0.4 else None,
            kept=kept,
            parameters=given,
            select=select,
            options=options,
            training=bool(rng.random() < 0.85) or group is not None,
            group=group,
            layouts=layouts,
            words=f"seed {seed}: {dtype} {shape} kept {kept}, {names}, {options}, {'/'.join(layouts)}, group {group}, "
            f"{[f'{name} {w.dtype}' for name, w in select.items()]}",
        )
    return problem


# --- computing ---


def compute(problem: Problem, arrays: dict[str, np.ndarray | None]) -> Results:
    """What the library gives for arrays of any layout."""
    x, grad, residual = arrays["x"], arrays["grad"], arrays["residual"]
    given = {"axis": problem.kept, "residual": residual, **problem.options}
    if problem.group:
        given["virtual_batch_size"] = problem.group
    y, m = bn.batch_norm(x, *problem.parameters, **given, **problem.select)
    select = problem.select if problem.training else {}
    g = bn.batch_norm_backward(grad, x, m, *problem.parameters, training=problem.training, **given, **select)
    found = {"y": y, "count": m.count, "mean": m.mean, "mean_low": m.mean_low, "m2": m.m2, "dx": g.x}
    found |= {"d weight": g.weight, "d bias": g.bias, "d residual": g.residual}
    if _y_tells(problem):
        found["dx by y"] = _backward_by_y(problem, grad, x, y, m)
    return {name: value for name, value in found.items() if value is not None}


def _y_tells(problem: Problem) -> bool:
    """Whether the derivative of the activation can be read from y."""
    plain = problem.residual is None and not problem.select and not problem.group and problem.training
    plain = plain and "nan_policy" not in problem.options and problem.options["activation"] is not None
    code, slope = _options.checked_activation(problem.options["activation"], "fuzz")
    name, _ = _name_and_number(problem)
    told = _options.TOLD_BY_Y[code] and (NUMBERS[name] is None or slope > 0)
    return plain and problem.x.dtype.itemsize >= 4 and told


def _name_and_number(problem: Problem) -> tuple[str, float]:
    given = problem.options["activation"] or "none"
    return given if isinstance(given, tuple) else (given, NUMBERS[given] or 0.0)


def _backward_by_y(problem: Problem, grad: np.ndarray, x: np.ndarray, y: np.ndarray, m: bn.Moments) -> np.ndarray:
    d = _inputs.data(x, "fuzz", problem.kept)
    out, buffer = _inputs.output(None, d, {})
    # Without channel axes they are scalars, which the native function does not take.
    weight, bias = (None if p is None else np.asarray(p, np.float64) for p in problem.parameters)
    activation = _options.checked_activation(problem.options["activation"], "fuzz")
    assert bn._native.backward(
        _inputs.like(grad, "grad", d), d.buffer, buffer, False, _inputs.like(y, "y", d), None, None, m._table, weight,
        bias, None, None, d.plan.axis, problem.options["eps"], *activation, True, 0, False, False, True,
    )  # fmt: skip
    return out


def laid_out(problem: Problem) -> dict[str, np.ndarray | None]:
    arrays = {"x": problem.x, "grad": problem.grad, "residual": problem.residual}
    laid = zip(arrays.items(), problem.layouts, strict=True)
    return {name: None if a is None else lay_out(a, layout, problem.kept) for (name, a), layout in laid}


def check_bits(problem: Problem, isas: tuple[str, ...] = ISAS) -> Results:
    """Every instruction set and number of threads against the specification, whose results are given back."""
    bn._native.force_isa("reference")
    bn.set_num_threads(1)
    expected = compute(problem, {"x": problem.x, "grad": problem.grad, "residual": problem.residual})
    arrays = laid_out(problem)
    for isa in isas:
        for threads in THREADS:
            bn._native.force_isa(isa)
            bn.set_num_threads(threads)
            found = compute(problem, arrays)
            differ = [name for name, value in expected.items() if not same_bits(found[name], value)]
            assert not differ, f"{problem}: {isa}, {threads} threads: other bits in {differ}"
    return expected


# --- the oracle: the formulas in extended precision ---


def check_values(problem: Problem, found: Results) -> float:
    """The results against the formulas; the largest error as a fraction of its bound."""
    x, grad = problem.x.astype(np.longdouble), problem.grad.astype(np.longdouble)
    w, there = _counted(x.shape, problem.select, problem.kept), np.full(x.shape, True)
    if "nan_policy" in problem.options:
        there = ~np.isnan(x)
        x, grad, w = (np.where(there, a, 0) for a in (x, grad, w))
    shape = [length if axis in problem.kept else 1 for axis, length in enumerate(x.shape)]
    weight, bias = (None if p is None else p.astype(np.longdouble).reshape(shape) for p in problem.parameters)
    worst = 0.0
    with np.errstate(all="ignore"):
        for part in _parts(problem):
            arrays = x[part], grad[part], w[part], there[part]
            worst = max(worst, _check_part(problem, found, part, arrays, (weight, bias)))
    return worst


def _parts(problem: Problem) -> list[slice]:
    size = problem.group or len(problem.x)
    return [slice(i, i + size) for i in range(0, len(problem.x), size)] if problem.group else [slice(None)]


def _counted(shape: tuple[int, ...], select: dict[str, np.ndarray], kept: tuple[int, ...]) -> np.ndarray:
    if not select:
        return np.ones(shape, np.longdouble)
    given = next(iter(select.values())).astype(np.longdouble)
    return np.broadcast_to(np.expand_dims(given, kept), shape)


def _check_part(problem: Problem, found: Results, part: slice, arrays, parameters) -> float:
    x, grad, w, there = arrays
    axes = tuple(axis for axis in range(x.ndim) if axis not in problem.kept)

    def total(values: np.ndarray) -> np.ndarray:
        return values.sum(axis=axes, keepdims=True)

    counted = np.where(w > 0, x, 0)
    count = total(w)
    mean = total(w * counted) / count
    rest = (
        total(w * (counted - mean)) / count
    )  # the mean is the sum of the two: far from zero, one has not digits enough
    d = (x - mean) - rest
    m2 = total(w * np.where(w > 0, d, 0) ** 2)
    rstd = 1 / np.sqrt(m2 / count + np.longdouble(problem.options["eps"]))
    usable = np.isfinite(m2) & np.isfinite(rstd) & np.isfinite(total(grad.astype(float)))
    z = d * rstd
    size = np.abs(z)
    xhat = z
    if parameters[0] is not None:
        z, size = z * parameters[0], size * np.abs(parameters[0])
    if parameters[1] is not None:
        z, size = z + parameters[1], size + np.abs(parameters[1])
    if problem.residual is not None:
        residual = problem.residual[part].astype(np.longdouble)
        z, size = z + residual, size + np.abs(residual)
    size = np.maximum(1, size)
    name, number = _name_and_number(problem)
    y, slope = _activate(z, name, number)
    dtype = problem.x.dtype
    relative = oracle.N4 if dtype == np.float64 else oracle.N1
    bound = relative * size * (2 if oracle.bends(name) else 1) * max(1, abs(number))
    largest = 6e4 if dtype == np.float16 else np.inf  # what is above may be infinite
    everywhere = np.broadcast_to(usable, x.shape) & np.isfinite(x) & (np.abs(y) < largest) & there
    assert np.isnan(found["y"][part][~there]).all(), f"{problem}: y where x is missing"
    bound = bound + oracle.half_ulp((np.abs(y) + bound).astype(float), dtype)
    worst = _worst(problem, "y", found["y"][part], y, bound, everywhere)
    # The gradients, of channels in which no z is next to a corner.
    for corner in CORNERS.get(name, ()):
        usable = usable & ~np.any(there & (np.abs(z - corner) <= 4 * relative * size), axis=axes, keepdims=True)
    h = grad * slope
    sizes = np.abs(grad) * size if oracle.bends(name) else np.abs(h)
    sum_h, sum_hx = total(h), total(h * xhat)
    scale = rstd if parameters[0] is None else rstd * parameters[0]
    dx, terms = scale * h, np.abs(scale) * sizes
    if problem.training:
        dx = scale * (h - w / count * (sum_h + xhat * sum_hx))
        # What does not count may be so far out that the error of xhat beside 1, as N1 allows it, is what is seen.
        least = np.maximum(np.abs(xhat), 1 if problem.select else 0)
        terms = np.abs(scale) * (sizes + w / count * (total(sizes) + least * total(sizes * np.abs(xhat))))
    everywhere = usable & (everywhere | ~there)
    for what, exact, its_terms in (("dx", dx, terms), ("d residual", h, sizes)):
        if what in found:
            fits = everywhere & (its_terms < (6e4 if dtype == np.float16 else 1e38))
            bound = (oracle.N4 if dtype == np.float64 else oracle.GRADIENT) * its_terms * max(1, abs(number))
            bound = bound + (1e-44 if dtype.itemsize < 8 else 1e-300)
            bound = bound + oracle.half_ulp((np.abs(exact) + bound).astype(float), dtype)
            worst = max(worst, _worst(problem, what, found[what][part], exact, bound, fits))
    return worst


def _activate(z: np.ndarray, name: str, number: float) -> tuple[np.ndarray, np.ndarray]:
    """The activation and its derivative, by their definitions."""
    zero, one = np.zeros_like(z), np.ones_like(z)
    if name == "none":
        return z, one
    if name == "relu":
        return np.where(z > 0, z, 0), one * (z > 0)
    if name == "relu6":
        return np.clip(z, 0, 6), one * ((z > 0) & (z < 6))
    if name == "leaky_relu":
        return np.where(z > 0, z, z * number), np.where(z > 0, one, number)
    if name == "silu":
        sigmoid = 1 / (1 + np.exp(-z))
        return z * sigmoid, sigmoid * (1 + z * (1 - sigmoid))
    if name == "gelu":  # erfc of the math library is of float64; that is enough
        below = np.vectorize(math.erfc, otypes=[np.longdouble])(-z / np.sqrt(np.longdouble(2))) / 2
        return z * below, below + z * np.exp(-(z * z) / 2) / np.sqrt(2 * np.longdouble(np.pi))
    if name == "gelu_tanh":
        root, cubic = np.sqrt(2 / np.longdouble(np.pi)), np.longdouble("0.044715")
        tanh = np.tanh(root * (z + cubic * z**3))
        return z * (1 + tanh) / 2, (1 + tanh + z * (1 - tanh * tanh) * root * (1 + 3 * cubic * z * z)) / 2
    if name == "hardswish":
        flat, below = z >= 3, z <= -3
        return np.where(flat, z, np.where(below, 0, z * (z + 3) / 6)), np.where(
            flat, 1, np.where(below, 0, z / 3 + one / 2)
        )
    if name == "elu":
        below = number * np.exp(np.minimum(z, zero))
        return np.where(z > 0, z, number * np.expm1(np.minimum(z, zero))), np.where(z > 0, one, below)
    raise ValueError(f"the oracle has no {name}: write it here")


def _worst(problem: Problem, what: str, found, exact, bound, where) -> float:
    error = np.abs(np.asarray(found).astype(np.longdouble) - exact)
    ratio = np.where(where, error / bound, 0)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    worst = float(ratio.max(initial=0))
    if worst > 1:
        at = np.unravel_index(int(ratio.argmax()), ratio.shape)
        raise AssertionError(f"{problem}: {what} is {worst:.3g} bounds off at {at}: {found[at]}, exact {exact[at]}")
    return worst


def check(seed: int, isas: tuple[str, ...] = ISAS) -> float | None:
    """One problem; the largest error as a fraction of its bound, None where the seed makes no problem."""
    problem = draw(seed)
    return None if problem is None else check_values(problem, check_bits(problem, isas))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--isas", nargs="*", default=ISAS, help="instruction sets to compare with the specification")
    given = parser.parse_args()
    begun, worst, tried, failed = time.monotonic(), 0.0, 0, 0
    for seed in range(given.first, given.first + given.problems):
        try:
            ratio = check(seed, tuple(given.isas))
        except AssertionError as error:
            failed += 1
            print(error, flush=True)
        else:
            tried += ratio is not None
            worst = max(worst, ratio or 0.0)
    took = time.monotonic() - begun
    print(
        f"{tried} problems right, {failed} wrong, worst {worst:.2f} of a bound, {took:.0f} s ({', '.join(given.isas)})"
    )
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
