"""Models to fuse, and how a fused one is compared with one that is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import batchnorm.torch as bnt


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


def _x(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (4, 3, 6, 5), generator=torch.Generator().manual_seed(seed))


def fused_and_converted(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The fused model, and one that runs the same kernels unfused and shares nothing with it."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return bnt.fuse(model), bnt.convert(copy.deepcopy(model), verbose=False)


def results_of(model: nn.Module, x: Tensor, *args: Any) -> tuple[Tensor, list[Tensor]]:
    """Output, and the gradients of everything that has one."""
    torch.manual_seed(3)  # dropout
    x = x.clone().requires_grad_()
    y = model(x, *args)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    if not y.requires_grad:
        return y, []
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    return y.detach(), list(torch.autograd.grad(y, wanted, g.to(y.dtype), materialize_grads=True))


def assert_same(fused: nn.Module, expected: nn.Module, x: Tensor, *args: Any, exact: bool = True) -> None:
    """The same outputs, gradients and buffers, in training, in evaluation, and in training again."""
    for training in (True, False, True):
        y, gradients = results_of(fused.train(training), x, *args)
        y_expected, gradients_expected = results_of(expected.train(training), x, *args)
        torch.testing.assert_close(y, y_expected, rtol=0 if exact else 1e-6, atol=0 if exact else 2e-6)
        largest = max((float(g.abs().max()) for g in gradients_expected), default=0.0)
        torch.testing.assert_close(gradients, gradients_expected, rtol=1e-6, atol=1e-6 * largest)
    state, state_expected = fused.state_dict(), expected.state_dict()
    assert list(state) == list(state_expected)
    torch.testing.assert_close(state, state_expected, rtol=0, atol=0)


class Recorded(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__.rstrip("_"))
        return func(*args, **(kwargs or {}))


def passes_of(model: nn.Module, *args: Any) -> list[str]:
    """The operations of a call in evaluation that a fused one does not need."""
    training = model.training
    with Recorded() as recorded, torch.no_grad():
        model.eval()(*args)
    model.train(training)
    passes = ("relu", "add", "hardtanh", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "elu")
    return [n for n in recorded.names if n in passes]
