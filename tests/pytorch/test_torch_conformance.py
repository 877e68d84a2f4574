"""PyTorch's own conformance suites, run against our kernels and our modules: not written for this library."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import batchnorm.torch as bnt
from batchnorm._options import checked_activation

# Where the two running statistics stand among the arguments after x, by the names of PyTorch's samples.
PARAMETERS_AFTER = {
    "nn.functional.batch_norm": 0,
    "native_batch_norm": 2,
    "_native_batch_norm_legit": 2,
    "_batch_norm_with_update": 2,
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYERS = {"BatchNorm1d": bnt.BatchNorm1d, "BatchNorm2d": bnt.BatchNorm2d, "BatchNorm3d": bnt.BatchNorm3d}


@functools.cache
def _samples_of_pytorch():
    """Its operations by name, and its modules; imported where they are needed, which takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's test helpers themselves
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.common_modules import module_db
    ops = {op.name: op for op in op_db if "batch_norm" in op.name and op.variant_test_name == ""}
    assert ops.keys() == PARAMETERS_AFTER.keys()
    return ops, module_db


@pytest.fixture
def accelerated():
    with bnt.accelerate():
        served = sum(bnt.status().served.values())
        yield
        assert sum(bnt.status().served.values()) > served, "none of these calls reached our kernels"


def _call(op, sample):
    """Results, as a tuple, and all tensors that were given, as they are after the call."""
    results = op(sample.input, *sample.args, **sample.kwargs)
    given = [a for a in (sample.input, *sample.args, *sample.kwargs.values()) if isinstance(a, torch.Tensor)]
    return results if isinstance(results, tuple) else (results,), given


def _as(sample, dtype=None):
    """A copy of the sample (running statistics are written to), in another dtype."""
    return sample.transform(lambda t: t.detach().clone().to(dtype or t.dtype) if isinstance(t, torch.Tensor) else t)


def _samples(op, dtype):
    torch.manual_seed(0)
    found = [s for s in op.sample_inputs("cpu", dtype, requires_grad=False) if s.input.dim() > 1]
    assert len(found) >= 4
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PARAMETERS_AFTER)
def test_every_sample_agrees_with_pytorch_and_with_float64(name, dtype):
    """Results and what was given: dtype, shape and strides are PyTorch's, values as near to float64.

    What rounding to the dtype and sums in it may cost is allowed on top: two ulps of the largest value.
    In float64 nothing is better to compare with than PyTorch's own (our oracle is in test_accuracy.py): a few ulps.
    """
    op, ulp = _samples_of_pytorch()[0][name], torch.finfo(dtype).eps
    for sample in _samples(op, dtype):
        exact = [t for group in _call(op, _as(sample, torch.float64)) for t in group]
        stock = [t for group in _call(op, _as(sample)) for t in group]
        with bnt.accelerate():
            ours = [t for group in _call(op, _as(sample)) for t in group]
        for a, b, c in zip(ours, stock, exact, strict=True):
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
            size = c.abs().amax() if c.numel() else 0
            allowed = 4 * ulp * size if dtype is torch.float64 else (b.double() - c).abs() + 2 * ulp * size
            assert ((a.double() - c).abs() <= allowed)[~c.isnan()].all()
            assert torch.equal(a.isnan(), b.isnan())


def _checked(op, sample, check, **options):
    """gradcheck of the first result by the floating tensors that are not running statistics, which stay as they are."""
    positions = [i for i, a in enumerate(sample.args) if isinstance(a, torch.Tensor)]
    parameters = [i for i in positions if i not in (PARAMETERS_AFTER[op.name], PARAMETERS_AFTER[op.name] + 1)]

    def call(x, *given):
        again = _as(sample)
        args = [given[parameters.index(i)] if i in parameters else a for i, a in enumerate(again.args)]
        result = op.op(x, *args, **again.kwargs)
        return result[0] if isinstance(result, tuple) else result

    by = [sample.input, *[sample.args[i] for i in parameters]]
    return check(call, [t.detach().clone().requires_grad_() for t in by], **options)


@pytest.mark.slow
@pytest.mark.usefixtures("accelerated")
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)  # PyTorch's own, in forward mode
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=["first", "second"])
@pytest.mark.parametrize("name", PARAMETERS_AFTER)
def test_gradients_of_every_sample(name, check):
    op = _samples_of_pytorch()[0][name]
    forward_ad = {"check_forward_ad": True} if check is gradcheck and op.supports_forward_ad else {}
    checked = 0
    for sample in _samples(op, torch.float64):
        if 0 < sample.input.numel() <= 150:
            assert _checked(op, sample, check, **forward_ad)
            checked += 1
    assert checked >= 4


