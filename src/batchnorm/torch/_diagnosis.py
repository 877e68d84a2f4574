"""What a diagnosis is, and how it is shown: as text, page and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np

from .._findings import Finding, Say, english, reason_key, told
from ._causes import CAUSES, DiagnosedLayer, positions_said, typical, typical_factor
from ._diagnosis_page import Healthy, Shown, frame, page
from ._norms import layer_said
from ._report import Left

FACTOR, DISTANCE = 1.25, 0.25  # of a variance, of a mean in std: what is no reason for a word


class Diagnosis:
    """What `diagnose` found: `print` it.

    Attributes
    ----------
    layers
        A `DiagnosedLayer` each.
    findings
        What is wrong, the worst first: code, layer, sentence, fix.
    losses
        With running, batch and recalibrated statistics; None without `loss`.
    left
        Name, class and reason of each batch normalization that was not diagnosed.
    batches
        How many batches of training data were looked at.
    """

    def __init__(
        self,
        layers: list[DiagnosedLayer],
        findings: list[Finding],
        losses: dict[str, float] | None,
        left: list[Left],
        batches: int,
    ) -> None:
        self.layers, self.findings, self.losses, self.left, self.batches = layers, findings, losses, left, batches

    def to_json(self) -> str:
        """As JSON: of each layer the typical factors and distances; what is not finite is null."""
        layers = [
            {
                "name": layer.name,
                "m": layer.m,
                "m_eff": _finite(layer.m_eff),
                "loss": _finite(layer.loss),
                "variance": {cause: _finite(typical_factor(f)) for cause, f in layer.variance._asdict().items()},
                "mean": {cause: _finite(typical(d)) for cause, d in layer.mean._asdict().items()},
            }
            for layer in self.layers
        ]
        findings = [finding._asdict() for finding in self.findings]
        left = [dict(zip(("name", "class", "reason"), each, strict=True)) for each in self.left]
        losses = None if self.losses is None else {name: _finite(value) for name, value in self.losses.items()}
        return json.dumps({"losses": losses, "layers": layers, "findings": findings, "left": left}, indent=2)

    def to_html(self) -> str:
        """As a page, one file without a script: a row for each layer, and on unfolding its extreme channels."""
        return page_of(self)

    def _repr_html_(self) -> str:
        return frame(self.to_html())

    def __str__(self) -> str:
        return text_of(self)

    __repr__ = __str__


def text_of(found: Diagnosis, say: Say = english, cells: Callable[[str], int] = len) -> str:
    """A diagnosis as text; `cells` tells how many columns of a terminal a text takes."""
    lines = _first(found, say)
    heads = ["head variance ×", *(f"cause {cause}" for cause in CAUSES), "head mean off"]
    table = [(say("head layer"), "m", "m_eff", *map(say, heads), *([say("head loss")] if found.losses else []))]
    for layer in found.layers:
        factors = [f"{typical_factor(f):.2f}" for f in (np.prod(layer.variance, axis=0), *layer.variance)]
        off = typical(np.sum(layer.mean, axis=0))
        row = (layer.name, positions_said(layer.m), positions_said(layer.m_eff), *factors, f"{off:.2f} std")
        table.append((*row, *([] if layer.loss is None else [f"{layer.loss:.4g}"])))
    widths = [max(cells(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        blanks = [" " * (width - cells(cell)) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0] + blanks[0], *map("".join, zip(blanks[1:], row[1:], strict=True))]).rstrip())
    lines.append(say("heads"))
    for n, each in enumerate(found.findings, 1):
        sentence, fix = told(each.code, each.numbers, say)
        said = say("of a layer", layer=layer_said(each.layer, say), sentence=sentence)
        lines += [f"{n}  {said}", f"   {fix}"]
    if not found.findings:
        lines.append(say("no fault"))
    return "\n".join(lines)


def left_of(left: list[Left], say: Say = english) -> list[str]:
    """The layers that were left, and why."""
    return [say("left", name=name, kind=kind, reason=say(reason_key(reason))) for name, kind, reason in left]


def page_of(found: Diagnosis, say: Say = english, language: str = "en") -> str:
    """A diagnosis as a page."""
    shown = Shown(found.layers, found.findings, found.losses, left_of(found.left, say), _first(found, say))
    return page(shown, Healthy(FACTOR, DISTANCE), say, language)


def _first(found: Diagnosis, say: Say) -> list[str]:
    lines = []
    if found.losses is not None:
        running, batch, after = (found.losses[name] for name in ("running", "batch", "recalibrated"))
        cost = f"{running - after:.4g}"
        lines.append(say("the loss", running=f"{running:.4g}", batch=f"{batch:.4g}", after=f"{after:.4g}", cost=cost))
    return [*lines, say("the batches", n=found.batches)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
