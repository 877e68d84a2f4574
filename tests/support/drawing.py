"""What drivers that draw their cases share: their options, a seed for each case, and what came of them."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable


def run(one: Callable[[int], str], what: str, about: str | None) -> None:
    """Draw for as long as the options say; `one` takes a seed, and says what came of it in a word."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=10**9)
    options = parser.parse_args()
    until, seed, outcomes = time.monotonic() + options.seconds, options.seed, Counter[str]()
    while time.monotonic() < until and seed < options.seed + options.cases:
        outcomes[one(seed)] += 1
        seed += 1
    print(f"{seed - options.seed} {what} from seed {options.seed} on:", dict(sorted(outcomes.items())))
