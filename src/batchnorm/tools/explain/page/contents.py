"""What the page knows: tensors to play with, and the table of the whole array, as JSON has it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...text.language import LANGUAGES, Words
from ...text.remarks import told
from ..digits import decimals, digits_for, fitted
from ..facts import EXAMPLE, Facts
from ..labels import unravel
from ..outliers import Outlier
from ..report import facts
from ..suspicions_shown import about_outlier

#: Positions of an axis that the page draws, so that the one lit at first is among them.
DRAWN = 8

#: Rows in the table of channels at most; the suspicious ones come first.
ROWS = 500


def contents(e: Facts) -> dict[str, Any]:
    """Return the page's data. Its first tensor is the one shown at the beginning."""
    example = {"id": "table", **_tensor(EXAMPLE, (2,), "1d")}
    own = e.excerpt.values
    is_example = own.shape == EXAMPLE.shape and np.array_equal(own, EXAMPLE)
    tensors = [example, *_others()] if is_example else [_own(e), example, *_others()]
    return {"eps": e.eps, "lang": e.lang, "tensors": tensors, "whole": None if is_example else _whole(e)}


def _tensor(x: np.ndarray, axes: Sequence[int], kind: str, chosen: int = 0) -> dict[str, Any]:
    """Return ``x`` as the page reads it: little-endian bytes in base64. ``chosen`` is the value lit at first."""
    data = base64.b64encode(x.astype(x.dtype.newbyteorder("<"), order="C").tobytes()).decode("ascii")
    seen = {"axes": list(axes), "kind": kind, "chosen": chosen, "names": None, "omits": False}
    return {"shape": list(x.shape), "dtype": x.dtype.name, "data": data, **seen}


def _others() -> list[dict[str, Any]]:
    """Return small tensors of three, four and five axes, whose channels lie at different heights."""
    made = []
    for name, shape, kind in (
        ("sequences", (3, 3, 6), "1d"), ("images", (3, 3, 4, 4), "2d"), ("volumes", (2, 2, 3, 3, 3), "3d"),
    ):  # fmt: skip
        rng = np.random.default_rng(len(shape))
        per_channel = (1, -1) + (1,) * (len(shape) - 2)
        height, width = (np.array(v[: shape[1]]).reshape(per_channel) for v in ([10.0, 0.0, 100.0], [2.0, 0.5, 20.0]))
        sample = rng.normal(size=(shape[0],) + (1,) * (len(shape) - 1))  # samples differ as well: layer norm shows it
        x = (height + width * (0.6 * sample + 0.8 * rng.normal(size=shape))).round(1)
        made.append({"id": name, **_tensor(x, (1,), kind)})
    return made


def _own(e: Facts) -> dict[str, Any]:
    """Return the reader's array: all of it, or its corner."""
    x, p = e.excerpt.values, e.plan
    ranks = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}
    kind = ranks.get(x.ndim, "axis") if p.axis == (1,) else "axis"
    names = e.labels.names
    at = [min(n, DRAWN) // 2 if a > 1 else 0 for a, n in enumerate(x.shape)]  # the middle of the first plane
    for axis, i in zip(p.axis, unravel(e.formulas.channel, p.channel_shape), strict=True):
        at[axis] = min(i, x.shape[axis] - 1)
    chosen = int(np.ravel_multi_index(at, x.shape))
    own = _tensor(x, p.axis, kind, chosen) | {"names": None if names is None else list(names)}
    own["omits"] = e.nan_policy == "omit"
    return {"id": "yours", "source": e.source, "whole": None if e.excerpt.whole else list(p.shape), **own}


def _whole(e: Facts) -> dict[str, Any]:
    """Return the table of every channel of the whole array, its numbers as the terminal writes them."""
    kinds: dict[int, list[str]] = {}
    for suspicion in e.suspicions:
        for c in suspicion.channels:
            kinds.setdefault(c, []).append(suspicion.kind)
    count = len(e.channels)
    first = sorted(kinds)[:ROWS]
    chosen = sorted([*first, *(c for c in range(count) if c not in kinds)][:ROWS])
    for outlier in e.outliers:
        kinds.setdefault(outlier.channel, []).append("outlier")
    return {
        "source": e.source,
        "facts": _in_each(lambda words: facts(e, words)),
        "unit": e.labels.unit,
        "remarks": [_in_each(partial(_note, remark)) for remark in e.remarks],
        "outliers": [_in_each(partial(_outlier, e, outlier)) for outlier in e.outliers],
        "rows": [_row(e, c, kinds.get(c, [])) for c in chosen],
        "left": count - len(chosen),
    }


def _note(remark: str, words: Words) -> str:
    return words("note", text=told(remark, words))


def _outlier(e: Facts, outlier: Outlier, words: Words) -> str:
    return words.told(about_outlier(e, outlier))


def _in_each(say: Callable[[Words], str]) -> dict[str, str]:
    """Return a sentence in every language."""
    return {language: say(Words(language)) for language in LANGUAGES}


def _row(e: Facts, c: int, kinds: list[str]) -> dict[str, Any]:
    t = e.channels
    mean, std = float(t.mean[c]), float(t.std[c])
    digits = max(4, digits_for(mean, std) - 1)
    before = [fitted(mean, digits), fitted(std, 4)]
    ends = [fitted(float(v[c]), digits) for v in (t.minimum, t.maximum)]
    after = [decimals(float(v[c])) for v in (t.mean_after, t.std_after)]
    return {"name": e.labels.head(c), "texts": before + ends + after, "kinds": kinds}
