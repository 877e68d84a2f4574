"""Draws layers with any options, layouts, dtypes and operands, calls them in sequence, and compares with float64.

PyTorch modules (1d, 2d, 3d, synchronized without a group, converted), torch.nn's own under `accelerate`, and layers on
NumPy arrays: results, gradients and statistics of each call are those of `plain_layer.py`; a call that is to be refused
is refused, and changes no bit. ``python tests/fuzz/fuzz_layers.py --seconds 600`` runs for ten minutes; a failure
names its seed, and ``--seed N --cases 1`` repeats it. A slice runs with the tests.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "support"))  # also where this runs as a program

import drawing
import numpy as np
import plain_layer
import torch
from layer_cells import parameters
from plain_layer import Refused

import batchnorm as bn
import batchnorm.torch as bnt

Rng = np.random.Generator
Tensor = torch.Tensor

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.15}
ACTIVATIONS = (None, None, "relu", "relu6", ("leaky_relu", 0.2), ("leaky_relu", -0.5), "silu", "gelu", ("elu", 0.5))
RANKS = {"1d": (2, 3), "2d": (4,), "3d": (5,)}
KINDS = ("1d", "2d", "3d", "sync", "converted", "accelerated", "numpy")


def options_of(rng: Rng, kind: str) -> dict[str, Any]:
    """Options that a kind of layer has, each drawn now and then."""
    found: dict[str, Any] = {}

    def maybe(name: str, *values: Any, often: float = 0.25) -> None:
        if rng.random() < often:
            found[name] = values[rng.integers(len(values))]

    maybe("momentum", None, 0.3, 1.0)
    maybe("eps", 1e-3, 0.1)
    maybe("affine", False, often=0.1)
    maybe("track_running_stats", False, often=0.15)
    if kind == "accelerated":
        return found
    maybe("activation", *ACTIVATIONS, often=0.7)
    maybe("on_nonfinite", "skip", "raise")
    maybe("running_correction", 0)
    maybe("normalize_with", "batch", *(() if "track_running_stats" in found else ("running",)), often=0.2)
    maybe("update_running_stats", False, *(() if "track_running_stats" in found else (True,)), often=0.2)
    maybe("train_affine", False, often=0.1)
    maybe("on_single_value", "running")
    if kind != "sync":
        maybe("virtual_batch_size", 1, 2, 3, 100)
    if "track_running_stats" not in found:
        maybe("keep_count", True)
        maybe("renorm", bn.Renorm(), bn.Renorm(1.5, 0.5, start=0, r_end=0, d_end=0), bn.Renorm(3, 2, 1, 4, 6))
    return found


def made(rng: Rng, kind: str, channels: int, dtype: torch.dtype) -> tuple[Any, str]:
    """A layer with random parameters, and its rank."""
    options = options_of(rng, kind)
    rank = kind if kind in RANKS else str(rng.choice(list(RANKS)))
    if kind == "numpy":
        layer: Any = getattr(bn, f"BatchNorm{rank}")(
            channels, dtype=np.float64 if dtype is torch.float64 else np.float32, **options
        )
        if layer.weight is not None:
            layer.weight[:], layer.bias[:] = rng.normal(size=channels), rng.normal(size=channels)
        return layer, rank
    wide = dtype if rng.integers(2) or dtype is torch.float64 else torch.float32
    stock = getattr(torch.nn, f"BatchNorm{rank}")
    if kind in ("accelerated", "converted"):
        own = {
            name: value
            for name, value in options.items()
            if name in ("momentum", "eps", "affine", "track_running_stats")
        }
        layer = stock(channels, **own)
        if kind == "converted":
            layer = bnt.convert(layer, verbose=False)
            for name in options.keys() - own.keys():
                setattr(layer, name, options[name])
    elif kind == "sync":
        layer = bnt.SyncBatchNorm(channels, reproducible=bool(rng.integers(2)), **options)
    else:
        layer = getattr(bnt, f"BatchNorm{kind}")(channels, **options)
    layer.to(wide)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.from_numpy(rng.normal(size=channels)))
    return layer, rank


def laid_out(rng: Rng, t: Tensor) -> Tensor:
    """The same values in some memory layout."""
    match rng.integers(5):
        case 0 if t.dim() == 4:
            return t.contiguous(memory_format=torch.channels_last)
        case 0 if t.dim() == 5:
            return t.contiguous(memory_format=torch.channels_last_3d)
        case 1:
            return torch.stack([t, t], -1)[..., 0]
        case 2:
            return t.transpose(0, -1).contiguous().transpose(0, -1)
        case 3 if t.shape[0]:
            return torch.cat([t[:1], t])[1:]
    return t


def operands_of(rng: Rng, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """x, and mask, weights and residual now and then; values of several scales, not finite now and then."""
    x = torch.from_numpy(rng.normal(size=shape) * rng.choice([0.1, 1, 10]) + rng.choice([0, 1, -20]))
    if x.numel() and rng.random() < 0.08:
        x.view(-1)[rng.integers(x.numel())] = float(rng.choice([np.nan, np.inf]))
    found = {"input": laid_out(rng, x.to(dtype))}
    if kind == "accelerated":
        return found
    rest = tuple(n if rng.random() < 0.8 else 1 for n in (shape[0], *shape[2:]))
    if rng.random() < 0.3:
        found["mask"] = torch.from_numpy(rng.random(rest) < rng.choice([0.3, 0.9]))
    if rng.random() < 0.3:
        found["sample_weight"] = torch.from_numpy(rng.random(rest) * rng.choice([0.5, 3]) * (rng.random(rest) < 0.9))
        found["sample_weight"] = found["sample_weight"].to(torch.float64 if dtype is torch.float64 else torch.float32)
    if rng.random() < 0.4:
        found["residual"] = laid_out(rng, torch.from_numpy(rng.normal(size=shape)).to(dtype))
    return found


def right(layer: Any, operands: dict[str, Tensor], grad_y: Tensor) -> tuple[plain_layer.Call, dict[str, Tensor]]:
    """What a call should give, and the gradients of it."""
    own = {name: torch.as_tensor(p) for name, p in parameters(layer).items()}
    leaves = {
        name: t.detach().double().requires_grad_()
        for name, t in (operands | own).items()
        if name not in ("mask", "sample_weight")
    }
    rest = {
        name: t.expand(t.shape[0], *t.shape[1:]) for name, t in operands.items() if name in ("mask", "sample_weight")
    }
    known = plain_layer.known(layer)
    call = plain_layer.call(
        known, leaves["input"], leaves.get("weight"), leaves.get("bias"), residual=leaves.get("residual"), **rest
    )
    by = torch.autograd.grad((call.y * grad_y.double()).sum(), list(leaves.values()), allow_unused=True)
    return call, {
        name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in zip(leaves.items(), by, strict=True)
    }


def near(found: Any, expected: Tensor, tolerance: float, what: str) -> None:
    """Close, as rounding of the values that make it up allows."""
    a, b = torch.as_tensor(found).detach().double(), expected.detach().double()
    assert a.shape == b.shape, f"{what}: {tuple(a.shape)}, not {tuple(b.shape)}"
    finite = b[b.isfinite()]
    scale = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    torch.testing.assert_close(
        a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True, msg=lambda said: f"{what}: {said}"
    )


def bits(layer: Any) -> dict[str, Any]:
    """A layer's state to the bit."""
    return {name: (str(t.dtype), torch.as_tensor(t).detach().clone().contiguous().view(-1).view(torch.uint8).tolist()
                   if torch.as_tensor(t).numel() else []) for name, t in layer.state_dict().items()}  # fmt: skip


