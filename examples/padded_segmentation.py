"""Padding must not count: a segmentation network on images of different sizes, with and without a mask.

Digits, enlarged to sizes of their own, are padded into a common canvas. Each pixel is to be named: background, or the
digit that its ink belongs to. Batch normalization averages over the canvas, padding included, unless it is given a
mask. Needs torch, scikit-learn and rich.

    python examples/padded_segmentation.py
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import batchnorm.torch as bnt

CANVAS = 28
SMALLEST, LARGEST = 8, 20
BATCH = 8
TEST = 300
INK = 0.4  # a pixel brighter than this belongs to the digit
console = Console()


class Batch(NamedTuple):
    images: Tensor  # (N, 1, H, W), zero in the padding
    mask: Tensor  # (N, H, W), False in the padding
    names: Tensor  # (N, H, W): 0 background, 1 + digit


def enlarged(size: tuple[int, int], image: Tensor) -> Tensor:
    return nn.functional.interpolate(image[None, None], size=size, mode="bilinear")[0, 0]


def padded(images: list[Tensor], digits: list[int], canvas: int) -> Batch:
    """Images in the upper left corners of canvases."""
    batch = Batch(
        torch.zeros(len(images), 1, canvas, canvas),
        torch.zeros(len(images), canvas, canvas, dtype=torch.bool),
        torch.zeros(len(images), canvas, canvas, dtype=torch.long),
    )
    for i, (image, digit) in enumerate(zip(images, digits, strict=True)):
        corner = (i, slice(image.shape[0]), slice(image.shape[1]))
        batch.images[:, 0][corner] = image
        batch.mask[corner] = True
        batch.names[corner] = torch.where(image > INK, 1 + digit, 0)
    return batch


class Layer(nn.Module):
    """Convolution, batch normalization, ReLU; the padding stays zero, as a convolution's own padding is."""

    def __init__(self, inputs: int, outputs: int, dilation: int, counts_padding: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn = bnt.BatchNorm2d(outputs, activation="relu")
        self.counts_padding = counts_padding

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.bn(self.conv(x), mask=None if self.counts_padding else mask)
        return y * mask[:, None]


class Segmenter(nn.Module):
    """Fully convolutional: a score for each name at each pixel."""

    def __init__(self, counts_padding: bool) -> None:
        super().__init__()
        shapes = [(1, 16, 1), (16, 16, 2), (16, 16, 4), (16, 16, 1)]
        self.layers = nn.ModuleList(Layer(*shape, counts_padding) for shape in shapes)
        self.head = nn.Conv2d(16, 11, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


def show_what_padding_does(images: list[Tensor]) -> None:
    """Images of one size, so that they can be a batch without padding, too."""
    size = (17, 12)
    plain = padded([enlarged(size, image) for image in images], [0] * len(images), canvas=max(size))
    x, mask, _ = padded([enlarged(size, image) for image in images], [0] * len(images), CANVAS)
    x_plain, mask_plain = plain.images[..., : size[1]], plain.mask[..., : size[1]]

    layer = bnt.BatchNorm2d(1)
    table = Table("batch of 17×12 images", "mean", "std", "largest change", title="one BN layer, training")

    def row(name: str, x: Tensor, mask: Tensor | None = None) -> None:
        layer.momentum = 1.0  # running statistics are this batch's
        y = layer(x, mask=mask)[..., : size[0], : size[1]]
        change = (y - layer.train()(x_plain)).abs().max().item()
        layer(x, mask=mask)
        mean, std = layer.running_mean.item(), layer.running_var.sqrt().item()
        table.add_row(name, f"{mean:.4f}", f"{std:.4f}", f"{change:.1e}")

    row("as it is", x_plain)
    row(f"padded to {CANVAS}×{CANVAS}", x)
    row("padded, with mask", x, mask)
    console.print(table)

    for name, counts_padding in (("without mask", True), ("with mask", False)):
        torch.manual_seed(0)
        network = Segmenter(counts_padding)
        expected = network(x_plain, mask_plain)
        change = (network(x, mask)[..., : size[0], : size[1]] - expected).abs().max().item()
        console.print(f"whole network, {name}: padding changes the scores by at most {change:.1e}", highlight=False)


class Digits:
    """Images to learn from and to test with, each at a size of its own."""

    def __init__(self) -> None:
        data = load_digits()
        images = torch.from_numpy(data.images).float() / 16
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
        self.generator = torch.Generator().manual_seed(0)
        self.images = [images[i] for i in order]
        self.digits = [int(data.target[i]) for i in order]

    def batch(self, indices: list[int], canvas: int = CANVAS) -> Batch:
        sizes = torch.randint(SMALLEST, LARGEST + 1, (len(indices), 2), generator=self.generator).tolist()
        chosen = [enlarged(tuple(size), self.images[i]) for i, size in zip(indices, sizes, strict=True)]
        return padded(chosen, [self.digits[i] for i in indices], canvas)

    def random_batch(self) -> Batch:
        """A batch to learn from; its canvas is as large as its largest image needs, as loaders pad."""
        batch = self.batch(torch.randint(TEST, len(self.images), (BATCH,), generator=self.generator).tolist())
        used = batch.mask.any(0)
        height, width = int(used.any(1).sum()), int(used.any(0).sum())
        return Batch(*(of[..., :height, :width] for of in batch))


def learn(network: Segmenter, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One step; padding never counts in the loss."""
    optimizer.zero_grad()
    scores = network(batch.images, batch.mask).movedim(1, -1)
    nn.functional.cross_entropy(scores[batch.mask], batch.names[batch.mask]).backward()
    optimizer.step()


@torch.no_grad()
def accuracy(network: Segmenter, batch: Batch) -> tuple[float, float]:
    """The share of pixels named rightly: of all inside the images, and of those with ink."""
    names = network.eval()(batch.images, batch.mask).argmax(1)
    network.train()
    right = names == batch.names
    return right[batch.mask].float().mean().item(), right[batch.names > 0].float().mean().item()


def compare_training(steps: int, seeds: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {"without mask": [], "with mask": []}
    with Progress(console=console, transient=True) as progress, contextlib.suppress(KeyboardInterrupt):
        task = progress.add_task("training", total=seeds * steps)
        for seed in range(seeds):
            digits = Digits()
            digits.generator.manual_seed(seed)
            test = digits.batch(list(range(TEST)))
            networks = {}
            for name in found:
                torch.manual_seed(seed)
                network = Segmenter(counts_padding=name == "without mask")
                networks[name] = (network, torch.optim.Adam(network.parameters(), lr=0.01))
            for _ in range(steps):
                batch = digits.random_batch()
                for network, optimizer in networks.values():
                    learn(network, optimizer, batch)
                progress.advance(task)
            for name, (network, _) in networks.items():
                found[name].append(accuracy(network, test))
    table = Table(
        "statistics", "pixels named rightly", "of those with ink", title=f"{seeds} seed(s), {steps} steps each"
    )
    for name, of in found.items():
        table.add_row(name, *(summary([100 * accuracies[i] for accuracies in of]) for i in range(2)))
    console.print(table)


def summary(values: list[float]) -> str:
    if not values:
        return "interrupted"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}%{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="20 steps of one seed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the work is too small to be shared
    digits = Digits()
    show_what_padding_does(digits.images[:BATCH])
    compare_training(*((20, 1) if arguments.quick else (arguments.steps, arguments.seeds)))


if __name__ == "__main__":
    main()
