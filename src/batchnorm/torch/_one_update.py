"""`one_update`: the forwards of a block are parts of one batch for the running statistics."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from . import _backend, _running, _shared
from ._contexts import LOCK, Context, Setting, before, layers_of
from ._layer_inputs import put_back, statistics_of
from ._layers import BatchNorm1d, _Extended
from ._norms import Only, layer_said, name_of
from ._theirs import check_one_device, has_own_forward, watched

Tensor = torch.Tensor


_AT_ONCE = 8
_spare: weakref.WeakKeyDictionary[nn.Module, list[Tensor]] = weakref.WeakKeyDictionary()


class Parts:
    """The moments of what a layer normalized in a block.

    They lie in memory that the layer's next block uses again: small tables that stay between the large tensors of a
    step, which come and go, would have the allocator take fresh memory for these each time.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.rows: list[Tensor] = []  # (4, C) each
        self.n = 0  # of the rows, so many are taken
        self.compiled: Tensor | None = (
            None  # (4, C) of compiled forwards: they cannot count without being compiled anew
        )
        self.native, self.weighted = True, False
        self.around: Parts | None = self  # who counts what comes now: after the block, that of another block, or nobody

    def check(self) -> None:
        """Refuse forwards whose tensors do not last until the block ends; before they are `add`ed."""
        if found := _backend.recorder() or (_backend.is_transformed() and "torch.func"):
            raise ValueError(
                f"one_update: the moments of a forward are kept until the block ends, and those of one that {found} "
                "runs do not last so long; got such a forward; leave the block out there, or use hold"
            )

    def add(self, table: Tensor, native: bool, weighted: bool) -> None:
        """Count a part, of moments (4, C), or (4, G, C) of ghosts; nothing moves."""
        if torch.compiler.is_compiling():
            known = [] if self.compiled is None else [_of_parts(self.compiled)]
            self.compiled = _shared.merged(torch.cat([*known, _of_parts(table)], 1))
            self.native, self.weighted = self.native and native, self.weighted or weighted
            return
        with LOCK:  # a forward of another thread may end when the block has
            counts: Parts | None = self
            while counts is not None and counts.around is not counts:
                counts = counts.around
            if counts is not None:
                counts.take([table] if table.dim() == 2 else table.unbind(1), native, weighted)
                return
        _running.move(_as_ours(self.layer), table, native, weighted)

    def take(self, tables: Sequence[Tensor], native: bool, weighted: bool) -> None:
        """Count parts, while nobody else does."""
        for table in tables:
            if self.n == len(self.rows):
                self._make_room(table)
            self.rows[self.n].copy_(table)
            self.n += 1
        self.native, self.weighted = self.native and native, self.weighted or weighted

    def _make_room(self, table: Tensor) -> None:
        spare = [] if self.rows else _spare.pop(self.layer, [])
        if not spare or spare[0].shape != table.shape or spare[0].device != table.device:
            with torch.inference_mode(False):  # the next block's forwards may be outside of it
                spare = list(table.new_empty(_AT_ONCE, *table.shape).unbind())
        self.rows += spare

    def leave(self) -> bool:
        """Hand all over to a block that is still open, if there is one; whether it remains to be moved."""
        self.around = getattr(self.layer, "_collects", None)
        if self.compiled is not None:
            self.take([self.compiled.detach()], self.native, self.weighted)
        if self.around is not None:
            self.around.take(self.rows[: self.n], self.native, self.weighted)
        return self.around is None and self.n > 0

    def move(self) -> None:
        """Move the layer's running statistics, once."""
        table = torch.stack(self.rows[: self.n], 1)
        _spare[self.layer] = self.rows[:_AT_ONCE]
        _running.move(_as_ours(self.layer), table, self.native, self.weighted)


def _of_parts(table: Tensor) -> Tensor:
    return table if table.dim() == 3 else table.unsqueeze(1)


def _as_ours(layer: nn.Module) -> Any:
    """The layer, or a view of it as one of ours with no option set."""
    if isinstance(layer, _Extended):
        return layer
    view = object.__new__(BatchNorm1d)
    object.__setattr__(view, "__dict__", layer.__dict__)
    return view


class _OneUpdate(Context):
    def __init__(self, model: nn.Module, settings: list[Setting]) -> None:
        super().__init__("one_update", settings)
        self._model = model

    def _entered(self) -> list[Setting]:
        return [setting._replace(value=Parts(setting.layer)) if setting.name == "_collects" else setting
                for setting in self._settings]  # fmt: skip

    def _left(self, settings: list[Setting], failed: bool) -> None:
        own = [setting.value for setting in settings if setting.name == "_collects"]
        if failed:
            for parts in own:
                parts.around = None
            return
        complete = [parts for parts in own if parts.leave()]
        undo = [(buffer, buffer.clone()) for parts in complete for buffer in statistics_of(parts.layer)]
        for parts in complete:
            try:
                parts.move()
            except BaseException as error:
                put_back(undo)
                if not isinstance(error, ValueError):
                    raise
                said = layer_said(name_of(parts.layer, self._model))
                raise ValueError(
                    f"one_update: the batch is refused by {said}, so no layer has moved: {error}"
                ) from error


def one_update(model: nn.Module, *, only: Only = None) -> contextlib.AbstractContextManager[None]:
    """Forwards inside ``with one_update(model):`` are parts of one batch for the running statistics.

    Use it where a batch is computed in parts, such as in gradient accumulation. Each layer's moments of all parts are
    merged, and its running statistics move once, at the end of the block: as those of one large batch would, and the
    count grows by one. Outputs do not change: each part is normalized by itself in training, as ghost batches are.

    It works for the layers of torch.nn, for ours, and for classes that call PyTorch's `batch_norm` (such as timm's).
    Blocks may be nested: the statistics move at the end of the outermost one. After an exception, nothing moves.

    Parameters
    ----------
    model
        Any module; a batch normalization by itself, too. Layers that it gets later are not served.
    only
        Which layers: names or patterns (``"backbone.*"``), or a function of a name and a module. None: all.

    Returns
    -------
    context manager
        May be entered again, and used as a decorator.

    Raises
    ------
    TypeError
        If `model` is not a module.
    ValueError
        If `only` names no layer; for lazy layers without parameters. At the end, where a layer refuses its batch
        (``on_nonfinite="raise"``); then nothing has moved.

    Notes
    -----
    Until the end of the block a layer keeps a small table of moments for each part, not the part itself.

    Layers that normalize with running statistics in training (with `renorm`, or ``normalize_with="running"``) do so in
    all parts with those from before the block.

    `torch.utils.checkpoint` runs a forward again during the backward. It does not count then. Call the backward inside
    the block if there are layers of torch.nn: outside, they move their statistics themselves.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> layer = torch.nn.BatchNorm1d(1, momentum=1.0)
    >>> with bnt.one_update(layer):
    ...     for part in torch.tensor([[[1.0], [3.0]], [[7.0], [9.0]]]):
    ...         y = layer(part)
    >>> layer.running_mean, int(layer.num_batches_tracked)
    (tensor([5.]), 1)
    """
    settings = []
    check_one_device(model, "one_update")
    for layer in layers_of(model, only, "one_update"):
        if isinstance(layer, _Extended):
            settings.append(Setting(layer, "_collects", None))
        elif before(layer, "track_running_stats"):
            settings += [Setting(layer, "_collects", None), watched(layer)]
            if has_own_forward(layer):
                settings.append(Setting(layer, "track_running_stats", False))
    return _OneUpdate(model, settings)
