"""Ghost batches: consecutive parts of the batch axis, each with moments of its own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import _inputs, _options, _refusals


class Ghosts(NamedTuple):
    """The batch axis cut into `number` parts of `size` samples, the last of which may have fewer."""

    size: int
    number: int


def of(virtual_batch_size: object, d: _inputs.Data) -> Ghosts | None:
    """Check a ghost size; None where the batch is not cut."""
    if virtual_batch_size is None:
        return None
    size = _options.VIRTUAL_BATCH_SIZE.checked(virtual_batch_size, d.who)
    if not d.plan.reduced:
        raise ValueError(
            f"{d.who}: virtual_batch_size cuts the first axis that is averaged over; every axis of the input "
            f"{d.x.shape} is a channel axis, so there is none. Leave virtual_batch_size out"
        )
    size = min(size, max(d.plan.N, 1))
    return Ghosts(size, -(-d.plan.N // size))


def size(g: Ghosts | None) -> int:
    """Return the samples of a ghost, as the kernels take them: 0 where the batch is not cut."""
    return 0 if g is None else g.size


def rows(g: Ghosts | None) -> tuple[int, ...]:
    """Return the axis that ghosts add in front of the channels."""
    return () if g is None else (g.number,)


def apart(d: _inputs.Data, s: _inputs.Selection, g: Ghosts | None) -> list[tuple[slice, bool]]:
    """Where a ghost has one value a channel: the batch in parts of whole ghosts, and whether each has a variance."""
    if g is None or s.cells is not None or 1 not in (positions := _positions(d, s, g).tolist()):
        return []
    parts: list[tuple[slice, bool]] = []
    for i, count in enumerate(positions):
        first = i * g.size
        if parts and parts[-1][1] == (count != 1):
            first = parts.pop()[0].start
        parts.append((slice(first, min((i + 1) * g.size, d.plan.N)), count != 1))
    return parts


def trainable(d: _inputs.Data, s: _inputs.Selection, g: Ghosts | None) -> None:
    """Refuse a batch, or a ghost, that has no variance."""
    _inputs.trainable(d, s)
    if g is None or g.number == 1:
        return
    positions = _positions(d, s, g)
    if positions.min() >= 2:
        return
    i = int(positions.argmin())
    first, last = i * g.size, min((i + 1) * g.size, d.plan.N) - 1
    where = f" ({_samples(first, last)} of the input {d.x.shape})"
    said = _refusals.too_few(positions[i], s.position_weight is not None, where, ghost=(i, g.number, g.size))
    raise ValueError(f"{d.who}: {said}")


def _samples(first: int, last: int) -> str:
    return f"sample {first}" if first == last else f"samples {first} to {last}"


def _positions(d: _inputs.Data, s: _inputs.Selection, g: Ghosts) -> np.ndarray:
    """How many positions of a channel count in each ghost."""
    axis, N = d.plan.reduced[0], d.plan.N
    if s.position_weight is None:
        return np.diff(np.append(np.arange(0, N, g.size), N)) * d.plan.S
    w = s.position_weight  # broadcast to x: along an axis of stride 0, and along the channels, it is looked at once
    once = w[tuple(slice(0, 1) if w.strides[i] == 0 or i in d.plan.axis else slice(None) for i in range(w.ndim))]
    others = tuple(i for i in range(w.ndim) if i != axis)
    repeats = d.plan.S // (once.size // once.shape[axis])
    of_sample = np.broadcast_to(np.count_nonzero(once, axis=others) * repeats, (N,))
    return np.add.reduceat(of_sample, np.arange(0, N, g.size))
