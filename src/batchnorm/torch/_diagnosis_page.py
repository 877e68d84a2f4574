"""The page of a diagnosis: one file without a script; a layer is a row, with its four factors on a log axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from .._findings import Finding, Say, told
from ._causes import CAUSES, DiagnosedLayer, positions_said, typical, typical_factor
from ._norms import layer_said

_EXTREMES = 6  # channels of a layer that are shown
_LEFT, _WIDTH, _STEP = 62, 180, 19  # of a drawing: where bars begin, how far they reach, a bar


class Healthy(NamedTuple):
    """What is no reason for a word: a variance's factor up to one, or one over it; a mean's distance in std."""

    factor: float
    distance: float


# The colors are those of the page of `explain`.
_STYLE = """
:root {
  --paper: #f6f7f9; --card: #ffffff; --ink: #1c2833; --quiet: #5b6875; --line: #d5dbe1; --cell: #ffffff;
  --blue: #1f6fb4; --orange: #b3540d; --green: #1d7a55; --accent: #1f6fb4; --band: #eef1f4; --ring: #14202b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12171c; --card: #1a2128; --ink: #e6ebf0; --quiet: #9dabb8; --line: #36424e; --cell: #1a2128;
    --blue: #4f9fe0; --orange: #e08a45; --green: #58c797; --accent: #6cb2eb; --band: #232c35; --ring: #ffffff;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem clamp(.6rem, 3vw, 2rem) 3rem; max-width: 60rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .6rem 0 .3rem; }
h2 { font-size: 1.1rem; margin: 0 0 .3rem; }
p { margin: .3rem 0; }
.quiet, dt { color: var(--quiet); font-size: .92rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .8rem 1rem;
  margin: .8rem 0; }
.found { border-left: 4px solid var(--orange); }
.found ol { margin: .3rem 0; padding-left: 1.4rem; }
.layer { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 24rem); gap: .2rem 1.5rem; }
.layer details { grid-column: 1 / -1; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .8rem; margin: 0; align-content: start;
  font-variant-numeric: tabular-nums; }
