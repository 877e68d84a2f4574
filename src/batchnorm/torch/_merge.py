"""`merge_state_dicts` for tensors, the same merge as NumPy's; `state_names`, which entries it is about."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any

import torch

from .. import _merge
from .._options import Correction
from ._norms import check_readable, norms_of

Tensor = torch.Tensor

_PARAMETRIZED = ("parametrizations.weight.", "parametrizations.bias.")


class _Tensors(_merge.Arrays):
    """What the merge asks of tensors."""

    array = Tensor
    pass_states = "[model.state_dict(), ...]"

    def state_of(self, state: Any) -> _merge.State | None:
        state = state.state_dict() if isinstance(state, torch.nn.Module) else state
        if not isinstance(state, Mapping):
            return None
        return {name: value.detach() if isinstance(value, Tensor) else value for name, value in state.items()}

    def momentum_of(self, base: Any, prefix: str) -> Any:
        if not isinstance(base, torch.nn.Module):
            return ...
        layer: Any = base.get_submodule(prefix.removesuffix("."))
        if not hasattr(layer, "momentum"):
            raise ValueError(
                f"merge_state_dicts: the layers of base say by which momentum their statistics moved; "
                f"{prefix.removesuffix('.') or 'the model itself'}, {type(layer).__name__}, does not; give momentum="
            )
        return layer.momentum

    def number(self, value: Any) -> Any:
        return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value

    def dtype(self, value: Any) -> str:
        return str(value.dtype).removeprefix("torch.")

    def equal(self, a: Any, b: Any) -> bool:
        return torch.equal(a, b)

    def beside(self, value: Any, like: Any) -> Any:
        return value.to(like.device)

    def copied(self, value: Any, like: Any) -> Any:
        return value.to(like.device, copy=True)

    def has_average(self, value: Any) -> bool:
        return bool(value.is_floating_point() or value.is_complex())

    def wide(self, value: Any) -> Any:
        return value.to(torch.complex128 if value.is_complex() else torch.float64)

    def narrow(self, value: Any, like: Any) -> Any:
        value = torch.as_tensor(value)
        return value.to(like.dtype).to(like.device)

    def numpy(self, value: Any) -> _merge.Doubles:
        of_doubles: _merge.Doubles = value.cpu().double().numpy()
        return of_doubles

    def most(self, value: Any) -> float:
        return 2 / torch.finfo(value.dtype).eps if value.is_floating_point() else torch.iinfo(value.dtype).max


def merge_state_dicts(
    states: Sequence[Mapping[str, Any] | torch.nn.Module],
    counts: Sequence[float],
    *,
    base: Mapping[str, Any] | torch.nn.Module | None = None,
    momentum: float | EllipsisType | None = ...,
    running_correction: Correction = 1,
) -> OrderedDict[str, Any]:
    """One state of several: running statistics merged as moments, everything else averaged.

    Federated learning averages parameters. Averaging running variances as well forgets how far the *means* lie apart;
    the law of total variance does not. With shares ``p_k = n_k / n``::

        running_mean = sum p_k mean_k
        running_var  = sum p_k (var_k + (mean_k - running_mean)**2)         var_k biased

    Parameters
    ----------
    states
        `state_dict()` of each, or the modules themselves; the same names, shapes and dtypes.
    counts
        How many positions stand behind each state: the values that were averaged for a channel (N for feature vectors,
        N·H·W for images). Their ratios are the shares. 0: the state is left out. With `base`, those of this round.
    base
        The model as it was when the round began, which all states were trained from, or its state. Then what the states
        *added* is merged, and the start has the weight that it would have had in one training with the batches of all:
        ``num_batches_tracked`` grows by what they added, and with ``momentum=None`` all batches of all rounds weigh the
        same. None: the states have nothing in common.
    momentum
        With `base`: by which momentum running statistics moved, None for a mean over all batches. Not given (...): that
        of each layer of the model; 0.1 where `base` is a state, which does not say.
    running_correction
        What the layers keep. 1: running_var is unbiased, as PyTorch's; with n positions ``(n - 1) / n`` of it is
        biased, and the result is unbiased again. 0: running_var is biased, or is to be merged as it is.

    Returns
    -------
    OrderedDict
        For `load_state_dict`, on the devices of the first state. Running statistics are merged as above, in float64 and
        rounded once; other floats are averaged by their shares (those that are equal in all states stay as they are).
        `num_batches_tracked` is the sum: how many batches there were in all, if each state began at zero. In repeated
        rounds it would count those of earlier rounds again for each state; that is what `base` is for. Where layers
        keep a `running_count`, it says which part of a running_var is biased, and becomes the sum of counts.

    Raises
    ------
    TypeError, ValueError
        Where names, shapes, dtypes or lengths differ, a count is not a number of positions, integers differ, a result
        does not fit its dtype, or a state has fewer batches than `base`.

    Notes
    -----
    With `base`, a state is ``q_k`` times the start and ``1 - q_k`` times what the client saw, where q_k is
    ``(1 - momentum) ** batches_k``, or ``n_0 / (n_0 + batches_k)`` for ``momentum=None``. What the clients saw is
    merged as above, and moves the start with the weight ``1 - sum p_k q_k``, or ``B / (n_0 + B)`` where they added B
    batches in all. A state that added no batch to a layer does not count in its statistics.

    References
    ----------
    McMahan et al. (2017), Communication-efficient learning of deep networks from decentralized data; Chan, Golub and
    LeVeque (1983) for the merge.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> a, b = (torch.nn.BatchNorm1d(1, momentum=1.0) for _ in range(2))
    >>> _ = a(torch.tensor([[1.0], [3.0]])), b(torch.tensor([[9.0], [11.0], [13.0]]))
    >>> bnt.merge_state_dicts([a, b], [2, 3])["running_var"]  # of 1, 3, 9, 11 and 13
    tensor([26.8000])

    Rounds of training from a common model:

    >>> import copy
    >>> server = torch.nn.BatchNorm1d(1, momentum=None)
    >>> for round in range(3):
    ...     clients = [copy.deepcopy(server) for _ in range(10)]
    ...     _ = [client(torch.randn(20, 1)) for client in clients]
    ...     _ = server.load_state_dict(bnt.merge_state_dicts(clients, [20] * 10, base=server))
    >>> server.num_batches_tracked
    tensor(30)
    """
    return OrderedDict(_merge.merged(_Tensors(), states, counts, base, momentum, running_correction))


def state_names(
    model: torch.nn.Module, affine: bool = True, statistics: bool = True, *, remove_duplicate: bool = True
) -> list[str]:
    """Names of the batch normalizations' entries in ``model.state_dict()``, found by class and not by name.

    In torchvision's ResNets a layer of `downsample` is named ``layer2.0.downsample.1``: whoever looks for "bn" in names
    misses it.

    Parameters
    ----------
    model
        Any module; a batch normalization by itself, too.
    affine
        Whether to include weights and biases.
    statistics
        Whether to include running statistics and the count of batches.
    remove_duplicate
        A shared layer stands in the state under each of its names. True: include the first one only, as
        `named_parameters` does. False: include all, which is what to ask for where these entries are to be left out.

    Returns
    -------
    list of str
        In the order of the state.

    Raises
    ------
    TypeError
        If `model` is not a module.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    >>> bnt.state_names(model)
    ['1.weight', '1.bias', '1.running_mean', '1.running_var', '1.num_batches_tracked']
    >>> bnt.state_names(model, statistics=False)
    ['1.weight', '1.bias']
    """
    check_readable(model, "state_names")
    found = []
    for norm in norms_of(model):
        for prefix in norm.names[:1] if remove_duplicate else norm.names:
            for name in norm.layer.state_dict():
                own = name in ("weight", "bias") or name.startswith(_PARAMETRIZED)
                if (affine and own) or (statistics and name in norm.layer._buffers):
                    found.append(f"{prefix}.{name}" if prefix else name)
    order = {name: i for i, name in enumerate(model.state_dict())}
    return sorted(found, key=order.__getitem__)
