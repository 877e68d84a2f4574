"""`adapt`: evaluation by the running statistics and the batch together."""

from __future__ import annotations

import contextlib
import math

from torch import nn

from . import _options
from ._contexts import Context, Setting, held, layers_of
from ._layers import _Extended
from ._norms import Only
from ._theirs import check_one_device, watched


def adapt(model: nn.Module, prior: float, *, only: Only = None) -> contextlib.AbstractContextManager[None]:
    """Evaluation inside ``with adapt(model, prior):`` normalizes with running statistics and batch together.

    Use it where data is not what the model was trained on (test-time adaptation). Each layer treats its running
    statistics as the moments of `prior` positions, and merges them with the moments of the batch. So the variance
    includes the distance between the two means. Gradients flow through the batch's part. Nothing is updated.

    It works for the layers of torch.nn, for ours, and for classes that call PyTorch's `batch_norm` (such as timm's).

    Parameters
    ----------
    model
        Any module; a batch normalization by itself, too. Call `eval()` before: layers in training normalize with the
        batch.
    prior
        A number of positions, such as N·H·W of a batch of images, which then counts as much as the running statistics.
        0: the batch alone. ``math.inf``: the running statistics alone, to the bit.
    only
        Which layers: names or patterns (``"backbone.*"``), or a function of a name and a module. None: all.

    Returns
    -------
    context manager
        May be entered again, and used as a decorator.

    Raises
    ------
    TypeError, ValueError
        If `model` is not a module, `prior` is negative or no number, or `only` names no layer; for lazy layers without
        parameters. Inside, with a prior of 0, for a batch of one value per channel.

    Notes
    -----
    A layer whose forward takes a mask counts the masked batch: `masked` may be open, too. Layers that have no running
    statistics normalize with the batch, as without the block.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> layer = torch.nn.BatchNorm1d(1, affine=False, eps=0.0).eval()  # mean 0, variance 1
    >>> x = torch.tensor([[4.0], [6.0]])
    >>> with bnt.adapt(layer, prior=2):  # together: mean 2.5, variance (1 + 1) / 2 + 2.5 ** 2 = 7.25
    ...     layer(x).flatten() * 7.25**0.5
    tensor([1.5000, 3.5000])
    """
    prior = _options.PRIOR.checked(prior, "adapt")
    settings = []
    check_one_device(model, "adapt")
    for layer in layers_of(model, only, "adapt"):
        settings += held(layer)
        if math.isfinite(prior):
            settings.append(Setting(layer, "_prior", prior))
            if not isinstance(layer, _Extended):
                settings.append(watched(layer))
    return Context("adapt", settings)
