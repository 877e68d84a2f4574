"""The one timing loop: contestants take turns, so that whatever disturbs the machine disturbs all of them."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np

IN_TURN, WARM = MODES = ("in turn", "warm")
#: OpenMP's threads spin for 10 to 20 ms after a call, on processors that the next contestant needs.
SETTLE = 0.03
FEWEST_ROUNDS = 3

Step = Callable[[], Any]
Quartiles = list[float]  # seconds a call: the median, and the quartiles below and above
Times = dict[str, dict[str, dict[str, Quartiles]]]  # contestant, step, mode


class Contestant(NamedTuple):
    """Calls that are timed one after the other, whose threads spin after them, and what they happen inside of."""

    steps: Mapping[str, Step]
    pool: str = ""
    within: Callable[[], AbstractContextManager[Any]] = nullcontext

    def once(self) -> dict[str, Any]:
        """What each step returns."""
        with self.within():
            return {step: call() for step, call in self.steps.items()}


class Settings(NamedTuple):
    """How long to measure a row."""

    rounds: int = 9
    budget: float = 4.0  # seconds, after which no further round begins, if there were three
    calls: int = 1  # timed together, where the clock is too coarse for one
    modes: tuple[str, ...] = MODES


def measure(contestants: Mapping[str, Contestant], settings: Settings) -> Times:
    """Let all take turns, every second round in the opposite order.

    A turn is all steps of a contestant, twice: the first time the others' arrays have filled the caches ("in turn"),
    the second time its own have ("warm").
    """
    taken: dict[tuple[str, str, str], list[float]] = {}
    until = time.perf_counter() + settings.budget
    spinning = ""
    with _no_collection():
        for number in range(settings.rounds):
            if number >= FEWEST_ROUNDS and time.perf_counter() > until:
                break
            for name in list(contestants) if number % 2 == 0 else reversed(list(contestants)):
                steps, pool, within = contestants[name]
                if spinning not in ("", pool):
                    _wait(SETTLE)
                spinning = pool
                with within():
                    for mode in settings.modes:
                        for step, call in steps.items():
                            taken.setdefault((name, step, mode), []).append(_seconds(call, settings.calls))
    times: Times = {}
    for (name, step, mode), seconds in taken.items():
        times.setdefault(name, {}).setdefault(step, {})[mode] = quartiles(seconds)
    return times


def quartiles(seconds: list[float]) -> Quartiles:
    """The median, and the quartiles below and above; four digits are more than any clock can tell."""
    return [float(f"{q:.4g}") for q in np.percentile(seconds, [50, 25, 75])]


def _seconds(call: Step, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def _wait(seconds: float) -> None:
    """Busily: a processor that sleeps is slow when it wakes."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collecting garbage is nobody's work, and would fall on anybody."""
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def keep_memory() -> None:
    """Ask glibc to keep freed memory, up to its limit for blocks of its heap, 32 MiB: no page faults by luck."""
    trim_threshold, mmap_threshold = -1, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 32 * 2**20)
