"""Moments of more data than fits in memory: block by block, several at a time, merged in the data's order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _missing
from ._blocks import Block, Gathered, block_moments, blocks, load_exactly
from ._foreign import Rounded
from ._frames import frame_of, is_frame
from ._moments import Moments
from ._options import NanPolicy, nan_policy_of
from ._plan import Axis, Plan, make_plan
from ._threads import checked_threads, get_num_threads

Array = NDArray[Any]

_WHO = "gather_moments"


def gather_moments(
    source: Any, axis: Axis = 1, *, threads: int | None = None, nan_policy: NanPolicy | None = None
) -> Moments:
    """Moments of an array that may be larger than memory, or of all arrays of an iterable together.

    The data is taken in blocks of 32 MiB of float64, several at once, and their moments are merged in the order of the
    data, so that the result does not depend on the number of threads. An array of one block has exactly
    ``moments(x, axis)``.

    Parameters
    ----------
    source
        An array, a memory map (``np.load(path, mmap_mode="r")``) for instance; or an iterable of arrays with the same
        channels, of which at most ``2 * threads`` are held at a time. Integers and bools are taken as float64; integers
        beyond 2**53, which that would round, are refused. Elements need not be aligned. Or a table, a DataFrame of
        pandas or polars or a Table of pyarrow, or an iterable of tables: of the columns that hold
        numbers in the first, found in the later ones by name.
    axis
        The axis, or axes, of the channels.
    threads
        Blocks in work at a time. Default: `get_num_threads()`.
    nan_policy
        What NaN does: "propagate" to its channel, "omit" (it is a missing value, and its channel counts one position
        fewer) or "raise" ValueError. Default: "propagate"; of tables, where missing values are NaN, "omit".

    Returns
    -------
    Moments
        Of all values; those of a table have its names.

    Raises
    ------
    TypeError, ValueError
        For what `moments` refuses, arrays of different channels, or no array at all.

    Examples
    --------
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> batches = (np.full((4, 2), float(i)) for i in range(3))
    >>> bn.gather_moments(batches).mean
    array([1., 1.])
    """
    workers = get_num_threads() if threads is None else checked_threads(threads)
    policy = None if nan_policy is None else _missing.policy(nan_policy, _WHO)
    gathered: Gathered | None = None
    names: tuple[str, ...] | None = None
    running: deque[tuple[Block, Future[Moments]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for x, plan, of_columns, is_table in _arrays(source, axis):
            names = of_columns
            gathered = gathered or Gathered(plan.channel_shape)
            for block in blocks(x):
                future = pool.submit(_moments, x, block, plan.axis, nan_policy_of(policy, is_table))
                running.append((tuple(block[a] for a in plan.axis), future))
                if len(running) == 2 * workers:
                    _take(running, gathered)
        if gathered is None:
            raise ValueError(f"{_WHO}: source must have at least one array, so that its channels are known; got none")
        while running:
            _take(running, gathered)
    finally:
        pool.shutdown(cancel_futures=True)
    return gathered.moments().named(names)


def _take(running: deque[tuple[Block, Future[Moments]]], gathered: Gathered) -> None:
    where, future = running.popleft()
    gathered.add(where, future.result())


def _moments(x: Array, block: Block, kept: tuple[int, ...], policy: str) -> Moments:
    try:
        values = load_exactly(x, block)
    except Rounded as error:
        raise ValueError(f"{_WHO}: {error}") from None
    m = block_moments(values, kept, policy)
    if policy == "raise" and np.isnan(m.mean).any() and (found := _missing.first_nan(values)) is not None:
        where = tuple(i + (part.start or 0) for i, part in zip(found, block, strict=True))
        raise ValueError(_missing.refusal(_WHO, where, kept))
    return m


def _is_whole(source: object) -> bool:
    """Whether an iterable stands for one array, as tables and sparse matrices do: its items are names, or its rows."""
    return hasattr(source, "__array__") or hasattr(source, "toarray")


def _as_array(value: object) -> str:
    """Say how to make one array of a table or a sparse matrix."""
    if hasattr(value, "toarray"):
        return "; fill in its zeros with toarray()"
    if hasattr(value, "to_frame"):
        return "; make a table of it with to_frame()"
    if hasattr(value, "collect"):
        return "; make a table of it with collect()"
    return "; pass np.asarray of it" if hasattr(value, "__array__") else ""


def _arrays(source: object, axis: Axis) -> Iterator[tuple[Array, Plan, tuple[str, ...] | None, bool]]:
    """Each array, with its plan, the names of its channels, and whether it is a table."""
    alone = isinstance(source, np.ndarray) or is_frame(source)
    if not alone and (not isinstance(source, Iterable) or _is_whole(source)):
        raise TypeError(
            f"{_WHO}: source must be an array or an iterable of arrays; got {type(source).__name__}{_as_array(source)}"
        )
    channels: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    for i, item in enumerate([source] if alone else source):  # type: ignore[arg-type, var-annotated]
        x = item
        if (frame := frame_of(item, _WHO, names)) is not None:
            frame.warn(_WHO, depth=2)
            x, names = frame.values, frame.names
        if not isinstance(x, np.ndarray):
            raise TypeError(
                f"{_WHO}: source must give arrays; item {i} is {type(x).__name__}{_as_array(x) or '; use np.asarray'}"
            )
        try:
            plan = make_plan(x.shape, axis)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{_WHO}: item {i}: {error}") from None
        if channels is not None and plan.channel_shape != channels:
            raise ValueError(
                f"{_WHO}: all arrays must have the same channels; item {i} (shape {x.shape}) has {plan.channel_shape}, "
                f"the first has {channels}"
            )
        channels = plan.channel_shape
        yield x, plan, names if plan.axis == (1,) else None, frame is not None
