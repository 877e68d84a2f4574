"""Times of calls that take turns, so that whatever disturbs the machine disturbs all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

import numpy as np

#: OpenMP's threads spin for 10 to 20 ms after a call, on processors that the next contestant needs. One that has other
#: threads therefore runs untimed for this long first; a pause instead would let caches and clocks go cold.
SETTLE = 0.03
#: Calls are timed together until they take about this long, so that the clock's resolution does not matter.
TURN = 0.004
MOST_CALLS, FEWEST_ROUNDS = 200, 3
SLOW = 0.1  # seconds: such a call is a turn, and warms nothing that it would not evict itself


class Runner(NamedTuple):
    """A call, the pool of threads that spins after it ("" if none does), and what its turns happen inside of."""

    call: Callable[[], Any]
    pool: str
    within: Callable[[], AbstractContextManager[Any]] = nullcontext


class Times(NamedTuple):
    """Seconds a call: the median of the rounds, and their quartiles."""

    median_s: float
    quartiles_s: tuple[float, float]
    rounds: int
    faults: float  # page faults a call, the median


def measure(runners: Mapping[str, Runner], rounds: int, budget: float) -> dict[str, Times]:
    """Let the calls take turns, every second round in the opposite order, until `rounds` or `budget` seconds are over.

    At least three rounds are made, whatever they take, unless fewer are asked for.
    """
    counts = {}
    for name, (call, _, within) in runners.items():
        with within():
            counts[name] = _calls(call)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    faults: dict[str, list[float]] = {name: [] for name in runners}
    until = time.perf_counter() + budget
    spinning = ""
    with _no_collection():
        for number in range(rounds):
            if number >= FEWEST_ROUNDS and time.perf_counter() > until:
                break
            for name in list(runners) if number % 2 == 0 else reversed(list(runners)):
                runner = runners[name]
                with runner.within():
                    took, faulted = _turn(runner.call, counts[name], spinning not in ("", runner.pool))
                seconds[name].append(took)
                faults[name].append(faulted)
                spinning = runner.pool
    return {name: summary(seconds[name], faults[name]) for name in runners}


def _turn(call: Callable[[], Any], count: int, disturbed: bool) -> tuple[float, float]:
    """Seconds and page faults a call; `disturbed`: another pool's threads are still spinning."""
    if count > 1:
        _settle(call, SETTLE if disturbed else 0.0)
    elif disturbed:
        time.sleep(SETTLE)
    before, start = _faults(), time.perf_counter()
    for _ in range(count):
        call()
    end, after = time.perf_counter(), _faults()
    return (end - start) / count, (after - before) / count


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collecting garbage is nobody's work, and would fall on anybody."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def summary(seconds: Sequence[float], faults: Sequence[float]) -> Times:
    """Median and quartiles."""
    low, middle, high = (float(q) for q in np.percentile(seconds, [25, 50, 75]))
    return Times(middle, (low, high), len(seconds), float(np.median(faults)))


def _settle(call: Callable[[], Any], least: float) -> None:
    """Run untimed, once or for so many seconds."""
    until = time.perf_counter() + least
    call()
    while time.perf_counter() < until:
        call()


def _calls(call: Callable[[], Any]) -> int:
    """How many calls make a turn."""
    start = time.perf_counter()
    call()
    took = max(time.perf_counter() - start, 1e-7)
    return 1 if took > SLOW else max(2, min(MOST_CALLS, round(TURN / took)))


def _faults() -> int:
    """Page faults of this process so far that needed no disk."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_minflt
