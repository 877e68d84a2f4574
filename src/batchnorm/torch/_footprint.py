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
    """What a forward could leave on the model's modules for the next one to meet."""

    _OURS = ("_parameters", "_buffers", "_modules", "_forward_pre_hooks", "_forward_hooks", "training")

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen: dict[tuple[int, str], tuple[Any, Any]] = {}

    def remember(self) -> None:
        self.seen = self._now()

    def look(self) -> bool:
        """Whether anything has changed since the last look."""
        before, self.seen = self.seen, self._now()
        return before.keys() != self.seen.keys() or any(not _same(a, before[key]) for key, a in self.seen.items())

    def _now(self) -> dict[tuple[int, str], tuple[Any, Any]]:
        found: dict[tuple[int, str], tuple[Any, Any]] = {}
        for module in self.model.modules():
            for name, value in module.__dict__.items():
                if name not in self._OURS:
                    found[id(module), name] = value, _inside(value)
            for name, buffer in module._buffers.items():
                version = None if buffer is None or buffer.is_inference() else buffer._version
                found[id(module), name] = buffer, version
        return found


def _inside(value: Any) -> list[Any] | None:
    """What a container holds now."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, (list, set)) else None


def _same(a: tuple[Any, Any], b: tuple[Any, Any]) -> bool:
    (value, inside), (before, inside_before) = a, b
    if value is not before:
        return type(value) is type(before) and isinstance(value, _CONSTANTS) and value == before
    if isinstance(inside, list) and isinstance(inside_before, list):
        return len(inside) == len(inside_before) and all(map(operator.is_, inside, inside_before))
    return bool(inside == inside_before)


_CONSTANTS = (int, float, str, torch.Size, torch.dtype, torch.device)
