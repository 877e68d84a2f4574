"""What `fuse` leaves as it is, since another forward would not keep its meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fuse_models import (
    DenseLayer,
    Net,
    ResidualBlock,
    _x,
    assert_same,
    fused_and_converted,
    passes_of,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm.torch as bnt


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors are tiny; on a busy machine threads that wait for each other cost seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- what is refused keeps its meaning ---


def _twice(m: Any, x: Tensor) -> Tensor:
    y = m.norm(x)
    return y.relu() * y


def _written_elsewhere(m: Any, x: Tensor) -> Tensor:
    y = m.norm(x)
    z = y.view(-1)
    y.relu_()
    return z.view_as(y) + 1


def _into_another(m: Any, x: Tensor) -> Tensor:
    w = 2 * x
    v = w.view(-1)
    w += m.norm(x)
    return w.relu() + v.view_as(w)


def _two_calls(m: Any, x: Tensor) -> Tensor:
    return F.mish(m.bn(F.relu(m.bn(x))))


REFUSALS: dict[str, tuple[str, Callable[[Any, Tensor], Tensor]]] = {
    "an activation that is not fused": ("no fusable activation follows (Mish)", lambda m, x: m.mish(m.norm(x))),
    "a function that is not fused": (
        "no fusable activation follows (.sigmoid())",
        lambda m, x: m.norm(x).sigmoid().relu(),
    ),
    "returned": ("no fusable activation follows (its output is returned)", lambda m, x: m.norm(x)),
    "used twice": ("its output is used 2 times", _twice),
    "a view of what is written": ("its output is used 3 times", _written_elsewhere),
    "added to itself": ("its output is added to itself", lambda m, x: (lambda y: F.relu(y + y))(m.norm(x))),
    "added to another in place": ("in place, to a tensor that others may hold", _into_another),
    "a scaled sum": ("no fusable activation follows (add)", lambda m, x: torch.add(m.norm(x), x, alpha=2)),
    "a number added": ("no fusable activation follows (add)", lambda m, x: m.norm(x) + 1),
    "one of two calls": ("in one of its calls, no fusable activation follows (mish)", _two_calls),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name, capsys):
    reason, forward = REFUSALS[name]
    fused, expected = fused_and_converted(Net(forward))
    printed = capsys.readouterr().out
    fused_calls = int(name == "one of two calls")
    assert printed.startswith(f"fused {fused_calls} of 1 batch normalization\n")
    assert printed.splitlines()[-1].startswith("layer bn (BatchNorm2d) is left: ")
    assert reason in printed
    assert len(passes_of(fused, _x())) == len(passes_of(expected, _x())) - fused_calls
    assert_same(fused, expected, _x())


def test_an_input_that_changes_before_the_addition(capsys):
    """Autograd would not have it either, so this is for frozen layers."""

    def forward(m: Any, x: Tensor) -> Tensor:
        z = 2 * x.detach()
        y = m.bn(z)
        return F.relu(y + z.add_(1))

    fused, expected = fused_and_converted(Net(forward).requires_grad_(False))
    reason = "between it and its addition something may be written in place (.add_())"
    assert f"layer bn (BatchNorm2d) is left: {reason}" in capsys.readouterr().out
    assert_same(fused, expected, _x())


def test_other_batch_norms_are_left_and_named(capsys):
    model = nn.Sequential(nn.SyncBatchNorm(3), nn.ReLU(), bnt.BatchNorm2d(3, activation="silu"), nn.ReLU())
    fused = bnt.fuse(model)
    assert capsys.readouterr().out.splitlines() == [
        "fused 0 of 2 batch normalizations",
        "layer 2 (BatchNorm2d) is left: it has an activation already ('silu')",
        "layer 0 (SyncBatchNorm) is left: it gathers statistics from several processes; convert_sync makes it ours",
    ]
    assert [type(m) for m in fused] == [type(m) for m in model]


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a class of its own that calls PyTorch's function."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.relu(F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps))


def test_accelerate_serves_a_class_of_its_own_and_the_report_says_so():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Activated(3))
    _, report = bnt.fuse(model, verbose=False, return_report=True)
    assert report.layers == ()
    ((_, kind, reason),) = report.left
    assert kind == "Activated"
    assert "accelerate() serves it if it calls PyTorch's batch normalization" in reason
    before = bnt.status().served["native_batch_norm"]
    with bnt.accelerate():
        model(_x())
    assert bnt.status().served["native_batch_norm"] == before + 1


# --- traces that would not keep the meaning ---


def _branches_on_training(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.norm(x))
    return y if m.training else y + 1


def _without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = F.relu(m.norm(x))
    return y + m.conv(x)


def _in_bfloat16(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = F.relu(m.norm(x))
    return y.float()


def _keeps_its_output(m: Any, x: Tensor) -> Tensor:
    m.last = F.relu(m.norm(x))
    return m.last


def _makes_noise(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.norm(x)) + torch.rand(3, 1, 1)


def _branches_on_shape(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.norm(x)) if x.shape[0] > 1 else x


def _asks_for_a_type(m: Any, x: Tensor) -> Tensor:
    y = F.relu(m.norm(x))
    return y if isinstance(y, Tensor) else y[0]


def _checkpointed(m: Any, x: Tensor) -> Tensor:
    return checkpoint(lambda x: F.relu(m.norm(x)), x, use_reentrant=False)


UNTRACEABLE: dict[str, tuple[str, Callable[[Any, Tensor], Tensor]]] = {
    "branches on training": ("its forward branches on self.training", _branches_on_training),
    "no_grad": ("part of its forward runs under torch.no_grad(), autocast or their like", _without_gradients),
    "autocast": ("part of its forward runs under torch.no_grad(), autocast or their like", _in_bfloat16),
    "sets an attribute": ("its forward sets self.last", _keeps_its_output),
    "makes a tensor": ("its forward makes a tensor of its own, which a trace would freeze", _makes_noise),
    "branches on a shape": ("its forward branches on the values or the shape of a tensor", _branches_on_shape),
    "asks for a type": ("its forward asks for the type of something computed in it", _asks_for_a_type),
    "checkpoint": (
        "its forward calls torch.utils.checkpoint.checkpoint, and a trace would keep what that did once",
        _checkpointed,
    ),
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_a_trace_that_would_change_something_is_refused(name, capsys):
    reason, forward = UNTRACEABLE[name]
    fused, expected = fused_and_converted(Net(forward))
    assert capsys.readouterr().out.splitlines() == [
        "fused 0 of 1 batch normalization",
        f"the model itself (Net) cannot be traced: {reason}",
        "layer bn (BatchNorm2d) is left: no forward that could be traced calls it",
    ]
    assert_same(fused, expected, _x())


def _counts(m: Any, x: Tensor) -> Tensor:
    m.seen.add_(1)
    return F.relu(m.norm(x)) * m.seen


TRACEABLE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dropout that is told the mode": lambda m, x: F.dropout(F.relu(m.norm(x)), m.p, training=m.training),
    "a buffer changed in each call": _counts,
    "random numbers like x": lambda m, x: F.relu(m.norm(x)) + torch.rand_like(x),
    "a parameter used by itself": lambda m, x: F.relu(m.norm(x)) * m.conv.weight.sum(),
}


@pytest.mark.parametrize("name", TRACEABLE)
def test_a_trace_keeps(name, capsys):
    fused, expected = fused_and_converted(Net(TRACEABLE[name]))
    assert "fused 1 of 1" in capsys.readouterr().out
    assert_same(fused, expected, _x())


class Starred(nn.Module):
    """Takes whatever comes: traced where it is called, not by itself. `block` can be traced by itself."""

    def __init__(self, branches: bool) -> None:
        super().__init__()
        self.block, self.bn, self.branches = ResidualBlock(3, 3, False), nn.BatchNorm2d(3), branches

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.branches and inputs[0].sum() == 0:
            return inputs[0]
        return F.relu(self.bn(self.block(inputs[0])))


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside"])
def test_where_a_module_cannot_be_traced_its_parts_are(inside, capsys):
    starred = Starred(branches=inside)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), starred) if inside else starred
    fused, expected = fused_and_converted(model)
    where = "3" if inside else "the model itself"
    printed = capsys.readouterr().out
    assert f"{where} (Starred) cannot be traced: its forward takes *inputs" in printed
    assert f"layer {'3.' * inside}block.bn2 with add + relu\n" in printed
    assert f"layer {'3.' * inside}bn (BatchNorm2d) is left: no forward that could be traced calls it" in printed
    assert passes_of(fused, _x()) == ["relu"]
    assert_same(fused, expected, _x())


def test_what_comes_is_known_where_a_module_is_called():
    fused, expected = fused_and_converted(nn.Sequential(Starred(branches=False)))
    assert passes_of(fused, _x()) == []
    assert_same(fused, expected, _x())


class Optional(Net):
    def forward(self, x: Tensor, scale: Tensor | None = None, **more: Any) -> Tensor:
        y = F.relu(self.norm(x))
        return y if scale is None else y * scale


def test_other_calls_than_the_one_traced_run_the_forward_of_the_class():
    fused, expected = fused_and_converted(Optional(lambda m, x: x))
    assert passes_of(fused, _x()) == []
    assert passes_of(fused, _x(), _x(1)) == ["relu"]
    assert torch.equal(fused(x=_x()), expected(_x()))
    assert torch.equal(fused(_x(), scale=_x(1)), expected(_x(), _x(1)))
    assert_same(fused, expected, _x())
    assert_same(fused, expected, _x(), _x(1))


def test_lists_where_a_tensor_was_traced():
    fused, expected = fused_and_converted(DenseLayer(6, 2).eval())
    assert passes_of(fused, _x(4, 6, 2, 2)) == []
    given = [_x(4, 3, 2, 2), _x(4, 3, 2, 2, seed=1)]
    assert torch.equal(fused(given), expected(given))
