"""What a recalibration did, and how it is shown: as text and JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import torch

from .._findings import Say, english
from ._layer_inputs import put_back
from ._lockstep import Note, Report
from ._norms import layer_said
from ._report import Left

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class RecalibratedLayer:
    """What became of a layer's running statistics, for each channel in float64."""

    name: str
    count: float  # positions of a channel; with sample weights, their sum
    mean_moved: Tensor  # (after - before) / sqrt(variance after + eps)
    var_ratio: Tensor  # after / before


class Recalibration:
    """What `recalibrate` did: `print` it, undo it, or use it as a context that ends with `undo()`.

    Attributes
    ----------
    how
        Which of the three definitions.
    layers
        A `RecalibratedLayer` each: name, count, mean_moved, var_ratio.
    samples, batches
        How many were seen, on all ranks.
    passes
        How many times the data were read.
    bytes
        The most memory that the batches in flight held, as it was predicted.
    skipped
        Batches that were left out for NaN or infinity (on_nonfinite="skip").
    left
        Name, class and reason of each batch normalization that stays as it was.
    """

    def __init__(
        self, how: str, layers: list[RecalibratedLayer], report: Report, batches: int, samples: int,
        left: list[Left], notes: list[Note], before: list[tuple[Any, str, Tensor]],
    ) -> None:  # fmt: skip
        self.how, self.layers, self.batches, self.samples = how, layers, batches, samples
        self.passes, self.bytes, self.skipped = report.passes, report.bytes, report.skipped
        self.left, self._notes = left, [*notes, *report.notes]
        self._before = before

    @property
    def notes(self) -> list[str]:
        """What else there is to know."""
        return [note.told(english) for note in self._notes]

    def undo(self) -> None:
        """Put back what was there before, by bits; a second time does nothing."""
        before, self._before = self._before, []
        put_back([(getattr(layer, name), value) for layer, name, value in before])

    def __enter__(self) -> Recalibration:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def to_json(self) -> str:
        """As JSON: of each layer the largest absolute mean_moved and the extremes of var_ratio; infinity is a text."""
        layers = [
            {
                "name": layer.name,
                "count": layer.count,
                "mean_moved": _number(layer.mean_moved.abs().max()),
                "var_ratio": [_number(layer.var_ratio.min()), _number(layer.var_ratio.max())],
            }
            for layer in self.layers
        ]
        facts = {name: getattr(self, name) for name in ("how", "samples", "batches", "passes", "bytes", "skipped")}
        left = [dict(zip(("name", "class", "reason"), each, strict=True)) for each in self.left]
        return json.dumps({**facts, "layers": layers, "left": left, "notes": self.notes}, indent=2, allow_nan=False)

    def __str__(self) -> str:
        return text_of(self)

    __repr__ = __str__


def text_of(done: Recalibration, say: Say = english) -> str:
    """A recalibration as text."""

    def counted(what: str, n: int) -> str:
        return say(f"{what} one" if n == 1 else f"{what} many", n=n)

    moved = max(done.layers, key=lambda layer: float(layer.mean_moved.abs().max()))
    became = max(done.layers, key=lambda layer: float(_off(layer).max()))
    by, factor = f"{float(moved.mean_moved.abs().max()):.3g}", float(became.var_ratio[_off(became).argmax()])
    lines = [
        say(
            "recalibrated",
            layers=counted("norms", len(done.layers)),
            how=done.how,
            definition=say(f"how {done.how}"),
            samples=done.samples,
            batches=counted("batches", done.batches),
            passes=counted("passes", done.passes),
        ),
        say(
            "moved",
            layer=layer_said(moved.name, say),
            distance=say("std one" if by == "1" else "std many", n=by),
            other=layer_said(became.name, say),
            factor=f"{factor:.3g}",
        ),
    ]
    if done.skipped:
        lines.append(say("batches skipped", batches=counted("batches", done.skipped)))
    return "\n".join([*lines, *(note.told(say) for note in done._notes)])


def _off(layer: RecalibratedLayer) -> Tensor:
    return layer.var_ratio.log().abs().nan_to_num(0.0, posinf=torch.inf)


def _number(value: Tensor) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)
