"""The moments of an array or a table: `moments`, and what the layers and functions gather of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _call, _ghosts, _inputs, _missing
from ._frames import frame_of
from ._moments import LOW, M2, MEAN, Moments
from ._options import NanPolicy, nan_policy_of
from ._plan import Axis


def moments(
    x: Any,
    axis: Axis = 1,
    *,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    virtual_batch_size: int | None = None,
    nan_policy: NanPolicy | None = None,
) -> Moments:
    """Count, mean and M2 of every channel of `x`.

    Parameters
    ----------
    x
        Data of float64, float32, float16 or bfloat16; any shape and strides. Or a table, a DataFrame of pandas or
        polars or a Table of pyarrow: its columns of numbers.
    axis
        The axis, or axes, of the channels; the others are averaged over.
    mask
        Bool; broadcastable to x without its channel axes (or with them as length one). False positions do not count.
        A mask of x's shape is a mask for each channel; x is then copied once, with NaN in place of what does not count.
    sample_weight
        Non-negative floats, shaped like `mask`; the weight of each position. A position of weight 0 does not count.
    virtual_batch_size
        Gather the moments of each ghost batch, which has this many samples along the first reduced axis; the last ghost
        may have fewer. The result has an axis of ghosts before the channels; `Moments.reduce` merges them.
    nan_policy
        What NaN does: "propagate" to the mean and M2 of its channel; "omit": a value that is NaN is missing, so that
        its channel counts one position fewer; or "raise" ValueError. Infinity is a value under any of them. Default:
        "propagate"; of tables, whose missing values are NaN, "omit".

    Returns
    -------
    Moments
        ``count = sum w``, ``mean = sum w x / count``, ``m2 = sum w (x - mean)**2``, one of each a channel. The moments
        of no position at all are `Moments.empty`.

    Raises
    ------
    TypeError, ValueError
        For a dtype, shape, mask or sample_weight outside of the above.

    Examples
    --------
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> m = bn.moments(np.array([[1.0, 2.0], [3.0, 6.0]]))
    >>> m.count, m.mean, m.var()
    (array([2., 2.]), array([2., 4.]), array([1., 4.]))
    >>> bn.moments(np.array([[1.0, np.nan], [3.0, 6.0]]), nan_policy="omit").count
    array([2., 1.])
    """
    if mask is None and sample_weight is None and virtual_batch_size is None and nan_policy in _missing.COMMON:
        table = _call.common_moments(x, axis)
        if table is not None:
            return Moments._of_table(table)
    frame = frame_of(x, "moments")
    if frame is not None:
        frame.warn("moments")
    data = _inputs.data(x if frame is None else frame.values, "moments", axis)
    policy = _missing.policy(nan_policy_of(nan_policy, frame is not None), data.who)
    selection = _inputs.selection(data, mask, sample_weight)
    m = gathered(data, selection, _ghosts.of(virtual_batch_size, data), policy == "omit")
    if policy == "raise":
        _missing.refuse(data, selection, m.mean)
    return m if frame is None else m.named(frame.named(axis))


def gathered(d: _inputs.Data, s: _inputs.Selection, ghosts: _ghosts.Ghosts | None, omit: bool = False) -> Moments:
    """`moments` of what has been checked; omit: of what is not NaN."""
    if s.cells is not None:
        none = np.zeros((), bool)
        propagated = none if omit else _missing.counted_nan(d.x, s)  # it counts, and makes all of its channel NaN
        m = gathered(_inputs.only_cells(d, s.cells, propagated), s._replace(cells=None), ghosts, omit=True)
        return _with_nan(m, propagated, d, ghosts) if propagated.any() else m
    table = np.zeros((4, *_ghosts.rows(ghosts), *d.plan.channel_shape))
    _call.forward(
        d,
        None,
        table,
        True,
        _call.Prepared(position_weight=s.position_weight, ghost_size=_ghosts.size(ghosts), omit=omit),
    )
    return Moments._of_table(table)


def _with_nan(m: Moments, found: NDArray[Any], d: _inputs.Data, ghosts: _ghosts.Ghosts | None) -> Moments:
    """The moments of channels, or of ghosts of them, that have NaN become NaN."""
    size = max(d.plan.N, 1) if ghosts is None else ghosts.size
    parts = [slice(i, i + size) for i in range(0, max(d.plan.N, 1), size)]
    where = (slice(None),) * d.plan.reduced[0] if d.plan.reduced else ()
    of_parts = [found[(*where, part)] if d.plan.reduced else found for part in parts]
    flags = np.stack([part.any(axis=d.plan.reduced) for part in of_parts]).reshape(m.shape)
    table = np.array(m._table)
    table[MEAN, flags], table[LOW, flags], table[M2, flags] = np.nan, 0, np.nan
    return Moments._of_table(table)
