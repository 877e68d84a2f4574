"""An explanation: its facts are made by the modules beside this one, and rendered as text, JSON or a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import _inputs, _options
from ..._blocks import gather, working_dtype
from ..._foreign import content
from ..._frames import frame_of
from ..._moments import Moments
from ..._options import NanPolicy
from ..._plan import Axis, Plan, make_plan
from ..text.language import Said, language_of
from ..text.remarks import gaps
from .channels import ChannelTable, channel_statistics
from .comparing import compare_between, compare_inside
from .distribution import find_distribution
from .drawing import draw
from .excerpt import take_excerpt
from .facts import Facts
from .formulas import fill_in
from .labels import Labels
from .outliers import find_outliers
from .plain import dumps, plain
from .sampling import take_sample
from .suspicions import find_suspicions


class Explanation(Facts):
    """Batch normalization of one array, with all its numbers.

    ``source`` names the data; ``dtype`` is what came and ``working_dtype`` what was computed in (they differ for
    integers); ``remarks`` are sentences about how the data was read; ``excerpt`` are the values that a page holds.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return everything as dicts, lists, texts and numbers that JSON has.

        NaN and infinity, which JSON lacks, are the texts ``"nan"``, ``"inf"`` and ``"-inf"``.
        """
        p, labels = self.plan, self.labels
        plan = {
            name: plain(getattr(p, name)) for name in ("shape", "axis", "reduced", "channel_shape", "N", "C", "S", "m")
        }
        own = ("plan", "labels", "channels", "excerpt", "lang")
        parts = {name: plain(getattr(self, name)) for name in self.__dataclass_fields__ if name not in own}
        rows = [
            {"channel": c, "index": labels.index(c), "name": labels.names[c] if labels.names else None, **row}
            for c, row in enumerate(self.channels.rows())
        ]
        return {**parts, "plan": {**plan, "words": p.words()}, "unit": labels.unit, "channels": rows}

    def to_json(self, *, ascii_only: bool = False) -> str:
        """Return :meth:`to_dict` as strict JSON, short lists and dicts on one line."""
        return dumps(self.to_dict(), ascii_only=ascii_only)

    def to_text(self, width: int = 80, *, rows: int | None = 12, lang: str | None = None) -> str:
        """Return the explanation as plain text of at most ``width`` columns, 60 or more; ``print`` shows it so, too.

        ``rows`` limits the table of channels; None shows every one. ``lang`` is "en" or "zh", by default the
        explanation's own.
        """
        from .report import to_text

        return to_text(self, width, rows=rows, lang=self.lang if lang is None else lang)

    def __str__(self) -> str:
        return self.to_text().rstrip()

    def to_html(self) -> str:
        """Return a page to play with: one HTML file, which loads nothing from elsewhere.

        It speaks the explanation's language, or the browser's where that was not chosen; a button switches.
        It draws the array as its axes are, lights up the values averaged together, and follows sliders for weight,
        bias, eps, batch size and momentum. Of an array of more than 131072 values it holds the corner, and says so.
        """
        from .page import page

        return page(self)

    def _repr_html_(self) -> str:
        """Return the page in a frame, as notebooks show it."""
        from .page import frame

        return frame(self)

    def __repr__(self) -> str:
        p = self.plan
        return f"Explanation(shape={p.shape}, axis={p.axis}, channels={p.C}, m={p.m}, eps={self.eps:g})"


def explain(
    x: Any,
    axis: Axis = 1,
    *,
    channel: int = 0,
    eps: float = 1e-5,
    nan_policy: NanPolicy | None = None,
    names: Sequence[str] | None = None,
    source: str | os.PathLike[str] | None = None,
    remarks: Sequence[str] = (),
    lang: str | None = None,
) -> Explanation:
    """Explain what batch normalization does to ``x``, with its numbers.

    Every number is computed by the library's own ``moments`` and ``normalize``; ``x`` is read in blocks and may be a
    memory map.

    Parameters
    ----------
    x : array, nested sequence of numbers, or table
        Integers and booleans are converted to float64; the explanation says so.
    axis : int or tuple of ints
        The channel axes.
    channel : int
        The channel whose formulas are filled in, counted from 0 in the order of these axes.
    eps : float
        Added to the variance; positive.
    nan_policy : {"propagate", "omit", "raise"}
        What NaN, a missing value, does: it spreads over its channel, the default for arrays; is left out of the
        statistics, the default for tables; or is refused.
    names : sequence of str, optional
        One name per channel.
    source : str, optional
        What to call the data, such as a file's name.
    remarks : sequence of str
        Sentences to show with the data's description.
    lang : {"en", "zh"}, optional
        The language of the text and the page, English or Chinese. By default the text takes that of the locale
        (``LC_ALL``, ``LC_MESSAGES`` or ``LANG``), and the page that of the browser.

    Returns
    -------
    Explanation
        ``print`` shows its text, notebooks show its page. It has ``to_text()``, ``to_html()``, ``to_json()`` and
        ``to_dict()``.

    Raises
    ------
    ValueError
        An axis or channel that does not exist, an empty array, a wrong number of names, eps not positive and finite,
        another language.
    TypeError
        Data that is not made of real numbers.

    Examples
    --------
    >>> import batchnorm as bn
    >>> e = bn.explain([[1.0, 10.0], [3.0, 50.0]])
    >>> e
    Explanation(shape=(2, 2), axis=(1,), channels=2, m=2, eps=1e-05)
    >>> e.formulas.mean, e.formulas.var
    (2.0, 1.0)
    """
    if (frame := frame_of(x, "explain")) is not None:
        names = frame.named(axis) if names is None else names
        x, remarks = frame.values, (*frame.remarks, *remarks)
    if lang is not None:
        language_of(lang)
    policy = _options.nan_policy_of(nan_policy, frame is not None)
    x = _array(x)
    plan = _check(x, axis, eps)
    if not 0 <= channel < plan.C:
        raise ValueError(
            f"explain: channel {channel} does not exist; {_channels(plan)}, counted from 0 to {plan.C - 1}. Give "
            "one of those numbers"
        )
    kept = plan.axis
    labels = Labels.make(plan, names)
    omits = policy == "omit"
    m = gather(x, kept, nan_policy=policy)
    _check_values(m, labels, policy)
    table = channel_statistics(x, m, kept, eps, policy)
    sample = take_sample(x, m, kept, eps, also=channel, omits=omits)
    dtype = working_dtype(x.dtype)
    inside = compare_inside(sample, dtype, channel)
    return Explanation(
        source=None if source is None else os.fspath(source),
        dtype=str(x.dtype.newbyteorder("=")),
        working_dtype=str(dtype),
        eps=float(eps),
        plan=plan,
        labels=labels,
        drawing=draw(x, m, kept, eps, channel),
        formulas=fill_in(x, m, kept, eps, channel, omits),
        channels=table,
        suspicions=find_suspicions(table, eps, dtype, omits),
        inside=inside,
        between=compare_between(sample),
        distribution=find_distribution(x, m, kept, eps, channel, table, inside.tolerance),
        outliers=find_outliers(x, m, kept, eps, table, sample),
        excerpt=take_excerpt(x),
        remarks=(
            *_conversion(x.dtype, table),
            *remarks,
            *gaps(table.count, plan.m, labels.of, labels.unit == "column"),
        ),
        nan_policy=policy,
        lang=lang,
    )


def _channels(plan: Plan) -> str:
    on = f"axis {plan.axis[0]}" if len(plan.axis) == 1 else f"axes {plan.axis}"
    return f"shape {plan.shape} has {plan.C} channel{'s' * (plan.C != 1)} on {on}"


def _conversion(dtype: np.dtype, table: ChannelTable) -> tuple[str, ...]:
    """Return what converting the data did to it, as a sentence, or nothing where it stayed as it was."""
    if dtype.kind not in "iub":
        return ()
    largest = float(np.maximum(abs(table.minimum), abs(table.maximum)).max())
    key = "converted_rounding" if largest > 2.0**53 else "converted"
    return (Said(key, dtype=dtype.newbyteorder("=")),)


def _check_values(m: Moments, labels: Labels, nan_policy: str) -> None:
    """Refuse NaN where it was asked to be, and a channel that holds nothing else."""
    if nan_policy == "raise" and len(found := np.flatnonzero(np.isnan(m.mean.ravel()))):
        raise ValueError(
            f'explain: with nan_policy "raise" no value may be NaN; {labels.of(int(found[0]))} has one; fill it in, or '
            'take nan_policy "omit"'
        )
    if len(found := np.flatnonzero(m.count.ravel() == 0)):
        raise ValueError(
            f"explain: every channel needs a value that is not missing; {labels.of(int(found[0]))} has none; leave it "
            "out"
        )


def _array(x: Any) -> np.ndarray:
    try:
        return np.asanyarray(x)  # a memory map stays one
    except (TypeError, ValueError) as error:
        raise TypeError(f"explain: x must be an array of real numbers; got {type(x).__name__} ({error})") from None


def _check(x: np.ndarray, axis: Axis, eps: float) -> Plan:
    if (x.dtype.kind not in "fiub" or x.itemsize > 8) and x.dtype.name != "bfloat16":
        holds, fix = content(x, "x")
        raise TypeError(f"explain: x must hold real numbers; got {holds} ({_inputs.described(x)}); {fix}")
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            "explain: x is a numpy masked array, whose mask would be lost; pass the values that count: "
            "x.compressed(), or x.data"
        )
    _options.EPS.checked(eps, "explain")
    if x.ndim == 0 or x.size == 0:
        raise ValueError(
            f"explain: there is nothing to average in an array of shape {x.shape}; give at least one axis and one value"
        )
    try:
        return make_plan(x.shape, axis)
    except (TypeError, ValueError) as error:
        raise type(error)(f"explain: {error}") from None
