"""Layers: PyTorch's semantics (compared with torch.nn, which nobody here wrote), state, copies, modes, and backward."""

from __future__ import annotations

import copy
import itertools
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch
from canonical import same_bits

import batchnorm as bn
import batchnorm.torch as bnt

LAYERS = {
    "1d": (bn.BatchNorm1d, torch.nn.BatchNorm1d, (8, 5)),
    "1d of sequences": (bn.BatchNorm1d, torch.nn.BatchNorm1d, (4, 5, 7)),
    "2d": (bn.BatchNorm2d, torch.nn.BatchNorm2d, (3, 5, 4, 6)),
    "3d": (bn.BatchNorm3d, torch.nn.BatchNorm3d, (2, 5, 3, 4, 2)),
}
DTYPES = {"float32": 3e-6, "float64": 1e-12}  # how far results may be from PyTorch's, whose error is the larger
STATE = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def _pair(kind: str, dtype: str, **options) -> tuple[bn.BatchNorm, torch.nn.Module]:
    """Our layer and PyTorch's, with the same random parameters."""
    ours_class, theirs_class, shape = LAYERS[kind]
    ours = ours_class(shape[1], dtype=dtype, **options)
    theirs = theirs_class(shape[1], **options).to(getattr(torch, dtype))
    if ours.affine:
        rng = np.random.default_rng(3)
        for name in ("weight", "bias"):
            values = rng.standard_normal(shape[1]).astype(dtype)
            getattr(ours, name)[...] = values
            with torch.no_grad():
                getattr(theirs, name).copy_(torch.from_numpy(values))
    return ours, theirs


def _batches(kind: str, dtype: str, count: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    shape = LAYERS[kind][2]
    return [(rng.standard_normal(shape) * (i + 1) + i).astype(dtype) for i in range(count)]


def _assert_same_state(ours: bn.BatchNorm, theirs: torch.nn.Module, tolerance: float) -> None:
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert state[name].shape == tuple(tensor.shape), name
        assert state[name].dtype == tensor.numpy().dtype, name
        np.testing.assert_allclose(state[name], tensor.numpy(), rtol=tolerance, atol=tolerance, err_msg=name)


# --- forward and running statistics ---


@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, 0.0, None])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_training_and_evaluation_as_in_pytorch(kind, dtype, momentum):
    """Several steps of training, each followed by an evaluation with the running statistics so far."""
    tolerance = DTYPES[dtype]
    ours, theirs = _pair(kind, dtype, momentum=momentum)
    for step, x in enumerate(_batches(kind, dtype), 1):
        y, expected = ours(x), theirs(torch.from_numpy(x)).detach().numpy()
        assert y.dtype == expected.dtype
        np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
        _assert_same_state(ours, theirs, tolerance)
        assert int(ours.num_batches_tracked) == step
        ours.eval()
        theirs.eval()
        expected = theirs(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(ours(x), expected, rtol=tolerance, atol=tolerance)
        _assert_same_state(ours, theirs, tolerance)
        ours.train()
        theirs.train()


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_without_parameters_or_running_statistics(kind, affine, track):
    ours, theirs = _pair(kind, "float64", affine=affine, track_running_stats=track)
    assert [name for name in STATE if getattr(ours, name) is None] == [
        name for name in STATE if getattr(theirs, name) is None
    ]
    for x in _batches(kind, "float64", 2):
        np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).detach().numpy(), rtol=1e-12, atol=1e-12)
    ours.eval()
    theirs.eval()
    np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).detach().numpy(), rtol=1e-12, atol=1e-12)
    _assert_same_state(ours, theirs, 1e-12)


def test_eps_as_in_pytorch():
    ours, theirs = _pair("2d", "float64", eps=0.5)
    x = _batches("2d", "float64", 1)[0]
    np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).detach().numpy(), rtol=1e-12, atol=1e-12)


def test_a_fresh_layer_is_pytorchs():
    for kind, dtype in itertools.product(LAYERS, DTYPES):
        ours_class, theirs_class, shape = LAYERS[kind]
        ours, theirs = ours_class(shape[1], dtype=dtype), theirs_class(shape[1]).to(getattr(torch, dtype))
        _assert_same_state(ours, theirs, 0.0)
        assert ours.training
        assert (ours.eps, ours.momentum, ours.affine, ours.track_running_stats) == (1e-5, 0.1, True, True)


