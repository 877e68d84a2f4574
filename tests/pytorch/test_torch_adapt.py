"""`adapt`: evaluation by running statistics that count as so many positions, merged with the batch's moments."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from context_models import KINDS, bits_of, outcome_of, same, x_of
from torch import Tensor, nn

import batchnorm.torch as bnt

SERVED = [kind for kind in KINDS if "without" not in kind]


def _layer(kind: str) -> Any:
    """In evaluation, after a batch; float64 where nothing is said of it, so that exact formulas can be compared."""
    layer = KINDS[kind]().double()
    layer(x_of(1, 2.0).double())
    return layer.eval()


def _exact(layer: Any, x: Tensor, prior: float, mask: Tensor | None = None) -> Tensor:
    """The definition, of values one by one; autograd differentiates it."""
    v = x.movedim(1, 0).flatten(1) if mask is None else x.movedim(1, 0)[:, mask]
    n = v.shape[1]
    mean = (prior * layer.running_mean + v.sum(1)) / (prior + n)
    m2 = prior * (layer.running_var + (layer.running_mean - mean) ** 2) + ((v - mean[:, None]) ** 2).sum(1)
    shape = (1, -1, 1, 1)
    y = (x - mean.reshape(shape)) / (m2 / (prior + n) + layer.eps).sqrt().reshape(shape)
    y = y * layer.weight.reshape(shape) + layer.bias.reshape(shape)
    return y.relu() if getattr(layer, "activation", None) or "Activated" in type(layer).__name__ else y


def _gradients(layer: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return list(
        torch.autograd.grad((y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum(), wanted)
    )


@pytest.mark.parametrize("prior", [0.25, 40.0, 1e6])
@pytest.mark.parametrize("kind", SERVED)
def test_the_definition_and_its_gradients(kind, prior):
    layer = _layer(kind)
    layer.update_running_stats = None if "moves" in kind else getattr(layer, "update_running_stats", None)
    bits = bits_of(layer)
    x = x_of(3, -1.0).double().requires_grad_()
    expected = _exact(layer, x, prior)
    with bnt.adapt(layer, prior):
        y = layer(x)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        for found, exact in zip(_gradients(layer, x, y), _gradients(layer, x, expected), strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-10)
    assert bits_of(layer) == bits


@pytest.mark.parametrize("kind", KINDS)
def test_no_batch_and_nothing_but_the_batch(kind):
    """Infinity is evaluation to the bit; 0 is what the layer does in training, without an update."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), KINDS[kind]())
    model.to(model[1].weight.dtype)
    model(x_of(1, 2.0).to(model[0].weight.dtype))
    model.eval()
    expected = copy.deepcopy(model)
    bits = bits_of(model)
    with bnt.adapt(model, math.inf):
        assert same(outcome_of(model), outcome_of(expected))
    if "renorm" not in kind and "ghosts" not in kind and "running" not in kind:
        training = copy.deepcopy(model).train()
        with bnt.adapt(model, 0):
            assert same(outcome_of(model), outcome_of(training))
        with bnt.hold(training), bnt.adapt(training, 5.0):
            assert same(outcome_of(training), outcome_of(copy.deepcopy(training))), "training is by the batch"
    assert bits_of(model) == bits


@pytest.mark.parametrize("kind", ["torch.nn", "ours", "synchronized"])
def test_higher_derivatives(kind):
    layer = _layer(kind)
    if "ours" in kind:
        layer.activation = "silu"
    x = x_of(4).double()[:2, :, :2].clone().requires_grad_()
    with bnt.adapt(layer, 7.0):
        assert torch.autograd.gradgradcheck(lambda x, w: torch.func.functional_call(layer, {"weight": w}, (x,)),
                                            (x, layer.weight.detach().clone().requires_grad_()))  # fmt: skip


def test_masks_and_residuals():
    layer = _layer("ours")
    x, mask = x_of(3).double().requires_grad_(), torch.rand(5, 4, 2) > 0.4
    residual = torch.randn(5, 3, 4, 2, dtype=torch.float64)
    layer.activation = None
    expected = _exact(layer, x, 12.0, mask) + residual
    with bnt.adapt(layer, 12.0), bnt.masked(layer, mask):
        y = layer(x, residual=residual)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for found, exact in zip(_gradients(layer, x, y), _gradients(layer, x, expected), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-10)
    nothing = torch.zeros(5, 4, 2, dtype=torch.bool)
    with bnt.adapt(layer, 12.0), bnt.masked(layer, nothing):
        torch.testing.assert_close(layer(x), copy.deepcopy(layer)(x))
    with bnt.adapt(layer, 12.0):
        assert layer(x[:0]).shape == (0, 3, 4, 2)


def test_a_large_mean_and_halves():
    layer = bnt.BatchNorm2d(3).eval()
    layer.running_mean.fill_(1e4)
    x = torch.randn(8, 3, 4, 4) + 1e4 + 3
    with bnt.adapt(layer, 128):
        y = layer(x)
        torch.testing.assert_close(y.double(), _exact(layer.double(), x.double(), 128), rtol=1e-6, atol=3e-7)
    layer = bnt.BatchNorm2d(3).eval()
    x = torch.randn(8, 3, 4, 4)
    with bnt.adapt(layer, 128):
        for dtype in (torch.float16, torch.bfloat16):
            torch.testing.assert_close(layer(x.to(dtype)), layer(x).to(dtype), rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of a graph with a break
@pytest.mark.parametrize("kind", ["torch.nn", "of its own", "ours", "ours, renorm"])
def test_in_other_hands(kind):
    """Compiled, by torch.func, fused: the same function."""
    torch._dynamo.reset()
    layer = _layer(kind)
    layer.activation = None if "ours" in kind else getattr(layer, "activation", None)
    x = x_of(3).double()
    expected = _exact(layer, x, 20.0)
    fused = bnt.fuse(nn.Sequential(nn.Identity(), layer).eval(), verbose=False)
    with bnt.adapt(fused, 20.0):
        torch.testing.assert_close(fused(x), expected)
    with bnt.adapt(layer, 20.0):
        torch.testing.assert_close(torch.compile(layer, backend="eager")(x), expected)
        torch.testing.assert_close(torch.func.vmap(layer)(x[None])[0], expected)
    torch._dynamo.reset()


def test_what_is_refused():
    model = nn.Sequential(nn.BatchNorm2d(3), bnt.BatchNorm2d(3)).eval()
    for prior in (-1, math.nan, "all", None):
        with pytest.raises((TypeError, ValueError), match=r"adapt: prior.* is a number of positions"):
            bnt.adapt(model, prior)
    for layer in model:
        with bnt.adapt(model, 0), pytest.raises(ValueError, match=r"more than 1 value|one value"):
            layer(torch.ones(1, 3, 1, 1))
        with bnt.adapt(model, 1):
            assert bool(layer(torch.ones(1, 3, 1, 1)).isfinite().all())
        with (
            bnt.adapt(model, 1),
            pytest.raises((ValueError, RuntimeError), match=r"expected 3 channels|7 elements"),
        ):
            layer(torch.ones(2, 7, 1, 1))
