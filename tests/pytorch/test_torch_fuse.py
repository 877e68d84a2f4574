"""`fuse`: the same model, bit for bit, in fewer passes; what cannot be fused keeps its meaning and is named."""

from __future__ import annotations

import copy
import io
import operator
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import batchnorm.torch as bnt

# --- models ---


class ResidualBlock(nn.Module):
    """A ResNet's block: one ReLU module serves twice; the shortcut is the identity or has a batch norm of its own."""

    writes = True  # the sum into the batch norm's output

    def __init__(self, inputs: int, outputs: int, downsample: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs)) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        if self.writes:
            out += identity
        else:
            out = out + identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.layer1 = nn.Sequential(ResidualBlock(4, 4, False), ResidualBlock(4, 6, True))
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))

    def features(self, x: Tensor) -> Tensor:
        return self.layer1(self.stem(x))


class MobileBlock(nn.Module):
    """Expansion and depthwise convolution with ReLU6, and a projection that is added without an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True))
        self.depthwise = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(6, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.depthwise(self.expand(x)))


class DenseLayer(nn.Module):
    """Takes one tensor or a list of them, as torchvision's does; drops out by a function that is told the mode."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.relu, self.conv = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, growth, 1)

    def forward(self, x: Any) -> Tensor:
        given = [x] if isinstance(x, Tensor) else x
        y = self.conv(self.relu(self.norm(torch.cat(given, 1))))
        return F.dropout(y, 0.5, training=self.training)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(3 + 2 * i, 2) for i in range(3))
        self.last = nn.BatchNorm2d(9)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return F.relu(self.last(torch.cat(features, 1)))


