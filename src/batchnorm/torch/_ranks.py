"""The ranks of a process group as parts of one batch: one collective of tables each way, merged in the order of ranks.

Every rank gathers the tables of all and merges them by itself, in one order, so all have the same bits. What a rank
says of itself goes ahead of its table: whether its input was refused, and how many positions count. So every rank
decides by what all know, and all raise, or none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from . import _shared

Tensor = torch.Tensor

_FORWARD, _BACKWARD, _HIGHER = 1.0, 2.0, 3.0
_DOING = {_FORWARD: "a forward", _BACKWARD: "a backward", _HIGHER: "a higher derivative"}
_HEADER = 5  # what is done, numbers of the table, whether the input was refused, positions that count, samples


def world_size(group: Any) -> int:
    """Of the group, or of all processes; 1 where there are none."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    size = dist.get_world_size(group)
    if size < 1:
        raise ValueError("SyncBatchNorm: this process does not belong to the layer's process_group")
    return size


class Whole(NamedTuple):
    """What all ranks know after a forward's collective."""

    moments: Tensor
    positions: int
    samples: int
    refused: list[int]  # ranks


class Ranks:
    """The exchange of one forward and its backward."""

    def __init__(self, process_group: Any, reproducible: bool, who: str) -> None:
        self.process_group = process_group
        self.world = world_size(process_group)
        self.ghost_size = 1 if reproducible else 0
        self.who = who
        self.samples: list[int] = []  # of each rank

    def moments(self, table: Tensor, positions: Tensor | int, samples: int, refused: bool) -> Whole:
        """Merge the moments of all ranks' parts: this one's are (4, C), or (4, N, C) of N samples."""
        header = table.new_tensor([_FORWARD, 0, float(refused), 0, samples])
        header[3] = positions
        if self.ghost_size:
            headers, tables = self._of_samples(header, table)
        else:
            headers, tables = self._gather(_FORWARD, header, table)
        said = torch.stack(headers).tolist()
        ranks = [rank for rank, of_rank in enumerate(said) if of_rank[2]]
        self.samples = [int(of_rank[4]) for of_rank in said]
        moments = table.new_zeros(4, table.shape[-1]) if ranks else _shared.merged(torch.cat(tables, 1))
        return Whole(moments, int(sum(of_rank[3] for of_rank in said)), sum(self.samples), ranks)

    def sums(self, parts: list[Tensor]) -> Tensor:
        """Add the sums of all ranks."""
        (table,) = parts
        header = table.new_tensor([_BACKWARD, 0, 0, 0, 0])
        if self.ghost_size:
            return _shared.merged(torch.cat(self._padded(_BACKWARD, header, table), 1))
        return _shared.merged(torch.cat(self._gather(_BACKWARD, header, table)[1], 1))

    def own_sums(self, parts: list[Tensor]) -> Tensor:
        """Gradients of weight and bias are each rank's own, as in torch.nn's layer: data parallelism averages them."""
        (table,) = parts
        return _shared.merged(table.contiguous()) if self.ghost_size else table

    def constants(self, x: Tensor) -> list[_shared.Part]:
        """Nothing: all parts are those of ranks."""
        return []

    def total(self, parts: list[Tensor]) -> Tensor:
        """Sum over ranks; its derivative is a sum over ranks as well."""
        (value,) = parts
        summed: Tensor = _Total.apply(self, value)
        return summed

    def add(self, value: Tensor) -> Tensor:
        """Sum over ranks, in their order."""
        header = value.new_tensor([_HIGHER, 0, 0, 0, 0])
        rows = self._gather(_HIGHER, header, value.detach().reshape(1, -1))[1]
        return torch.stack([row[0, 0] for row in rows]).sum(0).reshape(value.shape)

    def _of_samples(self, header: Tensor, table: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Headers first: they say how many samples each rank has."""
        headers = self._all_gather(header)
        self._check_in_step(_FORWARD, headers)
        said = torch.stack(headers).tolist()
        if any(of_rank[2] for of_rank in said):
            return headers, []
        self.samples = [int(of_rank[4]) for of_rank in said]
        return headers, self._padded(_FORWARD, header, table)

    def _padded(self, doing: float, header: Tensor, table: Tensor) -> list[Tensor]:
        """Tables (R, n, C) of n samples from each rank, by way of one size for all."""
        longest = max(self.samples)
        full = table.new_zeros(table.shape[0], longest, table.shape[2])
        full[:, : table.shape[1]] = table
        tables = self._gather(doing, header, full.flatten(1))[1]
        return [t.reshape(full.shape)[:, :n] for t, n in zip(tables, self.samples, strict=True)]

    def _gather(self, doing: float, header: Tensor, table: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Headers and tables (R, 1, C) of all ranks, in one collective."""
        header = header.clone()
        header[1] = table.numel()
        messages = self._all_gather(torch.cat([header, table.detach().reshape(-1)]))
        headers = [message[:_HEADER] for message in messages]
        self._check_in_step(doing, headers, table.numel())
        return headers, [message[_HEADER:].reshape(table.shape[0], 1, -1) for message in messages]

    def _all_gather(self, message: Tensor) -> list[Tensor]:
        return [message] if self.world == 1 else self._collective(message)

    def _collective(self, message: Tensor) -> list[Tensor]:
        messages = [torch.empty_like(message) for _ in range(self.world)]
        try:
            dist.all_gather(messages, message, group=self.process_group)
        except RuntimeError as error:
            raise RuntimeError(
                f"{self.who}: rank {dist.get_rank(self.process_group)} of {self.world} could not gather the statistics "
                "of the others: one of them has ended, or did not come to this layer within the timeout of the process "
                "group. Look at its own error first; running statistics are left as they were. (Every rank has to call "
                f"the layer as often as the others; an empty batch is one, too.) The process group said: {error}"
            ) from error
        return messages

    def _check_in_step(self, doing: float, headers: list[Tensor], numbers: int = 0) -> None:
        for rank, (of_rank, length) in enumerate(torch.stack(headers)[:, :2].tolist()):
            if of_rank != doing or length != numbers:
                raise RuntimeError(
                    f"{self.who}: the ranks are out of step: this one is in {_DOING[doing]} with {numbers} numbers, "
                    f"rank {rank} in {_DOING.get(of_rank, 'something else')} with {length:.0f}. Every rank has to "
                    "call the same layers, in the same order"
                )


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, value: Tensor) -> Tensor:
        ctx.ranks = ranks
        return ranks.add(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        summed: Tensor = _Total.apply(ctx.ranks, grad)
        return None, summed
