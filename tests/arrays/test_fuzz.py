"""A slice of the fuzz of the kernels; `python tests/fuzz/fuzz_kernels.py --problems 10000` is the whole."""

from __future__ import annotations

import fuzz_kernels
import pytest


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_random_problems(first):
    for seed in range(first, first + 20):
        fuzz_kernels.check(seed)
