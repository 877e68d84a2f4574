"""One added line: a small CNN learns digits with PyTorch's batch normalization, and with ours.

The line is ``bnt.accelerate()``. To compare, two networks of equal weights take turns on the same batches: one step
with PyTorch's kernels, one with ours. Needs torch, scikit-learn and rich.

    python examples/digits_cnn.py
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import time
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import batchnorm.torch as bnt

BATCH = 64
console = Console()


def digits(size: int = 32, train: int = 1300) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scikit-learn's 1797 digits, enlarged: images and classes to learn from, images and classes to test with."""
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    images = nn.functional.interpolate(images, size=(size, size), mode="bilinear")
    classes = torch.from_numpy(data.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, classes = images[order], classes[order]
    return images[:train], classes[:train], images[train:], classes[train:]


def network() -> nn.Module:
    """Depthwise separable convolutions (MobileNet's), which networks for CPUs are made of."""

    def bn_relu(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]

    def separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        return [depthwise, *bn_relu(inputs), nn.Conv2d(inputs, outputs, 1, bias=False), *bn_relu(outputs)]

    layers = [nn.Conv2d(1, 24, 3, padding=1, bias=False), *bn_relu(24)]
    layers += [*separable(24, 24, 1), *separable(24, 48, 2), *separable(48, 48, 1), *separable(48, 96, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))


@dataclass
class Run:
    """One network in training, and how its batch normalization is computed."""

    name: str
    ours: bool
    model: nn.Module
    steps: int
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = self.model.to(memory_format=torch.channels_last)  # as PyTorch recommends for convolutions
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.rate = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=0.01, total_steps=self.steps)

    def kernels(self) -> contextlib.AbstractContextManager:
        return bnt.accelerate() if self.ours else contextlib.nullcontext()

    def step(self, images: Tensor, classes: Tensor) -> None:
        with self.kernels():
            start = time.perf_counter()
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(images), classes).backward()
            self.optimizer.step()
            self.rate.step()
            self.seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def accuracy(self, images: Tensor, classes: Tensor) -> float:
        with self.kernels():
            predicted = self.model.eval()(images).argmax(1)
        self.model.train()
        return (predicted == classes).float().mean().item()


def train(runs: list[Run], images: Tensor, classes: Tensor, steps: int) -> None:
    """All runs see the same batches in the same order, and take turns at going first."""
    generator = torch.Generator().manual_seed(1)
    with Progress(console=console, transient=True) as progress:
        for step in progress.track(range(steps), description="training"):
            chosen = torch.randperm(len(images), generator=generator)[:BATCH]
            for run in runs if step % 2 else reversed(runs):
                run.step(images[chosen], classes[chosen])


def report(runs: list[Run], images: Tensor, classes: Tensor) -> None:
    stock = statistics.median(runs[0].seconds)
    table = Table("batch normalization", "ms per step (median)", "speed", "test accuracy", title="digits, 32×32")
    for run in runs:
        median = statistics.median(run.seconds)
        accuracy = run.accuracy(images, classes)
        table.add_row(run.name, f"{1e3 * median:.1f}", f"{stock / median:.2f}×", f"{accuracy:.4f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="60 steps")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    steps = 60 if arguments.quick else arguments.steps

    torch.manual_seed(0)
    model = network()
    runs = [Run("PyTorch", False, model, steps), Run("batchnorm", True, copy.deepcopy(model), steps)]
    images, classes, test_images, test_classes = digits()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C: report what there is
        train(runs, images, classes, steps)
    if all(run.seconds for run in runs):
        report(runs, test_images, test_classes)
        with bnt.accelerate():
            console.print(str(bnt.status()), highlight=False)


if __name__ == "__main__":
    main()
