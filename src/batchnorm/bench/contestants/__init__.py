"""Who takes part. Each says what it can do, prepares its arguments, and is then only called."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .contract import Contestant


def everybody(compiled: Collection[tuple[str, int]] | None = None) -> list[Contestant]:
    """All contestants; those whose threads spin after a call stand last, each beside those that share its threads.

    `compiled`: the pairs of an operation and a number of threads that torch.compile is asked for; default all.
    """
    from . import copies, jitted, onednn, ours, plain, pytorch

    torch = [*pytorch.EAGER, pytorch.Compiled(compiled)]
    return [*copies.ALL, *ours.ALL, *plain.ALL, *torch, *onednn.ALL, *jitted.ALL]


def present(contestants: Sequence[Contestant]) -> tuple[list[Contestant], dict[str, str]]:
    """Those that can take part here, and for the names of the others why they cannot."""
    absent: dict[str, str] = {}
    here = []
    for contestant in contestants:
        reason = contestant.missing()
        if reason is None:
            here.append(contestant)
        else:
            absent[contestant.name] = reason
    return here, absent
