"""What a forward holds in memory, and what it leaves on the model."""

from __future__ import annotations

import operator
import weakref
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

Tensor = torch.Tensor


def storages_of(model: nn.Module) -> set[int]:
    """The memory of a model's own tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    return {t.untyped_storage()._cdata for t in tensors if t.layout is torch.strided}


class Storages(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, as long as they live."""

    def __init__(self, others: set[int]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._others = others  # the model's own
        self._live: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, Tensor) and t.layout is torch.strided:
                self._count(t.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._live or key in self._others:
            return
        size = storage.nbytes()

        def gone(_: Any, key: int = key, size: int = size) -> None:
            if self._live.pop(key, None) is not None:
                self.now -= size

        self._live[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class State:
    """What a forward could leave on the model's modules for the next one to meet.

    PyTorch's own modules, and ours, leave nothing in evaluation. (Most modules are of these: looking at all would take
    as long as a small model's forward.)
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [module for module in model.modules() if not type(module).__module__.startswith(_KNOWN)]
        self._places: list[Any] = [module.__dict__ for module in modules]
        self._places += [module._buffers for module in modules]
        names = {*nn.Module().__dict__}
        held = [value for module in modules for name, value in module.__dict__.items() if name not in names]
        self._places += [value for value in held if isinstance(value, (list, dict, set))]
        self._buffers = [b for module in modules for b in module._buffers.values() if b is not None]
        self._seen = self._now()

    def look(self) -> bool:
        """Whether anything has changed since the last look."""
        before, self._seen = self._seen, self._now()
        return not all(map(_same, before, self._seen))

    def _now(self) -> list[list[Any]]:
        found = [list(p.values() if isinstance(p, dict) else p) for p in self._places]
        return [*found, [None if b.is_inference() else b._version for b in self._buffers]]


_KNOWN = ("torch.nn.modules.", "batchnorm.torch")


def _same(before: list[Any], now: list[Any]) -> bool:
    """The same objects, or constants of the same value."""
    if len(before) != len(now):
        return False
    if all(map(operator.is_, before, now)):
        return True
    return all(
        a is b or (isinstance(a, _CONSTANTS) and type(a) is type(b) and a == b)
        for a, b in zip(before, now, strict=True)
    )


_CONSTANTS = (int, float, str, torch.Size, torch.dtype, torch.device)
