"""A refused call changes nothing: each refusal, in each module, with the state compared by bits."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm.torch.functional import RunningStatistics

C = 4
REST = {"1d": (5,), "2d": (3, 3), "3d": (2, 3, 3)}


def _x(rest=(5,), n=6, **options):
    return torch.arange(1.0, 1 + n * C * torch.Size(rest).numel(), **options).reshape(n, C, *rest).sin()


def _converted(**options):
    layer = bnt.convert(nn.BatchNorm1d(C), verbose=False)
    for name, value in options.items():
        setattr(layer, name, value)
    return layer


MODULES = {
    "1d": lambda **options: bnt.BatchNorm1d(C, **options),
    "2d": lambda **options: bnt.BatchNorm2d(C, **options),
    "3d": lambda **options: bnt.BatchNorm3d(C, **options),
    "converted": _converted,
    "synchronized": lambda **options: bnt.SyncBatchNorm(C, **options),
    "synchronized, reproducible": lambda **options: bnt.SyncBatchNorm(C, reproducible=True, **options),
}
EVERY_OPTION = [
    {},
    {"momentum": None},
    {"keep_count": True, "activation": "relu"},
    {"running_correction": 0},
    {"renorm": bn.Renorm()},
    {"update_running_stats": True},
    {"normalize_with": "running", "on_nonfinite": "skip"},
    {"on_nonfinite": "raise"},
]


def _mask(x, values=True):
    return torch.full(x.shape[:1], values)


REFUSED = {
    "integers": lambda layer, x: layer(x.long()),
    "integers with a mask": lambda layer, x: layer(x.long(), mask=_mask(x)),
    "complex": lambda layer, x: layer(x.to(torch.complex64)),
    "complex with a mask": lambda layer, x: layer(x.to(torch.complex64), mask=_mask(x)),
    "bool with weights": lambda layer, x: layer(x > 0, sample_weight=torch.ones(len(x))),
    "float8": lambda layer, x: layer(x.to(torch.float8_e4m3fn)),
    "sparse": lambda layer, x: layer(x.to_sparse()),
    "sparse with a mask": lambda layer, x: layer(x.to_sparse(), mask=_mask(x)),
    "meta": lambda layer, x: layer(x.to("meta")),
    "meta with a mask": lambda layer, x: layer(x.to("meta"), mask=_mask(x).to("meta")),
    "other channels": lambda layer, x: layer(x[:, 1:]),
    "other rank": lambda layer, x: layer(x.flatten()),
    "one value": lambda layer, x: layer(x[:1, ..., :1].reshape(1, C, -1)[..., :1].reshape(1, C, *[1] * (x.dim() - 2))),
    "vmap": lambda layer, x: torch.vmap(layer)(torch.stack([x, x])),
    "vmap with a mask": lambda layer, x: torch.vmap(lambda one: layer(one, mask=_mask(x)))(torch.stack([x, x])),
    "residual of another shape": lambda layer, x: layer(x, residual=torch.zeros(7, 3)),
    "residual elsewhere": lambda layer, x: layer(x, residual=torch.zeros(x.shape, device="meta")),
    "broadcast residual elsewhere": lambda layer, x: layer(x, residual=torch.zeros(C, device="meta")[:1]),
    "sparse residual": lambda layer, x: layer(x, residual=x.to_sparse()),
    "oneDNN residual": lambda layer, x: layer(x, residual=x[:1].to_mkldnn()),
    "a mask of another shape": lambda layer, x: layer(x, mask=torch.ones(7, dtype=torch.bool)),
    "a mask of numbers": lambda layer, x: layer(x, mask=torch.ones(len(x))),
    "a mask of nothing": lambda layer, x: layer(x, mask=_mask(x, False)),
    "weights of integers": lambda layer, x: layer(x, sample_weight=torch.ones(len(x), dtype=torch.int64)),
    "negative weights": lambda layer, x: layer(x, sample_weight=torch.full((len(x),), -1.0)),
    "weights that are NaN": lambda layer, x: layer(x, sample_weight=torch.full((len(x),), torch.nan)),
    "weights that need gradients": lambda layer, x: layer(x, sample_weight=torch.ones(len(x), requires_grad=True)),
    "no tensor": lambda layer, x: layer(3.0),
    "a residual that is no tensor": lambda layer, x: layer(x, residual="x"),
}
# What a layer is told to do before: it cannot be done.
BROKEN = {
    "weight (5,)": lambda layer: layer._parameters.update(weight=nn.Parameter(torch.ones(5))),
    "bias on meta": lambda layer: layer._parameters.update(bias=nn.Parameter(torch.ones(C, device="meta"))),
    "running_mean (5,)": lambda layer: layer._buffers.update(running_mean=torch.zeros(5)),
    "running_var None": lambda layer: layer._buffers.update(running_var=None),
    "a count of bool": lambda layer: layer._buffers.update(num_batches_tracked=torch.tensor(False)),
    "a mean that needs a gradient": lambda layer: layer.running_mean.requires_grad_(),
}


def _state(layer):
    return {
        name: t.detach().clone() for name, t in [*layer._parameters.items(), *layer._buffers.items()] if t is not None
    }


def _same(layer, before):
    after = _state(layer)
    return after.keys() == before.keys() and all(
        t.dtype == after[name].dtype and (t.is_meta or torch.equal(t, after[name])) for name, t in before.items()
    )


def _moved(layer, x):
    """A layer that has seen a batch, so that its state is not that of any other."""
    layer(x)
    return layer


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.ones((4, C), np.float32), r"input must be a tensor; got ndarray; use torch\.as_tensor\(input\)"),
        (None, "input must be a tensor; got NoneType"),
        ("nested", "input must be dense; got a nested tensor; use input.to_padded"),
    ],
    ids=["an array", "nothing", "nested"],
)
def test_what_has_no_shape_of_a_tensor_is_named(x, words):
    x = torch.nested.nested_tensor([torch.ones(2, C), torch.ones(3, C)]) if isinstance(x, str) else x
    with pytest.raises(TypeError, match=words):
        bnt.BatchNorm1d(C)(x)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("kind", MODULES)
def test_a_refused_call_changes_nothing(kind):
    x = _x(REST.get(kind, (5,)))
    for options in EVERY_OPTION:
        layer = _moved(MODULES[kind](**options), x)
        before = _state(layer)
        for name, call in REFUSED.items():
            with contextlib.suppress(AttributeError, RuntimeError, TypeError, ValueError):
                call(layer, x)
                pytest.fail(f"{options}, {name}: not refused")
            assert _same(layer, before), (options, name)


@pytest.mark.parametrize("kind", MODULES)
def test_a_layer_that_cannot_compute_is_as_it_was(kind):
    x = _x(REST.get(kind, (5,)))
    for name, spoil in BROKEN.items():
        for given in ({}, {"mask": _mask(x)}, {"residual": x}, {"residual": x[:1]}, {"residual": x.double()}):
            layer = _moved(MODULES[kind](), x)
            spoil(layer)
            before = _state(layer)
            with pytest.raises((ValueError, TypeError)):
                layer(x, **given)
            assert _same(layer, before), (name, list(given))


def test_a_fused_step_is_refused_before_its_layer_moves():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.BatchNorm1d(C)

        def forward(self, x, residual):
            return torch.relu(self.layer(x) + residual)

    fused, x = bnt.fuse(Block(), verbose=False), _x()
    fused(x, x)
    before = _state(fused.layer)
    for given in (torch.zeros(7, 3), torch.zeros(x.shape, device="meta"), x.to(torch.complex64)):
        with pytest.raises((ValueError, TypeError)):
            fused(x, given)
        assert _same(fused.layer, before), given.shape
    for wrong in (x.long(), x.to("meta"), x[:, 1:], x[:1, :, :1], x.to_sparse()):
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            fused(wrong, torch.zeros(wrong.shape))
        assert _same(fused.layer, before), wrong.dtype


def test_the_function_refuses_what_modules_refuse():
    x = _x()
    stats = RunningStatistics.initial(C)
    before = [t.clone() for t in stats]
    for wrong in (x.long(), x.to(torch.complex64), x.to_sparse(), x.to("meta"), x[:, 1:], x[:1, :, :1]):
        with pytest.raises((ValueError, TypeError)):
            bnt.functional.batch_norm(wrong, stats, training=True)
    with pytest.raises(TypeError, match=r"float32, .*got torch.int64; use input.float\(\)"):
        bnt.functional.batch_norm([x, x.long()], stats, training=True)
    assert all(map(torch.equal, stats, before))


def test_under_accelerate_torch_nn_changes_what_it_always_changes():
    """Its layer counts a call first; the function, ours or not, moves nothing that is refused."""
    x = _x()
    for wrong in (x.long(), x.to(torch.complex64), x.to_sparse(), x.to("meta"), x[:, 1:], x[:1, :, :1]):
        states = []
        for accelerated in (False, True):
            layer = nn.BatchNorm1d(C)
            on = bnt.accelerate() if accelerated else contextlib.nullcontext()
            with on, pytest.raises((ValueError, RuntimeError)):
                layer(wrong)
            states.append(_state(layer))
            assert torch.equal(layer.running_mean, torch.zeros(C)), wrong.dtype
        assert all(map(torch.equal, states[0].values(), states[1].values())), wrong.dtype
