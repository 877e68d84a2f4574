"""What `recalibrate` gathers: three definitions of the statistics of some data, on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import _formulas
from . import _shared
from ._batches import Batches
from ._forwards import END
from ._free import free_threads
from ._layer_inputs import gather, undisturbed, write
from ._lockstep import NOWHERE, Limits, Report, branches, lockstep, nonfinite, place
from ._norms import Norm, correction_of, layer_said
from ._peers import Peers, Said

Tensor = torch.Tensor
Progress = Callable[[str, int], Callable[[int], None]]


WHO = "recalibrate"


class Statistics(NamedTuple):
    """What a layer is to have, in the dtype of moments."""

    mean: Tensor
    var: Tensor
    behind: Tensor  # for a running_count
    positions: float  # of a channel


class Work:
    """What is gathered, on all ranks."""

    def __init__(
        self, norms: list[Norm], batches: Batches, peers: Peers, skip: bool, progress: Progress | None
    ) -> None:
        self.norms, self.data, self.peers, self.skip = norms, batches, peers, skip
        self.begin: Progress = progress or (lambda phase, total: lambda done: None)
        self.found: dict[int, Any] = {}
        self.batches = self.samples = 0
        self.report = Report(1, 0, (), 0)

    def _count(self, said: list[Said]) -> None:
        """What all ranks have read; ValueError where that is nothing."""
        self.batches, self.samples = sum(each.batches for each in said), sum(each.samples for each in said)
        if self.batches == 0:
            raise ValueError(
                f"{WHO}: data must have a batch at least; got none (an iterator that is used up gives none). Pass a "
                "DataLoader or a list"
            )

    def _checked(self, i: int, count: Tensor, mean: Tensor, var: Tensor) -> None:
        """Refuse what cannot be a layer's statistics."""
        who, layer = f"{WHO}: {layer_said(str(self.norms[i]))}", self.norms[i].layer
        n = float(count.min())
        if not n > 1:
            raise ValueError(
                f"{who}: a variance needs more than one position per channel in all data; got {n:g}"
                + (", for all batches were left out (on_nonfinite='skip')" if self.skip and n == 0 else "")
                + ". Pass more data"
            )
        finite = torch.isfinite(mean.to(layer.running_mean.dtype)) & torch.isfinite(var.to(layer.running_var.dtype))
        if not bool(finite.all()):
            c = int((~finite).nonzero()[0])
            raise ValueError(
                f"{who}: statistics must be finite in the dtype of the layer, {layer.running_var.dtype}; got mean "
                f"{float(mean[c]):g} and variance {float(var[c]):g} in channel {c}. Use a wider dtype, model.float()"
            )


class Whole(Work):
    """Of the whole data as one batch, or of batches merged."""

    def gather(self, model: nn.Module, how: str, limit: float) -> None:
        self.advance = self.begin("recalibrating", len(self.norms))
        limits = Limits(limit, free_threads(self.data.device))
        with undisturbed(model, self.norms, self.data):
            self.report = lockstep(model, self.norms, self.data, self._settle, limits, skip=self.skip)

    @torch.no_grad()
    def _settle(self, at: int, tables: Tensor | None) -> int:
        table = None if tables is None else _shared.merged(tables)
        said = self.peers.exchange(Said(at, len(self.data), self.data.samples_read, table))
        with self.peers.agreed():
            self._count(said)
            at = self._agreed(said)
            if at == END:
                return END
            whole = self.peers.merged([each.table.to(self.data.device) for each in said if each.table is not None])
            layer = self.norms[at].layer
            correction = correction_of(layer)
            self._checked(at, whole[0], whole[1], whole[3] / (whole[0] - correction))
        write(layer, whole, correction)
        self.found[at] = whole
        self.advance(1)
        return at

    def _agreed(self, said: list[Said]) -> int:
        """The layer where all ranks are that have a batch."""
        here = [(rank, each.at) for rank, each in enumerate(said) if each.at != NOWHERE]
        if not here:
            raise _all_skipped()
        (first, at), *rest = here
        for rank, other in rest:
            if other != at:
                raise ValueError(
                    f"{WHO}: "
                    + branches(f"rank {rank}", place(self.norms, other), f"rank {first}", place(self.norms, at))
                )
        return at

    def statistics(self, i: int) -> Statistics:
        return _of_moments(self.found[i], self.norms[i].layer)


