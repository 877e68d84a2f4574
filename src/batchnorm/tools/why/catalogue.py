"""The experiments: their names, the questions they ask, and the papers they take them from."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ..files import Refused
from .sentences import Sentence, say

if TYPE_CHECKING:
    from .experiment import Experiment


@dataclass(frozen=True)
class Paper:
    """A paper, with its number on arXiv."""

    authors: str
    year: int
    title: str
    arxiv: str


@dataclass(frozen=True)
class Entry:
    """An experiment. Its module in ``why.experiments`` has its name, with underscores."""

    name: str
    paper: Paper

    @property
    def title(self) -> Sentence:
        """What it is about, in a few words."""
        return say(f"{self.name}.title")

    @property
    def question(self) -> Sentence:
        """What it asks."""
        return say(f"{self.name}.question")


IOFFE = Paper(
    "S. Ioffe, C. Szegedy",
    2015,
    "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    "1502.03167",
)
BJORCK = Paper(
    "J. Bjorck, C. Gomes, B. Selman, K. Q. Weinberger", 2018, "Understanding Batch Normalization", "1806.02375"
)
SANTURKAR = Paper(
    "S. Santurkar, D. Tsipras, A. Ilyas, A. Mądry",
    2018,
    "How Does Batch Normalization Help Optimization?",
    "1805.11604",
)
WU_HE = Paper("Y. Wu, K. He", 2018, "Group Normalization", "1803.08494")
WU_JOHNSON = Paper("Y. Wu, J. Johnson", 2021, 'Rethinking "Batch" in BatchNorm', "2105.07576")
SCHNEIDER = Paper(
    "S. Schneider, E. Rusak, L. Eck, O. Bringmann, W. Brendel, M. Bethge",
    2020,
    "Improving robustness against common corruptions by covariate shift adaptation",
    "2006.16971",
)
LAURENT = Paper(
    "C. Laurent, G. Pereyra, P. Brakel, Y. Zhang, Y. Bengio",
    2015,
    "Batch Normalized Recurrent Neural Networks",
    "1510.01378",
)

ENTRIES = (
    Entry("faster", IOFFE),
    Entry("learning-rates", BJORCK),
    Entry("smoother-loss", SANTURKAR),
    Entry("noise", SANTURKAR),
    Entry("scale", IOFFE),
    Entry("small-batches", WU_HE),
    Entry("running-statistics", WU_JOHNSON),
    Entry("shifted-test", SCHNEIDER),
    Entry("padding", LAURENT),
)
NAMES = tuple(entry.name for entry in ENTRIES)


def chosen(names: Sequence[str]) -> list[Entry]:
    """Return the named experiments in the order of the list, all where none is named; refuse an unknown name."""
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise Refused(f"There is no experiment {name!r}.{hint} The experiments are: {', '.join(NAMES)}.")
    return [entry for entry in ENTRIES if not names or entry.name in names]


def experiment(name: str) -> Experiment:
    """Return the module of an experiment; this loads PyTorch."""
    return cast("Experiment", importlib.import_module(f"{__package__}.experiments.{name.replace('-', '_')}"))
