"""Fine-tuning with frozen batch normalization: it stays frozen, and steps take no longer.

A network learns digits, and is then fine-tuned on pale, noisy ones in batches of eight, while its batch normalization
stays as it is. The training loop calls model.train() at each epoch, as loops do. Needs torch, scikit-learn and rich.

    python examples/finetune_frozen.py
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

import batchnorm.torch as bnt

console = Console()


def network() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        nn.Upsample(scale_factor=4), *block(1, 16), *block(16, 16), nn.MaxPool2d(2), *block(16, 32), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 8 * 8, 10),
    )  # fmt: skip


def digits(seed: int) -> tuple[Tensor, Tensor]:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    return torch.from_numpy(data.images).float()[order, None] / 16, torch.from_numpy(data.target).long()[order]


def train(model: nn.Module, images: Tensor, classes: Tensor, epochs: int, size: int, each: Callable[[], None]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9, weight_decay=1e-3)
    for _ in range(epochs):
        model.train()
        each()
        for chosen in torch.randperm(len(images)).split(size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), classes[chosen]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    return (model.eval()(images).argmax(1) == classes).float().mean().item()


# --- two ways to freeze ---


def norms(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def into_evaluation(model: nn.Module) -> None:
    """By hand: to be called after each model.train()."""
    for layer in norms(model):
        layer.eval()
        layer.requires_grad_(False)


EVALUATION = "layer.eval(), at each epoch"
FORGOTTEN = "layer.eval(), once"
FREEZE = "bnt.freeze(model), once"


def prepared(way: str, model: nn.Module) -> tuple[nn.Module, Callable[[], None]]:
    model = copy.deepcopy(model)
    if way == FREEZE:
        return bnt.freeze(model, verbose=False), lambda: None
    into_evaluation(model)
    return model, (lambda: into_evaluation(model)) if way == EVALUATION else (lambda: None)


def state(model: nn.Module) -> list[bytes]:
    return [t.numpy().tobytes() for layer in norms(model) for t in layer.state_dict().values()]


def milliseconds(models: dict[str, nn.Module], images: Tensor, classes: Tensor, repeats: int) -> dict[str, float]:
    """Of a training step of each model, one after the other, again and again: medians."""
    found: dict[str, list[float]] = {way: [] for way in models}
    for _ in range(repeats + 1):
        for way, model in models.items():
            start = time.perf_counter()
            nn.functional.cross_entropy(model(images), classes).backward()
            found[way].append(1e3 * (time.perf_counter() - start))
    return {way: statistics.median(times[1:]) for way, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer images, epochs and repeats")
    arguments = parser.parse_args()
    some, before, after, repeats = (600, 2, 1, 5) if arguments.quick else (1200, 4, 3, 40)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the work is too small to be shared

    images, classes = digits(0)
    model = network()
    train(model, images[:some], classes[:some], before, 50, lambda: None)
    pale = 0.2 + 0.8 * images + 0.1 * torch.randn(images.shape)
    few, test = slice(some, some + 200), slice(some + 200, None)

    ready, tuned = {}, {}
    for way in (EVALUATION, FORGOTTEN, FREEZE):
        torch.manual_seed(1)
        tuned[way], each = prepared(way, model)
        train(tuned[way], pale[few], classes[few], after, 8, each)
        ready[way], each = prepared(way, model)
        ready[way].train()
        each()
    took = milliseconds({way: ready[way] for way in (EVALUATION, FREEZE)}, pale[:64], classes[:64], repeats)

    table = Table("frozen by", "statistics moved", "ms a step", "test accuracy", title="pale, noisy digits")
    for way, after_tuning in tuned.items():
        moved = "no, to the bit" if state(after_tuning) == state(model) else "yes"
        right = f"{100 * accuracy(after_tuning, pale[test], classes[test]):.1f}%"
        table.add_row(way, moved, f"{took[way]:.1f}" if way in took else "", right)
    console.print(table)
    console.print(f"a step with bnt.freeze takes {took[FREEZE] / took[EVALUATION]:.2f} of the time", highlight=False)


if __name__ == "__main__":
    main()