def test_running_correction_decides_between_biased_and_unbiased(rng):
    """1 divides by m - 1, as PyTorch does; 0 by m, as Keras, Flax and ONNX do."""
    x = rng.standard_normal((6, 3))
    for correction in (0, 1):
        layer = bn.BatchNorm1d(3, momentum=1.0, running_correction=correction, dtype=np.float64)
        layer(x)
        np.testing.assert_allclose(layer.running_var, x.var(axis=0, ddof=correction), rtol=1e-14)


def test_momentum_none_is_the_mean_over_all_batches(rng):
    layer = bn.BatchNorm1d(3, momentum=None, dtype=np.float64)
    batches = rng.standard_normal((4, 6, 3))
    for x in batches:
        layer(x)
    np.testing.assert_allclose(layer.running_mean, batches.mean(axis=(0, 1)), rtol=1e-13)
    np.testing.assert_allclose(layer.running_var, batches.var(axis=1, ddof=1).mean(axis=0), rtol=1e-13)


def test_evaluation_changes_nothing_and_follows_the_running_statistics(rng):
    layer = bn.BatchNorm1d(3, dtype=np.float64).eval()
    x = rng.standard_normal((6, 3))
    before = {name: value.tobytes() for name, value in layer.state_dict().items()}
    np.testing.assert_allclose(layer(x), x / np.sqrt(1 + 1e-5), rtol=1e-14)
    assert layer(x[:1]).shape == (1, 3), "one value per channel is fine in evaluation"
    assert layer(x[:0]).shape == (0, 3), "and so is an empty batch"
    assert {name: value.tobytes() for name, value in layer.state_dict().items()} == before


def test_modes():
    layer = bn.BatchNorm1d(3)
    assert layer.training
    assert layer.eval() is layer
    assert not layer.training
    assert layer.train() is layer
    assert layer.training
    assert not layer.train(False).training


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_data_with_float32_statistics(kind, rng):
    x = rng.standard_normal((8, 5, 6)).astype(kind)
    layer, wide = bn.BatchNorm1d(5), bn.BatchNorm1d(5)
    y, y_wide = layer(x), wide(x.astype(np.float32))
    assert y.dtype == kind
    assert same_bits(y, y_wide.astype(kind))
    for name, value in wide.state_dict().items():
        assert same_bits(layer.state_dict()[name], value)
        assert value.dtype == (np.int64 if name == "num_batches_tracked" else np.float32)


def test_layer_is_batch_norm_with_its_parameters(rng):
    """mask, weights, residual and activation go through, in forward and in backward."""
    x, residual, grad = rng.standard_normal((3, 9, 4, 5))
    mask, sample_weight = rng.random((9, 5)) < 0.7, rng.random((9, 5)) + 0.1
    layer = bn.BatchNorm1d(4, activation=("leaky_relu", 0.3), eps=1e-3, dtype=np.float64)
    layer.weight[...], layer.bias[...] = rng.standard_normal((2, 4))
    options = {"mask": mask, "sample_weight": sample_weight, "residual": residual}
    common = {"eps": 1e-3, "activation": ("leaky_relu", 0.3)}
    y, m = bn.batch_norm(x, layer.weight, layer.bias, **options, **common)
    assert same_bits(layer(x, mask, sample_weight, residual), y)
    np.testing.assert_allclose(layer.running_mean, 0.1 * m.mean, rtol=1e-14)
    np.testing.assert_allclose(layer.running_var, 0.9 + 0.1 * m.var(1), rtol=1e-14)
    expected = bn.batch_norm_backward(grad, x, m, layer.weight, layer.bias, **options, **common)
    for found, wanted in zip(layer.backward(grad), expected, strict=True):
        assert same_bits(found, wanted)


def test_masked_batch_gives_the_running_statistics_of_the_packed_batch(rng):
    x, mask = rng.standard_normal((9, 4)), np.arange(9) % 3 > 0
    masked, packed = (bn.BatchNorm1d(4, dtype=np.float64) for _ in range(2))
    y = masked(x, mask=mask)
    np.testing.assert_allclose(y[mask], packed(x[mask]), rtol=1e-12)
    for name in STATE:
        np.testing.assert_allclose(masked.state_dict()[name], packed.state_dict()[name], rtol=1e-13)


