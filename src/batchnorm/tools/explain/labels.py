"""What to call a channel and a position: a column and a row of a table, or indices of an array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..._plan import Plan
from ..text.language import Said
from ..text.lines import cut, printable

#: Columns that a name may take in a sentence.
LONGEST = 32


@dataclass(frozen=True)
class Labels:
    """Names for channels and positions.

    ``unit`` is "column" when the data is a table once axes of length one are dropped, else "channel".
    """

    shape: tuple[int, ...]
    kept: tuple[int, ...]
    unit: str
    names: tuple[str, ...] | None

    @classmethod
    def make(cls, plan: Plan, names: Sequence[str] | None) -> Labels:
        """Choose the unit and check the names."""
        shape, kept = plan.shape, plan.axis
        long = [a for a in range(len(shape)) if shape[a] > 1 or a in kept]
        unit = "column" if len(kept) == 1 and len(long) <= 2 and (long[-1] == kept[0]) else "channel"
        if names is not None and len(names) != plan.C:
            raise ValueError(f"explain: names must have one name for each of the {plan.C} channels; got {len(names)}")
        return cls(shape, kept, unit, None if names is None else tuple(map(str, names)))

    @property
    def kind(self) -> str:
        """What sentences are about: "column", "channel", or "all" values, where no axis is kept."""
        return self.unit if self.kept else "all"

    def index(self, channel: int) -> str:
        """Return a channel's number, or its indices where several axes are kept: ``"3"``, ``"(0, 2)"``."""
        if len(self.kept) < 2:
            return str(channel)
        return str(tuple(int(i) for i in np.unravel_index(channel, [self.shape[a] for a in self.kept])))

    def of(self, channel: int) -> Said:
        """Return how a sentence calls a channel: ``column 'petal width'``, ``channel 3``; see ``Said`` for languages.

        Its number stands beside the name where another one has the name, too.
        """
        name = "" if self.names is None else self.names[channel]
        if self.names is None or not name.strip():
            return Said(f"{self.unit}_number", index=self.index(channel))
        key = "name" if self.names.count(name) == 1 else "both"
        return Said(f"{self.unit}_{key}", index=self.index(channel), name=cut(repr(name), LONGEST))

    def head(self, channel: int) -> str:
        """Return what stands over a channel of a table, or before it in a list: its name, else its number."""
        return self.index(channel) if self.names is None else printable(self.names[channel])

    def element(self, position: int, channel: int) -> str:
        """Return how a sentence calls one value: ``column 4, row 0``, ``x[3, 0, 5, 5]``."""
        if self.unit == "column":
            return Said("cell", where=self.of(channel), n=position)
        reduced = [a for a in range(len(self.shape)) if a not in self.kept]
        index = dict(zip(reduced, unravel(position, [self.shape[a] for a in reduced]), strict=True))
        index |= zip(self.kept, unravel(channel, [self.shape[a] for a in self.kept]), strict=True)
        return f"x[{', '.join(str(index[a]) for a in range(len(self.shape)))}]"


def unravel(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the indices of a row-major number; an empty shape has one position, of no index."""
    return tuple(int(i) for i in np.unravel_index(flat, tuple(shape))) if shape else ()
