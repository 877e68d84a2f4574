"""`fuse` and writing in place: before a fused step, after it, to its output, and to what it adds."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fuzz_fuse import build, check
from torch import Tensor, nn

import batchnorm.torch as bnt


class Net(nn.Module):
    def __init__(self, body: Callable[[Any, Tensor], Tensor], activation: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.bn, self.body = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), body
        self.act = activation or nn.ReLU()
        self.double, self.flat = nn.Flatten(0), nn.Flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def _x(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).to(dtype)


def _learnt(model: nn.Module, x: Tensor, write: Callable[[Tensor, Tensor], Any] | None = None) -> Any:
    """Output, gradients and buffers of a step in which `write` changes something before the backward; or the error."""
    x = x.clone().requires_grad_()
    given = x * 1
    y = model(given)
    model.zero_grad()
    try:
        if write is not None:
            write(y, given)
        (y.float() * torch.arange(y.numel()).view(y.shape)).sum().backward()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return None
    return [y.detach(), x.grad, *(p.grad for p in model.parameters()), *model.buffers()]


ACTIVATIONS = (nn.ReLU(), nn.ReLU(True), nn.ReLU6(), nn.LeakyReLU(0.1), nn.LeakyReLU(-0.1), nn.SiLU(), nn.SiLU(True))
WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "output": lambda y, x: y.mul_(2),
    "output, of no gradient": lambda y, x: y.detach().mul_(2),
    "a part of the output": lambda y, x: y[:1].zero_(),
    "input": lambda y, x: x.mul_(2),
}


BODIES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "alone": lambda m, x: m.act(m.bn(2 * x)),
    "input added": lambda m, x: m.act(m.bn(2 * x) + x),
    "a view added": lambda m, x: m.act(m.bn(2 * x) + x.view(-1).view_as(x)),
    "no activation": lambda m, x: m.bn(2 * x) + x,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_backward_raises_only_where_the_unfused_one_does(dtype):
    """Whatever is written between forward and backward, with and without a residual."""
    close = (0.1, 0.5) if dtype == torch.bfloat16 else (1e-5, 1e-4)
    for (said, body), activation in itertools.product(BODIES.items(), ACTIVATIONS):
        model = Net(body, activation).to(dtype)
        plain = bnt.convert(copy.deepcopy(model), verbose=False)
        fused = bnt.fuse(model, verbose=False)
        for (what, write), training in itertools.product(WRITES.items(), (True, False)):
            expected = _learnt(plain.train(training), _x(dtype), write)
            found = _learnt(fused.train(training), _x(dtype), write)
            if expected is None:
                continue
            cell = f"{said}, {activation}, {what} written, training {training}"
            assert found is not None, f"{cell}: raises"
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=close[0], atol=close[1], msg=lambda m, c=cell: f"{c}: {m}")


def _conv_after(m: Any, x: Tensor) -> Tensor:
    r = m.conv(x)
    return m.conv(m.act(m.bn(x) + r))


@pytest.mark.skipif(torch.__version__.startswith("2.10."), reason="PyTorch 2.10 hides what follows a Python function")
def test_activations_are_joined_where_nobody_else_can_write():
    """With a residual: ReLU in single precision keeps y as PyTorch does, others only what is no one else's."""
    steps: dict[str, bool] = {}
    for activation in (nn.ReLU(), nn.ReLU6(), nn.SiLU()):
        for where, body in {"returned": lambda m, x: m.act(m.bn(2 * x) + x), "inside": _conv_after}.items():
            fused = bnt.fuse(Net(body, activation), verbose=False)
            seen: list[str] = []

            def walk(node: Any, seen: list[str] = seen) -> None:
                if node is not None and node.name() not in seen:
                    seen.append(node.name())
                    for following, _ in node.next_functions:
                        walk(following)

            walk(fused(_x().requires_grad_()).grad_fn)
            own = any(word in name for name in seen for word in ("Relu", "Hardtanh", "Silu"))
            steps[f"{type(activation).__name__} {where}"] = not own
    assert steps == {
        "ReLU returned": True,
        "ReLU inside": True,
        "ReLU6 returned": False,
        "ReLU6 inside": True,
        "SiLU returned": False,
        "SiLU inside": True,
    }


def _later(m: Any, x: Tensor) -> Tensor:
    r = 2 * x
    y = F.silu(m.bn(x) + r)
    return y + r.mul_(2)


def _later_by_a_view(m: Any, x: Tensor) -> Tensor:
    r = 2 * x
    v = r.view(-1)
    y = F.silu(m.bn(x) + r)
    return y + v.mul_(2).view_as(y)


def _reads_its_statistics(m: Any, x: Tensor) -> Tensor:
    y = m.bn(x)
    shift = m.bn.running_mean.sum()
    return F.relu(y + x * shift)


INSIDE = {"the residual": _later, "a view of it": _later_by_a_view, "its statistics, read": _reads_its_statistics}


@pytest.mark.parametrize("name", INSIDE)
def test_writes_inside_a_forward(name):
    model = Net(INSIDE[name])
    plain = bnt.convert(copy.deepcopy(model), verbose=False)
    fused = bnt.fuse(model, verbose=False)
    for _ in range(2):
        for a, b in zip(_learnt(fused, _x()), _learnt(plain, _x()), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def _fill(x: Tensor) -> None:
    x.fill_(1)


def test_an_operation_that_writes_by_its_schema(capsys):
    with torch.library._scoped_library("batchnorm_test", "FRAGMENT") as library:
        library.define("fill(Tensor(a!) x) -> ()")
        library.impl("fill", _fill, "CompositeExplicitAutograd")

        def body(m: Any, x: Tensor) -> Tensor:
            z = 2 * x.detach()
            y = m.bn(z)
            torch.ops.batchnorm_test.fill(z)
            return F.relu(y + z)

        model = Net(body).requires_grad_(False)
        fused = bnt.fuse(model)
        assert "something may be written in place (fill)" in capsys.readouterr().out
        assert torch.equal(fused(_x()), bnt.convert(model, verbose=False)(_x()))


def test_generated_programs():
    """A few; ``python tests/fuzz/fuzz_fuse.py --seconds 600`` draws for ten minutes."""
    wrong = [said for said in map(check, map(build, range(8))) if said]
    assert not wrong, wrong
