"""`one_update`: the forwards of a block are parts of one batch for the running statistics."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from . import _running, _shared
from ._contexts import LOCK, Context, Setting, before, layers_of
from ._layer_inputs import put_back, statistics_of
from ._layers import BatchNorm1d, _Extended
from ._norms import Only, layer_said, name_of
from ._theirs import watched

Tensor = torch.Tensor


class Parts:
    """The moments of what a layer normalized in a block."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.tables: list[Tensor] = []  # (4, C), or of ghosts (4, G, C)
        self.compiled: Tensor | None = None  # those of a compiled forward, merged: a list would be compiled anew
        self.native, self.weighted = True, False
        self.around: Parts | None = self  # who counts what comes now: after the block, that of another block, or nobody

    def add(self, table: Tensor, native: bool, weighted: bool) -> None:
        """Count a part; nothing moves."""
        if torch.compiler.is_compiling():
            rows = [_row(table)] if self.compiled is None else [_row(self.compiled), _row(table)]
            self.compiled = _shared.merged(torch.cat(rows, 1))
            self.native, self.weighted = self.native and native, self.weighted or weighted
            return
        with LOCK:  # a forward of another thread may end when the block has
            parts: Parts | None = self
            while parts is not None and parts.around is not parts:
                parts = parts.around
            if parts is not None:
                parts.take([table], native, weighted)
                return
        _running.move(_as_ours(self.layer), table, native, weighted)

    def take(self, tables: list[Tensor], native: bool, weighted: bool) -> None:
        """Count parts, while nobody else does."""
        self.tables += tables
        self.native, self.weighted = self.native and native, self.weighted or weighted

    def leave(self) -> bool:
        """Hand all over to a block that is still open, if there is one; whether it remains to be moved."""
        self.around = getattr(self.layer, "_collects", None)
        if self.around is not None:
            self.around.take(self._all(), self.native, self.weighted)
        return self.around is None and bool(self._all())

    def _all(self) -> list[Tensor]:
        return self.tables if self.compiled is None else [self.compiled, *self.tables]

    def move(self) -> None:
        """Move the layer's running statistics, once."""
        with torch.no_grad():
            table = torch.cat([_row(table) for table in self._all()], 1)
            _running.move(_as_ours(self.layer), table, self.native, self.weighted)


def _row(table: Tensor) -> Tensor:
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
    Blocks nest: those of the outermost move. After an exception, nothing moves.

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
    What a layer holds until the end is a small table for each part, not the parts.

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
    for layer in layers_of(model, only, "one_update"):
        if isinstance(layer, _Extended):
            settings.append(Setting(layer, "_collects", None))
        elif before(layer, "track_running_stats"):
            settings += [
                Setting(layer, "_collects", None),
                Setting(layer, "track_running_stats", False),
                watched(layer),
            ]
    return _OneUpdate(model, settings)
