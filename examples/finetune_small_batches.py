"""Fine-tuning at batch size 2: what to do with batch normalization?

A network learns clean digits and is then fine-tuned on a few images of another kind: pale and noisy. Their number
is odd, so that the last batch of two is a batch of one, of which a layer on (N, C) has no variance. Needs torch,
scikit-learn and rich.

    python examples/finetune_small_batches.py
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
from collections.abc import Iterator

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import batchnorm.torch as bnt

FEW = 61  # images to fine-tune on
CLEAN = 900  # images to learn from before
console = Console()


def network() -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU()]
    return nn.Sequential(*block(1, 16, 1), *block(16, 32, 2), *block(32, 64, 2), *head, nn.Linear(32, 10))


def digits(seed: int) -> tuple[Tensor, Tensor]:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    return torch.from_numpy(data.images).float()[order, None] / 16, torch.from_numpy(data.target).long()[order]


def of_another_kind(images: Tensor, seed: int) -> Tensor:
    return 0.5 + 0.5 * images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


# --- training ---


def batches(count: int, size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).split(size)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, classes: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), classes).backward()
    optimizer.step()


def pretrained(images: Tensor, classes: Tensor, epochs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for chosen in batches(len(images), 50, epochs, seed):
        step(model, optimizer, images[chosen], classes[chosen])
    return model


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    return (model.eval()(images).argmax(1) == classes).float().mean().item()


# --- the ways ---


def norms(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]


def freeze(model: nn.Module) -> None:
    """Running statistics normalize and stay; weight and bias learn."""
    for layer in norms(model):
        layer.eval()


def estimate(model: nn.Module, images: Tensor) -> None:
    """Replace the running statistics with those of all given images."""
    for layer in norms(model):
        layer.momentum = 1.0
    with torch.no_grad():
        model(images)


def accept_single_values(model: nn.Module) -> None:
    """A batch that leaves one value per channel is normalized with the running statistics."""
    for layer in norms(bnt.convert(model, verbose=False)):
        layer.on_single_value = "running"


UNTOUCHED = "not fine-tuned"
STOCK = "stock, batches of one dropped"
RUNNING = 'ours, on_single_value="running"'
FROZEN = "statistics frozen"
ESTIMATED = "statistics estimated anew, frozen"
WAYS = (UNTOUCHED, STOCK, RUNNING, FROZEN, ESTIMATED)


def finetuned(way: str, model: nn.Module, images: Tensor, classes: Tensor, epochs: int, seed: int) -> nn.Module:
    model = copy.deepcopy(model).train()
    if way == UNTOUCHED:
        return model
    if way == ESTIMATED:
        estimate(model, images)
    if way in (FROZEN, ESTIMATED):
        freeze(model)
    if way == RUNNING:
        accept_single_values(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for chosen in batches(len(images), 2, epochs, seed):
        if way == STOCK and len(chosen) == 1:
            continue  # PyTorch refuses it
        step(model, optimizer, images[chosen], classes[chosen])
    return model


def show_the_batch_of_one(model: nn.Module, image: Tensor) -> None:
    try:
        copy.deepcopy(model).train()(image)
    except ValueError as error:
        console.print(f"a batch of one, stock: ValueError: {error}", highlight=False)
    ours = copy.deepcopy(model).train()
    accept_single_values(ours)
    console.print(f"a batch of one, ours: scores of shape {tuple(ours(image).shape)}\n", highlight=False)


def report(found: dict[str, list[float]]) -> None:
    table = Table("batch normalization while fine-tuning", "test accuracy", "of each seed", title="pale, noisy digits")
    for way, accuracies in found.items():
        spread = f" ± {100 * statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        each = " ".join(f"{100 * value:.1f}" for value in accuracies)
        table.add_row(way, f"{100 * statistics.mean(accuracies):.1f}%{spread}", each)
    console.print(table)
    best = max(found, key=lambda way: statistics.mean(found[way]))
    gaps = [b - s for b, s in zip(found[best], found[STOCK], strict=True)]
    console.print(
        f"best here: {best}; {100 * statistics.mean(gaps):+.1f} points to stock, ahead in "
        f"{sum(gap > 0 for gap in gaps)} of {len(gaps)} seeds",
        highlight=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one seed, fewer epochs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the work is too small to be shared
    seeds, before, after = (1, 3, 1) if arguments.quick else (arguments.seeds, 6, 5)

    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with Progress(console=console, transient=True) as progress, contextlib.suppress(KeyboardInterrupt):
        for seed in progress.track(range(seeds), description="seeds"):
            images, classes = digits(seed)
            model = pretrained(images[:CLEAN], classes[:CLEAN], before, seed)
            if seed == 0:
                show_the_batch_of_one(model, images[:1])
            images = of_another_kind(images, seed)
            few, test = slice(CLEAN, CLEAN + FEW), slice(CLEAN + FEW, None)
            tuned = {way: finetuned(way, model, images[few], classes[few], after, seed) for way in WAYS}
            for way in WAYS:  # a seed counts when all ways are through
                found[way].append(accuracy(tuned[way], images[test], classes[test]))
    if found[STOCK]:
        report(found)


if __name__ == "__main__":
    main()
