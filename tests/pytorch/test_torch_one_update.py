"""`one_update`: the running statistics after parts of a batch are those after the batch as a whole."""

from __future__ import annotations

import contextlib
import copy
import threading

import pytest
import torch
from context_models import KINDS, Activated, bits_of, x_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm as bn
import batchnorm.torch as bnt

# Without statistics, with those of before a batch, or in which ghosts would be parts of parts.
PLAIN = [kind for kind in KINDS if not any(word in kind for word in ("without", "renorm", "running", "ghosts"))]


def _whole(layer: nn.Module) -> nn.Module:
    """One of ours with the state and the options of a layer: what one large batch does to it."""
    ours = bnt.BatchNorm2d(3, momentum=layer.momentum, dtype=layer.running_mean.dtype)
    for name in ("running_correction", "keep_count", "on_nonfinite"):
        if hasattr(layer, name):
            setattr(ours, name, getattr(layer, name))
    ours.load_state_dict(layer.state_dict())
    return ours


def _statistics(layer: nn.Module) -> list[Tensor]:
    names = ("running_mean", "running_var", "num_batches_tracked", "running_count")
    return [t.clone() for name in names if (t := getattr(layer, name, None)) is not None]


@pytest.mark.parametrize("kind", PLAIN)
def test_equal_parts_are_ghosts_of_one_batch(kind):
    """To the bit: outputs, and statistics whose moments are merged in the same order."""
    layer = KINDS[kind]()
    dtype = layer.weight.dtype
    x = torch.randn(6, 3, 4, 2, dtype=dtype) * 2 + 3
    expected = _whole(layer)
    expected.virtual_batch_size = 2
    ghosts = expected(x)
    bits = bits_of(layer)
    ys = []
    with bnt.one_update(layer):
        for part in x.split(2):
            ys.append(layer(part))
            assert bits_of(layer) == bits
    assert all(torch.equal(a, b) for a, b in zip(_statistics(layer), _statistics(expected), strict=True))
    y = torch.cat(ys)
    relu = isinstance(layer, Activated) or getattr(layer, "activation", None)
    torch.testing.assert_close(y, ghosts.relu() if relu else ghosts)
    again = KINDS[kind]()
    assert all(torch.equal(again(part), y) for part, y in zip(x.split(2), ys, strict=True)), "y is that outside"


@pytest.mark.parametrize("kind", ["torch.nn", "of its own", "ours", "ours, all batches", "converted"])
def test_uneven_and_empty_parts(kind):
    layer = KINDS[kind]().double()
    x = torch.randn(9, 3, 4, 2, dtype=torch.float64)
    expected = _whole(layer)
    expected(x)
    with bnt.one_update(layer):
        for part in x.split([5, 0, 1, 3]):
            layer(part)
    torch.testing.assert_close(_statistics(layer), _statistics(expected), rtol=1e-14, atol=1e-15)


def test_masks_weights_and_ghosts_of_parts():
    layer = bnt.BatchNorm2d(3, dtype=torch.float64, keep_count=True)
    ghosts = copy.deepcopy(layer)
    ghosts.virtual_batch_size = 2
    expected = copy.deepcopy(layer)
    x = torch.randn(7, 3, 4, 2, dtype=torch.float64)
    mask, weight = torch.rand(7, 4, 2) > 0.3, torch.rand(7, 4, 2, dtype=torch.float64) + 0.1
    expected(x, mask=mask, sample_weight=weight)
    for each in (layer, ghosts):
        with bnt.one_update(each):
            for some in (slice(0, 3), slice(3, 7)):
                with bnt.masked(each, mask[some]):
                    each(x[some], sample_weight=weight[some])
        torch.testing.assert_close(_statistics(each), _statistics(expected), rtol=1e-14, atol=1e-15)


def test_evaluation_and_held_forwards_are_no_parts():
    for kind in ("torch.nn", "of its own", "ours"):
        layer, expected = KINDS[kind](), KINDS[kind]()
        expected(x_of(1))
        with bnt.one_update(layer):
            layer(x_of(1))
            layer.eval()(x_of(2))
            layer.train()
            with bnt.hold(layer):
                layer(x_of(3))
        with bnt.hold(layer), bnt.one_update(layer):
            layer(x_of(3))
        torch.testing.assert_close(_statistics(layer), _statistics(expected))


def test_blocks_inside_of_a_block_move_with_it():
    for kind in ("torch.nn", "ours"):
        layer = KINDS[kind]()
        expected = _whole(layer)
        expected(torch.cat([x_of(n) for n in range(4)]))
        outer, inner = bnt.one_update(layer), bnt.one_update(layer)
        outer.__enter__()
        layer(x_of(0))
        with inner:
            layer(x_of(1))
        assert int(layer.num_batches_tracked) == 0
        with contextlib.suppress(ZeroDivisionError), inner:
            layer(x_of(9))
            raise ZeroDivisionError
        inner.__enter__()
        layer(x_of(2))
        outer.__exit__(None, None, None)  # the first one first
        assert int(layer.num_batches_tracked) == 0
        layer(x_of(3))
        inner.__exit__(None, None, None)
        torch.testing.assert_close(_statistics(layer), _statistics(expected))
        with outer:
            pass
        torch.testing.assert_close(_statistics(layer), _statistics(expected))