def _module_inputs(name, dtype, training):
    info = next(i for i in _samples_of_pytorch()[1] if i.module_cls is getattr(torch.nn, name))
    torch.manual_seed(0)
    return info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=training)


def _build(layer, given, dtype, training):
    arguments = given.constructor_input
    return layer(*arguments.args, **arguments.kwargs).to(dtype).train(training)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", LAYERS)
def test_module_inputs_give_what_torch_nn_gives(name, training, dtype):
    for given in _module_inputs(name, dtype, training):
        ours, stock = (_build(cls, given, dtype, training) for cls in (LAYERS[name], getattr(torch.nn, name)))
        assert list(ours.state_dict()) == list(stock.state_dict())
        inputs = given.forward_input
        torch.testing.assert_close(
            ours(*inputs.args, **inputs.kwargs), stock(*inputs.args, **inputs.kwargs), rtol=1e-5, atol=2e-6
        )
        state = stock.state_dict()
        if inputs.args[0].numel() == 0:
            state["num_batches_tracked"].zero_()  # an empty batch is not counted: it adds nothing to the statistics
        for a, b in zip(ours.state_dict().values(), state.values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=["first", "second"])
def test_gradients_of_our_modules(name, training, check):
    for given in _module_inputs(name, torch.float64, training):
        layer = _build(LAYERS[name], given, torch.float64, training)
        x = given.forward_input.args[0].detach().requires_grad_()
        if x.numel() <= 200:
            assert check(layer, [x])


OPTIONS = [
    {},
    {"activation": "silu"},
    {"activation": ("leaky_relu", 0.2), "residual": True},
    {"activation": "relu", "residual": True, "mask": True},
    {"sample_weight": True, "activation": "relu6"},
    {"training": False, "activation": "silu", "residual": True},
]


def _operation_arguments(shape, dtype=torch.float64, **options):
    """Arguments of `batchnorm::forward`, and grad_y; inputs that differentiate."""

    g = torch.Generator().manual_seed(1)
    C = shape[1]
    x, residual, grad_y = (torch.randn(shape, generator=g, dtype=dtype) for _ in range(3))
    weight, bias = (torch.randn(C, generator=g, dtype=dtype) + 1.5 for _ in range(2))
    mean, var = torch.randn(C, generator=g, dtype=dtype), torch.rand(C, generator=g, dtype=dtype) + 0.5
    sample_weight = None
    if "mask" in options:
        sample_weight = torch.rand(shape[0], 1, *shape[2:], generator=g) < 0.7
    if "sample_weight" in options:
        sample_weight = torch.rand(shape[0], 1, *shape[2:], generator=g, dtype=dtype)
    activation = checked_activation(options.get("activation"), "test")
    given = (None, None) if options.get("training", True) else (mean, var)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    r = residual.requires_grad_() if "residual" in options else None
    return (*leaves, *given, sample_weight, r, 1e-5, *activation), grad_y


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_opcheck_of_our_operations(options):
    """Schema, autograd registration, fake tensors and AOT dispatch, as PyTorch checks custom operations."""
    arguments, grad_y = _operation_arguments((3, 4, 5), **options)
    torch.library.opcheck(torch.ops.batchnorm.forward, arguments)
    x, weight, bias, mean, _, sample_weight, residual, *rest = arguments
    y, stats = torch.ops.batchnorm.forward(*arguments)
    backward = (grad_y, x, stats, weight, bias, sample_weight, residual, *rest, mean is None)
    torch.library.opcheck(torch.ops.batchnorm.backward, backward)
    if "mask" in options:  # and with y in place of the residual
        torch.library.opcheck(torch.ops.batchnorm.backward, (*backward[:6], None, *backward[7:], 0, y.detach()))
    update = (torch.zeros(4), torch.ones(4), torch.tensor(0), stats.detach(), 0.1, 0, 0)
    torch.library.opcheck(torch.ops.batchnorm.update_, update)
    if mean is None:  # statistics of a batch: those of evaluation count as one position
        counting = (*update, torch.full((4,), torch.inf, dtype=torch.float64))
        torch.library.opcheck(torch.ops.batchnorm.update_, counting)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_first_and_second_derivatives_of_our_operations(options):
    arguments, _ = _operation_arguments((4, 2, 3), **options)

    def y(x, weight, bias, residual):
        return torch.ops.batchnorm.forward(x, weight, bias, *arguments[3:6], residual, *arguments[7:])[0]

    by = (*arguments[:3], arguments[6])
    assert gradcheck(y, by)
    assert gradgradcheck(y, by, atol=1e-4)
