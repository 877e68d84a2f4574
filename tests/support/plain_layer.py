"""What a layer does in one call, in float64 PyTorch: every option, the state after it, or that it refuses.

The oracle of whole modules, as `plain_formulas.py` is of gradients: formulas and rules in the order of the documents,
differentiated by autograd as often as asked. It reads a layer's options and state, and calls nothing of the package.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor
STATE = ("running_mean", "running_var", "num_batches_tracked", "running_count")


class Refused(Exception):
    """The rules say that this call is refused."""


class Known(NamedTuple):
    """A layer's options, its mode, and its state in float64."""

    options: dict[str, Any]
    training: bool
    state: dict[str, Tensor]


class Call(NamedTuple):
    """y, and the state after the call."""

    y: Tensor
    state: dict[str, Tensor]


OPTIONS = (
    "activation", "on_single_value", "on_nonfinite", "running_correction", "virtual_batch_size", "renorm",
    "normalize_with", "update_running_stats", "train_affine", "keep_count", "eps", "momentum",
)  # fmt: skip


def known(layer: Any) -> Known:
    """What the formulas have to know of a layer; a copy."""
    tensors = {name: t for name in STATE if (t := getattr(layer, name, None)) is not None}
    options = {name: getattr(layer, name) for name in OPTIONS if hasattr(layer, name)}
    defaults = dict.fromkeys(OPTIONS) | {
        "on_single_value": "error", "on_nonfinite": "propagate", "running_correction": 1, "normalize_with": "auto",
        "train_affine": True, "keep_count": False,
    }  # fmt: skip
    state = {name: torch.as_tensor(t).detach().clone().double() for name, t in tensors.items()}
    return Known(defaults | options | {"track": layer.track_running_stats}, layer.training, state)


def call(
    layer: Known,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    residual: Tensor | None = None,
) -> Call:
    """One call of a layer on float64 tensors; raises Refused where the rules refuse it."""
    options, state = layer.options, layer.state
    batch = layer.training or not state
    if options["normalize_with"] != "auto":
        batch = options["normalize_with"] == "batch"
    updates = (
        layer.training and options["track"]
        if options["update_running_stats"] is None
        else options["update_running_stats"]
    )
    selected = mask is not None or sample_weight is not None
    w = _selection(x, mask, sample_weight)
    if x.numel() == 0:
        updates = False
    elif batch or updates:
        positions = int((w > 0).sum())
        if positions == 1 and options["on_single_value"] == "running" and state:
            batch = updates = False
        elif positions < 2:
            raise Refused("at least two positions")
    size = options["virtual_batch_size"] if batch and layer.training and x.numel() else None
    parts = [slice(i, i + size) for i in range(0, len(x), size)] if size else [slice(None)]
    counts = [int((w[p] > 0).sum()) if size else 2 for p in parts]
    stands_in = options["on_single_value"] == "running" and bool(state)
    if any(count < (1 if stands_in else 2) for count in counts):
        raise Refused("at least two positions in every ghost")
    xhat = torch.cat([_standardized(layer, x[p], w[p], batch and n > 1) for p, n in zip(parts, counts, strict=True)])
    if size:  # what running statistics normalize does not move them
        w = torch.cat([w[p] * (n > 1) for p, n in zip(parts, counts, strict=True)])
    if not options["train_affine"]:
        weight, bias = (None if t is None else t.detach() for t in (weight, bias))
    y = xhat if weight is None else xhat * over(weight, x)
    y = y if bias is None else y + over(bias, x)
    y = activate(y if residual is None else y + residual, options["activation"])
    return Call(y, _moved(layer, x.detach(), w, selected) if updates and state and bool((w > 0).any()) else state)


def over(values: Tensor, x: Tensor) -> Tensor:
    """One value a channel, to broadcast against x."""
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


def activate(z: Tensor, activation: Any) -> Tensor:
    """The activation, by its definition; derivatives at the corners are PyTorch's."""
    name, slope = activation if isinstance(activation, tuple) else (activation, 0.01)
    if name == "relu":
        return torch.relu(z)
    if name == "relu6":
        return torch.nn.functional.relu6(z)
    if name == "leaky_relu":
        return torch.nn.functional.leaky_relu(z, slope)
    if name == "gelu":
        return torch.nn.functional.gelu(z)
    if name == "elu":
        return torch.nn.functional.elu(z, slope)
    return z * torch.sigmoid(z) if name == "silu" else z


def _selection(x: Tensor, mask: Tensor | None, sample_weight: Tensor | None) -> Tensor:
    """The weight of every position, with one channel."""
    w = x.new_ones(x.shape[0], 1, *x.shape[2:])
    for given in (mask, sample_weight):
        if given is not None:
            w = w * (given if given.dim() == x.dim() else given.unsqueeze(1)).to(w)
    return w


def _standardized(layer: Known, x: Tensor, w: Tensor, batch: bool) -> Tensor:
    """x less mean, by the standard deviation; renormalized, where that is asked for."""
    eps, renorm = layer.options["eps"], layer.options["renorm"]
    if not batch:
        return (x - over(layer.state["running_mean"], x)) / (over(layer.state["running_var"], x) + eps).sqrt()
    if x.numel() == 0:
        return x * 0
    dims = [0, *range(2, x.dim())]
    there = torch.where(w > 0, x, 0)
    mean = (w * there).sum(dims) / w.sum()
    var = (w * (there - over(mean, x)) ** 2).sum(dims) / w.sum()
    xhat = (x - over(mean, x)) / (over(var, x) + eps).sqrt()
    if renorm is None or not layer.training:
        return xhat
    r_max, d_max = renorm.limits(int(layer.state["num_batches_tracked"]))
    if (r_max, d_max) == (1, 0):  # plain, whatever the running statistics are
        return xhat
    sigma = (layer.state["running_var"] + eps).sqrt()
    r = ((var + eps).sqrt() / sigma).clamp(1 / r_max, r_max).detach()
    d = ((mean - layer.state["running_mean"]) / sigma).clamp(-d_max, d_max).detach()
    return xhat * over(r, x) + over(d, x)


def _moved(layer: Known, x: Tensor, w: Tensor, selected: bool) -> dict[str, Tensor]:
    """The state after a batch; as it was where a batch that is not finite is left out."""
    options, state = layer.options, layer.state
    correction = options["running_correction"]
    dims = [0, *range(2, x.dim())]
    count = w.sum()
    if selected and not count > (1 if options["keep_count"] else correction):
        raise Refused("sum is more than")
    there = torch.where(w > 0, x, 0)
    mean = (w * there).sum(dims) / count
    m2 = (w * (there - over(mean, x)) ** 2).sum(dims)
    n = state["num_batches_tracked"] + 1
    a = 1 / n if options["momentum"] is None else options["momentum"]
    moved = {
        "running_mean": a * mean + (1 - a) * state["running_mean"],
        "running_var": a * m2 / (count - correction) + (1 - a) * state["running_var"],
        "num_batches_tracked": n,
    }
    if "running_count" in state:
        before = state["running_count"]
        gap = a * m2 / (count * (count - 1)) + (1 - a) * state["running_var"] / (before - (1 - correction))
        moved["running_count"] = torch.where(gap == 0, torch.inf, moved["running_var"] / gap + (1 - correction))
    if options["on_nonfinite"] != "propagate" and not all(
        bool(moved[name].isfinite().all()) for name in ("running_mean", "running_var")
    ):
        if options["on_nonfinite"] == "raise":
            raise Refused("not finite")
        return state
    return moved
