"""A slice of the layers that ``fuzz_layers.py`` draws; more by ``python tests/fuzz/fuzz_layers.py --seconds 600``."""

from __future__ import annotations

import pytest
from fuzz_layers import KINDS, one


@pytest.mark.parametrize("first", [100, 200])
def test_layers_drawn_at_random(first: int) -> None:
    outcomes = {one(seed) for seed in range(first, first + 100)}
    assert outcomes >= {f"{kind} right" for kind in KINDS}
    assert len({outcome for outcome in outcomes if outcome.endswith("refused")}) > 2
