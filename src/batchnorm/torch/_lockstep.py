"""All batches of some data as one batch: their forwards go from layer to layer together.

Each batch has a thread, and one thread runs at a time. A layer hands in the moments of its input and its thread waits.
When all wait at the same layer, the moments of all are merged, become the layer's statistics, and the threads go on. So
one pass over the data computes what a pass for each layer would, with the same bits.

That holds the activations of all batches at one depth. The first batch goes ahead and is measured. Where all would need
more memory than is allowed, they stop at this layer, and begin anew for the next one; the data are read again then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from .._findings import Say
from . import _shared
from ._batches import ENOUGH, SAME_SAMPLES, USED_UP, Batch, Batches
from ._footprint import State, Storages, storages_of
from ._forwards import END, Light, NeedsThread, Run, Settings, Threaded, current, is_light
from ._layer_inputs import failure, watching
from ._norms import Norm, layer_said

Tensor = torch.Tensor

#: Takes the layer where all batches are (END: at the end; NOWHERE: there are none), and their moments, (4, B, C); sets
#: the statistics of the layer that is next, and returns which that is. END: there is none.
Settle = Callable[[int, Tensor | None], int]
NOWHERE = -2


class Limits(NamedTuple):
    """What may be held at once."""

    bytes: float
    threads: int


class Note(NamedTuple):
    """A sentence about how it was done, by its key, and what fills its holes."""

    key: str
    values: dict[str, object]

    def told(self, say: Say) -> str:
        return say(self.key, **self.values)


class Report(NamedTuple):
    """How it was done."""

    passes: int
    bytes: int  # the most that was held, as it was predicted
    notes: tuple[Note, ...]
    skipped: int  # batches


def lockstep(
    model: nn.Module, norms: Sequence[Norm], batches: Batches, settle: Settle, limits: Limits, *, skip: bool
) -> Report:
    """Give `settle` the moments of all batches, layer by layer, each with the statistics it set in those before.

    Raises
    ------
    ValueError
        Where batches take different branches or a layer is called twice, for then there is no such order; where data
        would have to be read again and cannot; for a batch that fails, or has NaN or infinity at a layer (with `skip`
        it is left out from there on).
    """
    return _Lockstep(model, norms, batches, settle, limits, skip).run()


class _Lockstep:
    def __init__(
        self, model: nn.Module, norms: Sequence[Norm], batches: Batches, settle: Settle, limits: Limits, skip: bool
    ) -> None:
        self.norms, self.batches, self.settle, self.limits, self.skip = norms, batches, settle, limits, skip
        self.who = batches.who
        self.state, self.own = State(model), storages_of(model)
        self.settings = Settings(batches.device)
        self.kind: type[Run] = Light if is_light() else Threaded
        self.needs_threads = False
        self.settled: set[int] = set()
        self.suspects: set[int] = set()  # settled layers where a batch was left out: it is found there again
        self.keeps_state = False
        self.runs: list[Run] = []  # of all batches, or none: then they begin anew
        self.samples = 0  # of all batches that are left
        self.passes, self.bytes, self.skipped = 0, 0, 0
        self.memory: Storages | None = None  # of the first batch
        self.first: Batch | None = None
        self.first_layer = END
        self.origin: Tensor | None = None  # what all batches gave it
        self.again: list[Tensor] = []  # what they give it in a later pass
        self.before = 0  # what the first batch held at the layer before
        self.is_over = False  # no batch is left

    def run(self) -> Report:
        try:
            with watching(self.norms, self._arrived), torch.no_grad():
                while self._step():
                    pass
        finally:
            self._release()
        notes = []
        if self.passes > 1:
            why = "state" if self.keeps_state else "threads" if self.needs_threads else "memory"
            notes.append(Note(f"again {why}", {"passes": self.passes}))
        return Report(self.passes, self.bytes, tuple(notes), self.skipped)

    def _arrived(self, i: int, table: Tensor) -> None:
        """In the thread of a batch: hand in, and wait; a layer that has its statistics is passed."""
        run = current()
        if run is None:
            return  # somebody else's call
        run.check()
        if i in run.reached:
            raise Refusal(
                f"every layer must be called once in a forward; got {layer_said(str(self.norms[i]))} a second time, in "
                f'batch {run.number}. What it gets then depends on its own statistics: use how="pooled"'
            )
        run.reached.append(i)
        if i not in self.settled:
            run.wait(i, table)
            return
        if i == self.first_layer:
            self.again.append(table)
        if i in self.suspects and not bool(torch.isfinite(table).all()):
            run.leave()

    def _go(self, run: Run) -> _Arrival:
        try:
            run.go_on()
        except NeedsThread:
            raise
        except Refusal as error:
            raise ValueError(f"{self.who}: {error}") from None
        except Exception as error:
            raise failure(run.number, self.norms, run.reached, error, self.who) from error
        return _Arrival(run.number, run.at, run.table)

    def _step(self) -> bool:
        """Bring all batches to the next layer, and settle it; False at the end."""
        arrivals: list[_Arrival] | None = []
        if not self.is_over:
            try:
                arrivals = self._go_all()
            except NeedsThread:
                self._check_repeatable()
                self._release()
                self.kind, self.needs_threads = Threaded, True
                arrivals = self._go_all()
            arrivals = self._without_nonfinite(arrivals)
            self.is_over = not arrivals
        at = self._common(arrivals or [])
        tables = [table for _, _, table in arrivals or [] if table is not None]
        whole = torch.stack(tables, 1) if tables else None
        if whole is not None and not self.settled:
            self.first_layer, self.origin = at, _shared.merged(whole)
        at = self.settle(at, whole)
        self.settled.add(at)
        return at != END

    def _go_all(self) -> list[_Arrival]:
        """All batches go to the next layer, from where they wait or from the start."""
        arrivals = self._go_on() if self.runs else None
        if arrivals is None:
            arrivals = self._begin_anew() if self._remaining() else self._look_at_the_rest()
        return arrivals

    def _go_on(self) -> list[_Arrival] | None:
        """All runs go to their next layer; None where they may not be held there, and have to begin anew."""
        first, *rest = self.runs
        arrivals = [self._measured(first)]
        changed = self.state.look()
        if first.at == END and self._remaining() == 0:
            return arrivals  # nothing can come any more
        fits = self._fits(first, self.samples)
        for run in rest:
            if not fits:
                break
            arrivals.append(self._go(run))
            if changed:  # by the first batch; where the second changes nothing, a value was kept for all
                self.keeps_state, changed = self.state.look(), False
                fits = not self.keeps_state
        if fits:
            return arrivals
        if self._remaining():
            self._check_repeatable()
        self._release()
        return None

    def _begin_anew(self) -> list[_Arrival]:
        """A pass over the data: every batch goes to the first layer without statistics, and is held there if it may."""
        self.passes += 1
        arrivals: list[_Arrival] = []
        expected, samples = self.samples, 0
        holds, changed = not self.keeps_state, False
        first: Run | None = None
        for batch in self.batches:
            run = self.kind(batch, self.settings, None if first else Storages(self.own))
            self.runs.append(run)
            arrival = self._go(run) if first else self._measured(run)
            if run.has_left:
                self.runs.pop().stop()
                continue
            arrivals.append(arrival)
            samples += batch.samples
            if first is None:
                first, self.first = run, batch
                changed = self.state.look()
                holds = holds and self._fits(run, max(expected, samples))
            elif changed:
                self.keeps_state, changed = self.state.look(), False
            holds = holds and not self.keeps_state and self._fits(first, samples)
            if not holds:
                self.bytes = max(self.bytes, self._need(first, first.samples))
                if self._remaining() > 1:
                    self._check_repeatable()
                self._release()
        self.samples = samples
        self._check_same()
        return arrivals

    def _check_same(self) -> None:
        """Refuse data that are others in every pass, by what the first layer gets."""
        tables = [table for table in self.again if bool(torch.isfinite(table).all())]
        self.again = []
        if not tables or self.origin is None:
            return
        (count, mean, low, m2), now = self.origin, _shared.merged(torch.stack(tables, 1))
        std = (m2 / count).sqrt()
        moved = torch.maximum((now[1] - mean + (now[2] - low)).abs(), ((now[3] / now[0]).sqrt() - std).abs())
        if bool((now[0] != count).any()) or bool((moved > 1e-4 * std + 1e-6 * mean.abs()).any()):
            raise ValueError(
                f"{self.who}: {SAME_SAMPLES}; got others in number {self.passes} (random augmentation, say). Pass a "
                f"list, {ENOUGH}"
            )

    def _look_at_the_rest(self) -> list[_Arrival]:
        """All layers are settled, and no batch is held: let the first go through, for a layer may be called again."""
        assert self.first is not None
        self.runs = [self.kind(self.first, self.settings)]
        return [self._go(self.runs[0])]

    def _remaining(self) -> int:
        return len(self.norms) - len(self.settled)

    # --- memory ---

    def _measured(self, run: Run) -> _Arrival:
        """Let the first batch go on, and see what it holds."""
        self.memory = run.memory
        assert self.memory is not None
        self.before, self.memory.peak = self.memory.now, self.memory.now
        return self._go(run)

    def _need(self, first: Run, samples: int) -> int:
        """What so many samples hold where the first batch is, or when all but that were still at the layer before."""
        assert self.memory is not None
        now, peak, times = self.memory.now, self.memory.peak, max(samples, 1) / max(first.samples, 1)
        here = (first.bytes + now) * times + peak - now
        there = (first.bytes + self.before) * (times - 1) + first.bytes + peak
        return int(max(here, there))

    def _fits(self, first: Run, samples: int) -> bool:
        """Whether so many samples may be held where the first batch is."""
        need = self._need(first, samples)
        threads = len(self.runs) if self.kind is Threaded else 1
        fits = len(self.runs) == 1 or (need <= self.limits.bytes and threads <= self.limits.threads)
        if fits:
            self.bytes = max(self.bytes, need)
        return fits

    def _check_repeatable(self) -> None:
        if not self.batches.is_repeatable:
            raise ValueError(f"{self.who}: {USED_UP}")

    def _release(self) -> None:
        """End all runs where they wait."""
        runs, self.runs = self.runs, []
        for run in runs:
            run.stop()

    # --- what has arrived ---

    def _common(self, arrivals: list[_Arrival]) -> int:
        """The layer where all are; ValueError where they are at several."""
        for arrival in arrivals:
            if arrival.at != arrivals[0].at:
                who, there = (f"batch {a.number}" for a in (arrival, arrivals[0]))
                here, where = (place(self.norms, a.at) for a in (arrival, arrivals[0]))
                raise ValueError(f"{self.who}: {branches(who, here, there, where)}")
        return arrivals[0].at if arrivals else NOWHERE

    def _without_nonfinite(self, arrivals: list[_Arrival]) -> list[_Arrival]:
        tables = [arrival.table for arrival in arrivals if arrival.table is not None]
        if not tables:
            return arrivals
        finite = _finite(tables)
        if all(finite):
            return arrivals
        bad = [arrival for arrival, good in zip(arrivals, finite, strict=True) if not good]
        if not self.skip:
            at, table = bad[0].at, bad[0].table
            assert table is not None
            raise ValueError(f"{self.who}: {nonfinite(bad[0].number, self.norms[at], table)}")
        numbers = {arrival.number for arrival in bad}
        self.suspects.add(bad[0].at)
        self.skipped += len(bad)
        self.samples -= sum(run.samples for run in self.runs if run.number in numbers)
        for run in [run for run in self.runs if run.number in numbers]:
            run.stop()
        first = self.runs[0].number if self.runs else None
        self.runs = [run for run in self.runs if run.number not in numbers]
        if first in numbers and self.batches.is_repeatable:
            self._release()  # what is measured has gone
        return [arrival for arrival in arrivals if arrival.number not in numbers]


def _finite(tables: list[Tensor]) -> list[bool]:
    """Whether each is; at once where they are of one layer."""
    if any(table.shape != tables[0].shape for table in tables):
        return [bool(torch.isfinite(table).all()) for table in tables]
    found: list[bool] = torch.isfinite(torch.stack(tables)).flatten(1).all(1).tolist()
    return found


class Refusal(Exception):
    """What `lockstep` cannot do, said from the thread of a batch."""


class _Arrival(NamedTuple):
    number: int
    at: int
    table: Tensor | None


def place(norms: Sequence[Norm], at: int) -> str:
    """Where a batch is, in words."""
    return "the end" if at == END else layer_said(str(norms[at]))


def branches(who: str, here: str, whom: str, there: str) -> str:
    """The refusal of batches, or ranks, that come to different layers."""
    return (
        f"all batches must call the same layers in the same order; got {who} at {here} when {whom} was at {there}. So "
        'they have no common statistics of the whole data as one batch: use how="pooled"'
    )


SKIP = 'use on_nonfinite="skip"'


def nonfinite(number: int, norm: Norm, table: Tensor) -> str:
    """The refusal of a batch with NaN or infinity."""
    count, mean, _, m2 = table
    c = int((~torch.isfinite(mean + m2)).nonzero()[0])
    return (
        f"statistics must be finite; got mean {float(mean[c]):g} and variance {float(m2[c] / count[c]):g} in channel "
        f"{c} of {layer_said(str(norm))}, from batch {number}. Leave the batch out, or {SKIP}"
    )
