"""Records: what a layer in use is, in float64 and in the conventions of this library. What is unknown is None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple

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
    dtype: str | None = None  # of mean and variance where they are stored


class Convention(NamedTuple):
    """What a framework means by the words of a batch normalization, and its defaults."""

    names: tuple[str, str, str, str] | None  # of weight, bias, running mean and variance; None: the latter have none
    axis: int  # of the channels
    eps: float
    momentum: float | None  # as the framework says it; None: it has no default
    weighs: Literal["new", "old"]  # which value its momentum is the weight of
    correction: Literal[0, 1] | None  # of the variance that it stores; None: it keeps no average that is one of ours

    def momentum_here(self, momentum: float) -> float:
        """The weight of the new batch, of a momentum in the framework's words: of Keras's 0.99 just 0.01."""
        return momentum if self.weighs == "new" else float(1 - Decimal(repr(float(momentum))))

    def record(
        self,
        name: str,
        arrays: Mapping[str, Any],
        *,
        eps: float | None = None,
        momentum: float | None = None,
        axis: int | None = None,
    ) -> LayerRecord:
        """Describe a layer of the framework by its arrays; what is not given is unknown, but for the axis."""
        if self.names is None:
            raise ValueError(f"{name}: its framework has no names for running statistics, so no record can be read")
        weight, bias, mean, var = (
            None if arrays.get(each) is None else np.array(arrays[each], np.float64).reshape(-1) for each in self.names
        )
        return LayerRecord(
            name=name,
            kind="BatchNorm",
            channels=next((len(each) for each in (mean, var, weight, bias) if each is not None), 0),
            axis=self.axis if axis is None else axis,
            eps=eps,
            momentum=None if momentum is None else self.momentum_here(momentum),
            correction=self.correction,
            mean=mean,
            var=var,
            weight=weight,
            bias=bias,
            batches=None,
        )


_OF_TORCH = ("weight", "bias", "running_mean", "running_var")
_OF_KERAS = ("gamma", "beta", "moving_mean", "moving_variance")

#: By what the documents call a framework; each with its defaults. Ours are PyTorch's.
CONVENTIONS = {
    "PyTorch": Convention(_OF_TORCH, 1, 1e-5, 0.1, "new", 1),
    "Keras": Convention(_OF_KERAS, -1, 1e-3, 0.99, "old", 0),
    "tf.keras, fused": Convention(_OF_KERAS, -1, 1e-3, 0.99, "old", 1),
    "Flax": Convention(("scale", "bias", "mean", "var"), -1, 1e-5, 0.99, "old", 0),
    "Haiku": Convention(("scale", "offset", "mean_ema/average", "var_ema/average"), -1, 1e-5, None, "old", None),
    "Equinox": Convention(None, 0, 1e-5, 0.99, "old", None),
    "MLX": Convention(_OF_TORCH, -1, 1e-5, 0.1, "new", 1),
    "ONNX": Convention(("scale", "B", "input_mean", "input_var"), 1, 1e-5, 0.9, "old", 0),
}
