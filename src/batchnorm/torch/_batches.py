"""Data as batches for a model: how they are read, what of one the model gets, and on which device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

from .._options import shown

Tensor = torch.Tensor
Forward = Callable[[nn.Module, Any], Any] | None

_SAMPLES = 128  # of a batch, where all data come as one tensor and the result does not depend on it


class Batch(NamedTuple):
    """One batch, ready to go through the model."""

    number: int
    call: Callable[[], Any]
    samples: int
    bytes: int  # of memory that nobody but this batch holds


class Batches:
    """The batches of some data, read once or several times, on the model's device."""

    def __init__(
        self, model: nn.Module, data: Any, *, forward: Forward = None, samples: int | None = None, who: str
    ) -> None:
        self.who = who
        self.samples = samples
        self.device, self._dtype = _device_and_dtype(model)
        self._model, self._forward = model, forward
        self.is_one = isinstance(data, (Tensor, np.ndarray))  # no batches yet: they are cut here
        if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, (Tensor, np.ndarray, Iterable)):
            raise TypeError(
                f"{who}: data must be an iterable of batches (a DataLoader, a list), a tensor or an array; got "
                f"{shown(data)} of type {type(data).__name__}; put one batch into a list"
            )
        self._data: Any = self._tensor(data).split(_SAMPLES) if self.is_one else data
        self._held = self.is_one or isinstance(data, (list, tuple))  # by the caller: a batch takes no more memory
        self.is_repeatable = not isinstance(data, Iterator)
        self._read: list[int] = []  # samples of each batch, of the first pass
        self._passes = 0

    @property
    def count(self) -> int | None:
        """How many there are, where that is known."""
        if self._passes:
            return len(self._read)
        try:
            return None if self.samples is not None else len(self._data)
        except TypeError:
            return None

    def __len__(self) -> int:
        """How many were read in a pass."""
        return len(self._read)

    @property
    def sizes(self) -> list[int]:
        """Samples of each batch of a pass."""
        return self._read

    @property
    def samples_read(self) -> int:
        """How many samples a pass has."""
        return sum(self._read)

    def __iter__(self) -> Iterator[Batch]:
        """One pass; ValueError where a later one has other batches than the first."""
        if self._passes and not self.is_repeatable:
            raise ValueError(f"{self.who}: {USED_UP}")
        first, read = not self._passes, []
        given = iter(self._data)
        left = self.samples
        for number in itertools.count():
            if left is not None and left <= 0:
                break
            try:
                batch = self._ready(number, next(given))
            except StopIteration:
                break
            except Exception as error:
                raise ValueError(
                    f"{self.who}: batch {number} could not be read; got {type(error).__name__}: {error}. Nothing is "
                    "changed"
                ) from error
            read.append(batch.samples)
            left = None if left is None else left - batch.samples
            yield batch
            del batch
        self._passes += 1
        if first:
            self._read = read
        elif (len(read), sum(read)) != (len(self._read), sum(self._read)):
            raise ValueError(
                f"{self.who}: {SAME_SAMPLES}; got {len(self._read)} batches with {sum(self._read)} samples in the "
                f"first and {len(read)} with {sum(read)} in number {self._passes}. Pass a list or a "
                f"DataLoader, {ENOUGH}"
            )

    def _ready(self, number: int, batch: Any) -> Batch:
        given = self._moved(batch)
        leaves = [leaf for leaf in _pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
        samples = next((leaf.shape[0] for leaf in leaves if leaf.dim()), 0)
        if self.samples is not None and not samples:
            raise ValueError(
                f"{self.who}: samples= counts the first axis of tensors; got a batch without one; leave samples out"
            )
        is_new = not self._held or any(leaf.device.type != "cpu" for leaf in leaves)
        size = sum(leaf.nbytes for leaf in leaves) if is_new else 0
        return Batch(number, self._call(number, given), samples, size)

    def _call(self, number: int, given: Any) -> Callable[[], Any]:
        model, forward = self._model, self._forward
        if forward is not None:
            return lambda: forward(model, given)
        if isinstance(given, Mapping):
            return lambda: model(**given)
        if isinstance(given, (list, tuple)) and given:
            given = given[0]
        if not isinstance(given, Tensor):
            raise TypeError(
                f"a batch must be a tensor, a tuple that begins with one, or a dict of keywords; got {shown(given)} of "
                f"type {type(given).__name__}; {SAY_HOW}"
            )
        return lambda: model(given)

    def _moved(self, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return {name: self._moved(value) for name, value in batch.items()}
        if self._forward is None and isinstance(batch, (list, tuple)):
            batch = batch[:1]  # what the model gets
        if hasattr(batch, "to") and not isinstance(batch, Tensor):
            return batch.to(self.device)
        return _pytree.tree_map(self._tensor, batch)

    def _tensor(self, value: Any) -> Any:
        """On the model's device; an array as a tensor, of the model's dtype where it has fractions."""
        if isinstance(value, np.ndarray):
            value = torch.as_tensor(value)
            if value.is_floating_point() and self._dtype is not None:
                value = value.to(self._dtype)
        return value.to(self.device) if isinstance(value, Tensor) else value


SAME_SAMPLES = "every pass over the data must give the same samples"
ENOUGH = "or a larger max_memory, so that one pass is enough"
SAY_HOW = "say how the model takes it: forward=lambda model, batch: ..."
USED_UP = (
    "the data must be read more than once, for all batches at once need more memory than is allowed, or the model "
    "keeps values on its modules or changes autocast around its layers; got an iterator, which gives its batches once. "
    'Pass a list or a DataLoader, raise max_memory, or use how="pooled"'
)


def _device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Where the model is, by its first parameter or buffer, and what it computes in."""
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    return device, next((t.dtype for t in tensors if t.is_floating_point()), None)