# --- shapes ---


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (bn.BatchNorm1d, (5, 3), 1),
        (bn.BatchNorm1d, (5, 3, 4), 1),
        (bn.BatchNorm1d, (5, 3, 1), 1),
        (bn.BatchNorm1d, (2, 3, 1), 1),
        (bn.BatchNorm1d, (5, 1, 3, 1), 2),
        (bn.BatchNorm1d, (5, 3, 1, 1), 1),
        (bn.BatchNorm2d, (5, 3, 2, 2), 1),
        (bn.BatchNorm2d, (5, 3, 1, 1), 1),
        (bn.BatchNorm3d, (5, 3, 2, 1, 2), 1),
    ],
    ids=str,
)
def test_which_axis_is_the_channels(layer, shape, axis, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    found = layer(3)
    y = found(x)
    assert same_bits(y, bn.batch_norm(x, axis=axis)[0])
    assert same_bits(found.backward(x).x, bn.batch_norm_backward(x, x, bn.moments(x, axis), axis=axis).x)


ONE_LEFT = {(5, 1, 5, 1): 2, (1, 1, 5, 1): 2, (5, 3, 1, 1): 1, (1, 3, 1, 1): 1, (5, 1, 1, 1): 1, (1, 1, 1, 1, 4): 4}
TWO_LEFT = {(5, 3, 7, 1): 1, (5, 3, 1, 7): 1, (1, 3, 1, 7): 1, (5, 1, 3, 7): None, (1, 1, 3, 4, 1): None}
THREE_LEFT = {(1, 7, 7, 7): None, (1, 3, 7, 7): None, (1, 5, 1, 3, 4, 1): None}


@pytest.mark.parametrize(("shape", "axis"), (ONE_LEFT | TWO_LEFT | THREE_LEFT).items(), ids=str)
def test_which_axis_of_four_or_more(shape, axis, rng):
    """The same in training and in evaluation, whatever the length of the first axis."""
    x = rng.standard_normal(shape).astype(np.float32)
    if axis is None:
        with pytest.raises(ValueError, match=r"BatchNorm1d: expected .*\(N, C, L\).* Use .*BatchNorm\(C, axis"):
            bn.BatchNorm1d(7)(x)
        return
    layer = bn.BatchNorm1d(shape[axis]).eval()
    known = bn.Moments.from_statistics(np.zeros(shape[axis]), np.ones(shape[axis]))
    assert same_bits(layer(x), bn.normalize(x, known, axis=axis))
    if x.size >= 2 * shape[axis]:
        assert same_bits(layer.train()(x), bn.batch_norm(x, axis=axis)[0])


SINGLE = {
    "one sample": ((1, 3), {}),
    "one sample in 4 axes": ((1, 1, 3, 1), {}),
    "a mask": ((4, 3), {"mask": np.arange(4) == 2}),
    "sample_weight": ((4, 3), {"sample_weight": (np.arange(4) == 1) * 0.5}),
}


@pytest.mark.parametrize("how", SINGLE)
@pytest.mark.parametrize("options", [{}, {"normalize_with": "running"}, {"renorm": bn.Renorm()}], ids=str)
def test_one_value_a_channel(how, options, rng):
    """As in the PyTorch layers: an error, or the running statistics, which then do not move."""
    shape, given = SINGLE[how]
    x = rng.standard_normal(shape).astype(np.float32)
    with pytest.raises(ValueError, match=r"one (counted )?value per channel"):
        bn.BatchNorm1d(3, **options)(x, **given)
    with pytest.raises(ValueError, match=r"one (counted )?value per channel"):
        bn.BatchNorm1d(3, on_single_value="running", track_running_stats=False)(x, **given)
    layer = bn.BatchNorm1d(3, on_single_value="running", **options)
    layer.running_mean[...], layer.running_var[...] = [0.5, -1.0, 2.0], [1.0, 2.0, 3.0]
    before, axis = layer.state_dict(), x.shape.index(3)
    y, known = layer(x, **given), layer.running.moments()
    assert same_bits(y, bn.normalize(x, known, axis=axis))
    assert all(same_bits(value, before[name]) for name, value in layer.state_dict().items())
    grad = rng.standard_normal(shape).astype(np.float32)
    expected = bn.batch_norm_backward(grad, x, known, axis=axis, training=False)
    assert same_bits(layer.backward(grad).x, expected.x)
    if x.ndim == 2:
        theirs = bnt.BatchNorm1d(3, on_single_value="running", **options)
        theirs.load_state_dict({name: torch.from_numpy(value) for name, value in before.items()})
        theirs = theirs(torch.from_numpy(x), **{name: torch.from_numpy(value) for name, value in given.items()})
        assert same_bits(y, theirs.detach().numpy())
    two = rng.standard_normal((2, 3)).astype(np.float32)
    layer(two)
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("features", "axis"), [(3, -1), (4, 0), ((4, 3), (0, 2)), ((3,), (2,)), ((5, 3), (-2, -1))], ids=str
)
def test_channels_on_any_axes(features, axis, rng):
    x = rng.standard_normal((4, 5, 3))
    layer = bn.BatchNorm(features, axis=axis, dtype=np.float64)
    assert same_bits(layer(x), bn.batch_norm(x, axis=axis)[0])
    kept = features if isinstance(features, tuple) else (features,)
    assert layer.running_mean.shape == layer.weight.shape == kept


