"""The yardstick: a copy of x, by the C library's memcpy and past the cache, with as many threads as everybody has."""

from __future__ import annotations

import numpy as np

from ... import _native
from ...functional import set_num_threads
from ..data import Data, as_stored
from ..problem import Problem
from .contract import FRESH, REUSED, Array, Contestant, Prepared, empty_like


class Copy(Contestant):
    """Every thread copies one part."""

    copies = True

    def __init__(self, name: str, what: str, streaming: bool, outputs: str) -> None:
        self.name, self.what, self.streaming, self.outputs = name, what, streaming, outputs

    def missing(self) -> str | None:
        if self.streaming and _native.isa() not in ("avx2", "avx512"):
            return f"the {_native.isa()} kernels have no stores past the cache"
        return None

    def set_threads(self, threads: int) -> None:
        set_num_threads(threads)

    def prepare(self, problem: Problem, data: Data) -> Prepared:
        streaming, x, source = self.streaming, data.x, _bytes(data.x, data.layout)

        def fresh() -> Array:
            to = empty_like(x)
            _native.copy(_bytes(to, data.layout), source, streaming)
            return to

        kept = empty_like(x)
        target = _bytes(kept, data.layout)

        def reused() -> Array:
            _native.copy(target, source, streaming)
            return kept

        return Prepared(fresh if self.outputs == FRESH else reused, lambda to: {"copy": to})


def _bytes(a: Array, layout: str) -> Array:
    return as_stored(a, layout).reshape(-1).view(np.uint8)


ALL = [
    Copy(name, what, streaming, outputs)
    for name, what, streaming in (
        ("memcpy", "memcpy, a part for each thread", False),
        ("streaming copy", "a copy with non-temporal stores, a part for each thread", True),
    )
    for outputs in (FRESH, REUSED)
]
