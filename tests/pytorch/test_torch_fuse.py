"""`fuse`: the same model, bit for bit, in fewer passes; what cannot be fused keeps its meaning and is named."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fuse_models import (
    DenseNet,
    MobileBlock,
    Net,
    ResidualBlock,
    ResNet,
    _x,
    assert_same,
    fused_and_converted,
    passes_of,
)
from torch import Tensor, nn

import batchnorm.torch as bnt


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors are tiny; on a busy machine threads that wait for each other cost seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- what is fused ---

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, list[str]]] = {
    "ResNet": (ResNet, 5, ["fused 5 of 6 batch", " with relu\n", " with add + relu\n", "the residual of a fused step"]),
    "MobileNet": (
        MobileBlock,
        3,
        ["fused 3 of 3 batch", " expand.1, depthwise.1 with relu6", " project.1 with add"],
    ),
    "DenseNet": (
        DenseNet,
        4,
        ["fused 4 of 4 batch", " layers.0.norm, layers.1.norm, layers.2.norm, last with relu"],
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, capsys):
    build, _, said = NETWORKS[name]
    model = build()
    fused, expected = fused_and_converted(model)
    printed = capsys.readouterr().out
    assert all(text in printed for text in said), printed
    assert type(fused) is type(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(fused.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in zip(fused.buffers(), model.buffers(), strict=True))
    assert len(passes_of(expected, _x())) >= 3
    assert passes_of(fused, _x()) == []
    assert_same(fused, expected, _x())


ACTIVATIONS: dict[str, tuple[str, Callable[[Any, Tensor], Tensor]]] = {
    "nn.ReLU": ("relu", lambda m, y: m.relu(y)),
    "nn.LeakyReLU": ("leaky_relu(0.3)", lambda m, y: m.leaky(y)),
    "nn.SiLU": ("silu", lambda m, y: m.silu(y)),
    "F.relu": ("relu", lambda m, y: F.relu(y)),
    "F.relu in place": ("relu", lambda m, y: F.relu(y, inplace=True)),
    "F.relu by name": ("relu", lambda m, y: F.relu(input=y)),
    "torch.relu": ("relu", lambda m, y: torch.relu(y)),
    "torch.relu_": ("relu", lambda m, y: torch.relu_(y)),
    "relu()": ("relu", lambda m, y: y.relu()),
    "relu_()": ("relu", lambda m, y: y.relu_()),
    "F.relu6": ("relu6", lambda m, y: F.relu6(y)),
    "F.leaky_relu": ("leaky_relu(0.01)", lambda m, y: F.leaky_relu(y)),
    "F.leaky_relu with a slope": ("leaky_relu(0.2)", lambda m, y: F.leaky_relu(y, negative_slope=0.2)),
    "F.silu": ("silu", lambda m, y: F.silu(y)),
    "nn.GELU of tanh": ("gelu_tanh", lambda m, y: m.gelu(y)),
    "F.gelu": ("gelu", lambda m, y: F.gelu(y)),
    "F.gelu of tanh": ("gelu_tanh", lambda m, y: F.gelu(y, approximate="tanh")),
    "nn.Hardswish": ("hardswish", lambda m, y: m.hardswish(y)),
    "F.hardswish": ("hardswish", lambda m, y: F.hardswish(y, True)),
    "nn.ELU": ("elu(0.5)", lambda m, y: m.elu(y)),
    "F.elu": ("elu(0.3)", lambda m, y: F.elu(y, 0.3)),
}


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, bnt.BatchNorm2d], ids=["torch.nn's", "ours"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name, layer, capsys):
    said, activation = ACTIVATIONS[name]
    fused, expected = fused_and_converted(Net(lambda m, x: activation(m, m.norm(x)), layer(3)))
    assert capsys.readouterr().out == f"fused 1 of 1 batch normalization\n  layer bn with {said}\n"
    assert passes_of(fused, _x()) == []
    assert_same(fused, expected, _x(), exact=said.startswith(("relu", "leaky_relu")))


def _augmented(y: Tensor, r: Tensor) -> Tensor:
    y += r
    return y


ADDITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": lambda y, r: y + r,
    "+ from the right": lambda y, r: r + y,
    "+=": _augmented,
    "operator.add": operator.add,
    "operator.iadd": operator.iadd,
    "torch.add": torch.add,
    "torch.add of alpha 1": lambda y, r: torch.add(r, y, alpha=1),
    "add()": lambda y, r: y.add(r),
    "add() from the right": lambda y, r: r.add(y),
    "add_()": lambda y, r: y.add_(r),
}


@pytest.mark.parametrize("activated", [False, True], ids=["bare", "activated"])
@pytest.mark.parametrize("name", ADDITIONS)
def test_additions(name, activated, capsys):
    def forward(m: Any, x: Tensor) -> Tensor:
        y = ADDITIONS[name](m.norm(x), x)
        return F.relu(y) if activated else y

    fused, expected = fused_and_converted(Net(forward))
    said = "add + relu" if activated else "add"
    assert capsys.readouterr().out == f"fused 1 of 1 batch normalization\n  layer bn with {said}\n"
    assert passes_of(fused, _x()) == []
    assert_same(fused, expected, _x())


@pytest.mark.parametrize("name", ADDITIONS)
def test_of_two_batch_norms_the_later_takes_the_sum(name, capsys):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(ADDITIONS[name](self.a(x), self.b(2 * x)))

    fused, expected = fused_and_converted(Two())
    assert (
        "  layer b with add + relu\nlayer a (BatchNorm2d) is left: its output is the residual"
        in capsys.readouterr().out
    )
    assert passes_of(fused, _x()) == []
    assert_same(fused, expected, _x())


def test_a_residual_computed_after_the_batch_norm():
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x)
        return F.relu(y + F.max_pool2d(x, 3, stride=1, padding=1))

    fused, expected = fused_and_converted(Net(forward))
    assert passes_of(fused, _x()) == []
    assert_same(fused, expected, _x())


@pytest.mark.parametrize("r", [_x(1, 3, 1, 1), _x().double(), _x(2, 4, 3, 6, 5)], ids=["narrow", "double", "longer"])
def test_a_residual_of_another_shape_or_type_is_added_as_pytorch_does(r, capsys):
    class Plus(Net):
        def forward(self, x: Tensor, r: Tensor) -> Tensor:  # type: ignore[override]
            return F.relu(self.norm(x) + r)

    fused, expected = fused_and_converted(Plus(lambda m, x: x))
    assert "  layer bn with add + relu\n" in capsys.readouterr().out
    assert_same(fused, expected, _x(), r)
    assert fused(_x(), r).dtype == r.dtype


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (2, 3), (3,), (1, 3, 1, 1)], ids=str)
def test_what_the_layer_refuses_is_refused(shape):
    fused, expected = fused_and_converted(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    state = copy.deepcopy(fused.state_dict())
    with pytest.raises((ValueError, RuntimeError)) as refused:
        expected(torch.ones(shape))
    with pytest.raises(type(refused.value)) as refused_fused:
        fused(torch.ones(shape))
    assert str(refused_fused.value) == str(refused.value)
    torch.testing.assert_close(fused.state_dict(), state, rtol=0, atol=0)


# --- nn.Identity between ---


def _identities() -> nn.Sequential:
    """As networks whose options of drop-out and the like are off, in a block and in a Sequential."""

    class Block(Net):
        def __init__(self) -> None:
            super().__init__(lambda m, x: m.relu(m.after(m.path(m.drop(m.norm(x)))) + x))
            self.drop, self.path, self.after = nn.Identity(), nn.Identity(), nn.Identity()

    class Added(Block):
        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.after(x + self.drop(self.norm(x))))

    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Identity(), nn.ReLU(), Block(), Added())


def test_fuse_looks_through_identities():
    model = _identities()
    fused, expected = fused_and_converted(model)
    _, report = bnt.fuse(model, verbose=False, return_report=True)
    assert report.fused_with == {"1": "relu", "4.bn": "add + relu", "5.bn": "add + relu"}
    assert report.left == ()
    assert passes_of(fused, _x()) == []
    assert list(fused.state_dict()) == list(model.state_dict())
    assert_same(fused, expected, _x())


@pytest.mark.parametrize("name", ["2", "4.drop", "4.path", "5.after"])
def test_an_identity_that_is_watched_or_replaced_is_called(name):
    """When the model is fused, and afterwards."""
    model = _identities()
    seen: list[int] = []
    watched = copy.deepcopy(model)
    watched.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    fused, expected = fused_and_converted(watched)
    layer = {"2": "1"}.get(name, f"{name[0]}.bn")
    _, report = bnt.fuse(watched, verbose=False, return_report=True)
    assert layer in [left[0] for left in report.left] or report.fused_with[layer] == "add"
    seen.clear()
    fused.eval()(_x())
    assert seen == [1]
    assert_same(fused, expected, _x())

    fused, expected = fused_and_converted(model)
    fused.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    seen.clear()
    fused.eval()(_x())
    assert seen == [1]
    assert_same(fused, expected, _x())
    for one in (fused, expected):
        one.set_submodule(name, nn.Hardtanh(-0.5, 0.5))
    assert_same(fused, expected, _x())


# --- what print says ---


def test_print_says_what_is_fused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), ResidualBlock(4, 4, False))
    plain = str(bnt.convert(copy.deepcopy(model), verbose=False))
    fused = bnt.fuse(model, verbose=False)
    assert "fused" not in str(model)
    lines = [line.strip() for line in str(fused).splitlines()]
    assert [line for line in lines if "fused" not in line] == [
        line.strip() for line in plain.splitlines() if "BatchNorm2d" not in line
    ]
    assert lines[1] == "fused forward: 3 steps"
    assert lines[lines.index("(3): ResidualBlock(") + 1] == "fused forward: 2 steps"
    said = {line[1 : line.index(")")]: line.rsplit(", ", 1)[1] for line in lines if ": BatchNorm2d(" in line}
    assert said == {"1": "fused with relu)", "bn1": "fused with relu)", "bn2": "fused with add + relu)"}
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert str(copied) == str(fused)
        assert copied.extra_repr.__self__ is copied.forward
    assert str(bnt.fuse(fused, verbose=False)) == str(fused)
    assert str(bnt.convert(bnt.revert(fused, verbose=False), verbose=False)) == plain


def test_the_repr_of_a_fused_module_keeps_what_its_class_says():
    class Named(Net):
        def extra_repr(self) -> str:
            return f"p={self.p}"

    fused = bnt.fuse(Named(lambda m, x: F.relu(m.norm(x))), verbose=False)
    assert str(fused).splitlines()[1:3] == ["  p=0.5", "  fused forward: 1 step"]
    fused.p = 0.25
    assert "  p=0.25" in str(fused)
