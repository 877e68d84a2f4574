"""The block of MobileNetV2, of which tests and benchmarks build networks."""

from __future__ import annotations

from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size (or halves it), without the bias that batch normalization would remove."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Expand (1×1), filter each channel alone (3×3), project (1×1) without an activation; then the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        expand = [*conv_bn(inputs, hidden, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        depthwise = [*conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(inplace=True)]
        self.branch = nn.Sequential(*expand, *depthwise, *conv_bn(hidden, outputs, 1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.adds else self.branch(x)


def mobilenet_v2(stem: int, stages: list[tuple[int, int, int, int]], last: int, head: list[nn.Module]) -> nn.Sequential:
    """Sandler et al. 2018, arXiv:1801.04381: of each stage its expansion, channels, blocks and first stride."""
    layers: list[nn.Module] = [*conv_bn(3, stem, 3, 2), nn.ReLU6(inplace=True)]
    channels = stem
    for expansion, outputs, blocks, first in stages:
        for position in range(blocks):
            layers.append(InvertedResidual(channels, outputs, first if position == 0 else 1, expansion))
            channels = outputs
    return nn.Sequential(*layers, *conv_bn(channels, last, 1), nn.ReLU6(inplace=True), *head)
