"""What every experiment gives and takes, as plain values: all of it can stand in a JSON file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from . import statistics
from .sentences import Sentence

if TYPE_CHECKING:
    from .data import Data

Setting = dict[str, Any]
Numbers = dict[str, Any]
#: What stands on an axis: a number, or the name of a category.
Place = float | Sentence


@dataclass(frozen=True)
class Plan:
    """What is the same in every run, and what each run has of its own."""

    common: Setting
    varied: list[Setting]

    def settings(self) -> list[Setting]:
        """Return the whole setting of every run of one seed."""
        return [{**self.common, **varied} for varied in self.varied]


@dataclass(frozen=True)
class Run:
    """One run: its setting, its seed, and the numbers that came out."""

    setting: Setting
    seed: int
    numbers: Numbers


class Runs:
    """The runs of one experiment, to ask for those of a setting."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)
        self.seeds = sorted({run.seed for run in runs})

    def numbers(self, **setting: Any) -> list[Numbers]:
        """Return the numbers of the runs that have ``setting``, one for each seed, in the order of the seeds."""
        chosen = [run for run in self.runs if setting.items() <= run.setting.items()]
        assert [run.seed for run in chosen] == self.seeds, f"{setting} is not one setting"
        return [run.numbers for run in chosen]

    def each(self, key: str, **setting: Any) -> list[Any]:
        """Return one number of those runs, a value for each seed."""
        return [numbers[key] for numbers in self.numbers(**setting)]

    def values(self, of: str) -> list[Any]:
        """Return the different values that a setting takes, in the order of the plan."""
        return list(dict.fromkeys(run.setting[of] for run in self.runs if of in run.setting))

    def best(self, of: str, **setting: Any) -> Any:
        """Return the value of a setting, such as the rate, with the lowest mean loss on the training images.

        So no test image takes part in the choice. A value with which some seed's loss was not finite comes last.
        """

        def mean(value: Any) -> float:
            losses = self.each("train_loss", **{of: value}, **setting)
            return math.inf if None in losses else math.fsum(losses) / len(losses)

        return min(self.values(of), key=mean)


@dataclass(frozen=True)
class Series:
    """A curve: the mean over seeds at each place, and the smallest and largest; None where there is no number."""

    name: Sentence
    style: str
    x: list[Any]
    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]

    @classmethod
    def over_seeds(
        cls, name: Sentence, style: str, x: Sequence[Place], values: Iterable[Sequence[float | None]]
    ) -> Series:
        """Make a curve of ``values``: for each place, a number for each seed; None if one of them has none."""
        spreads = [None if None in of else statistics.spread([v for v in of if v is not None]) for of in values]
        parts = [[None if s is None else getattr(s, part) for s in spreads] for part in ("mean", "low", "high")]
        return cls(name, style, list(x), *parts)


@dataclass(frozen=True)
class Panel:
    """One set of axes. ``x_scale``: "linear", "log" or "category"; ``decimals`` is for the table of its numbers."""

    title: Sentence
    x_label: Sentence
    y_label: Sentence | None
    series: list[Series]
    x_scale: str = "linear"
    y_scale: str = "linear"
    decimals: int = 1
    band: bool = False  # the spread as a band along the curve, not as a bar at each point
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Summary:
    """What came out: the verdict on the paper's claim, what was found, how to read it, and the figure's numbers."""

    verdict: str
    finding: list[Sentence]
    reading: list[Sentence]
    panels: list[Panel] = field(default_factory=list)


class Experiment(Protocol):
    """What a module of ``why.experiments`` has."""

    plan: Callable[[bool], Plan]
    run: Callable[[Setting, int, Data], Numbers]
    summarize: Callable[[Runs], Summary]
