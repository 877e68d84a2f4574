"""Bytes that autograd keeps between forward and backward: they are the same in every run, on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from record import Document, Row, digits, document, markdown, shape
from steps import EAGER, Batch, batch, network

NETWORKS = ("MobileNetV2", "ResNet-50")


def saved_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Bytes of the distinct storages saved while `run` runs; the model's parameters and buffers are not counted."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them, so that no address comes twice

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return t.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    del result
    return sum(storage.nbytes() for storage in kept.values())


class Layers(nn.Module):
    """Batch norm, and what follows it as models write it."""

    def __init__(self, channels: int, adds: bool, activation: nn.Module | None) -> None:
        super().__init__()
        self.bn, self.adds, self.activation = nn.BatchNorm2d(channels), adds, activation

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        y = self.bn(x)
        y = y + residual if self.adds else y
        return y if self.activation is None else self.activation(y)


ALONE: dict[str, tuple[bool, Callable[[], nn.Module | None]]] = {
    "batch norm": (False, lambda: None),
    "batch norm + ReLU": (False, lambda: nn.ReLU(inplace=True)),
    "batch norm + ReLU6": (False, lambda: nn.ReLU6(inplace=True)),
    "batch norm + add + ReLU": (True, lambda: nn.ReLU(inplace=True)),
}


def layers(sizes: tuple[int, ...]) -> Iterator[Row]:
    """What stands between two convolutions, by itself: the input is counted, the output is somebody else's."""
    x, residual = (torch.randn(sizes, requires_grad=True) for _ in range(2))
    for name, (adds, activation) in ALONE.items():
        found = {}
        for key, way in EAGER.items():
            model = way.change(Layers(sizes[1], adds, activation()))
            with way.within():
                found[key] = saved_bytes(model, lambda model=model: model(x, residual))
        yield {"what": name, "input": list(sizes), "saved": found}


def networks(count: int, side: int, names: Sequence[str]) -> Iterator[Row]:
    """Whole training forwards."""
    for name in names:
        given, found = batch(count, side, "contiguous"), {}
        for key, way in EAGER.items():
            model = network(name, key, "contiguous")
            with way.within():
                found[key] = saved_bytes(model, lambda model=model, given=given: loss(model, given))
        yield {"what": name, "input": list(given.x.shape), "saved": found}


def loss(model: nn.Module, given: Batch) -> torch.Tensor:
    return nn.functional.cross_entropy(model(given.x), given.classes)


def measure(
    count: int = 16, side: int = 128, names: Sequence[str] = NETWORKS, sizes: tuple[int, ...] = (16, 64, 56, 56)
) -> Document:
    return document([*layers(sizes), *networks(count, side, names)])


def tables(results: Document) -> dict[str, str]:
    head = ["", "input", *(f"{way.what}, MiB" for way in EAGER.values())]
    rows = [
        [row["what"], shape(row["input"]), *(digits(row["saved"][key] / 2**20) for key in EAGER)]
        for row in results["rows"]
    ]
    note = "PyTorch {torch}, commit {commit}; the same on every machine.".format(**results["machine"])
    return {"saved": f"{markdown(head, rows, 2)}\n\n{note}"}
