"""What options and missing values cost beside the plain call; and our StandardScaler beside scikit-learn's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

import batchnorm as bn
from batchnorm import _reference
from batchnorm.tools.bench.functions import pytorch
from batchnorm.tools.bench.problem import EPS, Data, Problem, check, sixteen
from batchnorm.tools.bench.timing import WARM, Contestant, Settings, measure
from networks import peak_bytes
from rows import COLUMNS

PLAIN, SKLEARN, OURS, ONE_THREAD = "plain", "scikit-learn", "batchnorm", "batchnorm, one thread"
GHOSTS = 4  # parts of the batch
MIB = 2**20

# --- masks, weights, ghosts


def choices(x: np.ndarray) -> dict[str, dict[str, Any]]:
    """The arguments of each variant. Half of the positions count: at random, or the first of each sample."""
    N, _, *others = x.shape
    rng = np.random.default_rng(0)
    chance = rng.random((N, *others)) < 0.5
    ends = rng.integers(1, others[-1] + 1, (N, *[1] * len(others))) if others else N // 2
    padding = np.broadcast_to(np.arange(others[-1] if others else N) < ends, (N, *others))
    return {
        PLAIN: {},
        "mask, random": {"mask": chance},
        "mask, padding": {"mask": padding.copy()},
        "sample_weight": {"sample_weight": rng.random((N, *others), dtype=np.float32)},
        "ghost batches": {"virtual_batch_size": -(-N // GHOSTS)},
    }


def variants(problem: Problem, settings: Settings) -> dict[str, Any]:
    """Forward and backward of each variant, verified first; and of PyTorch's plain call."""
    data, contestants = Data(problem), {}
    for name, options in choices(data.x).items():
        y, m = bn.batch_norm(data.x, data.weight, data.bias, eps=EPS, **options)
        verify(name, data, y, options)
        forward = partial(bn.batch_norm, data.x, data.weight, data.bias, **options)
        backward = partial(bn.batch_norm_backward, data.g, data.x, m, data.weight, data.bias, **options)
        contestants[name] = Contestant({"forward": forward, "backward": backward})
    stock = pytorch(problem, data)
    steps = {step: call for step, call in stock.steps.items() if step != "evaluation"}
    contestants["PyTorch, plain"] = stock._replace(steps=steps)
    return {"times": measure(contestants, settings)}


def verify(name: str, data: Data, y: np.ndarray, options: dict[str, Any]) -> None:
    """Ghosts are batches of their own; a position counts with its weight."""
    size = options.get("virtual_batch_size", len(data.x))
    selected, some = options.get("mask", options.get("sample_weight")), sixteen(y.shape)
    weight, bias = (a[some].astype(np.float64) for a in (data.weight, data.bias))
    for start in range(0, len(data.x), size):
        part = slice(start, start + size)
        x = _reference.arrange(data.x[part, some], 1)
        w = None if selected is None else selected[part].reshape(-1).astype(np.float64)
        _, mean, var = _reference.moments(x, w)
        want = _reference.normalize(x, mean, var, weight, bias, EPS)[1]
        check(f"{name} on {y.shape}: y", _reference.arrange(y[part, some], 1), want, 1e-6)


# --- missing values


def missing(problem: Problem, settings: Settings) -> dict[str, Any]:
    """Moments, forward and backward without a NaN, and with 5 % of them, verified first."""
    data, contestants = Data(problem), {}
    order = "F" if problem.layout == COLUMNS else "K"
    x, g = (a.copy(order=order) for a in (data.x, data.g))
    holes = x.copy(order="K")
    holes[np.random.default_rng(0).random(x.shape) < 0.05] = np.nan
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    for name, a, policy in (
        ("propagate", x, "propagate"),
        ("omit, no NaN", x, "omit"),
        ("omit, 5 % NaN", holes, "omit"),
    ):
        forward = partial(bn.batch_norm, a, data.weight, data.bias, nan_policy=policy)
        y, m = forward()
        check(f"{name}: var", np.ravel(m.var()), np.nanvar(a, axes, dtype=np.float64), 1e-6)
        check(f"{name}: y", np.nanmean(y, axes, dtype=np.float64), data.bias, 1e-6)
        backward = partial(bn.batch_norm_backward, g, a, m, data.weight, data.bias, nan_policy=policy)
        moments = partial(bn.moments, a, nan_policy=policy)
        contestants[name] = Contestant({"moments": moments, "forward": forward, "backward": backward})
    return {"times": measure(contestants, settings)}


# --- StandardScaler


def scalers() -> dict[str, Any]:
    """Both classes by their library."""
    from sklearn.preprocessing import StandardScaler

    from batchnorm.sklearn import StandardScaler as Ours

    return {SKLEARN: StandardScaler, OURS: Ours}


def scaler(problem: Problem, settings: Settings) -> dict[str, Any]:
    """Fit and transform of one table, and the memory that each needs at most. `what` is F order, NaN or weights."""
    classes, rng = scalers(), np.random.default_rng(0)
    x = rng.standard_normal(problem.shape, dtype=problem.dtype)
    x *= 2  # in place: the largest has two GB
    x += 3
    if problem.what == "NaN":
        x[rng.random(len(x)) < 0.1, :: len(x[0]) // 4] = np.nan
    x = np.asfortranarray(x) if problem.what == "F order" else x
    weight = rng.random(len(x)) if problem.what == "weights" else None
    some, its = x[:100_000], None if weight is None else weight[:100_000]
    fitted = {who: scaler().fit(some, sample_weight=its) for who, scaler in classes.items()}
    close = 1e-9 if problem.dtype == "float64" else 1e-4
    for name in ("mean_", "var_", "n_samples_seen_"):
        check(name, getattr(fitted[OURS], name), getattr(fitted[SKLEARN], name), close)
    sklearn, ours = (np.nan_to_num(scaler.transform(some), nan=9.0) for scaler in fitted.values())
    check("transform", ours, sklearn, close)

    def fit(who: str) -> Any:
        return classes[who]().fit(x, sample_weight=weight)

    steps = {who: {"fit": partial(fit, who), "transform": partial(one.transform, x)} for who, one in fitted.items()}
    contestants = {who: Contestant(its) for who, its in steps.items()}
    contestants[ONE_THREAD] = Contestant(steps[OURS], within=one_thread)
    peak = {who: {step: peak_bytes(call) for step, call in c.steps.items()} for who, c in contestants.items()}
    if x.nbytes > 64 * MIB:  # nothing of it stays in a cache
        settings = settings._replace(modes=(WARM,))
    return {"times": measure(contestants, settings), "peak": peak}


def offsets(problem: Problem, settings: Settings) -> dict[str, Any]:
    """The largest error of transform, in standard deviations, where the mean is `what` of them."""
    x = (np.random.default_rng(0).standard_normal(problem.shape) + float(problem.what)).astype(problem.dtype)
    exact = x.astype(np.longdouble)
    exact = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    errors = {who: float(np.abs(scaler().fit_transform(x) - exact).max()) for who, scaler in scalers().items()}
    return {"times": {}, "errors": errors}


@contextmanager
def one_thread() -> Iterator[None]:
    before = bn.get_num_threads()
    bn.set_num_threads(1)
    try:
        yield
    finally:
        bn.set_num_threads(before)