# --- gradients ---


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_as_in_pytorch(kind, track, affine, training, rng):
    """In training, in evaluation, and in evaluation without running statistics, which uses the batch's."""
    ours, theirs = _pair(kind, "float64", affine=affine, track_running_stats=track)
    first, x = _batches(kind, "float64", 2)
    ours(first)
    theirs(torch.from_numpy(first))
    ours.train(training)
    theirs.train(training)
    grad = rng.standard_normal(x.shape)
    ours(x)
    found = ours.backward(grad)
    tensor = torch.from_numpy(x).requires_grad_()
    theirs(tensor).backward(torch.from_numpy(grad))
    np.testing.assert_allclose(found.x, tensor.grad.numpy(), rtol=1e-11, atol=1e-12)
    assert found.residual is None
    for name in ("weight", "bias"):
        if not affine:
            assert getattr(found, name) is None
            continue
        expected = getattr(theirs, name).grad.numpy()
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-11, atol=1e-12)


def test_gradients_of_float32_as_in_pytorch(rng):
    ours, theirs = _pair("2d", "float32")
    x = _batches("2d", "float32", 1)[0]
    grad = rng.standard_normal(x.shape).astype(np.float32)
    ours(x)
    found = ours.backward(grad)
    tensor = torch.from_numpy(x).requires_grad_()
    theirs(tensor).backward(torch.from_numpy(grad))
    assert found.x.dtype == found.weight.dtype == found.bias.dtype == np.float32
    np.testing.assert_allclose(found.x, tensor.grad.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.weight, theirs.weight.grad.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.bias, theirs.bias.grad.numpy(), rtol=1e-5, atol=1e-5)


def test_backward_is_of_the_last_forward_in_its_mode(rng):
    """Changing the mode between forward and backward changes nothing; the layer's parameters stay as they are."""
    x, grad = rng.standard_normal((2, 6, 3))
    layer = bn.BatchNorm1d(3, dtype=np.float64)
    layer(x * 2)
    layer(x)
    state = {name: value.tobytes() for name, value in layer.state_dict().items()}
    trained = layer.backward(grad)
    layer.eval()
    assert same_bits(layer.backward(grad).x, trained.x)
    assert {name: value.tobytes() for name, value in layer.state_dict().items()} == state
    layer(x)
    evaluated = layer.backward(grad)
    np.testing.assert_allclose(evaluated.x, grad / np.sqrt(layer.running_var + 1e-5), rtol=1e-13)


def test_evaluation_gradients_use_the_statistics_of_the_forward(rng):
    """A training step between an evaluation's forward and backward would be seen if backward read the buffers."""
    x, grad = rng.standard_normal((2, 6, 3))
    layer = bn.BatchNorm1d(3, dtype=np.float64).eval()
    layer(x)
    layer.running_var[...] = 100.0
    np.testing.assert_allclose(layer.backward(grad).x, grad / np.sqrt(1 + 1e-5), rtol=1e-13)