def by_torch(layer: Any, operands: dict[str, Tensor], grad_y: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """y and the gradients, of a module."""
    leaves = {name: t for name, t in operands.items() if name in ("input", "residual")}
    leaves = {name: t.detach().requires_grad_() for name, t in leaves.items()}
    y = layer(**(operands | leaves))
    assert (y.dtype, y.shape) == (operands["input"].dtype, operands["input"].shape)
    own = leaves | parameters(layer)
    by = torch.autograd.grad(y, list(own.values()), grad_y, allow_unused=True)
    for (name, t), g in zip(own.items(), by, strict=True):
        assert g is None or (g.dtype, g.shape) == (t.dtype, t.shape), name
    return y, {name: torch.zeros_like(t) if g is None else g for (name, t), g in zip(own.items(), by, strict=True)}


def by_numpy(layer: Any, operands: dict[str, Tensor], grad_y: Tensor) -> tuple[Any, dict[str, Any]]:
    """y and the gradients, of a layer on arrays."""
    given = {"x" if name == "input" else name: t.numpy() for name, t in operands.items()}
    with np.errstate(all="ignore"):
        y = layer(**given)
        by = layer.backward(grad_y.numpy())
    found = {"input": by.x, "weight": by.weight, "bias": by.bias, "residual": by.residual}
    return y, {name: g for name, g in found.items() if g is not None}


def one(seed: int) -> str:
    """Draw a layer and a sequence of calls; return its kind and what came of the last."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(KINDS))
    dtype = list(TOLERANCE)[rng.integers(2 if kind == "numpy" else 4)]
    channels = int(rng.choice([1, 2, 3, 5, 17]))
    layer, rank = made(rng, kind, channels, dtype)
    outcome, done = "none", []
    handle = bnt.accelerate() if kind == "accelerated" else None
    try:
        for _ in range(rng.integers(1, 5)):
            layer.train(bool(rng.random() < 0.75))
            axes = int(rng.choice(RANKS[rank]))
            least = 2 if kind == "accelerated" else 1 if kind == "numpy" else rng.choice([0, 1, 1, 2, 2])
            shape = (int(rng.integers(least, 8)), channels, *(int(n) for n in rng.integers(1, 6, axes - 2)))
            operands = operands_of(rng, kind, shape, dtype)
            done.append((layer.training, shape, sorted(operands)))
            outcome = step(rng, layer, by_numpy if kind == "numpy" else by_torch, operands, dtype)
    except BaseException as error:
        error.add_note(f"seed {seed}: {kind} {layer!r} {dtype}, calls {done}")
        raise
    finally:
        if handle is not None:
            handle.remove()
    return f"{kind} {outcome}"


def step(
    rng: Rng,
    layer: Any,
    run: Callable[..., tuple[Any, dict[str, Any]]],
    operands: dict[str, Tensor],
    dtype: torch.dtype,
) -> str:
    """One call, compared."""
    grad_y = laid_out(rng, torch.from_numpy(rng.normal(size=operands["input"].shape)).to(dtype))
    before = bits(layer)
    try:
        expected, gradients = right(layer, operands, grad_y)
    except Refused as refused:
        with suppress(ValueError, TypeError):
            run(layer, operands, grad_y)
            raise AssertionError(f"not refused: {refused}") from None
        if bits(layer) != before:
            raise AssertionError(f"a refusal ({refused}) changed the layer") from None
        return "refused"
    y, found = run(layer, operands, grad_y)
    narrow = {p.dtype for p in layer.parameters()} | {dtype} if isinstance(layer, torch.nn.Module) else {dtype}
    tolerance = max(TOLERANCE[t] for t in narrow)
    near(y, expected.y, tolerance, "y")
    state = plain_layer.known(layer).state
    assert state.keys() == expected.state.keys()
    for name, value in expected.state.items():
        near(state[name], value, max(tolerance, 1e-5), name)
    if torch.isfinite(expected.y).all():
        for name, g in found.items():
            near(g, gradients[name], tolerance * 10, f"gradient by {name}")
    return "right"


if __name__ == "__main__":
    drawing.run(one, "layers", __doc__)
