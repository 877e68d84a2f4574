"""Write the lists of batch-norm layers of well-known networks, from the architectures that their papers describe.

    python benchmarks/shapes/derive.py

A network is described by what its papers' tables say: channels, strides, repetitions. Each function returns the
(channels, side) of its batch-norm layers in order; equal ones become one line with a count.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent

Layers = list[tuple[int, int]]  # channels, side of the square or cube (1: a table)
Stages = tuple[tuple[int, int, int, int], ...]


class Network(NamedTuple):
    """A network, and the input that it is given."""

    title: str
    source: str
    batch: int
    side: int
    layers: Callable[[int], Layers]
    axes: int = 2


def halved(side: int) -> int:
    """What a convolution of stride 2 that is padded to keep the size makes of a side."""
    return (side + 1) // 2


def resnet(side: int, depths: tuple[int, ...], bottleneck: bool) -> Layers:
    """Stem; blocks of two 3×3, or of 1×1, 3×3 (with the stride), 1×1 to four times the width; projections."""
    side = halved(side)
    layers = [(64, side)]
    side, channels = halved(side), 64  # the pooling
    for stage, depth in enumerate(depths):
        width = 64 << stage
        outputs = 4 * width if bottleneck else width
        for block in range(depth):
            before = side
            side = halved(side) if stage > 0 and block == 0 else side
            layers += [(width, before), (width, side)] if bottleneck else [(width, side)]
            layers.append((outputs, side))
            if channels != outputs or side != before:
                layers.append((outputs, side))  # the projection
            channels = outputs
    return layers


def block_of(layers: Layers, channels: int, hidden: int, outputs: int, side: int, stride: int) -> int:
    """Add the layers of an inverted residual block: expansion, unless it expands nothing; depthwise; projection."""
    if hidden != channels:
        layers.append((hidden, side))
    side = halved(side) if stride == 2 else side
    layers += [(hidden, side), (outputs, side)]
    return side


def inverted_residuals(side: int, table: Stages) -> Layers:
    """A stem of 32 channels, stages of (expansion, channels, blocks, stride of the first), a head of 1280."""
    side, channels = halved(side), 32
    layers = [(channels, side)]
    for expansion, outputs, blocks, first in table:
        for block in range(blocks):
            side = block_of(layers, channels, expansion * channels, outputs, side, first if block == 0 else 1)
            channels = outputs
    return [*layers, (1280, side)]


def mobilenet_v2(side: int) -> Layers:
    """Table 2 of the paper."""
    return inverted_residuals(
        side,
        ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    )


def mobilenet_v3_large(side: int) -> Layers:
    """Table 1: expanded channels, channels, stride. Squeeze-and-excite has no batch norm."""
    side, channels = halved(side), 16
    layers = [(channels, side)]
    for hidden, outputs, stride in (
        (16, 16, 1), (64, 24, 2), (72, 24, 1), (72, 40, 2), (120, 40, 1), (120, 40, 1), (240, 80, 2), (200, 80, 1),
        (184, 80, 1), (184, 80, 1), (480, 112, 1), (672, 112, 1), (672, 160, 2), (960, 160, 1), (960, 160, 1),
    ):  # fmt: skip
        side = block_of(layers, channels, hidden, outputs, side, stride)
        channels = outputs
    return [*layers, (960, side)]


def efficientnet_b0(side: int) -> Layers:
    """Table 1 of the paper."""
    return inverted_residuals(
        side,
        ((1, 16, 1, 1), (6, 24, 2, 2), (6, 40, 2, 2), (6, 80, 3, 2), (6, 112, 3, 1), (6, 192, 4, 2), (6, 320, 1, 1)),
    )


def densenet_121(side: int) -> Layers:
    """Growth 32; each layer normalises all channels so far, then the 128 of its 1×1; transitions halve both."""
    side = halved(side)
    layers, channels = [(64, side)], 64
    side = halved(side)
    for depth in (6, 12, 24, 16):
        for _ in range(depth):
            layers += [(channels, side), (128, side)]
            channels += 32
        layers.append((channels, side))  # of the transition; after the last block, of the classifier
        channels, side = channels // 2, side // 2
    return layers


def unet(side: int) -> Layers:
    """Two padded 3×3 convolutions with batch norm at each of five levels down and four up, 64 to 1024 channels."""
    down = [(64 << level, side >> level) for level in range(5)]
    return [layer for layer in [*down, *reversed(down[:-1])] for _ in range(2)]


def unet_3d(side: int) -> Layers:
    """The paper's four levels: down, each level's second convolution has twice the channels of its first."""
    layers = []
    for level in range(4):
        layers += [(32 << level, side >> level), (64 << level, side >> level)]
    for level in (2, 1, 0):
        layers += [(64 << level, side >> level)] * 2
    return layers


def mlp(side: int) -> Layers:
    """Four hidden layers."""
    return [(512, side), (512, side), (256, side), (128, side)]


NETWORKS = {
    "resnet18": Network(
        "ResNet-18", "He et al. 2015, arXiv:1512.03385", 32, 224, lambda s: resnet(s, (2, 2, 2, 2), False)
    ),
    "resnet50": Network(
        "ResNet-50, stride in the 3×3",
        "He et al. 2015, arXiv:1512.03385",
        32,
        224,
        lambda s: resnet(s, (3, 4, 6, 3), True),
    ),
    "mobilenet_v2": Network("MobileNetV2", "Sandler et al. 2018, arXiv:1801.04381", 32, 224, mobilenet_v2),
    "mobilenet_v3_large": Network(
        "MobileNetV3-Large", "Howard et al. 2019, arXiv:1905.02244", 32, 224, mobilenet_v3_large
    ),
    "efficientnet_b0": Network("EfficientNet-B0", "Tan and Le 2019, arXiv:1905.11946", 32, 224, efficientnet_b0),
    "densenet121": Network("DenseNet-121", "Huang et al. 2016, arXiv:1608.06993", 16, 224, densenet_121),
    "unet": Network("U-Net with padded convolutions", "Ronneberger et al. 2015, arXiv:1505.04597", 2, 256, unet),
    "unet3d": Network("3-D U-Net with padded convolutions", "Çiçek et al. 2016, arXiv:1606.06650", 1, 64, unet_3d, 3),
    "mlp": Network("an MLP on a table", "512, 512, 256 and 128 hidden units", 4096, 1, mlp, 0),
}


def listed(name: str) -> str:
    """The text of a list."""
    n = NETWORKS[name]
    layers = n.layers(n.side)
    given = "×".join([str(n.side)] * n.axes) or "rows of a table"
    head = [
        f"# {n.title} ({n.source})",
        f"# input {given}, batch {n.batch}; {len(layers)} batch-norm layers. Written by derive.py.",
    ]
    for channels, side in dict.fromkeys(layers):
        count = layers.count((channels, side))
        sizes = "x".join(map(str, (n.batch, channels, *[side] * n.axes)))
        first = layers.index((channels, side)) + 1
        head.append(f"{name} bn {first}, {sizes}, {count} layer{'s' * (count > 1)}")
    return "\n".join(head) + "\n"


def main() -> None:
    for name in NETWORKS:
        (HERE / f"{name}.txt").write_text(listed(name), encoding="utf-8")


if __name__ == "__main__":
    main()