# --- state, copies, repr ---


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_state_dict_to_pytorch_and_back(dtype, track, affine):
    ours, theirs = _pair("2d", dtype, affine=affine, track_running_stats=track)
    for x in _batches("2d", dtype, 3):
        ours(x)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in ours.state_dict().items()})
    _assert_same_state(ours, theirs, 0.0)
    theirs(torch.from_numpy(_batches("2d", dtype, 1)[0]))
    fresh = _pair("2d", dtype, affine=affine, track_running_stats=track)[0]
    fresh.load_state_dict({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    _assert_same_state(fresh, theirs, 0.0)


def test_state_dict_is_a_copy_both_ways(rng):
    layer = bn.BatchNorm1d(3)
    state = layer.state_dict()
    for value in state.values():
        value[...] = 7
    assert layer.weight.tolist() == [1.0, 1.0, 1.0]
    assert int(layer.num_batches_tracked) == 0
    layer.load_state_dict(state)
    state["weight"][...] = 0.0
    assert layer.weight.tolist() == [7.0, 7.0, 7.0]
    assert int(layer.num_batches_tracked) == 7


def test_state_dict_names_shapes_and_types():
    state = bn.BatchNorm3d(4).state_dict()
    assert list(state) == STATE
    assert [value.shape for value in state.values()] == [(4,)] * 4 + [()]
    assert [str(value.dtype) for value in state.values()] == ["float32"] * 4 + ["int64"]


def test_load_state_dict_keeps_the_layers_own_types():
    layer = bn.BatchNorm1d(3)
    layer.load_state_dict(bn.BatchNorm1d(3, dtype=np.float64).state_dict())
    assert {value.dtype.name for value in layer.state_dict().values()} == {"float32", "int64"}


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {n}": lambda layer, n=n: pickle.loads(pickle.dumps(layer, n))
        for n in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("how", COPIES)
def test_copies(how, rng):
    """A copy has the same state, options and mode, and a life of its own."""
    layer = bn.BatchNorm(
        (4, 3), axis=(0, 2), eps=1e-3, momentum=None, running_correction=0, activation="silu", dtype="f8"
    )
    x = rng.standard_normal((4, 50, 3))
    layer(x)
    layer.weight[...] = rng.standard_normal((4, 3))
    layer.eval()
    twin = COPIES[how](layer)
    assert type(twin) is type(layer)
    assert repr(twin) == repr(layer)
    assert not twin.training
    assert same_bits(twin(x), layer(x))
    before = {name: value.tobytes() for name, value in layer.state_dict().items()}
    twin.train()
    y = twin(x + 1)
    twin.weight += 1
    assert {name: value.tobytes() for name, value in layer.state_dict().items()} == before
    assert same_bits(layer.train()(x + 1), y)


def test_pickle_holds_no_batch(rng):
    """What backward remembers is not part of a layer's state."""
    layer = bn.BatchNorm1d(3)
    layer(rng.standard_normal((10_000, 3)).astype(np.float32))
    assert len(pickle.dumps(layer)) < 10_000


@pytest.mark.parametrize("layer", [bn.BatchNorm, bn.BatchNorm1d, bn.BatchNorm2d, bn.BatchNorm3d])
def test_repr_states_the_update_rule(layer):
    text = repr(layer(64, momentum=0.1))
    assert text.startswith(f"{layer.__name__}(64")
    for said in ("eps=1e-05", "momentum=0.1", "0.9 * running", "0.1 *", "m/(m-1)"):
        assert said in text, text
    assert "m/(m-1)" not in repr(layer(64, running_correction=0))
    assert "all batches" in repr(layer(64, momentum=None))
    assert "0.1 *" not in repr(layer(64, momentum=None))
    assert "no running statistics" in repr(layer(64, track_running_stats=False))
    assert "silu" in repr(layer(64, activation="silu"))


def test_names_stand_for_ranks():
    for kind in (bn.BatchNorm1d, bn.BatchNorm2d, bn.BatchNorm3d):
        assert issubclass(kind, bn.BatchNorm)
        with pytest.raises(ValueError, match="the channels are on axis 1; got axis=2"):
            kind(3, axis=2)


class Plain(torch.Tensor):
    """A tensor that our kernels do not take."""


GHOSTS_OF_ONE = {  # shape of x, size of a ghost, mask, which samples are in ghosts of one value
    "the last": ((101, 3), 10, None, [100]),
    "all": ((4, 3), 1, None, [0, 1, 2, 3]),
    "one place": ((7, 3, 1, 1), 3, None, [6]),
    "a mask": ((9, 3, 2), 2, np.arange(18).reshape(9, 2) % 17 != 0, [8]),
    "masks between": ((8, 3), 2, np.arange(8) % 4 != 1, [0, 1, 4, 5]),
    "weights": ((8, 3), 4, np.array([1.0, 2, 3, 4, 0, 0, 0.5, 0]), [4, 5, 6, 7]),
}


@pytest.mark.parametrize("case", GHOSTS_OF_ONE)
@pytest.mark.parametrize(
    "options", [{}, {"renorm": bn.Renorm(start=0, r_end=1, d_end=1), "activation": "relu"}], ids=str
)
def test_a_ghost_of_one_value(case, options, rng):
    """It is as in evaluation, and adds nothing; the others are as they would be without it. In both front ends."""
    shape, size, which, alone = GHOSTS_OF_ONE[case]
    x, grad, residual = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    given = {} if which is None else {"mask" if which.dtype == bool else "sample_weight": which}
    options = options | {"virtual_batch_size": size, "on_single_value": "running", "keep_count": True}
    layer = bn.BatchNorm(3, **options)
    layer(rng.standard_normal((20, 3)).astype(np.float32) * 2 + 1)
    layer.weight[...], layer.bias[...] = [1.5, -2.0, 0.5], [0.25, 0.0, -1.0]
    others, evaluated = copy.deepcopy(layer), copy.deepcopy(layer).eval()
    before = layer.state_dict()
    y, gradients = layer(x, residual=residual, **given), layer.backward(grad)
    rest = np.setdiff1d(np.arange(len(x)), alone)
    cut = {name: value[rest] for name, value in given.items()}
    if rest.size:
        assert same_bits(y[rest], others(x[rest], residual=residual[rest], **cut))
        of_others = others.backward(grad[rest])
        assert same_bits(gradients.x[rest], of_others.x)
        assert same_bits(gradients.residual[rest], of_others.residual)
    assert same_bits(y[alone], evaluated(x[alone], residual=residual[alone]))
    of_evaluated = evaluated.backward(grad[alone])
    assert same_bits(gradients.x[alone], of_evaluated.x)
    both = of_evaluated.weight + (of_others.weight if rest.size else 0)
    np.testing.assert_allclose(gradients.weight, both, rtol=1e-5, atol=1e-5)
    after = layer.state_dict()
    assert all(same_bits(value, after[name]) for name, value in others.state_dict().items())
    assert layer.num_batches_tracked == before["num_batches_tracked"] + bool(rest.size)
    theirs = {2: bnt.BatchNorm1d, 3: bnt.BatchNorm1d, 4: bnt.BatchNorm2d}[x.ndim](3, **options)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in before.items()})
    at, of_residual = (torch.from_numpy(t).requires_grad_() for t in (x, residual))
    selection = {name: torch.from_numpy(value) for name, value in given.items()}
    out = theirs(at, residual=of_residual, **selection)
    assert same_bits(out.detach().numpy(), y)
    assert all(same_bits(value.numpy(), after[name]) for name, value in theirs.state_dict().items())
    out.backward(torch.from_numpy(grad))
    assert np.array_equal(at.grad.numpy(), gradients.x)
    assert np.array_equal(of_residual.grad.numpy(), gradients.residual)
    np.testing.assert_allclose(theirs.weight.grad, gradients.weight, rtol=1e-5, atol=1e-5)
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in before.items()})
    plain = torch.from_numpy(x).as_subclass(Plain)  # whose operations are PyTorch's, as on other devices
    np.testing.assert_allclose(theirs(plain, residual=of_residual, **selection).detach(), y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(theirs.running_var, after["running_var"], rtol=1e-5)
    assert theirs.num_batches_tracked == after["num_batches_tracked"]


def test_a_ghost_of_one_value_is_refused_without_running_statistics(rng):
    x = rng.standard_normal((5, 3)).astype(np.float32)
    for options in ({}, {"on_single_value": "running", "track_running_stats": False}):
        for kind in (bn.BatchNorm1d, bnt.BatchNorm1d):
            layer = kind(3, virtual_batch_size=4, **options)
            with pytest.raises(ValueError, match=r"ghost 1 of 2 .*has 1, so its variance"):
                layer(x if kind is bn.BatchNorm1d else torch.from_numpy(x))
