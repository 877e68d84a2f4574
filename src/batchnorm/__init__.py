"""Batch normalization for NumPy: exact, at the speed of memory, and able to explain itself.

>>> import numpy as np
>>> import batchnorm as bn
>>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
>>> y, m = bn.batch_norm(x)
>>> m.mean
array([ 2., 20.])
>>> np.round(y, 4)
array([[-1., -1.],
       [ 1.,  1.]])
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

try:
    from . import _native
except ImportError as error:
    raise ImportError(
        "batchnorm: the compiled module batchnorm._native is missing or cannot be loaded "
        f"({error}). There is no slow substitute for it. Reinstall with a C++ compiler at hand: "
        "pip install --force-reinstall --no-binary batchnorm batchnorm; "
        "from a checkout: pip install . (and import from outside the checkout's src folder)"
    ) from error

from ._functional import Gradients, batch_norm, batch_norm_backward, get_num_threads, normalize, set_num_threads
from ._gathering import gather_moments
from ._layers import BatchNorm
from ._masks import mask_from_lengths
from ._memory import MemoryStats, empty_cache, memory_stats, set_memory_limit
from ._moments import Moments, moments
from ._plan import Plan
from ._ranked import BatchNorm1d, BatchNorm2d, BatchNorm3d
from ._renorm import Renorm, RenormFactors
from ._running import RunningStatistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from .tools.explain import Explanation

__version__ = "0.1.0"

__all__ = [
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Gradients",
    "MemoryStats",
    "Moments",
    "Plan",
    "Renorm",
    "RenormFactors",
    "RunningStatistics",
    "batch_norm",
    "batch_norm_backward",
    "empty_cache",
    "explain",
    "gather_moments",
    "get_num_threads",
    "load_moments",
    "mask_from_lengths",
    "memory_stats",
    "moments",
    "normalize",
    "save_moments",
    "set_memory_limit",
    "set_num_threads",
]


def explain(
    x: ArrayLike,
    axis: int | tuple[int, ...] = 1,
    *,
    channel: int = 0,
    eps: float = 1e-5,
    names: Sequence[str] | None = None,
    source: str | None = None,
) -> Explanation:
    """Show what batch normalization does to `x`: the plan, the formulas with its numbers, what is kept and lost.

    Parameters
    ----------
    x
        Data, as for `batch_norm`.
    axis
        The axis, or axes, of the channels.
    channel
        The channel whose formulas are written out.
    eps
        Added to the variance.
    names
        A name for each channel.
    source
        Where the data comes from, in words.

    Returns
    -------
    Explanation
        With `to_text(width=80)`, `to_json()` and `to_dict()`.

    Examples
    --------
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> bn.explain(np.array([[1.0, 5.0], [3.0, 9.0]])).to_dict()["plan"]["m"]
    2
    """
    from .tools.explain import explain as build  # imported here: `import batchnorm` stays light

    return build(x, axis, channel=channel, eps=eps, names=names, source=source)


def save_moments(
    path: str | os.PathLike[str],
    moments: Moments,
    *,
    axis: int | tuple[int, ...] = 1,
    names: Sequence[str] | None = None,
    eps: float | None = None,
) -> None:
    """Write moments to a file from which `load_moments` gives the same bits back.

    Parameters
    ----------
    path
        Ends in ``.json`` (text, which the commands read, too) or ``.safetensors`` (needs the package safetensors). The
        file is replaced whole, or not at all.
    moments
        Moments of any shape.
    axis
        The channel axes of the data they came from, one for each axis of the moments; kept for the commands.
    names
        A name for each channel; kept for the commands.
    eps
        What to add to the variance; kept for ``batchnorm normalize --use-moments``, which without it takes 1e-5 and
        says so.

    Raises
    ------
    ValueError
        Where the file cannot be written, axis or names do not fit, or eps is not positive and finite.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> m = bn.moments(np.array([[0.1], [0.2]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     bn.save_moments(pathlib.Path(folder, "m.json"), m)
    ...     bn.load_moments(pathlib.Path(folder, "m.json")) == m
    True
    """
    from .tools.files.moments_files import save  # imported here: `import batchnorm` stays light

    save(path, moments, axis, names, eps)


def load_moments(path: str | os.PathLike[str]) -> Moments:
    """Moments that `save_moments`, or ``batchnorm normalize --save-moments``, wrote.

    Raises
    ------
    ValueError
        Where the file does not exist, or is none of saved moments.
    """
    from .tools.files.moments_files import read  # imported here: `import batchnorm` stays light

    return read(path, "load_moments").moments


def _choose_kernels() -> None:
    isa = os.environ.get("BATCHNORM_ISA")
    if not isa:
        return
    try:
        _native.force_isa(isa)
    except ValueError as error:
        raise ImportError(f"batchnorm: the environment variable BATCHNORM_ISA is {isa!r}: {error}; unset it") from None


def _choose_memory_limit() -> None:
    limit = os.environ.get("BATCHNORM_MEMORY_LIMIT")
    if not limit:
        return
    try:
        set_memory_limit(int(limit))
    except ValueError:
        raise ImportError(
            f"batchnorm: the environment variable BATCHNORM_MEMORY_LIMIT is {limit!r}, which is not a number of bytes; "
            "set it to one (0: no memory is kept), or unset it"
        ) from None


_choose_kernels()
_choose_memory_limit()
