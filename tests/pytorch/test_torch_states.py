"""What `torch.nn.BatchNorm*` trains from and computes, ours do: states, options and inputs, with torch.nn's results.

A cell is a layer as someone left it, and an input. Where torch.nn computes, our layer, a converted one, a synchronized
one and torch.nn's own under `accelerate` give its y, gradients and buffers. Where it raises, ours raise and change
nothing, or (operands of several dtypes) compute what it computes in float64.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

import batchnorm.torch as bnt

C = 4
TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _randn(*shape, dtype=torch.float32, seed=1):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values * 2 + 1).to(dtype)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small calls, many of them: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- how someone left a layer ---


def _all(*changes):
    def change(layer):
        for one in changes:
            one(layer)

    return change


def _set(name, made):
    """Set a tensor of the layer to what is made of it; a parameter stays one."""

    def change(layer):
        old = getattr(layer, name)
        new = made(old.detach()) if callable(made) else made
        setattr(layer, name, nn.Parameter(new) if isinstance(old, nn.Parameter) and new is not None else new)

    return change


def _set_both(names, made):
    return _all(*(_set(name, made) for name in names))


def _spaced(t):
    return torch.stack([t, t + 100], 1)[:, 0]


def _as_attribute(name):
    def change(layer):
        tensor = getattr(layer, name)
        delattr(layer, name)
        layer.__dict__[name] = tensor

    return change


def _as_parameter(layer):
    del layer.num_batches_tracked
    layer.num_batches_tracked = nn.Parameter(torch.tensor(0), requires_grad=False)


class _Twice(nn.Module):
    def forward(self, t):
        return t * 2


def _of_inference(layer):
    with torch.inference_mode():
        for name, buffer in layer._buffers.items():
            layer._buffers[name] = buffer.clone()


class _Named(torch.Tensor):
    """A subclass that means what a tensor means."""


STATS, PARAMETERS = ("running_mean", "running_var"), ("weight", "bias")
STATES = {
    "as built": _all(),
    "count None": _set("num_batches_tracked", None),
    **{
        f"count {str(dtype).removeprefix('torch.')}": _set("num_batches_tracked", lambda t, dtype=dtype: t.to(dtype))
        for dtype in (*REAL, torch.int32, torch.int16, torch.uint8, torch.bool, torch.complex64)
    },
    "count (1,)": _set("num_batches_tracked", lambda t: t.reshape(1)),
    "count (4,)": _set("num_batches_tracked", lambda t: t.repeat(4)),
    "count on meta": _set("num_batches_tracked", lambda t: t.to("meta")),
    "count 7": _set("num_batches_tracked", lambda t: t + 7),
    "count a parameter": _as_parameter,
    "statistics None": _set_both(STATS, None),
    "statistics and count None": _set_both((*STATS, "num_batches_tracked"), None),
    "mean None": _set("running_mean", None),
    "variance None": _set("running_var", None),
    "weight None": _set("weight", None),
    "bias None": _set("bias", None),
    "weight spaced": _set("weight", _spaced),
    "weight of a subclass": _set("weight", lambda t: t.as_subclass(_Named)),
    "weight frozen": lambda layer: layer.weight is None or layer.weight.requires_grad_(False),
    "weight on meta": _set("weight", lambda t: t.to("meta")),
    "all on meta": lambda layer: layer.to("meta"),
    "no longer tracked": lambda layer: setattr(layer, "track_running_stats", False),
    "buffers of inference mode": _of_inference,
}
for _name in (*STATS, "num_batches_tracked"):
    STATES[f"{_name} an attribute"] = _as_attribute(_name)
for _name in TENSORS:
    STATES[f"{_name} parametrized as itself"] = lambda layer, name=_name: register_parametrization(
        layer, name, nn.Identity(), unsafe=True
    )
    STATES[f"{_name} parametrized"] = lambda layer, name=_name: register_parametrization(
        layer, name, _Twice(), unsafe=True
    )
for _name in STATS:
    STATES[f"{_name} spaced"] = _set(_name, _spaced)
    STATES[f"{_name} that needs a gradient"] = _set(_name, lambda t: t.clone().requires_grad_())
    STATES[f"{_name} of a subclass"] = _set(_name, lambda t: t.as_subclass(_Named))
    STATES[f"{_name} (1, 4)"] = _set(_name, lambda t: t[None])
    STATES[f"{_name} (5,)"] = _set(_name, lambda t: torch.zeros(5))
    STATES[f"{_name} integers"] = _set(_name, lambda t: t.long())
    STATES[f"{_name} on meta"] = _set(_name, lambda t: t.to("meta"))
for _dtype in REAL:
    _said = str(_dtype).removeprefix("torch.")
    STATES[f"statistics {_said}"] = _set_both(STATS, lambda t, dtype=_dtype: t.to(dtype))
    STATES[f"variance {_said}"] = _set("running_var", lambda t, dtype=_dtype: t.to(dtype))
    STATES[f"parameters {_said}"] = _set_both(PARAMETERS, lambda t, dtype=_dtype: t.to(dtype))
    STATES[f"weight {_said}"] = _set("weight", lambda t, dtype=_dtype: t.to(dtype))
    STATES[f"layer {_said}"] = lambda layer, dtype=_dtype: layer.to(dtype)
    STATES[f"layer type {_said}"] = lambda layer, dtype=_dtype: layer.type(dtype)  # its count, too

# PyTorch 2.13 reads these as if they had no strides (running statistics in evaluation, a weight in the backward).
MISREAD = {"weight spaced", "running_mean spaced", "running_var spaced"}

OPTIONS = {
    "default": {},
    "momentum None": {"momentum": None},
    "momentum 0": {"momentum": 0},
    "momentum 1": {"momentum": 1},
    "momentum 0.5": {"momentum": 0.5},
    "momentum a tensor": {"momentum": torch.tensor(0.25)},
    "not affine": {"affine": False},
    "not tracked": {"track_running_stats": False},
    "eps 1": {"eps": 1},
}


# --- inputs ---


def _inference():
    with torch.inference_mode():
        return _randn(6, C)


INPUTS = {
    **{
        str(dtype).removeprefix("torch."): lambda dtype=dtype: _randn(6, C, dtype=dtype)
        for dtype in (*REAL, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)
    },
    "transposed": lambda: _randn(C, 6).t(),
    "expanded over channels": lambda: _randn(6, 1).expand(6, C),
    "expanded over samples": lambda: _randn(1, C).expand(6, C),
    "sliced": lambda: _randn(12, 2 * C)[::2, ::2],
    "(N, C, L)": lambda: _randn(3, C, 5),
    "(N, C, L), channels last": lambda: _randn(3, 5, C).transpose(1, 2),
    "(N, C, L), needs a gradient": lambda: _randn(3, C, 5).requires_grad_(),
    "(N, C, 0)": lambda: _randn(3, C, 0),
    "(C)": lambda: _randn(C),
    "()": lambda: _randn(),
    "(N, C, H, W) for 1d": lambda: _randn(2, C, 3, 3),
    "other channels": lambda: _randn(6, 5),
    "one value": lambda: _randn(1, C),
    "a parameter": lambda: nn.Parameter(_randn(6, C)),
    "a parameter, float64": lambda: nn.Parameter(_randn(6, C, dtype=torch.float64)),
    "a subclass": lambda: _randn(6, C).as_subclass(_Named).requires_grad_(),
    "an imaginary part": lambda: torch.complex(_randn(6, C), _randn(6, C)).conj().imag,
    "no memory but zeros": lambda: torch._efficientzerotensor((6, C)),
    "of inference mode": _inference,
    "sparse": lambda: _randn(6, C).to_sparse(),
    "sparse rows": lambda: _randn(6, C).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([_randn(6, C), _randn(5, C)]),
    "on meta": lambda: _randn(6, C).to("meta"),
}
IMAGES = {
    "contiguous": lambda: _randn(2, C, 3, 3).requires_grad_(),
    "channels last": lambda: _randn(2, C, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_(),
    "oneDNN": lambda: _randn(2, C, 3, 3).to_mkldnn(),
    "oneDNN, needs a gradient": lambda: _randn(2, C, 3, 3).to_mkldnn().requires_grad_(),
    "bfloat16": lambda: _randn(2, C, 3, 3, dtype=torch.bfloat16).requires_grad_(),
    "(C, H, W)": lambda: _randn(C, 3, 3),
}
VOLUMES = {
    "contiguous": lambda: _randn(2, C, 2, 3, 3).requires_grad_(),
    "channels last": lambda: _randn(2, C, 2, 3, 3).contiguous(memory_format=torch.channels_last_3d).requires_grad_(),
    "(N, C, H, W)": lambda: _randn(2, C, 3, 3),
}


@contextlib.contextmanager
def _autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


CONTEXTS = {
    "": contextlib.nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode, "autocast": _autocast,
}  # fmt: skip


# --- what comes of it ---


def _plain(t):
    """A copy to compare; what is no tensor, or has no values, as it is."""
    if not isinstance(t, torch.Tensor) or t.device.type == "meta":
        return t
    t = t.detach()
    return (t if t.layout is torch.strided else t.to_dense()).clone()


def _state(layer):
    return {name: _plain(getattr(layer, name, None)) for name in TENSORS}


def _results(layer, make, context):
    """Results of two steps by name, or the exception."""
    found, x = {}, make()
    try:
        with context():
            for step in range(2):
                y = layer(x)
                found[f"y{step}"] = _plain(y)
                if y.requires_grad:
                    g = _randn(*y.shape, seed=5).to(y.dtype)
                    y.backward(g if y.layout is torch.strided else g.to_mkldnn())
    except Exception as error:
        return error
    found["gradient by x"] = _plain(x.grad)
    for name in PARAMETERS:
        p = getattr(layer, name)
        found[f"gradient by {name}"] = _plain(p.grad) if isinstance(p, nn.Parameter) else None
    return found | _state(layer)


def _difference(stock, found, dtypes=True):
    """The first result that is another, in words; nothing where all agree."""
    for name, a in stock.items():
        b = found[name]
        if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
            if a is not b:
                return f"{name}: {b!r:.80}, where torch.nn has {a!r:.80}"
            continue
        if a.shape != b.shape or a.device != b.device or (dtypes and a.dtype != b.dtype):
            return f"{name}: {b.dtype} {tuple(b.shape)}, where torch.nn has {a.dtype} {tuple(a.shape)}"
        coarse = {torch.float16, torch.bfloat16} & {t.dtype for t in stock.values() if isinstance(t, torch.Tensor)}
        coarse |= {torch.float16, torch.bfloat16} & {t.dtype for t in found.values() if isinstance(t, torch.Tensor)}
        tolerance = 5e-2 if coarse else 3e-5
        wide = torch.complex128
        if a.device.type != "meta" and not torch.allclose(a.to(wide), b.to(wide), tolerance, tolerance, equal_nan=True):
            return f"{name}: {b.flatten()[:4]}, where torch.nn has {a.flatten()[:4]}"
    return ""


def _same(before, after):
    return all(t is after[name] or t.device.type == "meta" or torch.equal(t, after[name]) for name, t in before.items())


def _layer(kind, change, options, training, way=lambda layer: layer):
    layer = kind(C, **options)
    if layer.affine:
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2, C)), layer.bias.copy_(torch.linspace(-1, 1, C))
    layer = way(layer)
    change(layer)
    return layer.train(training)


WAYS = {
    "ours": (lambda kind: getattr(bnt, kind.__name__), lambda layer: layer),
    "converted": (lambda kind: kind, lambda layer: bnt.convert(layer, verbose=False)),
    "accelerated": (lambda kind: kind, lambda layer: layer),
    "synchronized": (lambda kind: kind, lambda layer: bnt.convert_sync(layer, reproducible=True, verbose=False)),
}


def _in_float64(kind, change, options, training, make, context):
    """What torch.nn computes of these very values in float64; nothing where it does not."""

    def wide(t):
        return t.detach().double() if t.is_floating_point() else t.clone()

    def x():
        given = make()
        return (
            (given if given.layout is torch.strided else given.to_dense())
            .detach()
            .double()
            .requires_grad_(given.requires_grad)
        )

    layer = _layer(kind, change, options, training)
    for held in (layer._buffers, layer.__dict__):
        held.update({name: wide(t) for name, t in held.items() if isinstance(t, torch.Tensor)})
    return _results(layer.double(), x, context)


def _wrong(kind, make, state="as built", option="default", context="", training=True, ways=tuple(WAYS)):
    """What is wrong in a cell, a line for each way."""
    change, options = STATES[state], OPTIONS[option]
    try:
        stock_layer = _layer(kind, change, options, training)
    except (AttributeError, TypeError, ValueError):
        return []  # there is no such state with these options
    if state in MISREAD:
        stock_layer = _layer(kind, STATES["as built"], options, training)
    stock, wrong = _results(stock_layer, make, CONTEXTS[context]), []
    cell = f"{kind.__name__}, {state}, {option}, {context}, {'training' if training else 'evaluation'}"
    for way in ways:
        of, by = WAYS[way]
        layer = _layer(of(kind), change, options, training, by)
        before = _state(layer)
        with bnt.accelerate() if way == "accelerated" else contextlib.nullcontext():
            found = _results(layer, make, CONTEXTS[context])
        if isinstance(stock, Exception) and isinstance(found, Exception):
            if way != "accelerated" and not _same(before, _state(layer)):
                wrong.append(f"{cell}, {way}: changed by a call that was refused: {found}")
            continue
        if isinstance(stock, ZeroDivisionError):
            continue  # torch.nn's, of a count that is made anew each time
        expected = stock
        if isinstance(stock, Exception):
            expected = _in_float64(kind, change, options, training, make, CONTEXTS[context])
        if isinstance(found, Exception) or isinstance(expected, Exception):
            said = [repr(r)[:200] if isinstance(r, Exception) else "results" for r in (found, expected)]
            wrong.append(f"{cell}, {way}: {said[0]}, where torch.nn has {said[1]}")
        elif difference := _difference(expected, found, dtypes=expected is stock):
            wrong.append(f"{cell}, {way}: {difference}")
    return wrong


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of what is in beta
@pytest.mark.parametrize("option", ["default", "momentum None", "not affine", "not tracked"])
def test_whatever_state_a_layer_was_left_in(option):
    wrong = []
    for state in STATES:
        for training in (True, False) if option == "default" else (True,):
            make = INPUTS["(N, C, L), needs a gradient"]
            ways = tuple(WAYS) if option == "default" else ("ours",)
            wrong += _wrong(nn.BatchNorm1d, make, state, option, training=training, ways=ways)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_dtypes_beside_each_other(dtype):
    wrong = []
    for state in ("as built", *(state for state in STATES if "float" in state)):
        for training in (True, False):
            ways = ("ours", "accelerated")
            wrong += _wrong(nn.BatchNorm1d, INPUTS[dtype], state, training=training, ways=ways)
    assert not wrong, "\n".join(wrong)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("context", CONTEXTS)
def test_whatever_comes_in(context):
    wrong = []
    for kind, inputs in ((nn.BatchNorm1d, INPUTS), (nn.BatchNorm2d, IMAGES), (nn.BatchNorm3d, VOLUMES)):
        for name, make in inputs.items():
            if name == "(N, C, 0)":
                continue  # an empty batch is not counted by ours
            for training in (True, False):
                found = _wrong(kind, make, context=context, training=training, ways=("ours", "accelerated"))
                wrong += [f"{name}: {line}" for line in found]
    assert not wrong, "\n".join(wrong)


def test_whatever_options():
    wrong = []
    for option in OPTIONS:
        for make in (INPUTS["float32"], INPUTS["float16"], INPUTS["a subclass"]):
            for training in (True, False):
                wrong += _wrong(nn.BatchNorm1d, make, option=option, training=training, ways=("ours", "accelerated"))
    assert not wrong, "\n".join(wrong)