def _of_moments(table: Tensor, layer: Any) -> Statistics:
    """Mean, variance and count of a layer by moments, and how many positions there were."""
    count, mean, low, m2 = table
    return Statistics(mean + low, m2 / (count - correction_of(layer)), count, float(count.min()))


class ByBatch(Work):
    """Of batches by themselves: their moments merged, or the mean of their statistics."""

    def gather(self, model: nn.Module, how: str, limit: float) -> None:
        self.how = how
        self.pending: list[tuple[int, Tensor]] = []
        self.trees = [_Tree() for _ in self.norms]
        self.sums: dict[int, Tensor] = {}
        self.was_reached = [False] * len(self.norms)
        self.skipped = 0
        count = self.data.count
        self.advance = self.begin("recalibrating", count) if count else lambda done: None
        gather(model, self.norms, self.data, self._take, normalize_with="batch", done=self._done)
        self.report = Report(1, 0, (), self.skipped)
        own = len(self.data)
        self._count(self.peers.exchange(Said(END, own, self.data.samples_read, None)))
        for i in range(len(self.norms)):
            table = self.trees[i].whole() if how == "pooled" else self.sums.get(i)
            said = self.peers.exchange(Said(i, own, self.data.samples_read, table))
            tables = [each.table.to(self.data.device) for each in said if each.table is not None]
            if not tables and self.was_reached[i]:
                raise _all_skipped()
            if tables:
                self.found[i] = self.peers.merged(tables) if how == "pooled" else torch.stack(tables).sum(0)

    def _take(self, number: int, i: int, table: Tensor) -> None:
        self.number = number
        self.pending.append((i, table))

    def _done(self) -> None:
        """A batch is through: add what it gave, if all that is finite."""
        pending, self.pending = self.pending, []
        self.advance(1)
        if not pending:
            return
        facts = [torch.stack([torch.isfinite(table).all().to(table.dtype), table[0].min()]) for _, table in pending]
        is_skipped = False
        for (i, table), (finite, count) in zip(pending, torch.stack(facts).tolist(), strict=True):
            if not finite and not self.skip:
                raise ValueError(f"{WHO}: {nonfinite(self.number, self.norms[i], table)}")
            self.was_reached[i] = True
            if not finite:
                is_skipped = True
            elif self.how == "pooled":
                self.trees[i].add(table)
            elif count > 0:
                self.sums[i] = self._of_batch(i, table, count) + self.sums.get(i, 0.0)
        self.skipped += is_skipped

    def _of_batch(self, i: int, table: Tensor, count: float) -> Tensor:
        """Rows that add up: batches, positions, mean, variance as the layer stores it, biased variance."""
        correction = correction_of(self.norms[i].layer)
        if count <= correction:
            raise ValueError(
                f"{WHO}: every batch needs more than one position per channel, so that it has a variance; got "
                f'{count:g} from batch {self.number} at {self.norms[i]}. Use larger batches, or how="whole" or "pooled"'
            )
        n, mean, low, m2 = table
        return torch.stack([torch.ones_like(n), n, mean + low, m2 / (n - correction), m2 / n])

    def statistics(self, i: int) -> Statistics:
        layer, table = self.norms[i].layer, self.found[i]
        if self.how == "pooled":
            found = _of_moments(table, layer)
        else:
            _, positions, *_ = table
            mean, var, biased = table[2:] / table[0]
            correction = correction_of(layer)
            gap = var - biased if correction else var * 0
            behind = _formulas.count_behind(torch, var, gap, correction)
            found = Statistics(mean, var, behind, float(positions.min()))
        self._checked(i, table[0] if self.how == "pooled" else table[1], found.mean, found.var)
        return found


def _all_skipped() -> ValueError:
    return ValueError(
        f"{WHO}: a batch at least must be finite at every layer; got NaN or infinity in every one. Look at the data, "
        "and at the weights of the layers before"
    )


class _Tree:
    """Moments merged as they come, in the order of `_shared.merged`: neighbors are joined, level by level."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Tensor]] = []  # how many were merged, a power of two; the largest first

    def add(self, table: Tensor) -> None:
        size = 1
        while self._parts and self._parts[-1][0] == size:
            table = _shared.merged(torch.stack([self._parts.pop()[1], table], 1))
            size *= 2
        self._parts.append((size, table))

    def whole(self) -> Tensor | None:
        """All of them; None where there are none."""
        if not self._parts:
            return None
        whole = self._parts[-1][1]
        for _, table in reversed(self._parts[:-1]):
            whole = _shared.merged(torch.stack([table, whole], 1))
        return whole
