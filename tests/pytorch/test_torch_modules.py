"""Our modules: torch.nn's by default, and what they add, against the formulas in float64."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import batchnorm as bn
import batchnorm.torch as bnt

PAIRS = [(bnt.BatchNorm1d, torch.nn.BatchNorm1d), (bnt.BatchNorm2d, torch.nn.BatchNorm2d)]
PAIRS += [(bnt.BatchNorm3d, torch.nn.BatchNorm3d)]
ACTIVATIONS = {
    None: lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    ("leaky_relu", 0.3): lambda z: F.leaky_relu(z, 0.3),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "hardswish": F.hardswish,
    ("elu", 0.5): lambda z: F.elu(z, 0.5),
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
C = 5


def _randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _exact(x, layer, sample_weight=None, residual=None):
    """The formulas in float64, written out: y of the layer in training, and the batch's mean and biased variance."""
    v = x.double()
    over = [0, *range(2, x.dim())]
    w = torch.ones_like(v) if sample_weight is None else sample_weight.double().expand_as(v)
    counted = torch.where(w > 0, v, 0.0)
    count = w.sum(over, keepdim=True)
    mean = (w * counted).sum(over, keepdim=True) / count
    var = (w * torch.where(w > 0, v - mean, 0.0) ** 2).sum(over, keepdim=True) / count
    z = (v - mean) / (var + layer.eps).sqrt()
    shape = [1, -1, *[1] * (x.dim() - 2)]
    if layer.affine:
        z = z * layer.weight.double().reshape(shape) + layer.bias.double().reshape(shape)
    if residual is not None:
        z = z + residual.double()
    return ACTIVATIONS[layer.activation](z), mean.flatten(), var.flatten(), count.flatten()


def _spread(layer):
    """Weights and biases that are not all alike."""
    if layer.affine:
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2, layer.num_features))
            layer.bias.copy_(torch.linspace(-1, 1, layer.num_features))
    return layer


# --- what torch.nn's layers are ---


