"""Sentences that several commands say of the channels of some data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Channels named one by one.
NAMED = 6

#: Below this many eps, a variance loses more than 1 % of itself to eps.
NEAR_EPS = 100.0


def gaps(counts: np.ndarray, total: int, name: Callable[[int], str], cells: bool) -> tuple[str, ...]:
    """Say which of ``total`` values of each channel are missing, given how many are there; ``cells`` of a table.

    >>> gaps(np.array([5, 3]), 5, "column {}".format, True)
    ('2 missing cells are left out of the statistics, in column 1',)
    """
    missing = {c: total - int(n) for c, n in enumerate(counts.ravel()) if n < total}
    if not missing:
        return ()
    number = sum(missing.values())
    what = ("missing cell is" if number == 1 else "missing cells are") if cells else "NaN are"
    if not cells and number == 1:
        what = "NaN is"
    if len(missing) == 1:
        where = f"in {name(next(iter(missing)))}"
    else:
        where = ", ".join(f"{missing[c]} in {name(c)}" for c in [*missing][:NAMED])
        where += f", and others in {len(missing) - NAMED} more" * (len(missing) > NAMED)
    return (f"{number} {what} left out of the statistics, {where}",)


def narrow(var: np.ndarray, eps: float, name: Callable[[int], str], own: bool) -> tuple[str, ...]:
    """Say which channels do not get a standard deviation of 1: constant ones, and those that eps scales.

    ``own``: the variance is that of the data normalized, not of other data.

    >>> narrow(np.array([1.0, 0.0]), 1e-5, "column {}".format, own=True)
    ('column 1 is constant, so all its output is 0',)
    """
    var = var.ravel()
    constant, near = np.flatnonzero(var == 0), np.flatnonzero((var > 0) & (var < NEAR_EPS * eps))
    said = []
    if len(constant):
        is_, its = ("is", "its") if len(constant) == 1 else ("are", "their")
        if own:
            said.append(f"{_listed(constant, name)} {is_} constant, so all {its} output is 0")
        else:
            rule = f"what differs from {its} mean is multiplied by 1/√eps = {eps**-0.5:.3g}"
            said.append(f"{_listed(constant, name)} {is_} constant in the data of the moments, so {rule}")
    if len(near):
        c = int(near[0])
        std = f"{np.sqrt(var[c] / (var[c] + eps)):.3g}"
        first = f"{name(c)} has var = {var[c]:.3g}, not large beside eps = {eps:g}: its std becomes {std}, not 1"
        more = f"; so {'is' if len(near) == 2 else 'are'} {_listed(near[1:], name)}" if len(near) > 1 else ""
        said.append(f"{first}{more}; scale it up, or take a smaller --eps")
    return tuple(said)


def _listed(channels: np.ndarray, name: Callable[[int], str]) -> str:
    shown = [name(int(c)) for c in channels[:NAMED]]
    if len(channels) > NAMED:
        return f"{', '.join(shown)} and {len(channels) - NAMED} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
