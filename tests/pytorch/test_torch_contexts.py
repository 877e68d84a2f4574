"""Contexts over a model: kinds of layers × what is done inside, nested, left by exceptions, in threads, compiled."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm as bn
import batchnorm.torch as bnt


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a class of its own, with torch.nn's forward and an activation."""

    def forward(self, x: Tensor) -> Tensor:
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        by_batch = self.training or (self.running_mean is None and self.running_var is None)
        used = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if used else (None, None)
        return F.relu(F.batch_norm(x, mean, var, self.weight, self.bias, by_batch, factor, self.eps))


def _frozen(layer: Any) -> Any:
    layer.weight.requires_grad_(False)
    return layer


KINDS: dict[str, Callable[[], nn.Module]] = {
    "torch.nn": lambda: nn.BatchNorm2d(3),
    "torch.nn, all batches": lambda: nn.BatchNorm2d(3, momentum=None),
    "torch.nn, without statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "torch.nn, float64": lambda: nn.BatchNorm2d(3, dtype=torch.float64),
    "of its own": lambda: Activated(3),
    "of its own, all batches": lambda: Activated(3, momentum=None),
    "ours": lambda: bnt.BatchNorm2d(3, activation="relu"),
    "ours, all batches": lambda: bnt.BatchNorm2d(3, momentum=None, keep_count=True, running_correction=0),
    "ours, without statistics": lambda: bnt.BatchNorm2d(3, track_running_stats=False),
    "ours, ghosts": lambda: bnt.BatchNorm2d(3, virtual_batch_size=2, on_nonfinite="raise"),
    "ours, renorm": lambda: bnt.BatchNorm2d(3, renorm=bn.Renorm(start=0)),
    "ours, moves always": lambda: bnt.BatchNorm2d(3, update_running_stats=True),
    "ours, running": lambda: bnt.BatchNorm2d(3, normalize_with="running"),
    "converted": lambda: bnt.convert(nn.BatchNorm2d(3), verbose=False),
    "converted, frozen": lambda: _frozen(bnt.convert(nn.BatchNorm2d(3), verbose=False)),
    "synchronized": lambda: bnt.convert_sync(nn.BatchNorm2d(3), verbose=False),
}


def _x(seed: int = 0, offset: float = 0.0) -> Tensor:
    return torch.randn(5, 3, 4, 2, generator=torch.Generator().manual_seed(seed)) + offset


def _model(kind: str) -> nn.Module:
    """Two layers that have seen some batches, between others."""
    one, two = KINDS[kind](), KINDS[kind]()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), one, nn.Sequential(nn.Conv2d(3, 3, 1), two))
    model.to(one.weight.dtype)
    for seed in range(3):
        model(_x(seed, 2.0).to(model[0].weight.dtype))
    return model


def _bits(model: nn.Module) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in model.state_dict().items()}


def _attributes(model: nn.Module) -> list[dict[str, Any]]:
    return [{k: v for k, v in vars(m).items() if not k.startswith("_")} for m in model.modules()]


def _outcome(model: nn.Module, seed: int = 9) -> list[Tensor]:
    """y, and the gradients of x and of all parameters that have one."""
    x = _x(seed).to(model[0].weight.dtype).requires_grad_()
    y = model(x)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), wanted)]


def _same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", KINDS)
def test_hold_keeps_statistics_and_changes_no_result(kind, training):
    model = _model(kind).train(training)
    expected = _outcome(copy.deepcopy(model))
    bits, attributes = _bits(model), _attributes(model)
    with bnt.hold(model):
        for _ in range(2):  # the second forward of a held model is that of the first one
            assert _same(_outcome(model), expected)
            assert _bits(model) == bits
    assert _attributes(model) == attributes
    assert _same(_outcome(model), expected)
    moves = (training and "without" not in kind) or kind == "ours, moves always"
    assert (_bits(model) != bits) == moves, "afterwards they move again"


@pytest.mark.parametrize("kind", KINDS)
def test_hold_nests_and_is_left_in_any_way(kind):
    model = _model(kind)
    bits, attributes = _bits(model), _attributes(model)
    one, two = bnt.hold(model), bnt.hold(model[2])
    with one, one, two:
        pass
    assert _attributes(model) == attributes

    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)  # the first one first
    model[2][1](_x().to(model[0].weight.dtype))
    assert _bits(model) == bits, "the inner one is open"
    two.__exit__(None, None, None)
    assert _attributes(model) == attributes

    with pytest.raises((ValueError, RuntimeError)), one, two:
        model(torch.ones(5, 7, 4, 2, dtype=model[0].weight.dtype))  # seven channels, where three are right
    assert _attributes(model) == attributes
    assert _bits(model) == bits

    @bnt.hold(model)
    def measured() -> Tensor:
        return model(_x().to(model[0].weight.dtype))

    measured()
    measured()
    assert _bits(model) == bits
    assert _attributes(model) == attributes
    assert repr(one) == "<batchnorm.torch.hold: 2 layers>"


