"""What a contestant is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data import EPS, Data
from ..problem import Problem

Array = NDArray[Any]
FRESH, REUSED = "fresh", "reused"


class Unable(Exception):
    """This contestant cannot do this problem; the text says why."""


class Prepared(NamedTuple):
    """A call to be timed, and how to read its results as NumPy arrays of the shape (N, C, …)."""

    call: Callable[[], Any]
    read: Callable[[Any], dict[str, Array]]


class Contestant(ABC):
    """One way to compute an operation; new instances are stateless but for what `set_threads` sets in a library."""

    name: str
    what: str  # in words, for the notes under a table
    outputs: str = FRESH  # new memory for results in each call, or the same memory again
    pool: str = ""  # whose threads run it, if they keep spinning after a call
    eps: float = EPS
    copies: bool = False  # moves the bytes of x and computes nothing

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.name} {self.outputs}"

    def missing(self) -> str | None:
        """Why it cannot take part on this machine, or None."""
        return None

    def version(self) -> str | None:
        """Of the library it is from, where that is another."""
        return None

    def set_threads(self, threads: int) -> None:
        """Tell the library how many threads it may use; one that has no such setting stays as it is."""
        return

    @abstractmethod
    def prepare(self, problem: Problem, data: Data) -> Prepared:
        """Return the call; raise `Unable` where there is none."""


def version_of(distribution: str) -> str | None:
    """The version installed, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def not_installed(module: str, distribution: str) -> str | None:
    """The reason to leave out what needs a module that is not there."""
    return None if find_spec(module) is not None else f"{distribution} is not installed"


def empty_like(a: Array) -> Array:
    """New memory in a's layout, as our functions make it for their results."""
    return np.empty_like(a, subok=False)
