"""How many threads a call may use."""

from __future__ import annotations

import numpy as np

from . import _native


def set_num_threads(threads: int) -> None:
    """Set how many threads a call may use, its caller's among them; results do not depend on it.

    >>> import batchnorm as bn
    >>> before = bn.get_num_threads()
    >>> bn.set_num_threads(1)
    >>> bn.get_num_threads()
    1
    >>> bn.set_num_threads(before)
    """
    _native.set_num_threads(checked_threads(threads))


def get_num_threads() -> int:
    """How many threads a call may use; at first ``OMP_NUM_THREADS``, else the CPUs this process may run on."""
    return _native.get_num_threads()


def checked_threads(threads: object) -> int:
    """Check a number of threads."""
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)):
        raise TypeError(f"the number of threads must be an int; got {threads!r} of type {type(threads).__name__}")
    if not 1 <= threads <= 4096:
        raise ValueError(f"the number of threads must be from 1 to 4096; got {threads}")
    return int(threads)
