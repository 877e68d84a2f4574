"""`freeze`, `recalibrate` and `diagnose` inside of training loops that others wrote, which set the mode at every epoch.

Libraries that are no part of the constraints are skipped where they are not installed; docs/pytorch.md says with which
versions these tests ran.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import batchnorm.torch as bnt
from batchnorm.torch._norms import norms_of

Batches = list[tuple[torch.Tensor, torch.Tensor]]


class Branched(nn.Module):
    """Two branches that are added, dropout before a layer, and a layer that both branches share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.BatchNorm1d(8), nn.ReLU())
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.shared = nn.BatchNorm1d(8)
        self.also = self.shared  # one layer under two names
        self.head = nn.Sequential(bnt.BatchNorm1d(8, activation="relu"), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        return self.head(self.shared(self.left(h) + self.right(h)))


def data(seed: int = 0, n: int = 96) -> Batches:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=random) * 2 + 1
    return list(zip(x.split(24), (x[:, :4].argmax(1)).split(24), strict=True))


def fit(model: nn.Module, epochs: int, after: Callable[[nn.Module], Any] = lambda model: None) -> None:
    """A loop as of Keras: training mode in every epoch, evaluation mode to validate, the best weights come back."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    best, least = copy.deepcopy(model.state_dict()), float("inf")
    for epoch in range(epochs):
        model.train()
        for x, y in data(epoch):
            optimizer.zero_grad(set_to_none=False)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        after(model)
        model.eval()
        with torch.no_grad():
            loss = sum(float(nn.functional.cross_entropy(model(x), y)) for x, y in data(99))
        if loss < least:
            best, least = copy.deepcopy(model.state_dict()), loss
    model.load_state_dict(best)


def made() -> Branched:
    torch.manual_seed(0)
    model = Branched()
    bnt.recalibrate(model, data(), verbose=False)
    return model


def bits(model: nn.Module) -> dict[str, bytes]:
    """Of all that batch normalizations keep, and the rest of the state."""
    return {name: t.numpy().tobytes() for name, t in model.state_dict().items()}


def in_norms(model: nn.Module) -> set[str]:
    """The names of a state that belong to batch normalizations."""
    prefixes = tuple(f"{name}." for norm in norms_of(model) for name in norm.names)
    return {name for name in model.state_dict() if name.startswith(prefixes)}


def check_frozen(model: nn.Module, train: Callable[[nn.Module], Any]) -> None:
    """Freeze, train by a loop, and see what moved; the inverse gives the classes back."""
    kinds, before = [type(norm.layer) for norm in norms_of(model)], bits(bnt.freeze(model, verbose=False))
    train(model)
    moved = {name for name, value in bits(model).items() if value != before[name]}
    assert moved
    assert not moved & in_norms(model)
    bnt.unfreeze(model, verbose=False)
    assert [type(norm.layer) for norm in norms_of(model)] == kinds
    assert all(norm.layer.weight.requires_grad for norm in norms_of(model))


def test_a_loop_that_trains_and_validates_in_every_epoch():
    check_frozen(made(), lambda model: fit(model, 3))
    told = []

    def at_the_end_of_an_epoch(model: nn.Module) -> None:
        modes, rng = [m.training for m in model.modules()], torch.get_rng_state()
        done = bnt.recalibrate(model, data(7), verbose=False)
        found = bnt.diagnose(model, data(7), test=data(8), verbose=False)
        told.append(([layer.name for layer in done.layers], found.findings))
        assert [m.training for m in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), rng)

    model = made()
    fit(model, 2, at_the_end_of_an_epoch)
    assert [names for names, _ in told] == [["stem.2", "shared", "head.0"]] * 2
    assert {each.code for _, findings in told for each in findings} <= {"dropout"}
    x = torch.cat([x for x, _ in data(7)])
    bnt.recalibrate(model, data(7), verbose=False)
    seen = []
    model.shared.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    with torch.no_grad():
        model.eval()(x)
    assert torch.allclose(model.shared.running_var, seen[0].var(0), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    lightning = pytest.importorskip(
        "pytorch_lightning", reason="PyTorch Lightning brings fifteen packages for one test"
    )

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = made()
            self.recalibrated = 0

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            x, y = batch
            assert self.model.training
            return nn.functional.cross_entropy(self.model(x), y)

        def validation_step(self, batch: Any, _: int) -> None:
            x, y = batch
            assert not self.model.training
            self.log("loss", nn.functional.cross_entropy(self.model(x), y))

        def on_validation_start(self) -> None:
            if not bnt.frozen(self.model):  # the recipe: recalibrate before each evaluation
                done = bnt.recalibrate(self.model, self.trainer.train_dataloader or data(), verbose=False)
                self.recalibrated += len(done.layers)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)

    def train(module: Any) -> None:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        best = lightning.callbacks.ModelCheckpoint(tmp_path, monitor="loss")
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", devices=1, default_root_dir=tmp_path, callbacks=[best], **quiet
        )
        loaders = [torch.utils.data.DataLoader(b, batch_size=None) for b in (data(), data(9))]
        trainer.fit(module, *loaders)
        state = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]
        module.load_state_dict(state)

    check_frozen(Module(), train)
    module = Module()
    train(module)
    assert module.recalibrated == 3 * 3  # before training (its check), and after both epochs
    assert bnt.diagnose(module.model, data(), test=data(9), verbose=False).layers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_keras_around_a_module_of_torch(monkeypatch):
    """Keras calls ``module.train()`` in each step of its own loop."""
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras", reason="Keras is large, and its layers are not PyTorch's")
    inner = made()
    model = keras.Sequential([keras.layers.TorchModuleWrapper(inner, output_shape=(None, 4))])
    model.compile(optimizer="sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = (torch.cat(part) for part in zip(*data(), strict=True))

    def train(_: nn.Module) -> None:
        model.fit(x.numpy(), y.numpy(), epochs=2, batch_size=24, validation_split=0.25, verbose=0)

    model(x[:24])
    check_frozen(inner, train)
    bnt.recalibrate(inner, data(), verbose=False)
    assert bnt.diagnose(inner, data(), verbose=False).layers


def _of_transformers() -> Iterator[tuple[str, nn.Module]]:
    import transformers as t

    small = {"num_labels": 3, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}
    yield "ResNet", t.ResNetForImageClassification(t.ResNetConfig(**small))
    yield "RegNet", t.RegNetForImageClassification(t.RegNetConfig(groups_width=8, **small))
    config = t.MobileNetV1Config(depth_multiplier=0.25, image_size=32, num_labels=3)
    yield "MobileNetV1", t.MobileNetV1ForImageClassification(config)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_transformers():
    pytest.importorskip("transformers", reason="transformers and its packages take 180 MB")
    pixels = [{"pixel_values": torch.randn(4, 3, 32, 32)} for _ in range(4)]
    for name, model in _of_transformers():
        layers = len(norms_of(model))
        found = bnt.diagnose(model, pixels, verbose=False)
        codes = {each.code for each in found.findings}
        assert "never-updated" in codes
        assert ("large momentum" in codes) == (name == "MobileNetV1")  # 0.9997: TensorFlow's, in PyTorch's place
        assert len(bnt.recalibrate(model, pixels, verbose=False).layers) == layers > 0

        def train(model: nn.Module) -> None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=0.1)
            for _ in range(2):
                model.train()(**pixels[0]).logits.square().mean().backward()
                optimizer.step()
                model.eval()

        check_frozen(model, train)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "levit_128s"])
def test_timm(name):
    try:
        timm = pytest.importorskip(
            "timm", reason="timm needs torchvision, whose operators need its own build of PyTorch"
        )
    except RuntimeError as error:
        pytest.skip(f"torchvision does not fit this PyTorch: {error}")
    size = 224 if name == "levit_128s" else 32
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=4)
    batches = [(torch.randn(2, 3, size, size), torch.tensor([0, 3])) for _ in range(2)]
    done = bnt.recalibrate(model, batches, verbose=False)
    assert len(done.layers) == len(norms_of(model))
    assert done.passes == 1

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for x, y in batches:
            nn.functional.cross_entropy(model.train()(x), y).backward()
            optimizer.step()

    check_frozen(model, train)