def test_nothing_moves_where_a_layer_refuses():
    model = nn.Sequential(bnt.BatchNorm2d(3), bnt.BatchNorm2d(3, on_nonfinite="raise"), nn.BatchNorm2d(3))
    bits = bits_of(model)
    block = bnt.one_update(model)
    block.__enter__()
    model(x_of(1))
    model[1](torch.full((2, 3, 1, 1), torch.inf))
    with pytest.raises(ValueError, match=r"one_update: .* by layer 1, so no layer has moved: .* channel 0"):
        block.__exit__(None, None, None)
    assert bits_of(model) == bits
    model(x_of(1))
    assert int(model[1].num_batches_tracked) == 1


def test_an_exception_in_another_thread_discards_nothing_of_this_one():
    layer, inside, leave = nn.BatchNorm2d(3), threading.Event(), threading.Event()
    block = bnt.one_update(layer)

    def work() -> None:
        with contextlib.suppress(ZeroDivisionError), block:
            inside.set()
            leave.wait()
            raise ZeroDivisionError

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    with block:
        layer(x_of())
        leave.set()
        thread.join()
    assert int(layer.num_batches_tracked) == 1


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("kind", ["torch.nn", "of its own", "ours", "ours, ghosts"])
def test_a_checkpoint_counts_once(kind, reentrant):
    layer = KINDS[kind]()
    expected = copy.deepcopy(layer)
    with bnt.one_update(expected):
        for seed in range(3):
            expected(x_of(seed))
    for inside in (True, False):
        found = copy.deepcopy(layer)
        ys = []
        with bnt.one_update(found):
            for seed in range(3):
                ys.append(checkpoint(found, x_of(seed).requires_grad_(), use_reentrant=reentrant))
                if inside:
                    ys.pop().sum().backward()
        if kind.startswith("ours"):
            for y in ys:
                y.sum().backward()
        torch.testing.assert_close(_statistics(found), _statistics(expected))


def test_a_large_mean():
    """Beside torchgpipe's DeferredBatchNorm, which adds up x and x²."""
    x = torch.randn(64, 3, 4, 4) + 1e4
    exact = x.double().movedim(1, 0).flatten(1)
    for layer in (nn.BatchNorm2d(3, momentum=1.0), bnt.BatchNorm2d(3, momentum=1.0)):
        with bnt.one_update(layer):
            for part in x.split(8):
                layer(part)
        torch.testing.assert_close(layer.running_var.double(), exact.var(1), rtol=1e-6, atol=0)
        torch.testing.assert_close(layer.running_mean.double(), exact.mean(1), rtol=1e-7, atol=0)
    total = sum(part.sum((0, 2, 3)) for part in x.split(8))
    squares = sum((part**2).sum((0, 2, 3)) for part in x.split(8))
    deferred = squares / 1024 - (total / 1024) ** 2
    assert (deferred - exact.var(1)).abs().max() > 0.5


def test_synchronized_without_other_processes_and_other_forwards():
    layer = nn.SyncBatchNorm(3)
    with bnt.one_update(layer):
        layer(x_of(0))
        layer(x_of(1))
    assert int(layer.num_batches_tracked) == 1

    class Twice(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x))

    class Shifted(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 1)

    with (
        pytest.raises(ValueError, match=r"batch_norm once.*got Twice, which called it 2 times"),
        bnt.one_update(layer := Twice(3)),
    ):
        layer(x_of())
    layer, expected = Shifted(3), Shifted(3)
    expected(x_of())
    with bnt.one_update(layer):
        layer(x_of())
    torch.testing.assert_close(_statistics(layer), _statistics(expected))


def test_renormalization_is_that_of_before_the_block():
    layer = bnt.BatchNorm2d(3, renorm=bn.Renorm(start=0))
    layer(x_of(0))
    held = copy.deepcopy(layer)
    with bnt.one_update(layer), bnt.hold(held):
        for seed in (1, 2):
            assert torch.equal(layer(x_of(seed)), held(x_of(seed)))
    assert int(layer.num_batches_tracked) == 2


def test_forwards_in_inference_mode_are_parts_that_leave_nothing_behind():
    """What a block keeps for the next one is no tensor of inference mode, which nobody could write later."""
    one, two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    for _ in range(2):
        for layer, mode in ((one, torch.inference_mode), (two, torch.no_grad)):
            with bnt.one_update(layer):
                with mode():
                    layer(x_of(1))
                layer(x_of(2))
    assert bits_of(one) == bits_of(two)


def test_a_model_that_is_copied_to_several_devices_is_refused():
    copied = nn.DataParallel(nn.BatchNorm2d(3))
    copied.device_ids = [0, 1]
    for context in (bnt.one_update, lambda model: bnt.adapt(model, 3)):
        with pytest.raises(ValueError, match="the layers must be on one device; got a DataParallel of 2 devices; use"):
            context(copied)


def test_what_does_not_last_is_refused():
    for layer in (nn.BatchNorm2d(3), bnt.BatchNorm2d(3)):
        with bnt.one_update(layer):
            with pytest.raises(ValueError, match=r"one_update: .* torch\.func runs"):
                torch.func.grad(lambda x, layer=layer: layer(x).square().sum())(x_of())
            with pytest.raises(ValueError, match=r"one_update: .* torch\.jit\.trace runs"):
                torch.jit.trace(layer, x_of())
        assert int(layer.num_batches_tracked) == 0