class Net(nn.Module):
    """A convolution, a batch norm, and a forward that a test gives."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.bn, self.bn2 = nn.Conv2d(3, 3, 1), layer or nn.BatchNorm2d(3), nn.Identity()
        self.relu, self.leaky, self.silu, self.gelu = nn.ReLU(True), nn.LeakyReLU(0.3), nn.SiLU(), nn.GELU("tanh")
        self.hardswish, self.elu, self.mish = nn.Hardswish(True), nn.ELU(0.5), nn.Mish()
        self.register_buffer("seen", torch.zeros(()))
        self.p, self.call = 0.5, forward

    def forward(self, x: Tensor) -> Any:
        return self.call(self, x)

    def norm(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


# --- how a fused model is compared ---


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors are tiny; on a busy machine threads that wait for each other cost seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (4, 3, 6, 5), generator=torch.Generator().manual_seed(seed))


def _fused_and_converted(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The fused model, and one that runs the same kernels unfused and shares nothing with it."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return bnt.fuse(model), bnt.convert(copy.deepcopy(model), verbose=False)


def _results(model: nn.Module, x: Tensor, *args: Any) -> tuple[Tensor, list[Tensor]]:
    """Output, and the gradients of everything that has one."""
    torch.manual_seed(3)  # dropout
    x = x.clone().requires_grad_()
    y = model(x, *args)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    if not y.requires_grad:
        return y, []
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    return y.detach(), list(torch.autograd.grad(y, wanted, g.to(y.dtype), materialize_grads=True))


def _assert_same(fused: nn.Module, expected: nn.Module, x: Tensor, *args: Any, exact: bool = True) -> None:
    """The same outputs, gradients and buffers, in training, in evaluation, and in training again."""
    for training in (True, False, True):
        y, gradients = _results(fused.train(training), x, *args)
        y_expected, gradients_expected = _results(expected.train(training), x, *args)
        torch.testing.assert_close(y, y_expected, rtol=0 if exact else 1e-6, atol=0 if exact else 2e-6)
        largest = max((float(g.abs().max()) for g in gradients_expected), default=0.0)
        torch.testing.assert_close(gradients, gradients_expected, rtol=1e-6, atol=1e-6 * largest)
    state, state_expected = fused.state_dict(), expected.state_dict()
    assert list(state) == list(state_expected)
    torch.testing.assert_close(state, state_expected, rtol=0, atol=0)


class _Recorded(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__.rstrip("_"))
        return func(*args, **(kwargs or {}))


def _passes(model: nn.Module, *args: Any) -> list[str]:
    """The operations of a call in evaluation that a fused one does not need."""
    training = model.training
    with _Recorded() as recorded, torch.no_grad():
        model.eval()(*args)
    model.train(training)
    passes = ("relu", "add", "hardtanh", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "elu")
    return [n for n in recorded.names if n in passes]


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
    fused, expected = _fused_and_converted(model)
    printed = capsys.readouterr().out
    assert all(text in printed for text in said), printed
    assert type(fused) is type(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(fused.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in zip(fused.buffers(), model.buffers(), strict=True))
    assert len(_passes(expected, _x())) >= 3
    assert _passes(fused, _x()) == []
    _assert_same(fused, expected, _x())


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
    fused, expected = _fused_and_converted(Net(lambda m, x: activation(m, m.norm(x)), layer(3)))
    assert capsys.readouterr().out == f"fused 1 of 1 batch normalization\n  layer bn with {said}\n"
    assert _passes(fused, _x()) == []
    _assert_same(fused, expected, _x(), exact=said.startswith(("relu", "leaky_relu")))


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

    fused, expected = _fused_and_converted(Net(forward))
    said = "add + relu" if activated else "add"
    assert capsys.readouterr().out == f"fused 1 of 1 batch normalization\n  layer bn with {said}\n"
    assert _passes(fused, _x()) == []
    _assert_same(fused, expected, _x())


@pytest.mark.parametrize("name", ADDITIONS)
def test_of_two_batch_norms_the_later_takes_the_sum(name, capsys):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(ADDITIONS[name](self.a(x), self.b(2 * x)))

    fused, expected = _fused_and_converted(Two())
    assert (
        "  layer b with add + relu\nlayer a (BatchNorm2d) is left: its output is the residual"
        in capsys.readouterr().out
    )
    assert _passes(fused, _x()) == []
    _assert_same(fused, expected, _x())


def test_a_residual_computed_after_the_batch_norm():
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x)
        return F.relu(y + F.max_pool2d(x, 3, stride=1, padding=1))

    fused, expected = _fused_and_converted(Net(forward))
    assert _passes(fused, _x()) == []
    _assert_same(fused, expected, _x())


@pytest.mark.parametrize("r", [_x(1, 3, 1, 1), _x().double(), _x(2, 4, 3, 6, 5)], ids=["narrow", "double", "longer"])
def test_a_residual_of_another_shape_or_type_is_added_as_pytorch_does(r, capsys):
    class Plus(Net):
        def forward(self, x: Tensor, r: Tensor) -> Tensor:  # type: ignore[override]
            return F.relu(self.norm(x) + r)

    fused, expected = _fused_and_converted(Plus(lambda m, x: x))
    assert "  layer bn with add + relu\n" in capsys.readouterr().out
    _assert_same(fused, expected, _x(), r)
    assert fused(_x(), r).dtype == r.dtype


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (2, 3), (3,), (1, 3, 1, 1)], ids=str)
def test_what_the_layer_refuses_is_refused(shape):
    fused, expected = _fused_and_converted(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    state = copy.deepcopy(fused.state_dict())
    with pytest.raises((ValueError, RuntimeError)) as refused:
        expected(torch.ones(shape))
    with pytest.raises(type(refused.value)) as refused_fused:
        fused(torch.ones(shape))
    assert str(refused_fused.value) == str(refused.value)
    torch.testing.assert_close(fused.state_dict(), state, rtol=0, atol=0)


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
    fused, expected = _fused_and_converted(Net(forward))
    printed = capsys.readouterr().out
    fused_calls = int(name == "one of two calls")
    assert printed.startswith(f"fused {fused_calls} of 1 batch normalization\n")
    assert printed.splitlines()[-1].startswith("layer bn (BatchNorm2d) is left: ")
    assert reason in printed
    assert len(_passes(fused, _x())) == len(_passes(expected, _x())) - fused_calls
    _assert_same(fused, expected, _x())


def test_an_input_that_changes_before_the_addition(capsys):
    """Autograd would not have it either, so this is for frozen layers."""

    def forward(m: Any, x: Tensor) -> Tensor:
        z = 2 * x.detach()
        y = m.bn(z)
        return F.relu(y + z.add_(1))

    fused, expected = _fused_and_converted(Net(forward).requires_grad_(False))
    reason = "between it and its addition something may be written in place (.add_())"
    assert f"layer bn (BatchNorm2d) is left: {reason}" in capsys.readouterr().out
    _assert_same(fused, expected, _x())


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
    fused, expected = _fused_and_converted(model)
    _, report = bnt.fuse(model, verbose=False, return_report=True)
    assert report.fused_with == {"1": "relu", "4.bn": "add + relu", "5.bn": "add + relu"}
    assert report.left == ()
    assert _passes(fused, _x()) == []
    assert list(fused.state_dict()) == list(model.state_dict())
    _assert_same(fused, expected, _x())


@pytest.mark.parametrize("name", ["2", "4.drop", "4.path", "5.after"])
def test_an_identity_that_is_watched_or_replaced_is_called(name):
    """When the model is fused, and afterwards."""
    model = _identities()
    seen: list[int] = []
    watched = copy.deepcopy(model)
    watched.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    fused, expected = _fused_and_converted(watched)
    layer = {"2": "1"}.get(name, f"{name[0]}.bn")
    _, report = bnt.fuse(watched, verbose=False, return_report=True)
    assert layer in [left[0] for left in report.left] or report.fused_with[layer] == "add"
    seen.clear()
    fused.eval()(_x())
    assert seen == [1]
    _assert_same(fused, expected, _x())

    fused, expected = _fused_and_converted(model)
    fused.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    seen.clear()
    fused.eval()(_x())
    assert seen == [1]
    _assert_same(fused, expected, _x())
    for one in (fused, expected):
        one.set_submodule(name, nn.Hardtanh(-0.5, 0.5))
    _assert_same(fused, expected, _x())


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
    fused, expected = _fused_and_converted(Net(forward))
    assert capsys.readouterr().out.splitlines() == [
        "fused 0 of 1 batch normalization",
        f"the model itself (Net) cannot be traced: {reason}",
        "layer bn (BatchNorm2d) is left: no forward that could be traced calls it",
    ]
    _assert_same(fused, expected, _x())


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
    fused, expected = _fused_and_converted(Net(TRACEABLE[name]))
    assert "fused 1 of 1" in capsys.readouterr().out
    _assert_same(fused, expected, _x())


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
    fused, expected = _fused_and_converted(model)
    where = "3" if inside else "the model itself"
    printed = capsys.readouterr().out
    assert f"{where} (Starred) cannot be traced: its forward takes *inputs" in printed
    assert f"layer {'3.' * inside}block.bn2 with add + relu\n" in printed
    assert f"layer {'3.' * inside}bn (BatchNorm2d) is left: no forward that could be traced calls it" in printed
    assert _passes(fused, _x()) == ["relu"]
    _assert_same(fused, expected, _x())


def test_what_comes_is_known_where_a_module_is_called():
    fused, expected = _fused_and_converted(nn.Sequential(Starred(branches=False)))
    assert _passes(fused, _x()) == []
    _assert_same(fused, expected, _x())


class Optional(Net):
    def forward(self, x: Tensor, scale: Tensor | None = None, **more: Any) -> Tensor:
        y = F.relu(self.norm(x))
        return y if scale is None else y * scale


def test_other_calls_than_the_one_traced_run_the_forward_of_the_class():
    fused, expected = _fused_and_converted(Optional(lambda m, x: x))
    assert _passes(fused, _x()) == []
    assert _passes(fused, _x(), _x(1)) == ["relu"]
    assert torch.equal(fused(x=_x()), expected(_x()))
    assert torch.equal(fused(_x(), scale=_x(1)), expected(_x(), _x(1)))
    _assert_same(fused, expected, _x())
    _assert_same(fused, expected, _x(), _x(1))


def test_lists_where_a_tensor_was_traced():
    fused, expected = _fused_and_converted(DenseLayer(6, 2).eval())
    assert _passes(fused, _x(4, 6, 2, 2)) == []
    given = [_x(4, 3, 2, 2), _x(4, 3, 2, 2, seed=1)]
    assert torch.equal(fused(given), expected(given))


# --- the modules around ---


def test_the_model_given_is_as_it_was_and_learns_with_the_fused_one():
    model = ResNet()
    model.layer1[0].bn1.register_forward_hook(lambda *_: None)
    before = {name: (type(m), m, m.training, set(m.__dict__)) for name, m in model.named_modules()}
    fused = bnt.fuse(model, verbose=False)
    fused.eval()
    fused.layer1[0].register_forward_hook(lambda *_: None)
    fused.fc = nn.Identity()
    assert {name: (type(m), m, m.training, set(m.__dict__)) for name, m in model.named_modules()} == before
    assert not model.layer1[0]._forward_hooks

    fused = bnt.fuse(model, verbose=False)
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.1)
    start = copy.deepcopy(model.state_dict())
    for seed in range(2):
        optimizer.zero_grad()
        fused(_x(seed=seed)).square().mean().backward()
        optimizer.step()
    assert int(model.stem[1].num_batches_tracked) == 2
    assert not torch.equal(model.stem[1].weight, start["stem.1.weight"])
    torch.testing.assert_close(model.state_dict(), fused.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(model.eval()(_x()), fused.eval()(_x()), rtol=1e-4, atol=1e-4)

    fused.double()
    assert {t.dtype for t in model.state_dict().values()} == {torch.float64, torch.int64}
    torch.testing.assert_close(model(_x().double()), fused(_x().double()))


def test_tensors_that_are_no_buffers_are_shared_too():
    model = Net(lambda m, x: F.relu(m.norm(x)) * m.scale)
    model.scale, model.listed = torch.tensor(2.0, requires_grad=True) * 1, [model.conv.weight]
    fused = bnt.fuse(model, verbose=False)
    assert fused.scale is model.scale
    assert fused.listed[0] is model.conv.weight
    assert _passes(fused, _x()) == []


def test_each_part_called_by_itself_computes_what_it_did():
    fused, expected = _fused_and_converted(ResNet())
    x = _x(4, 4, 3, 3)
    block, block_expected = fused.layer1[1], expected.layer1[1]
    _assert_same(block, block_expected, x)
    assert _passes(block, x) == []
    assert torch.equal(block.bn1(_x(4, 6, 2, 2)), block_expected.bn1(_x(4, 6, 2, 2)))
    assert torch.equal(fused.layer1[:1](x), expected.layer1[:1](x))
    assert torch.equal(fused.features(_x()), expected.features(_x()))
    first, first_expected = (nn.Sequential(*list(m.children())[1:3]) for m in (fused, expected))
    assert torch.equal(first(_x()), first_expected(_x()))


HOOKED = ["stem", "layer1.0", "layer1.1.downsample", "layer1.0.bn2", "layer1.0.relu", "stem.2"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", HOOKED)
def test_hooks_see_what_they_saw(name, when):
    """Forward, pre and backward hooks, there when the model is fused or registered later."""

    def hook(model: nn.Module, seen: list[Tensor]) -> None:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
        module.register_forward_hook(lambda _, args, y: seen.append(y.detach().clone()))
        module.register_full_backward_hook(lambda _, by_input, by_output: seen.append(by_output[0].clone()))

    model = ResNet()
    for m in model.modules():
        if isinstance(m, nn.ReLU):
            m.inplace = False  # full backward hooks do not go with writing in place
        elif isinstance(m, ResidualBlock):
            m.writes = False
    seen: list[Tensor] = []
    seen_expected: list[Tensor] = []
    if when == "before":
        hook(model, seen)
    fused, expected = _fused_and_converted(model)
    if when == "after":
        hook(fused, seen)
    else:
        module = expected.get_submodule(name)
        for hooks in (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks):
            hooks.clear()
    hook(expected, seen_expected)
    _assert_same(fused, expected, _x())
    assert len(seen) == len(seen_expected) >= 9
    for a, b in zip(seen, seen_expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_hooked_layers_are_named_and_the_rest_is_fused(capsys):
    model = ResNet()
    model.stem[1].register_forward_hook(lambda *_: None)
    model.layer1[0].relu.register_forward_pre_hook(lambda *_: None)
    bnt.fuse(model)
    printed = capsys.readouterr().out
    assert "layer stem.1 (BatchNorm2d) is left: it has hooks, which see what a fused step does not compute" in printed
    assert "layer layer1.0.bn1 (BatchNorm2d) is left: no fusable activation follows (ReLU with hooks)" in printed
    assert " layer1.0.bn2 with add\n" in printed


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("layer1.1.bn2", nn.Identity()),
        ("layer1.0.relu", nn.GELU()),
        ("layer1.0", nn.Conv2d(4, 4, 1)),
        ("fc", nn.ReLU()),
    ],
    ids=["batch norm", "activation", "block", "head"],
)
def test_a_module_put_in_the_place_of_another_is_used(name, module):
    fused, expected = _fused_and_converted(ResNet())
    for model in (fused, expected):
        model.set_submodule(name, copy.deepcopy(module))
    _assert_same(fused, expected, _x())


def test_a_layer_appended_is_called():
    fused, expected = _fused_and_converted(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    for model in (fused, expected):
        model.append(nn.Tanh())
    _assert_same(fused, expected, _x())


def test_modules_that_a_model_holds_in_lists_of_its_own():
    class Listing(Net):
        def __init__(self) -> None:
            super().__init__(lambda m, x: m.steps[1](m.steps[0](x)))
            self.steps = [self.bn, self.relu]

    fused, expected = _fused_and_converted(Listing())
    assert fused.steps[0] is fused.bn
    assert _passes(fused, _x()) == []
    _assert_same(fused, expected, _x())


def test_revert_takes_the_fusing_back():
    model = ResNet()
    fused = bnt.revert(bnt.fuse(model, verbose=False), verbose=False)
    assert [type(m) for m in fused.modules()] == [type(m) for m in model.modules()]
    assert [m.__dict__.keys() for m in fused.modules()] == [m.__dict__.keys() for m in model.modules()]
    assert torch.equal(fused.eval()(_x()), model.eval()(_x()))


# --- copies, files, compilers ---


def _copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def _pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _fused_again(model: nn.Module) -> nn.Module:
    return bnt.fuse(model, verbose=False)


@pytest.mark.parametrize("made", [_copied, _pickled, _saved, _fused_again], ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("build", [ResNet, DenseNet])
def test_copies_stay_fused_and_are_models_of_their_own(made, build):
    fused, expected = _fused_and_converted(build())
    made_from = made(fused)
    assert _passes(made_from, _x()) == []
    _assert_same(made_from, expected, _x())
    if made is not _fused_again:
        with torch.no_grad():
            for parameter in fused.parameters():
                parameter.zero_()
        _assert_same(made_from, expected, _x())


def test_compiled():
    fused, expected = _fused_and_converted(ResNet())
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    for training in (True, False):
        torch.testing.assert_close(compiled.train(training)(_x()), expected.train(training)(_x()), rtol=1e-6, atol=1e-6)


def test_exported():
    fused, expected = _fused_and_converted(ResNet().eval())
    exported = torch.export.export(fused, (_x(),))
    torch.testing.assert_close(exported.module()(_x()), expected(_x()), rtol=1e-4, atol=1e-5)


def test_traced_by_others_it_is_the_forward_of_its_class():
    fused, expected = _fused_and_converted(ResNet().eval())
    assert torch.equal(torch.fx.symbolic_trace(fused)(_x()), expected(_x()))
    assert torch.equal(torch.fx.symbolic_trace(nn.Sequential(fused))(_x()), expected(_x()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is (deprecated|not supported):DeprecationWarning")
def test_traced_by_torch_jit():
    """Without its warning that a comparison of shapes is decided for good."""
    fused, expected = _fused_and_converted(ResNet().eval())
    traced = torch.jit.trace(fused, (_x(),))
    torch.testing.assert_close(traced(_x(2, 3, 7, 7)), expected(_x(2, 3, 7, 7)), rtol=1e-4, atol=1e-5)


def test_a_graph_module_can_be_fused():
    expected = bnt.convert(ResNet().eval(), verbose=False)
    fused = bnt.fuse(torch.fx.symbolic_trace(expected), verbose=False)
    assert _passes(fused, _x()) == []
    assert torch.equal(fused(_x()), expected(_x()))


def test_functional_calls():
    fused, expected = _fused_and_converted(ResNet().eval())
    parameters = {name: 2 * p.detach() for name, p in fused.named_parameters()}
    y = torch.func.functional_call(fused, parameters, (_x(),))
    assert torch.equal(y, torch.func.functional_call(expected, parameters, (_x(),)))
    assert not torch.equal(y, expected(_x()))


def test_a_model_that_cannot_be_copied_is_refused():
    model = nn.Sequential(nn.BatchNorm1d(3))
    model.lock = threading.Lock()
    with pytest.raises(
        TypeError, match=r"fuse: the modules of a model must be copyable .* got a Sequential that is not"
    ):
        bnt.fuse(model)
