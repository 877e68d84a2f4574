"""A call without options passes autograd's own node, not one in Python; nothing else about it is different."""

from __future__ import annotations

import inspect
import itertools
import threading

import pytest

torch = pytest.importorskip("torch")

import batchnorm.torch as bnt  # noqa: E402

aten = torch.ops.aten
C = 5
OWN = "NoUpdateBackward"  # in the name of autograd's node


def _randn(*shape, seed=0, dtype=torch.float64):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 30).to(dtype)


def _listening():
    """What makes a layer call our operations: somebody who wants to know what is saved."""
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)


def _layer(training=True, **options):
    layer = bnt.BatchNorm2d(C, **options).train(training)
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(torch.linspace(0.5, 2, C) + i)
    return layer


def _results(layer, x, g, create_graph):
    """What comes out, whoever computes it: y, gradients, their gradients, and what has moved."""
    x = x.detach().requires_grad_()
    leaves = [x, *layer.parameters()]
    y = layer(x)
    found = [y, *torch.autograd.grad(y, leaves, g, create_graph=create_graph)]
    if create_graph and found[1].requires_grad:  # of an evaluation without parameters it is g times a constant
        found += torch.autograd.grad(found[1].pow(3).sum(), leaves, allow_unused=True)
    return [*found, *layer.buffers()], y.grad_fn.name()


def _assert_same(found, expected, cell):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None), cell
        assert a is None or (torch.equal(a, b) and a.stride() == b.stride() and a.dtype == b.dtype), cell


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels-last": lambda t: t.to(memory_format=torch.channels_last),
    "permuted": lambda t: t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "strided": lambda t: t.repeat_interleave(2, 3)[..., ::2],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_bits_of_our_operations(dtype):
    of_layer = dtype if dtype is torch.float64 else None
    kinds = [{}, {"affine": False}, {"momentum": None}, {"running_correction": 0, "keep_count": True}]
    if "bias" in inspect.signature(torch.nn.BatchNorm2d).parameters:  # not in PyTorch 2.10
        kinds.append({"bias": False})
    for options, training, create_graph in itertools.product(kinds, [True, False], [False, True]):
        for name, laid in LAYOUTS.items():
            cell = (options, training, create_graph, name)
            x, g = laid(_randn(4, C, 3, 2, dtype=dtype)), _randn(4, C, 3, 2, seed=1, dtype=dtype)
            found, node = _results(_layer(training, dtype=of_layer, **options), x, g, create_graph)
            with _listening():
                expected, other = _results(_layer(training, dtype=of_layer, **options), x, g, create_graph)
            _assert_same(found, expected, cell)
            assert OWN not in other, cell
            keeps_x = training or options.get("affine", True)  # which the node always does
            assert (OWN in node) == keeps_x, cell


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_calls_without_derivatives_have_the_bits_of_our_operations(training):
    """They pass no dispatcher, but where somebody profiles; what comes out is nobody else's, and an ordinary tensor."""
    layouts = {**LAYOUTS, "negative": torch._neg_view}
    contexts = (torch.no_grad, torch.inference_mode)
    for options, (name, laid), context in itertools.product(({}, {"affine": False}), layouts.items(), contexts):
        x, pair = laid(_randn(4, C, 3, 2, dtype=torch.float32)), []
        for listening in (torch.no_grad, _listening):
            layer = _layer(training, **options)
            with context(), listening():
                y = layer(x)
            assert (y.is_inference(), y._use_count(), y.requires_grad) == (context is torch.inference_mode, 1, False)
            pair.append([y, *layer.buffers()])
        _assert_same(*pair, (options, name, context))
    with torch.no_grad(), torch.profiler.profile(acc_events=True) as seen:
        _layer(training)(x)
    names = {event.name for event in seen.events()}
    assert ("batchnorm::forward" in names, "batchnorm::update_" in names) == (True, training)


def test_what_is_not_for_the_node_takes_the_other_way():
    """Dtypes beside each other, options, modes, tensors of other classes: the results are those of our operations."""

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, f, types, args=(), kwargs=None):
            names.append(f.name())
            return f(*args, **(kwargs or {}))

    x, g = _randn(4, C, 3, 2, dtype=torch.float32), _randn(4, C, 3, 2, seed=1, dtype=torch.float32)
    names = []
    with Counting():
        _results(_layer(), x, g, False)
    assert {"batchnorm::forward", "batchnorm::backward"} <= {*names}

    def wider_bias(layer):
        layer.bias = torch.nn.Parameter(layer.bias.detach().double() + 1e-9)

    def lone_bias(layer):
        layer.weight = None

    for change in (wider_bias, lone_bias, lambda layer: setattr(layer, "activation", "relu")):
        pair = []
        for context in (torch.enable_grad, _listening):
            layer = _layer()
            change(layer)
            with context():
                found, node = _results(layer, x, g, True)
            assert OWN not in node
            pair.append(found)
        _assert_same(*pair, change)


def _refused(layer, x):
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        layer(x)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_refusals_are_those_of_our_operations_and_nothing_has_moved(training):
    def of_length(name, n, **options):
        kind = torch.nn.Parameter if name == "weight" else torch.Tensor
        return lambda layer: setattr(layer, name, kind(torch.ones(n, **options)))

    changes = {
        "short weight": of_length("weight", C - 1),
        "empty weight": of_length("weight", 0),
        "weight on meta": of_length("weight", C, device="meta"),
        "short mean": of_length("running_mean", C - 1),
    }
    for name, change in changes.items():
        said = []
        for context in (torch.enable_grad, _listening):
            layer = _layer(training)
            change(layer)
            before = [b.clone() for b in layer.buffers()]
            with context():
                said.append(_refused(layer, torch.randn(4, C, 3, 2)))
            assert all(torch.equal(a, b) for a, b in zip(before, layer.buffers(), strict=True)), name
        assert said[0] == said[1], name


