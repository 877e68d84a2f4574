"""Ranks with data of their own: all know what each has, and decide by that alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from . import _shared
from ._ranks import Ranks

Tensor = torch.Tensor

_HERE, _FAILED = 1.0, 2.0
_HEADER = 5  # whether the rank has failed, its layer, batches, samples, rows of its table
_ROWS = 5  # of a table, at most


class Said(NamedTuple):
    """What a rank says of itself."""

    at: int
    batches: int
    samples: int
    table: Tensor | None


class Peers:
    """The ranks of a process group, or this process alone; one collective for each layer.

    A rank that fails says so in place of what it would have said next, and all raise.
    """

    def __init__(self, group: Any, channels: list[int], device: torch.device, who: str) -> None:
        self.ranks = Ranks(group, False, who)
        self.who, self.world = who, self.ranks.world
        self._channels, self._width = channels, max(channels)  # of the layers
        self._is_over = self.world == 1
        self._device = torch.device("cpu")
        if self.world > 1 and dist.get_backend(group) == "nccl":
            self._device = device

    def check_alike(self, *numbers: float) -> None:
        """Refuse ranks with other models or options; numbers say what each has."""
        if self.world == 1:
            return
        said = torch.stack(
            self._gathered(
                torch.tensor([len(self._channels), self._width, *numbers], dtype=torch.float64, device="cpu")
            )
        )
        if bool((said != said[0]).any()):
            self._is_over = True
            raise ValueError(
                f"{self.who}: all ranks must {self.who} the same layers in the same way; got ranks that differ in "
                "the model, only= or how=. Call it with the same ones on every rank"
            )

    def exchange(self, said: Said) -> list[Said]:
        """What all ranks say, in their order."""
        if self.world == 1:
            return [said]
        message = torch.zeros(_HEADER + _ROWS * self._width, dtype=torch.float64, device="cpu")
        rows = 0
        if said.table is not None:
            rows, values = len(said.table), said.table.reshape(-1)
            message[_HEADER : _HEADER + len(values)] = values.to(message)
        message[:_HEADER] = torch.tensor([_HERE, said.at, said.batches, said.samples, rows], device="cpu")
        messages = self._gathered(message)
        heads = [m[:_HEADER].tolist() for m in messages]
        if failed := [rank for rank, head in enumerate(heads) if head[0] == _FAILED]:
            self._is_over = True
            raise ValueError(
                f"{self.who}: every rank must come to the end; got a failure on rank {', '.join(map(str, failed))}, "
                "see its error. Nothing is changed on any rank"
            )
        found = []
        for head, m in zip(heads, messages, strict=True):
            _, at, batches, samples, rows = (int(v) for v in head)
            table = m[_HEADER : _HEADER + rows * self._channels[at]].reshape(rows, -1) if rows else None
            found.append(Said(at, batches, samples, table))
        return found

    def merged(self, tables: list[Tensor]) -> Tensor:
        """Moments of all ranks as one, in their order."""
        return _shared.merged(torch.stack(tables, 1))

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """What all ranks know: where one refuses it, all do."""
        try:
            yield
        except ValueError:
            self._is_over = True
            raise

    def fail(self) -> None:
        """Say that this rank has failed, unless the others know."""
        if not self._is_over:
            self._is_over = True
            message = torch.zeros(_HEADER + _ROWS * self._width, dtype=torch.float64, device="cpu")
            message[0] = _FAILED
            self._gathered(message)

    def end(self) -> None:
        """Nothing is exchanged any more."""
        self._is_over = True

    def _gathered(self, message: Tensor) -> list[Tensor]:
        try:
            return [m.cpu() for m in self.ranks._all_gather(message.to(self._device))]
        except RuntimeError:
            self._is_over = True
            raise