dd { margin: 0; }
svg { display: block; width: 100%; max-width: 24rem; height: auto; }
svg text { fill: var(--quiet); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .off { fill: var(--ink); font-weight: 600; }
.band { fill: var(--band); }
.one { stroke: var(--quiet); }
.more { fill: var(--blue); }
.less { fill: var(--orange); }
summary { cursor: pointer; color: var(--accent); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .15rem .9rem .15rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--quiet); }
code { font-size: .92em; background: var(--band); border-radius: 4px; padding: .1em .35em; }
@media (max-width: 40rem) { .layer { grid-template-columns: minmax(0, 1fr); } }
"""


class Shown(NamedTuple):
    """What a page shows: layers, findings, losses, what was left, and what stands at the top."""

    layers: Sequence[DiagnosedLayer]
    findings: Sequence[Finding]
    losses: dict[str, float] | None
    left: Sequence[str]
    first: Sequence[str]


def page(shown: Shown, healthy: Healthy, say: Say, language: str) -> str:
    """The whole page."""
    end = _end(shown.layers)
    recalibrated = None if shown.losses is None else shown.losses["recalibrated"]
    parts = [
        f"<h1>{escape(say('page wrong' if shown.findings else 'page well'))}</h1>",
        *(f'<p class="quiet">{escape(line)}</p>' for line in shown.first),
        _findings(shown.findings, say),
        *(_layer(layer, recalibrated, _Drawing(end, healthy, say)) for layer in shown.layers),
        *(f'<p class="quiet">{escape(line)}</p>' for line in shown.left),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="{language}"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f'<meta name="color-scheme" content="light dark"/><title>batchnorm diagnose</title><style>{_STYLE}</style>'
        f"</head><body>{''.join(parts)}</body></html>\n"
    )


def frame(inside: str) -> str:
    """A page in an element of its own, for a notebook."""
    style = "width: 100%; height: 640px; border: 1px solid #8884; border-radius: 8px"
    return f'<iframe srcdoc="{escape(inside)}" title="batchnorm diagnose" style="{style}"></iframe>'


def _named(layer: str, say: Say) -> str:
    return f"<code>{escape(layer_said(layer, say))}</code>"


def _findings(findings: Sequence[Finding], say: Say) -> str:
    if not findings:
        return ""
    rows = []
    for each in findings:
        sentence, fix = told(each.code, each.numbers, say)
        said = say("of a layer", layer=layer_said(each.layer, say), sentence=sentence)
        rows.append(f'<li>{escape(said)}<p class="quiet">{escape(fix)}</p></li>')
    return f'<div class="card found"><h2>{escape(say("page findings"))}</h2><ol>{"".join(rows)}</ol></div>'


class _Drawing(NamedTuple):
    """What the drawings of all layers have in common: how far their axes go, what is healthy, the language."""

    end: float
    healthy: Healthy
    say: Say


def _layer(layer: DiagnosedLayer, recalibrated: float | None, drawing: _Drawing) -> str:
    say = drawing.say
    variance, mean = np.prod(layer.variance, axis=0), np.sum(layer.mean, axis=0)
    facts = [
        (say("page variance"), f"×{typical_factor(variance):.3g}"),
        (say("page mean"), say("page off", distance=f"{typical(mean):.2g}")),
        ("m", say("page positions", m=positions_said(layer.m), worth=positions_said(layer.m_eff))),
    ]
    if layer.loss is not None and recalibrated is not None:
        cost = f"{layer.loss - recalibrated:+.3g}"
        facts.append((say("page put back"), say("page loss", loss=f"{layer.loss:.4g}", cost=cost)))
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return (
        f'<section class="card layer"><div><h2>{_named(layer.name, say)}</h2><dl>{rows}</dl></div>'
        f"{_drawn(layer, drawing)}{_channels(layer, (variance, mean), say)}</section>"
    )


def _end(layers: Sequence[DiagnosedLayer]) -> float:
    """The largest factor of the axis, which all layers share: a power of ten, or 3."""
    factors = [typical_factor(factor) for layer in layers for factor in layer.variance]
    most = max((abs(math.log10(f)) for f in factors if math.isfinite(f) and f > 0), default=0.0)
    return 3.0 if most <= math.log10(3) else 10.0 ** math.ceil(most)


def _drawn(layer: DiagnosedLayer, drawing: _Drawing) -> str:
    """A bar for each cause, from ×1 to its factor; beside it what it does to the mean."""
    end, healthy, say = drawing

    def at(factor: float) -> float:
        return round(_LEFT + _WIDTH * (1 + math.log(factor) / math.log(end)) / 2, 1)

    bottom = _STEP * len(CAUSES)
    low, high = at(1 / healthy.factor), at(healthy.factor)
    parts = [f'<rect class="band" x="{low}" y="0" width="{high - low:.1f}" height="{bottom}"/>']
    for i, (cause, factors, distances) in enumerate(zip(CAUSES, layer.variance, layer.mean, strict=True)):
        factor, base = typical_factor(factors), i * _STEP + 14
        parts.append(f'<text x="0" y="{base}">{escape(say(f"cause {cause}"))}</text>')
        if math.isfinite(factor) and factor > 0:
            start, stop = sorted((at(1), at(factor)))
            kind = "more" if factor > 1 else "less"
            parts.append(f'<rect class="{kind}" x="{start}" y="{base - 11}" width="{stop - start:.1f}" height="13"/>')
        distance = typical(distances)  # NaN is off, too
        ends = (
            (52, f"×{factor:.3g}", 1 / healthy.factor <= factor <= healthy.factor),
            (118, f"{distance:.2f} std", distance <= healthy.distance),
        )
        for x, text, fine in ends:
            mark = "" if fine else ' class="off"'
            parts.append(f'<text{mark} x="{_LEFT + _WIDTH + x}" y="{base}" text-anchor="end">{text}</text>')
    parts.append(f'<line class="one" x1="{at(1)}" x2="{at(1)}" y1="0" y2="{bottom}"/>')
    for factor, text in ((1 / end, f"1/{end:g}"), (1.0, "×1"), (end, f"×{end:g}")):
        parts.append(f'<text x="{at(factor)}" y="{bottom + 14}" text-anchor="middle">{text}</text>')
    for x, text in ((_LEFT + _WIDTH + 52, say("mark variance")), (_LEFT + _WIDTH + 118, say("mark mean"))):
        parts.append(f'<text x="{x}" y="{bottom + 14}" text-anchor="end">{text}</text>')
    listed = (f"{say(f'cause {c}')} ×{typical_factor(f):.3g}" for c, f in zip(CAUSES, layer.variance, strict=True))
    label = say("page factors", factors=", ".join(listed))
    return (
        f'<svg viewBox="0 0 {_LEFT + _WIDTH + 120} {bottom + 18}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _channels(layer: DiagnosedLayer, off: tuple[np.ndarray, np.ndarray], say: Say) -> str:
    """The channels that are off by most, in variance and mean, on unfolding."""
    variance, mean = off
    with np.errstate(all="ignore"):
        size = np.nan_to_num(np.maximum(np.abs(np.log(variance)), np.abs(mean)), nan=np.inf)
    names = ("head channel", "head variance", *(f"cause {cause}" for cause in CAUSES), "head mean off")
    head = "".join(f"<th>{escape(say(name))}</th>" for name in names)
    rows = "".join(
        f"<tr><td>{c}</td><td>×{variance[c]:.3g}</td>"
        + "".join(f"<td>×{factor[c]:.3g}</td>" for factor in layer.variance)
        + f"<td>{mean[c]:+.2g} std</td></tr>"
        for c in np.argsort(-size, kind="stable")[:_EXTREMES]
    )
    few = len(size) <= _EXTREMES
    said = say("page channels") if few else say("page extremes", n=_EXTREMES, channels=len(size))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<details><summary>{escape(said)}</summary><div class="wide">{table}</div></details>'
