"""The networks: small, and with the same initial weights whatever stands between their layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

import batchnorm.torch as bnt

Tensor = torch.Tensor
#: Makes the layer that stands between a linear map of so many channels and its activation.
Between = Callable[[int], nn.Module]

WEIGHTS, BATCHES, NOISE, SHIFT = range(4)  # purposes of random numbers; each has a stream of its own
CLASSES = 10


def generator(seed: int, purpose: int) -> torch.Generator:
    """Return the random numbers of one purpose: with and without normalization, the same."""
    return torch.Generator().manual_seed(1000 * seed + purpose)


def nothing(channels: int) -> nn.Module:
    """No normalization."""
    return nn.Identity()


def batch_norm_1d(channels: int) -> nn.Module:
    """Our layer, with its defaults."""
    return bnt.BatchNorm1d(channels)


def batch_norm_2d(channels: int) -> nn.Module:
    """Our layer, with its defaults."""
    return bnt.BatchNorm2d(channels)


def group_norm(channels: int) -> nn.Module:
    """Groups of 4 channels, normalized in each sample by themselves."""
    return nn.GroupNorm(channels // 4, channels)


def perceptron(
    inputs: int,
    between: Between,
    seed: int,
    *,
    activation: Callable[[], nn.Module],
    std: float | None = None,
    hidden: Sequence[int] = (100, 100, 100),
) -> nn.Sequential:
    """Fully connected; Gaussian weights of the given ``std``, or of He's sqrt(2 / inputs) where it is None."""
    random = generator(seed, WEIGHTS)
    layers: list[nn.Module] = []
    for outputs in hidden:
        layers += [drawn(nn.Linear(inputs, outputs), std, random), between(outputs), activation()]
        inputs = outputs
    return nn.Sequential(*layers, drawn(nn.Linear(inputs, CLASSES), std, random))


def convolutional(
    between: Between, seed: int, size: tuple[int, int], *, channels: Sequence[int] = (8, 16, 32)
) -> nn.Sequential:
    """3x3 convolutions of images of ``size``, each followed by ReLU and a halving of the image; then a linear map."""
    random = generator(seed, WEIGHTS)
    layers: list[nn.Module] = []
    inputs, (height, width) = 1, size
    for outputs in channels:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers += [drawn(convolution, None, random), between(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        inputs, height, width = outputs, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), drawn(nn.Linear(inputs * height * width, CLASSES), None, random))


def drawn(layer: nn.Module, std: float | None, random: torch.Generator) -> nn.Module:
    """Draw the weights anew, from ``random`` alone; biases begin at zero."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    with torch.no_grad():
        weight.normal_(0.0, std or math.sqrt(2 / weight[0].numel()), generator=random)
        bias.zero_()
    return layer


def normalizations(model: nn.Module) -> list[bnt.BatchNorm1d | bnt.BatchNorm2d]:
    """Return the batch normalizations of a model, in order."""
    return [layer for layer in model.modules() if isinstance(layer, bnt.BatchNorm1d | bnt.BatchNorm2d)]
