"""Data that is hard on sums: sorted, drifting, clustered, sparse, heavy-tailed; by name, as columns of any length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Draw = Callable[[np.random.Generator, int, int], np.ndarray]


def _normal(rng: np.random.Generator, m: int, columns: int) -> np.ndarray:
    return rng.standard_normal((m, columns))


def _where(chosen: Callable[[np.ndarray, int], np.ndarray], value: float) -> Draw:
    """Normal values, but one value at chosen positions: `chosen` sees position numbers and their count."""
    return lambda rng, m, columns: np.where(chosen(np.arange(m)[:, None], m), value, _normal(rng, m, columns))


def _split(rng: np.random.Generator, m: int, columns: int) -> np.ndarray:
    """Two clusters one after the other, at a place of each column's own."""
    later = np.arange(m)[:, None] >= m * rng.uniform(0.4, 1, columns)
    return _normal(rng, m, columns) + later * 100 * rng.random(columns)


def _few_values(rng: np.random.Generator, m: int, columns: int) -> np.ndarray:
    """Three values, one of them rare, in a unit of each column's own."""
    drawn = rng.random((m, columns))
    rare = 10 ** rng.uniform(-3, 0, columns)
    return np.exp(6 * rng.random(columns)) * (np.where(drawn < rare, 1.0, 0.0) - np.where(drawn > 1 - rare, 0.3, 0.0))


def _spikes(rng: np.random.Generator, m: int, columns: int) -> np.ndarray:
    """One value but for a handful of positions."""
    spiked = rng.random((m, columns)) < 10 ** rng.uniform(0, 2, columns) / m
    return np.where(spiked, 5 * (1 + 0.2 * _normal(rng, m, columns)), rng.random(columns))


KINDS: dict[str, Draw] = {
    "normal": _normal,
    "offset 1e3": lambda *a: _normal(*a) + 1e3,
    "offset 1e6": lambda *a: _normal(*a) + 1e6,
    "uniform": lambda rng, m, columns: rng.random((m, columns)),
    "float noise 1 + 1e-6": lambda *a: 1 + 1e-6 * _normal(*a),
    "time stamps": lambda rng, m, columns: 1.7e9 + rng.integers(0, 6000, (m, columns)),
    "integers 0 … 255": lambda rng, m, columns: rng.integers(0, 256, (m, columns)).astype(float),
    "sorted": lambda *a: np.sort(_normal(*a), 0),
    "sorted + 1e4": lambda *a: np.sort(_normal(*a), 0) + 1e4,
    "drift of 10 std": lambda rng, m, columns: _normal(rng, m, columns) + np.linspace(0, 10, m)[:, None],
    "drift of 1e5 std": lambda rng, m, columns: _normal(rng, m, columns) + np.linspace(0, 1e5, m)[:, None],
    "random walk": lambda *a: np.cumsum(_normal(*a), 0),
    "falls by e^-20": lambda rng, m, columns: (
        np.exp(-np.linspace(0, 20, m))[:, None] * (1 + 0.1 * _normal(rng, m, columns))
    ),
    "two clusters in turn": lambda rng, m, columns: _normal(rng, m, columns) + 1e4 * (np.arange(m) % 2)[:, None],
    "two halves": lambda rng, m, columns: _normal(rng, m, columns) + 1e4 * (np.arange(m) > m // 2)[:, None],
    "two parts": _split,
    "after a ReLU": lambda *a: np.maximum(_normal(*a), 0),
    "1 % not zero": lambda rng, m, columns: _normal(rng, m, columns) * (rng.random((m, columns)) < 0.01),
    "one-hot": lambda rng, m, columns: (np.arange(m)[:, None] % 64 == rng.integers(0, 64, columns)) * 1.0,
    "three values": _few_values,
    "spikes": _spikes,
    "first 16 at 1e6": _where(lambda r, m: r < 16, 1e6),
    "first 16 at 4": _where(lambda r, m: r < 16, 4.0),
    "every 16th at 1e5": _where(lambda r, m: r % 16 == 0, 1e5),
    "first at 1e6": _where(lambda r, m: r == 0, 1e6),
    "last at 1e4": _where(lambda r, m: r == m - 1, 1e4),
    "last at 1e8": _where(lambda r, m: r == m - 1, 1e8),
    "lognormal, s = 2": lambda *a: np.exp(2 * _normal(*a)),
    "lognormal, s = 4": lambda *a: np.exp(4 * _normal(*a)),
    "Student t, 2": lambda rng, m, columns: rng.standard_t(2, (m, columns)),
    "Cauchy": lambda rng, m, columns: rng.standard_cauchy((m, columns)),
    "Pareto 1": lambda rng, m, columns: rng.pareto(1.0, (m, columns)),
}


def draw(rng: np.random.Generator, m: int, columns: int) -> tuple[np.ndarray, list[str]]:
    """So many columns of every kind side by side, in float64, and the kind of each column."""
    parts = {name: kind(rng, m, columns) for name, kind in KINDS.items()}
    return np.concatenate(list(parts.values()), axis=1), [name for name in parts for _ in range(columns)]
