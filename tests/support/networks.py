"""Small versions of well-known networks: the layers around batch normalization as published, fewer and narrower blocks.

Each differs in what it asks of batch normalization: a sum with a shortcut that has its own BN (ResNet), depthwise
convolutions, ReLU6 and a BN with nothing after it (MobileNetV2), BN *before* the convolution and on concatenated
channels (DenseNet), few values per channel and both shapes of BatchNorm1d (temporal), five axes (video).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mobile
import torch
from mobile import conv_bn
from torch import Tensor, nn

CLASSES = 10


def classifier(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


# --- ResNet (He et al. 2015, arXiv:1512.03385) ---


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around which the input, or its projection, is added. One ReLU module serves twice."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, width, 3, stride)
        self.conv2, self.bn2 = conv_bn(width, width, 3)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1×1 to few channels, 3×3, 1×1 to four times as many; the sum is written into the last BN's output."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, 3, stride)
        self.conv3, self.bn3 = conv_bn(width, self.expansion * width, 1)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, self.expansion * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self.downsample(x)
        return self.relu(y)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity where shapes agree, else a projection with a BN of its own."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(*conv_bn(inputs, outputs, 1, stride))


def resnet(block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, ...], width: int) -> nn.Module:
    layers: list[nn.Module] = [*conv_bn(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)]
    channels = width
    for stage, depth in enumerate(depths):
        for position in range(depth):
            stride = 2 if stage > 0 and position == 0 else 1
            layers.append(block(channels, width << stage, stride))
            channels = block.expansion * (width << stage)
    return nn.Sequential(*layers, *classifier(channels))


def resnet18() -> nn.Module:
    """All of ResNet-18's 20 BN layers, an eighth of its channels."""
    return resnet(BasicBlock, (2, 2, 2, 2), 8)


def resnet50() -> nn.Module:
    """All of ResNet-50's 53 BN layers, a sixteenth of its channels."""
    return resnet(Bottleneck, (3, 4, 6, 3), 4)


# --- MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) ---


def mobilenet_v2() -> nn.Module:
    """The paper's stages, thinned out."""
    return mobile.mobilenet_v2(8, [(1, 8, 1, 1), (6, 8, 2, 2), (6, 12, 2, 2), (6, 16, 2, 1)], 64, classifier(64))


# --- DenseNet (Huang et al. 2016, arXiv:1608.06993) ---


def bn_relu_conv(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), convolution]


class DenseLayer(nn.Module):
    """Appends its channels to those it was given, so each BN sees all earlier outputs, again, with its own weight."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*bn_relu_conv(inputs, 4 * growth, 1), *bn_relu_conv(4 * growth, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet() -> nn.Module:
    growth, channels = 6, 12
    layers: list[nn.Module] = [*conv_bn(3, channels, 3, 2), nn.ReLU(inplace=True)]
    for block, depth in enumerate((4, 4, 4)):
        if block > 0:
            layers += [*bn_relu_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(depth):
            layers.append(DenseLayer(channels, growth))
            channels += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *classifier(channels))


# --- one and three dimensions ---


class TemporalBlock(nn.Module):
    """Two dilated convolutions and a shortcut (Bai et al. 2018, arXiv:1803.01271, with BN for weight normalization)."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm1d(outputs), nn.BatchNorm1d(outputs)
        self.project = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.project(x))


def temporal() -> nn.Module:
    """BN on (N, C, L), then on (N, C): one value per sample."""
    blocks = [TemporalBlock(inputs, 16, 2**i) for i, inputs in enumerate((4, 16, 16, 16))]
    head = [nn.Linear(16, 32, bias=False), nn.BatchNorm1d(32), nn.LeakyReLU(0.1), nn.Linear(32, CLASSES)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), *head)


class VideoBlock(nn.Module):
    """A convolution over space, one over time, and a shortcut: R(2+1)D (Tran et al. 2017, arXiv:1711.11248)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.time = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.bn1, self.bn2 = nn.BatchNorm3d(channels), nn.BatchNorm3d(channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.space(x)))
        return self.act(self.bn2(self.time(y)) + x)


def video() -> nn.Module:
    stem = [nn.Conv3d(3, 8, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2), bias=False), nn.BatchNorm3d(8), nn.SiLU()]
    blocks = [VideoBlock(8), VideoBlock(8), nn.AvgPool3d(2), VideoBlock(8)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, CLASSES))


class Network(NamedTuple):
    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of a batch


NETWORKS = [
    Network("resnet18", resnet18, (8, 3, 48, 48)),
    Network("resnet50", resnet50, (8, 3, 48, 48)),
    Network("mobilenet_v2", mobilenet_v2, (8, 3, 32, 32)),
    Network("densenet", densenet, (8, 3, 32, 32)),
    Network("temporal", temporal, (16, 4, 48)),
    Network("video", video, (4, 3, 6, 20, 20)),
]