@pytest.mark.parametrize("kind", ["torch.nn", "of its own", "ours", "synchronized"])
def test_hold_in_threads(kind):
    """Blocks of many threads overlap in any order: nothing moves while one is open, and all is as it was afterwards."""
    model = _model(kind)
    bits, attributes, failures = _bits(model), _attributes(model), []

    def work(seed: int) -> None:
        for _ in range(30):
            with bnt.hold(model):
                model(_x(seed))
                if _bits(model) != bits:
                    failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert _attributes(model) == attributes
    assert _bits(model) == bits


@pytest.mark.parametrize("kind", ["torch.nn", "torch.nn, all batches", "of its own", "ours", "ours, all batches"])
def test_hold_of_a_compiled_model(kind):
    torch._dynamo.reset()
    model = _model(kind)
    compiled = torch.compile(model, backend="eager")
    expected = copy.deepcopy(model)
    for _ in range(2):
        y = expected(_x())
        torch.testing.assert_close(compiled(_x()), y)
        bits = _bits(model)
        with bnt.hold(compiled):
            torch.testing.assert_close(compiled(_x()), y)
        assert _bits(model) == bits
    torch.testing.assert_close(model.state_dict(), expected.state_dict())
    torch._dynamo.reset()


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("kind", ["torch.nn", "of its own", "ours", "ours, ghosts", "synchronized"])
def test_hold_of_a_checkpoint(kind, reentrant):
    """With torch.nn's layers the backward is inside, too; ours know that a checkpoint computes them again."""
    model = _model(kind)
    expected = _outcome(copy.deepcopy(model))
    bits = _bits(model)

    def run() -> tuple[Tensor, Tensor]:
        x = _x(9).requires_grad_()
        return x, checkpoint(model, x, use_reentrant=reentrant)

    with bnt.hold(model):
        x, y = run()
        y.square().sum().backward()
    assert torch.equal(x.grad, expected[1])
    assert _bits(model) == bits
    if isinstance(model[1], (bnt.BatchNorm2d, bnt.SyncBatchNorm)):
        with bnt.hold(model):
            x, y = run()
        y.square().sum().backward()
        assert torch.equal(x.grad, expected[1])
        assert _bits(model) == bits


@pytest.mark.parametrize("kind", ["torch.nn", "ours", "ours, renorm"])
def test_hold_of_a_fused_model(kind):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), KINDS[kind](), nn.LeakyReLU())
    if kind != "torch.nn":
        model[1].activation = None
    fused = bnt.fuse(model, verbose=False)
    assert "fused with" in str(fused)
    expected = _outcome(copy.deepcopy(fused))
    bits = _bits(fused)
    with bnt.hold(fused):
        assert _same(_outcome(fused), expected)
        assert _bits(fused) == bits


@pytest.mark.parametrize("kind", ["torch.nn", "torch.nn, all batches", "of its own, all batches", "ours, all batches"])
def test_a_step_of_sam_ends_with_the_statistics_of_its_first_forward(kind):
    """As well where momentum=0, which everyone sets, moves the count, and where it is set twice and lost for good."""
    model = _model(kind)
    only_first = copy.deepcopy(model)
    only_first(_x(7))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(_x(7)).square().sum().backward()
    with torch.no_grad():
        moved = [(p, 0.05 * p.grad) for p in model.parameters()]
        for p, step in moved:
            p.add_(step)
    optimizer.zero_grad()
    with bnt.hold(model):
        model(_x(7)).square().sum().backward()
    with torch.no_grad():
        for p, step in moved:
            p.sub_(step)
    optimizer.step()
    buffers, expected = dict(model.named_buffers()), dict(only_first.named_buffers())
    assert buffers.keys() == expected.keys()
    assert all(torch.equal(buffers[name], expected[name]) for name in expected)
    assert next(iter(buffers.values())).numel()


def test_a_layer_that_stands_twice_is_held_and_given_back():
    layer = nn.BatchNorm2d(3)
    model = nn.Sequential(layer, nn.Sequential(layer))
    before = _attributes(model)
    with bnt.hold(model), bnt.hold(layer):
        model(_x())
    assert int(layer.num_batches_tracked) == 0
    assert _attributes(model) == before


def test_hold_of_some_layers():
    model = nn.ModuleDict({"backbone": nn.Sequential(nn.BatchNorm2d(3)), "head": bnt.BatchNorm2d(3)})
    with bnt.hold(model, only="backbone"):
        for layer in (model["backbone"][0], model["head"]):
            layer(_x())
    assert (int(model["backbone"][0].num_batches_tracked), int(model["head"].num_batches_tracked)) == (0, 1)
    with pytest.raises(ValueError, match="hold: only names no batch normalization"):
        bnt.hold(model, only="neck")


def test_what_cannot_be_held_is_refused():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.LazyBatchNorm2d())
    before = _attributes(model)
    with pytest.raises(ValueError, match=r"hold: .* in its first forward; got LazyBatchNorm2d .*; call the model once"):
        bnt.hold(model)
    assert _attributes(model) == before
    model(_x())
    with bnt.hold(model):
        model(_x())
    assert int(model[1].num_batches_tracked) == 1
    with pytest.raises(TypeError, match="hold: model must be a torch"):
        bnt.hold([model])
