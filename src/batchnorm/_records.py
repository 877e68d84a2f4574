"""Records: what a layer in use is, in float64 and in the conventions of this library. What is unknown is None."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """One layer: all that decides its evaluation, and how its running statistics move.

    `momentum` is the weight of the new batch, or "cumulative": all batches weigh the same. `correction` is that of the
    variance as it is stored: 1 unbiased, 0 biased. `batches` is how many have moved the statistics.
    """

    name: str
    kind: str  # the name of its class
    channels: int
    axis: int
    eps: float | None
    momentum: float | Literal["cumulative"] | None
    correction: Literal[0, 1] | None
    mean: Doubles | None
    var: Doubles | None
    weight: Doubles | None
    bias: Doubles | None
    batches: int | None

    def evaluate(self, x: Any) -> Doubles:
        """y of an array x, in float64 and in the order of the formula."""
        if self.mean is None or self.var is None or self.eps is None:
            missing = next(name for name in ("mean", "var", "eps") if getattr(self, name) is None)
            raise ValueError(
                f"{self.name}: evaluation needs mean, var and eps; got a record without {missing}; add it with "
                f"dataclasses.replace(record, {missing}=...)"
            )
        x = np.asarray(x, np.float64)
        shape = [1] * x.ndim
        shape[self.axis] = self.channels
        mean, var = self.mean.reshape(shape), self.var.reshape(shape)
        y: Doubles = (x - mean) / np.sqrt(var + self.eps)
        if self.weight is not None:
            y = y * self.weight.reshape(shape)
        return y if self.bias is None else y + self.bias.reshape(shape)
