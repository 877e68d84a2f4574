"""Moments in a JSON file that gives the same bits back: every float is written with as many digits as it needs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..._moments import Doubles, Moments
from ..._options import EPS
from .refused import Refused
from .table import columns_option

FORMAT = "batchnorm moments"
VERSION = 1
ARRAYS = ("count", "mean", "mean_low", "m2")


@dataclass(frozen=True, eq=False)
class SavedMoments:
    """Moments with the kept axes, and the column names where there were any, of the data they came from.

    ``eps`` is what was added to the variance; files of moments alone have none.
    """

    moments: Moments
    axis: tuple[int, ...]
    names: tuple[str, ...] | None
    eps: float | None = None

    def channel(self, c: int) -> str:
        """Return how a sentence calls a channel."""
        return f"channel {c}" if self.names is None else f"column {self.names[c]!r}"

    def about(self) -> dict[str, object]:
        """What a file says beside the numbers."""
        return {"format": FORMAT, "version": VERSION, "axis": list(self.axis), "names": self.names, "eps": self.eps}


def write_moments(path: Path, saved: SavedMoments) -> None:
    """Write ``saved`` to ``path``; NaN and infinity, which JSON lacks, become the strings "nan", "inf" and "-inf"."""
    content = saved.about() | {name: _listed(getattr(saved.moments, name).tolist()) for name in ARRAYS}
    lines = [
        f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        for name, value in content.items()
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_moments(path: str | Path) -> SavedMoments:
    """Return what ``write_moments`` wrote."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Refused(
            f"{path} does not exist. Save moments first: batchnorm normalize IN -o OUT --save-moments {path}."
        ) from error
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise Refused(f"{path} is not a file of saved moments: it is not JSON ({error}).") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise Refused(
            f'{path} is not a file of saved moments: "format" must be "{FORMAT}". Save them with --save-moments.'
        )
    if content.get("version") != VERSION:
        raise Refused(
            f"{path} has version {content.get('version')!r}; this batchnorm reads version {VERSION}. Save it again."
        )
    try:
        return _parsed(content)
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"{path} is damaged: {_reason(error)}. Save the moments again with --save-moments.") from error


def check_fit(
    saved: SavedMoments, path: str, shape: tuple[int, ...], names: tuple[str, ...] | None, source: str
) -> None:
    """Refuse saved moments of other channels than those of the data, and say what differs."""
    if saved.moments.mean.shape != shape:
        raise Refused(
            f"{path} holds moments of {_channels(saved.moments.mean.shape)}, and {source} has {_channels(shape)}. "
            "Choose the same channels with --axis or --columns."
        )
    if saved.names is None or names is None or saved.names == names:
        return
    first = next(i for i, (a, b) in enumerate(zip(saved.names, names, strict=True)) if a != b)
    same = sorted(saved.names) == sorted(names)
    problem = "the same columns in another order" if same else "other columns"
    raise Refused(
        f"{path} holds moments of {problem}: column {first} is {saved.names[first]!r} there and {names[first]!r} "
        f"in {source}. "
        f"Choose them with {columns_option(saved.names)}."
    )


def _listed(value: Any) -> Any:
    if isinstance(value, list):
        return [_listed(v) for v in value]
    return value if math.isfinite(value) else str(value)


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if value in ("nan", "inf", "-inf") or (isinstance(value, int | float) and not isinstance(value, bool)):
        return float(value)
    raise TypeError(f"{value!r} stands where a number is needed")


def _parsed(content: dict[str, Any]) -> SavedMoments:
    arrays = {name: np.array(_numbers(content[name]), dtype=np.float64) for name in ARRAYS}
    return assembled(arrays, content["axis"], content["names"], content.get("eps"))


def assembled(arrays: dict[str, Doubles], axis: object, names: object, eps: object) -> SavedMoments:
    """Check the parts of saved moments, and put them together."""
    if not isinstance(axis, list) or not all(type(a) is int and a >= 0 for a in axis):
        raise TypeError(f"axis is {axis!r}, not a list of integers from 0 on")
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise TypeError("names is not a list of texts")
    if len({a.shape for a in arrays.values()}) != 1 or arrays["mean"].ndim != len(axis):
        raise ValueError("count, mean, mean_low and m2 do not have one shape")
    if names is not None and arrays["mean"].shape != (len(names),):
        raise ValueError(f"{len(names)} names for {arrays['mean'].size} channels")
    if (arrays["count"] < 0).any() or (arrays["m2"] < 0).any():
        raise ValueError("a count or m2 is negative")
    try:
        checked = None if eps is None else EPS.take(eps)
    except (TypeError, ValueError):
        raise ValueError(f"{EPS.name} {EPS.rule}; got {eps!r}") from None
    moments = Moments(arrays["count"], arrays["mean"], arrays["m2"], arrays["mean_low"])
    return SavedMoments(moments, tuple(axis), None if names is None else tuple(names), checked)


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _channels(shape: tuple[int, ...]) -> str:
    if shape == ():
        return "1 channel"
    return f"{shape[0]} channel{'s' * (shape[0] != 1)}" if len(shape) == 1 else f"channels of shape {shape}"