@pytest.mark.parametrize(("ours", "stock"), PAIRS)
def test_a_layer_is_torch_nns_with_keyword_arguments_more(ours, stock):
    assert issubclass(ours, stock)
    a, b = ours(4, 1e-3, 0.2, False, True), stock(4, 1e-3, 0.2, False, True)
    assert repr(a) == repr(b)
    assert list(ours(4).state_dict()) == list(stock(4).state_dict())
    stock(4).load_state_dict(ours(4).state_dict())
    ours(4).load_state_dict(stock(4).state_dict())
    assert ours(4, dtype=torch.float64).weight.dtype == torch.float64
    assert "activation='relu'" in repr(ours(4, activation="relu"))


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize(("affine", "track"), list(itertools.product([True, False], repeat=2)))
def test_running_statistics_move_as_torch_nns(momentum, affine, track):
    ours, stock = (cls(C, momentum=momentum, affine=affine, track_running_stats=track) for cls in PAIRS[1])
    for step in range(3):
        x = _randn(4, C, 6, 5, seed=step) * 2 + 1
        torch.testing.assert_close(ours(x), stock(x), rtol=1e-5, atol=2e-6)
    for a, b in zip(ours.state_dict().values(), stock.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.eval()(x), stock.eval()(x), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("training", [True, False])
def test_a_flag_switched_off_later_is_obeyed(training):
    """track_running_stats=False on a layer that has buffers: training leaves them alone, evaluation uses them."""
    layer = bnt.BatchNorm1d(C).train(training)
    layer.track_running_stats = False
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    y = layer(_randn(8, C) + 3)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert (y.mean() > 1) == (not training)


# --- activation, residual, mask and weights, in one pass ---


def _selections(x):
    N, rest = x.shape[0], x.shape[2:]
    g = torch.Generator().manual_seed(5)
    mask = torch.rand(N, *rest, generator=g) < 0.7
    mask.view(-1)[:2] = True
    sample_weight = torch.rand(N, *rest, generator=g) + 0.1
    return {
        "all": {},
        "mask": {"mask": mask},
        "sample_weight": {"sample_weight": sample_weight},
        "both": {"mask": mask.unsqueeze(1), "sample_weight": sample_weight.unsqueeze(1)},
    }


def _together(selection, x):
    found = None
    for given in selection.values():
        w = given if given.dim() == x.dim() else given.unsqueeze(1)
        found = w.double() if found is None else found * w.double()
    return found


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "strided"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("selection", ["all", "mask", "sample_weight", "both"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_fused_is_what_the_formulas_say(activation, selection, with_residual, layout):
    """y, all gradients and the running statistics, against autograd of the formulas in float64."""
    layer = _spread(bnt.BatchNorm2d(C, activation=activation))
    x, r = _randn(6, C, 4, 7) * 2 + 1, _randn(6, C, 4, 7, seed=1) if with_residual else None
    if layout == "channels-last":
        x, r = (None if t is None else t.contiguous(memory_format=torch.channels_last) for t in (x, r))
    if layout == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    selected = _selections(x)[selection]
    leaves = [t.detach().requires_grad_() for t in (x, r) if t is not None]
    y = layer(leaves[0], **selected, residual=leaves[1] if with_residual else None)
    g = _randn(*x.shape, seed=2)
    ours = torch.autograd.grad(y, [*leaves, layer.weight, layer.bias], g)
    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    double = bnt.BatchNorm2d(C, activation=activation).double()
    double.load_state_dict(bnt.BatchNorm2d(C).state_dict() | dict(layer.named_parameters()))
    expected, mean, var, count = _exact(
        exact_leaves[0], double, _together(selected, x), exact_leaves[1] if with_residual else None
    )
    exact = torch.autograd.grad(expected, [*exact_leaves, double.weight, double.bias], g.double())
    assert y.stride() == (x if layout != "strided" else x.contiguous()).stride()
    assert (y.double() - expected).abs().max() <= 2.5e-7 * (4 + expected.abs().max())
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == torch.float32
        assert (a.double() - b).abs().max() <= 2e-6 * b.abs().max()
    torch.testing.assert_close(layer.running_mean, (0.1 * mean).float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(layer.running_var, (0.9 + 0.1 * var * count / (count - 1)).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_16_bit_data_is_computed_in_float32_and_rounded_once(dtype, activation):
    layer = _spread(bnt.BatchNorm1d(C, activation=activation))
    x, r = _randn(30, C, 4, dtype=dtype), _randn(30, C, 4, seed=1, dtype=dtype)
    y = layer(x.requires_grad_(), residual=r)
    assert y.dtype == dtype
    expected = _exact(x, layer, residual=r)[0]
    assert ((y.double() - expected).abs() <= (0.51 * torch.finfo(dtype).eps + 3e-7) * expected.abs().clamp(min=1)).all()
    y.backward(torch.ones_like(y))
    assert x.grad.dtype == dtype
    assert layer.weight.grad.dtype == torch.float32


def test_evaluation_is_fused_too():
    layer = _spread(bnt.BatchNorm2d(C, activation="relu6"))
    layer(_randn(8, C, 5, 5) + 2)
    layer.eval()
    x, r = _randn(3, C, 5, 5, seed=3).requires_grad_(), _randn(3, C, 5, 5, seed=4).requires_grad_()
    y = layer(x, mask=torch.zeros(3, 5, 5, dtype=torch.bool), residual=r)  # in evaluation a mask changes nothing
    plain = F.relu6(F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias) + r)
    torch.testing.assert_close(y, plain, rtol=1e-5, atol=2e-6)
    for a, b in zip(*(torch.autograd.grad(t.square().sum(), [x, r, layer.weight]) for t in (y, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_one_channel_takes_a_mask():
    x, mask = _randn(6, 1, 5), _randn(6, 5, seed=1) < 0.5
    layer = bnt.BatchNorm1d(1)
    torch.testing.assert_close(
        layer(x, mask=mask).double(), _exact(x, layer, mask.unsqueeze(1))[0], rtol=1e-6, atol=1e-6
    )


def test_a_mask_is_packing_and_weights_of_0_and_1_are_a_mask():
    x = _randn(4, C, 9)
    mask = torch.arange(9) < torch.tensor([[9], [4], [6], [2]])
    layers = [bnt.BatchNorm1d(C) for _ in range(3)]
    masked = layers[0](x, mask=mask)
    weighted = layers[1](x, sample_weight=mask.float())
    packed = layers[2](x.transpose(1, 2)[mask])
    assert torch.equal(masked, weighted)
    torch.testing.assert_close(masked.transpose(1, 2)[mask], packed, rtol=1e-6, atol=1e-6)
    assert torch.equal(layers[0].running_var, layers[1].running_var)
    torch.testing.assert_close(layers[0].running_var, layers[2].running_var, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(1, C, 1, 1), (6, C, 1, 7)], ids=["broadcast", "row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_residual_of_another_shape_or_dtype_is_added_as_pytorch_adds(shape, dtype):
    layer, x, r = bnt.BatchNorm2d(C, activation="relu"), _randn(6, C, 4, 7), _randn(*shape, seed=1, dtype=dtype)
    y = layer(x, residual=r)
    expected = F.relu(bnt.BatchNorm2d(C)(x) + r)
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    torch.testing.assert_close(y, expected)


SAVED = [
    (False, "relu", torch.float32, "x"),
    (True, None, torch.float32, "x"),
    (True, "relu", torch.float32, "xy"),
    (True, "relu6", torch.float64, "xr"),  # y may be written to, as after PyTorch's own
    (True, "leaky_relu", torch.float32, "xr"),
    (True, "silu", torch.float32, "xr"),
    (True, "relu", torch.float16, "xr"),  # what is small is rounded to 0
]


@pytest.mark.parametrize(("with_residual", "activation", "dtype", "expected"), SAVED, ids=str)
def test_what_is_saved_for_backward(with_residual, activation, dtype, expected):
    """x and a few values a channel; with a residual y, where it tells the activation's derivative."""
    layer = bnt.BatchNorm2d(C, activation=activation)
    x = _randn(8, C, 16, 16, dtype=dtype).requires_grad_()
    r = _randn(8, C, 16, 16, dtype=dtype).requires_grad_() if with_residual else None
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x, residual=r)
    large = {t.data_ptr() for t in saved if t.numel() > 10 * C}
    assert large == {{"x": x, "r": r, "y": y}[name].data_ptr() for name in expected}
    assert sum(t.numel() * t.element_size() for t in saved if t.numel() <= 10 * C) <= 64 * C


def test_writing_to_what_is_saved_is_noticed():
    """As PyTorch's own ReLU notices it of what it returned. The residual may be used again."""
    layer, x, r, g = bnt.BatchNorm1d(C, activation="relu"), *(_randn(8, C, seed=i) for i in range(3))
    x.requires_grad_()
    (expected,) = torch.autograd.grad(layer(x, residual=r), x, g)
    y = layer(x, residual=r)
    r.add_(1)
    assert torch.equal(torch.autograd.grad(y, x, g, retain_graph=True)[0], expected)
    y.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(g)


CORNERS = [0.0, -0.0, 6.0, torch.nan, torch.inf, -torch.inf, 1e-42, -1e-42]  # and their neighbors
VIEWS = {
    "contiguous": lambda t: t,
    "channels-last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "small planes": lambda t: t[:, :, 0].reshape(-1, 35, 1, 7),
}


def _at_the_corners(dtype):
    """x, residual and gradient: where x is 0, a channel of mean 0 and bias 0 has r before the activation."""
    x, r, g = (_randn(9, 35, 8, 7, seed=i, dtype=dtype) for i in range(3))
    corners = torch.tensor(CORNERS, dtype=dtype)
    corners = torch.cat([corners, *(torch.nextafter(corners, torch.full_like(corners, to)) for to in (9.0, -9.0))])
    x[2:4] = 0
    r[2] = corners.repeat(100)[: r[2].numel()].reshape(r[2].shape)
    g[0, 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 0.0, 1.0, -1.0], dtype=dtype)
    return x, r, g


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("activation", ["relu", "relu6", ("leaky_relu", 0.3)], ids=str)
def test_gradients_told_by_y_have_the_bits_of_those_told_by_the_residual(activation, training, dtype):
    """Against `batch_norm_backward`, which is given the residual; every instruction set, any layout."""
    layer = bnt.BatchNorm2d(35, activation=activation, dtype=dtype).train(training)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 2, 35))
    parameters = [layer.weight.detach().numpy(), layer.bias.detach().numpy()]
    running = bn.Moments.from_statistics(layer.running_mean.numpy().copy(), layer.running_var.numpy().copy())
    for isa, name in itertools.product(bn._native.available_isas(), VIEWS):
        bn._native.force_isa(isa)
        x, r, g = (VIEWS[name](t) for t in _at_the_corners(dtype))
        m = bn.moments(x.numpy()) if training else running
        options = {"residual": r.numpy(), "activation": activation, "training": training}
        expected = bn.batch_norm_backward(g.numpy(), x.numpy(), m, *parameters, **options)
        leaves = [x.requires_grad_(), layer.weight, layer.bias, r.requires_grad_()]
        found = torch.autograd.grad(layer(x, residual=r), leaves, g)
        for field, a, e in zip(expected._fields, found, expected, strict=True):
            assert a.numpy().tobytes() == e.tobytes(), (isa, name, field)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.channels_last_3d], ids=str)
def test_memory_formats_are_kept(memory_format):
    shape = (2, 4, 3, 5) if memory_format is torch.channels_last else (2, 4, 3, 5, 2)
    layer = (bnt.BatchNorm2d if len(shape) == 4 else bnt.BatchNorm3d)(4)
    x = _randn(*shape).contiguous(memory_format=memory_format).requires_grad_()
    y = layer(x)
    y.backward(torch.ones_like(y))
    assert y.is_contiguous(memory_format=memory_format)
    assert x.grad.is_contiguous(memory_format=memory_format)
    assert layer.eval()(x).is_contiguous(memory_format=memory_format)
    sequence = _randn(3, 7, 4).transpose(1, 2)  # (N, L, C) seen as (N, C, L): no copy, and the same strides
    assert bnt.BatchNorm1d(4)(sequence).stride() == sequence.stride()


# --- single values, values that are not finite, corrections ---


def _state(layer):
    return {k: v.clone() for k, v in layer.state_dict().items()}


def _unchanged(layer, before):
    return all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


ONE = [((1, C), {}), ((1, C, 1), {}), ((3, C), {"mask": torch.tensor([False, True, False])})]


@pytest.mark.parametrize(("shape", "selection"), ONE, ids=["(1, C)", "(1, C, 1)", "mask"])
def test_one_value_is_refused_or_normalized_with_running_statistics(shape, selection):
    x = _randn(*shape) + 2
    layer = bnt.BatchNorm1d(C)
    before = _state(layer)
    with pytest.raises(ValueError, match=r"one (counted )?value per channel"):
        layer(x, **selection)
    assert _unchanged(layer, before)
    lenient = bnt.BatchNorm1d(C, on_single_value="running")
    torch.testing.assert_close(lenient(x, **selection), lenient.eval()(x))
    assert _unchanged(lenient, before)
    lenient.train()(_randn(4, C))
    assert lenient.num_batches_tracked == 1
    with pytest.raises(ValueError, match="track_running_stats=True"):
        bnt.BatchNorm1d(C, on_single_value="running", track_running_stats=False)(x, **selection)


def test_evaluation_without_running_statistics_hears_of_them_and_not_of_training():
    for layer in (bnt.BatchNorm1d(C, track_running_stats=False), bn.BatchNorm1d(C, track_running_stats=False)):
        layer.eval()
        x = torch.zeros(1, C) if isinstance(layer, torch.nn.Module) else np.zeros((1, C), np.float32)
        with pytest.raises(ValueError, match=r"one value per channel \(input \(1, 5\)") as error:
            layer(x)
        assert re.search("track_running_stats=True|running statistics, in evaluation", str(error.value))
        assert "in training" not in str(error.value)
    with pytest.raises(ValueError, match="one counted value per channel, so its variance is 0"):
        bnt.BatchNorm1d(C, track_running_stats=False).eval()(torch.zeros(3, C), mask=torch.arange(3) == 1)


def test_the_message_about_one_value_says_the_rule_what_came_and_the_fix():
    with pytest.raises(ValueError) as error:  # noqa: PT011
        bnt.BatchNorm1d(5)(torch.zeros(1, 5))
    assert str(error.value) == (
        "BatchNorm1d: one value per channel (input (1, 5), channels on axis 1), so its variance is 0 and "
        "the output would be the bias alone. Use a batch of at least 2, drop the last incomplete batch, or "
        "on_single_value='running'"
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("plain", [False, True], ids=["kernels", "plain"])
def test_values_that_are_not_finite(bad, plain):
    x = _randn(6, C, 4)
    x[2, 1, 3] = bad

    def run(layer):
        if plain:  # PyTorch's own operations, as on other devices: a transform is active
            return torch.func.vmap(lambda _: layer(x).detach(), randomness="same")(torch.zeros(1))
        return layer(x)

    layer = bnt.BatchNorm1d(C)
    run(layer)
    assert layer.running_var.isnan().tolist() == [c == 1 for c in range(C)], "as PyTorch: the channel is poisoned"
    skipping = bnt.BatchNorm1d(C, on_nonfinite="skip")
    before = _state(skipping)
    run(skipping)
    assert _unchanged(skipping, before)
    if not plain:  # a decision on data cannot be made inside vmap
        raising = bnt.BatchNorm1d(C, on_nonfinite="raise")
        with pytest.raises(ValueError, match=r"has mean (nan|-?inf) and variance nan; .*on_nonfinite='raise'"):
            raising(x)
        assert _unchanged(raising, before)
    for layer in (skipping, bnt.BatchNorm1d(C, on_nonfinite="raise")):
        layer(_randn(4, C))
        assert layer.num_batches_tracked == 1


def test_running_correction_0_keeps_the_biased_variance():
    """As Keras, Flax and ONNX do: the NumPy layers' own test compares with the same rule."""
    layer, x = bnt.BatchNorm1d(C, running_correction=0), _randn(7, C)
    layer(x)
    torch.testing.assert_close(layer.running_var, (0.9 + 0.1 * x.double().var(0, correction=0)).float())
    numpy = bn.BatchNorm1d(C, running_correction=0)
    numpy(x.numpy())
    assert torch.equal(layer.running_var, torch.from_numpy(numpy.running_var))


def test_an_empty_batch_is_not_counted():
    layer = bnt.BatchNorm2d(C)
    before = _state(layer)
    y = layer(torch.zeros(0, C, 4, 4, requires_grad=True))
    assert y.shape == (0, C, 4, 4)
    y.sum().backward()
    assert _unchanged(layer, before)


def test_weights_too_small_for_bessels_correction_are_refused():
    layer = bnt.BatchNorm1d(C)
    before = _state(layer)
    with pytest.raises(ValueError, match=r"running_correction=0"):
        layer(_randn(4, C), sample_weight=torch.full((4,), 0.1))
    assert _unchanged(layer, before)
    bnt.BatchNorm1d(C, running_correction=0)(_randn(4, C), sample_weight=torch.full((4,), 0.1))


REFUSED = {
    "rank": (lambda: bnt.BatchNorm2d(C)(torch.zeros(2, C)), ValueError, "expected 4D input"),
    "channels": (lambda: bnt.BatchNorm1d(C)(torch.zeros(2, C + 1)), ValueError, r"5 channels.*\(2, 6\)"),
    "mask dtype": (lambda: _call(mask=torch.ones(4)), TypeError, "mask must be bool"),
    "mask shape": (lambda: _call(mask=torch.ones(3, dtype=torch.bool)), ValueError, r"shape \(4,\).*got shape \(3,\)"),
    "mask of channels": (lambda: _call(mask=torch.ones(4, C, dtype=torch.bool)), ValueError, "all channels alike"),
    "integer weights": (lambda: _call(sample_weight=torch.ones(4, dtype=torch.int64)), TypeError, "floating point"),
    "negative weights": (lambda: _call(sample_weight=torch.tensor([1.0, 2, -1, 1])), ValueError, "non-negative.*-1"),
    "NaN weights": (lambda: _call(sample_weight=torch.tensor([1.0, 2, float("nan"), 1])), ValueError, "finite"),
    "weights with gradients": (lambda: _call(sample_weight=torch.ones(4, requires_grad=True)), ValueError, "detach"),
    "empty mask": (lambda: _call(mask=torch.zeros(4, dtype=torch.bool)), ValueError, "select nothing"),
}


def _call(**selection):
    layer = bnt.BatchNorm1d(C)
    before = _state(layer)
    try:
        layer(_randn(4, C), **selection)
    finally:
        assert _unchanged(layer, before), "nothing is changed by a call that fails"


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_state_the_rule_and_what_came(name):
    call, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        call()


class Plain(torch.Tensor):
    """A tensor that our kernels do not take: PyTorch's own operations compute, as on other devices."""


PLAIN = {
    "negative weights": ({"sample_weight": torch.tensor([1.0, 2, -1, 1])}, {}, "finite and non-negative; got -1"),
    "NaN weights": ({"sample_weight": torch.tensor([1.0, 2, torch.nan, 1])}, {}, "finite and non-negative; got nan"),
    "infinite weights": ({"sample_weight": torch.tensor([1.0, 2, torch.inf, 1])}, {}, "finite and .*; got inf"),
    "a mask of nothing": ({"mask": torch.zeros(4, dtype=torch.bool)}, {}, "select nothing"),
    "a mask of one": ({"mask": torch.arange(4) == 2}, {}, "one counted value"),
    "a ghost of one": (
        {"mask": torch.arange(4) != 2}, {"virtual_batch_size": 2}, r"ghost 1 of 2 with virtual_batch_size=2 has 1,",
    ),
    "small weights": ({"sample_weight": torch.full((4,), 0.1)}, {}, "more than 1; got a sum of 0.4.*_correction=0"),
    "small counts": (
        {"sample_weight": torch.full((4,), 0.2)}, {"running_correction": 0, "keep_count": True},
        "running_count .*more than 1",
    ),
    "frozen": ({"sample_weight": -torch.ones(4)}, {"normalize_with": "running"}, "finite and non-negative"),
    "another device": ({"mask": torch.ones(4, device="meta") > 0}, {}, "input's device, cpu; got one on meta"),
}  # fmt: skip


@pytest.mark.parametrize("plain", [False, True], ids=["kernels", "plain"])
@pytest.mark.parametrize("name", PLAIN)
def test_selections_are_refused_whoever_computes(name, plain):
    selection, options, words = PLAIN[name]
    layer = bnt.BatchNorm1d(C, **options)
    x, before = _randn(4, C), _state(layer)
    with pytest.raises(ValueError, match=words):
        layer(x.as_subclass(Plain) if plain else x, **selection)
    assert _unchanged(layer, before)


@pytest.mark.parametrize("options", [{}, {"running_correction": 0}, {"activation": "relu"}], ids=str)
def test_an_empty_batch_gives_no_warning_whoever_computes(options):
    layer = bnt.BatchNorm1d(C, **options)
    before = _state(layer)
    assert layer(torch.zeros(0, C, 3).as_subclass(Plain)).shape == (0, C, 3)
    assert layer(torch.zeros(0, C, 3)).shape == (0, C, 3)
    assert _unchanged(layer, before)


OPERANDS = {
    "residual": ({"residual": torch.zeros(4, C + 1)}, "x's shape and dtype"),
    "weight": ({"weight": torch.ones(C - 1)}, f"x has {C} channels"),
    "running statistics": ({"mean": torch.ones(C)}, "go together|value for each"),
    "sample_weight": ({"sample_weight": torch.ones(4, C)}, "with one channel"),
    "integers": ({"x": torch.ones(4, C, dtype=torch.int64)}, "strided, on the CPU"),
    "negative weights": ({"sample_weight": torch.tensor([[1.0], [2], [-1], [1]])}, "finite and non-negative; got -1"),
    "NaN weights": ({"sample_weight": torch.tensor([[1.0, -9], [2, 0], [torch.nan, 0], [1, 1]])[:, :1]}, "got -?nan"),
    "infinite weights": ({"sample_weight": torch.tensor([1.0, 2, 1, torch.inf]).double()[:, None].flip(0)}, "got inf"),
    "a mask of nothing": ({"sample_weight": torch.zeros(4, 1, dtype=torch.bool)}, "select nothing"),
    "a mask of one": ({"sample_weight": torch.arange(4)[:, None] == 2}, "one counted value"),
}


@pytest.mark.parametrize("name", OPERANDS)
def test_our_operations_refuse_what_would_lead_out_of_memory(name):
    """They can be called without the modules in front of them, too."""
    given, words = OPERANDS[name]
    a = {"x": _randn(4, C), "weight": None, "mean": None, "sample_weight": None, "residual": None} | given
    with pytest.raises(ValueError, match=words):
        torch.ops.batchnorm.forward(
            a["x"], a["weight"], None, a["mean"], None, a["sample_weight"], a["residual"], 1e-5, 0, 0.0
        )


ACTS = len(bn._native.activations())
TOLD = {
    "16 bits": (torch.float16, 1, 0.0, {}, "relu in float16; pass the residual"),
    "silu": (torch.float32, 4, 0.0, {}, "does not tell the derivative of silu"),
    "slope 0": (torch.float32, 3, 0.0, {}, "leaky_relu of this slope in float32"),
    "no activation": (torch.float32, ACTS, 0.0, {}, f"activation must be a code from 0 to {ACTS - 1}; got {ACTS}"),
    "both": (torch.float32, 1, 0.0, {"residual": torch.zeros(4, C)}, "not both"),
    "shape": (torch.float32, 1, 0.0, {"y": torch.zeros(4, C + 1)}, "x's shape and dtype"),
}


@pytest.mark.parametrize("name", TOLD)
def test_our_backward_refuses_a_y_that_does_not_tell(name):
    dtype, activation, slope, given, words = TOLD[name]
    x, stats = torch.zeros(4, C, dtype=dtype), torch.ones(4, C, dtype=torch.float64)
    given = {"residual": None, "y": x} | given
    options = (None, None, None, given["residual"], 1e-5, activation, slope, True, 0, given["y"])
    with pytest.raises(ValueError, match=words):
        torch.ops.batchnorm.backward(x, x, stats, *options)


# --- one answer ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_in_every_layout_for_any_number_of_threads_and_as_numpy(dtype):
    """Fused, masked, with a residual: forward, gradients and running statistics."""
    x, r = _randn(9, 35, 8, 6, dtype=dtype) + 2, _randn(9, 35, 8, 6, seed=1, dtype=dtype)
    mask = _randn(9, 8, 6, seed=2) < 0.8
    formats = [torch.contiguous_format, torch.channels_last]
    threads, results = torch.get_num_threads(), []
    for n, memory_format in itertools.product((1, 2, 3), formats):
        layer = _spread(bnt.BatchNorm2d(35, activation="silu"))
        leaves = [t.contiguous(memory_format=memory_format).requires_grad_() for t in (x, r)]
        torch.set_num_threads(n)
        try:
            y = layer(leaves[0], mask=mask, residual=leaves[1])
            grads = torch.autograd.grad(y, [*leaves, layer.weight, layer.bias], r)
        finally:
            torch.set_num_threads(threads)
        results.append([y, *grads, layer.running_mean, layer.running_var])
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, results[0], strict=True))
    if dtype is torch.float32:
        numpy = bn.BatchNorm2d(35, activation="silu")
        x, r = x.detach(), r.detach()
        numpy.weight[:], numpy.bias[:] = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        y = numpy(x.numpy(), mask=mask.numpy(), residual=r.numpy())
        assert torch.equal(torch.from_numpy(y), results[0][0])
        assert torch.equal(torch.from_numpy(numpy.backward(r.numpy()).x), results[0][1])
        assert torch.equal(torch.from_numpy(numpy.running_var), results[0][-1])
