"""`masked`: one mask for all layers of a model, whose forwards do not pass one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from .. import _refusals
from .._options import shown
from . import _backend, _positions
from ._contexts import Context, Setting, layers_of
from ._layers import _Extended, masked_until
from ._norms import Only, layer_said, name_of
from ._sync import OURS

Tensor = torch.Tensor
Resize = Callable[[Tensor, tuple[int, ...]], Tensor] | Literal["nearest"] | None


class Padding(NamedTuple):
    """A mask, as a layer inside of the context finds it."""

    model: nn.Module
    mask: Tensor
    resize: Resize
    zero: bool

    def over(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The mask of this layer's input: (N, *positions); ValueError, with the layer's name, where there is none."""
        _backend.refuse_to_look("masked", "a mask belongs to one batch", "forward(x, mask=mask) there")
        shape = (x.shape[0], *x.shape[2:])
        mask, resize = self.mask, self.resize
        if mask.shape == shape:
            return mask
        if mask.dim() == 1 and mask.shape[0] == shape[0]:  # of whole samples
            return mask.reshape(-1, *[1] * (len(shape) - 1))
        if resize == "nearest" and mask.dim() == len(shape) and mask.shape[0] == shape[0]:
            return nearest(mask, shape)
        if resize is None or resize == "nearest":
            raise ValueError(
                f"masked: {layer_said(name_of(layer, self.model))} normalizes samples and positions {shape}, which the "
                f"mask does not have; got a mask of shape {tuple(mask.shape)}; pass resize='nearest' where a stride "
                "shortened them, or a function of mask and shape, or leave the layer out with only="
            )
        resized = resize(mask, shape)
        if not isinstance(resized, Tensor) or resized.shape != shape or resized.dtype != torch.bool:
            got = f"{tuple(resized.shape)}, {resized.dtype}" if isinstance(resized, Tensor) else shown(resized)
            raise ValueError(
                f"masked: resize must return a bool tensor of the shape that it was asked for, {shape} for "
                f"{layer_said(name_of(layer, self.model))}; got {got}"
            )
        return resized

    def of_output(self, layer: nn.Module, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """What a layer returns: y, or 0 where its mask is False."""
        if not self.zero:
            return y
        given = self.over(layer, x) if mask is None else mask
        return torch.where(_positions.over_positions(x, given, "mask", type(layer).__name__), y, 0.0)


def nearest(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask of other lengths: place i of L' is that of i·L/L', rounded down, as `interpolate` takes it."""
    for axis in range(1, mask.dim()):
        length, wanted = mask.shape[axis], shape[axis]
        if length != wanted:
            mask = mask.index_select(axis, torch.arange(wanted, device=mask.device) * length // wanted)
    return mask


def masked(
    model: nn.Module, mask: Tensor, *, only: Only = None, resize: Resize = None, zero: bool = False
) -> contextlib.AbstractContextManager[None]:
    """Inside ``with masked(model, mask):`` every layer of ours uses this mask, as if it were passed to the layer.

    Use it for padded batches in models whose forward you do not write. Statistics and gradients are those of passing
    the mask by hand. If the model passes a mask to a layer, the layer uses that one.

    Parameters
    ----------
    model
        Any module. Its batch normalizations are ours: `convert` makes them so.
    mask
        Bool, (N, ...) with the positions of the layers' inputs: (N, L) for inputs (N, C, L). True where there is data.
        With one axis, (N), it says which samples count, for inputs of any shape.
    only
        Which layers: names or patterns (``"backbone.*"``), or a function of a name and a module. None: all.
    resize
        What to do for a layer whose input has other positions. None: refuse. "nearest": take the nearest of the mask's
        positions, as after strides. Or a function of the mask and of the shape (N, ...) that it should return.
    zero
        True: layers return 0 where the mask is False, in evaluation, too. Then what comes next reads zeros there, as a
        convolution does beyond the end of a sequence.

    Returns
    -------
    context manager
        May be entered again, and used as a decorator.

    Raises
    ------
    TypeError, ValueError
        If `mask` is not a bool tensor, or a layer is not ours. Inside, by the layer's name, if the mask does not fit.

    Notes
    -----
    A mask has no effect on what normalizes in evaluation; `zero` has.

    `torch.utils.checkpoint` runs a forward again during the backward: call the backward inside the block, too. Outside,
    layers refuse the second forward if their last one in training was in the block.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> model = torch.nn.Sequential(torch.nn.Conv1d(1, 1, 1), bnt.BatchNorm1d(1))
    >>> mask = bnt.mask_from_lengths(torch.tensor([2, 1]))
    >>> with bnt.masked(model, mask, zero=True):
    ...     y = model(torch.tensor([[[1.0, 3.0]], [[5.0, 0.0]]])).detach()
    >>> float(y[1, 0, 1]), round(float(y.sum()), 4)
    (0.0, 0.0)
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"masked: mask must be a tensor; got {type(mask).__name__}; use torch.as_tensor(mask)")
    if mask.dtype != torch.bool:
        raise TypeError(f"masked: {_refusals.mask_dtype(f'dtype {mask.dtype}')}")
    if mask.dim() == 0:
        raise ValueError("masked: mask needs an axis of samples; got a tensor without axes; pass one of shape (N, ...)")
    if not (resize is None or resize == "nearest" or callable(resize)):
        raise ValueError(
            f"masked: resize must be None, 'nearest' or a function of the mask and a shape; got {shown(resize)}"
        )
    layers = layers_of(model, only, "masked")
    for layer in layers:
        _check_ours(layer, model)
    padding = Padding(model, mask, resize, zero)
    return _Masked("masked", [Setting(layer, "_masked", padding) for layer in layers])


class _Masked(Context):
    def _left(self, settings: list[Setting], failed: bool) -> None:
        for setting in settings:
            layer: Any = setting.layer
            count = layer.num_batches_tracked
            if layer.training and count is not None and _backend.has_values(count):
                masked_until[layer] = int(count)


def _check_ours(layer: nn.Module, model: nn.Module) -> None:
    if isinstance(layer, _Extended):
        return
    convertible = type(layer) in (*OURS, nn.SyncBatchNorm)
    raise TypeError(
        f"masked: only our layers know masks; got {layer_said(name_of(layer, model))}, a {type(layer).__name__}; "
        + ("use bnt.convert(model) first" if convertible else "leave it out with only=")
    )
