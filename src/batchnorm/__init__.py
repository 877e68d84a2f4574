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
import sys
from typing import TYPE_CHECKING, Any

try:
    from . import _native
except ImportError as error:
    raise ImportError(
        "batchnorm: the compiled module batchnorm._native is missing or cannot be loaded "
        f"({error}). There is no slow substitute for it. Reinstall it in a clone of the repository, with a C++ "
        "compiler at hand: pip install --force-reinstall . (and import it from outside the clone's src folder)"
    ) from error

from ._batch_moments import moments
from ._functional import batch_norm, batch_norm_backward, normalize
from ._gathering import gather_moments
from ._layers import BatchNorm
from ._masks import mask_from_lengths
from ._memory import MemoryStats, empty_cache, memory_stats, set_memory_limit
from ._merge import merge_state_dicts
from ._moments import Moments
from ._plan import Plan
from ._prepared import Gradients
from ._public import publish
from ._ranked import BatchNorm1d, BatchNorm2d, BatchNorm3d
from ._renorm import Renorm, RenormFactors
from ._running import RunningStatistics
from ._threads import get_num_threads, set_num_threads
from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .tools.explain import explain
    from .tools.files.moments_files import load_moments, save_moments

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
    "merge_state_dicts",
    "moments",
    "normalize",
    "save_moments",
    "set_memory_limit",
    "set_num_threads",
]


publish(__name__, *(globals()[name] for name in __all__ if name in globals()))


def _load(name: str) -> Any:
    """Load what `import batchnorm` leaves out, when it is asked for."""
    found: Any
    if name == "explain":
        from .tools.explain import explain as found
    elif name == "save_moments":
        from .tools.files.moments_files import save_moments as found
    elif name == "load_moments":
        from .tools.files.moments_files import load_moments as found
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    publish(__name__, found)
    globals()[name] = found
    return found


if not TYPE_CHECKING:  # type checkers would accept any name
    __getattr__ = _load


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


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
