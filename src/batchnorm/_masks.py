"""From lengths to a mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def mask_from_lengths(lengths: ArrayLike, max_length: int | None = None) -> NDArray[np.bool_]:
    """Mask of padded sequences: True where a sequence still has values, False on its padding.

    ``mask[n, i] = i < lengths[n]``. Masks are given without the channel axis, so one mask serves (N, C, L) and
    (N, L, C) alike.

    Parameters
    ----------
    lengths
        N integers: how many positions of each sequence count.
    max_length
        L, the padded length. Default: the longest of the lengths.

    Returns
    -------
    ndarray
        Bool, shape (N, L).

    Raises
    ------
    TypeError, ValueError
        For lengths that are not integers from 0 to max_length on one axis.

    Examples
    --------
    >>> import batchnorm as bn
    >>> bn.mask_from_lengths([3, 1]).astype(int)
    array([[1, 1, 1],
           [1, 0, 0]])
    """
    n = np.asarray(lengths)
    if n.size and n.dtype.kind not in "iu":
        raise TypeError(f"mask_from_lengths: lengths must be integers; got dtype {n.dtype}")
    if n.ndim != 1:
        raise ValueError(f"mask_from_lengths: lengths must have one axis, one length for each sequence; got {n.shape}")
    longest = int(n.max(initial=0))
    L = longest if max_length is None else max_length
    if isinstance(L, (bool, np.bool_)) or not isinstance(L, (int, np.integer)):
        raise TypeError(f"mask_from_lengths: max_length must be an int or None; got {max_length!r}")
    if n.size and (longest > L or n.min() < 0):
        raise ValueError(
            f"mask_from_lengths: lengths must be from 0 to max_length={L}, the padded length; got {n.min()} to "
            f"{longest}. Give the length of the padded axis as max_length"
        )
    mask: NDArray[np.bool_] = np.arange(L) < n[:, np.newaxis]
    return mask