def test_third_derivatives():
    """PyTorch's own second derivative takes the statistics for constants; ours must not come to it."""
    layer = bnt.BatchNorm1d(2).double()
    x = _randn(4, 2).sub(30).requires_grad_()

    def second(v):
        (first,) = torch.autograd.grad(layer(v).pow(3).sum(), v, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), v, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, [x])


def test_a_graph_is_walked_more_than_once_and_for_many_gradients_at_once():
    layer, x = _layer(), _randn(4, C, 3, 2, dtype=torch.float32).requires_grad_()
    y = layer(x)
    gs = torch.stack([_randn(4, C, 3, 2, seed=s, dtype=torch.float32) for s in range(3)])
    one_by_one = [torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in gs]
    (together,) = torch.autograd.grad(y, x, gs, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(together, torch.stack(one_by_one))
    with torch.inference_mode():
        assert torch.equal(torch.autograd.grad(y, x, gs[0], retain_graph=True)[0], one_by_one[0])
    wanted = torch.autograd.grad(y, [layer.bias], gs[0])
    assert torch.equal(wanted[0], gs[0].double().sum((0, 2, 3)).float())


def test_gradients_that_are_views_of_their_negative():
    """As complex numbers make them: what lies in memory is not what they are."""
    x = _randn(4, C, 3, 2, dtype=torch.float32).requires_grad_()
    found = []
    for context in (torch.enable_grad, _listening):
        with context():
            y = _layer()(x)
        g = torch._neg_view(_randn(4, C, 3, 2, seed=1, dtype=torch.float32))
        assert g.is_neg()
        found.append(torch.autograd.grad(y, x, g))
        with context():
            found[-1] += (_layer()(torch._neg_view(x)),)
    _assert_same(*found, "negative")


def test_running_statistics_may_be_written_to_before_the_backward():
    def gradient(write):
        layer, x = _layer(False), _randn(4, C, 3, 2, dtype=torch.float32).requires_grad_()
        y = layer(x)
        if write:
            layer.running_var.fill_(7.0)
            layer.train()(x)
        return torch.autograd.grad(y.pow(2).sum(), x)[0]

    assert torch.equal(gradient(True), gradient(False))


def test_calls_within_calls_and_in_threads():
    """Another layer's forward and backward inside a backward; and many at once."""
    x, g = _randn(4, C, 3, 2, dtype=torch.float32), _randn(4, C, 3, 2, seed=1, dtype=torch.float32)
    expected, _ = _results(_layer(), x, g, False)
    layer, leaf, inside = _layer(), x.clone().requires_grad_(), []

    def within(_):
        with torch.enable_grad():
            inside.append(_results(_layer(), x, g, False)[0][:-3])  # no statistics move while a backward runs

    y = layer(leaf)
    y.register_hook(within)
    found = torch.autograd.grad(y, [leaf, *layer.parameters()], g)
    _assert_same([y, *found], expected[:-3], "around")
    _assert_same(inside[0], expected[:-3], "within")

    found = []
    threads = [threading.Thread(target=lambda: found.append(_results(_layer(), x, g, False)[0])) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for results in found:
        _assert_same(results, expected, "threads")


def test_the_same_bits_with_and_without_accelerate():
    """A step is ours in either case, and is not counted among calls of PyTorch's functions."""
    x, g = _randn(4, C, 3, 2, dtype=torch.float32), _randn(4, C, 3, 2, seed=1, dtype=torch.float32)
    expected, _ = _results(_layer(), x, g, True)
    served = bnt.status().served
    with bnt.accelerate():
        _assert_same(_results(_layer(), x, g, True)[0], expected, "accelerated")
        leaf = x.clone().requires_grad_()
        y = _layer()(leaf)
    assert bnt.status().served == served
    assert torch.equal(torch.autograd.grad(y, leaf, g)[0], torch.autograd.grad(_layer()(leaf), leaf, g)[0])


@pytest.mark.parametrize("accelerated", [False, True], ids=["", "accelerated"])
def test_others_who_call_the_operations_of_the_node_get_what_they_mean(accelerated):
    x, w, b = _randn(6, C, 4).requires_grad_(), _randn(C, seed=1).requires_grad_(), _randn(C, seed=2).requires_grad_()
    mean, var = _randn(C, seed=3), torch.rand(C, dtype=torch.float64) + 1
    for training in (False, True):
        state = (mean.clone(), var.clone())
        plain = torch.native_batch_norm(x, w, b, *state, training, 0.1, 1e-5)[0]
        state = (mean.clone(), var.clone())
        handle = bnt.accelerate() if accelerated else None
        try:
            call = aten._batch_norm_with_update if training else aten._batch_norm_no_update
            y = call(x, w, b, *state, 0.1, 1e-5)[0]
            first = torch.autograd.grad(y.pow(3).sum(), [x, w, b], create_graph=True)
            found = [*first, *torch.autograd.grad(first[0].pow(2).sum(), [x, w])]
        finally:
            if handle is not None:
                handle.remove()
        stock = torch.autograd.grad(plain.pow(3).sum(), [x, w, b], create_graph=True)
        expected = [*stock, *torch.autograd.grad(stock[0].pow(2).sum(), [x, w])]
        for a, e in zip(found, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-7)
