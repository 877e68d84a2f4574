"""Models, their states and data, from what a command names: a function in a Python file, state files, arrays."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import Refused, open_data
from ..files.atomic import replacing
from ..text.arguments import positive

STATES = (".pt", ".pth", ".safetensors")
_WRAPPED = ("module.", "_orig_mod.")  # before every name, in a state of a wrapped model


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which model, and which data."""
    parser.add_argument("model", metavar="MODEL", help="the function that makes the model, such as model.py:build")
    parser.add_argument("--state", metavar="STATE", type=Path, help="its state_dict: .pt, .pth or .safetensors")
    parser.add_argument(
        "--key", help="where the model's state is in STATE, if STATE holds more, such as an optimizer's state"
    )
    parser.add_argument(
        "--train",
        metavar="FILE",
        type=Path,
        nargs="+",
        required=True,
        help="files with arrays of samples, .npy and others",
    )
    parser.add_argument(
        "--batch-size", type=positive, default=128, metavar="N", help="number of samples in a batch (default: 128)"
    )
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda (default: cpu)")


def loaded(options: argparse.Namespace) -> tuple[Any, State | None]:
    """The model with its state, on its device, and the state as it is in the file."""
    model = built(options.model)
    state = None if options.state is None else State.read(options.state, options.key)
    if state is not None:
        state.load_into(model)
    _move(model, options.device)
    return model, state


def _move(model: Any, device: str) -> None:
    import torch

    try:
        model.to(torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        words = str(error).strip().partition("\n")[0]
        raise Refused(f"--device {device} cannot be used: {words}. Name one that PyTorch has here, or cpu.") from error


def refusal(error: Exception, who: str) -> Refused:
    """What a function of the library refused, with the command's options where it names its own."""
    from batchnorm.torch._batches import SAY_HOW
    from batchnorm.torch._lockstep import SKIP

    said = str(error).removeprefix(f"{who}: ")
    for ours, here in (
        (SAY_HOW, "make MODEL one that takes it"),
        (SKIP, "use --on-nonfinite skip"),
        ('use how="pooled"', "use --how pooled"),
    ):
        said = said.replace(ours, here)
    return Refused(said)


def need_torch() -> None:
    """Refuse to go on without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        raise Refused('this command needs PyTorch, which is not installed. Install it with: pip install "torch>=2.10"')


def built(named: str) -> Any:
    """The model that a function of the user's code makes; ``file.py:function`` or ``package.module:function``."""
    from torch import nn

    place, name = _parted(named)
    if not place:
        raise Refused(
            f"MODEL is a Python file or module and the function in it that makes the model; got {named!r}. Write it as "
            "model.py:build"
        )
    make = getattr(_module(place), name, None)
    if make is None:
        raise Refused(f"{place} has no {name!r}. Name a function in it that returns the model, or the model.")
    model = make
    if not isinstance(make, nn.Module):
        model = _ran(f"{named}()", make)
    if not isinstance(model, nn.Module):
        raise Refused(f"{named}() must return a torch.nn.Module; got an object of type {type(model).__name__}.")
    return model


def loss_of(named: str, model: str) -> Any:
    """The loss of a model and a batch, by the name of a function of outputs and labels; ``model`` was named before."""
    from torch.nn import functional

    place, name = _parted(named)
    if place:
        file = Path(place)
        is_there = file.suffix == ".py" and place == _parted(model)[0]  # which has run: once is enough
        of: Any = getattr(sys.modules[file.stem] if is_there else _module(place), name, None)
        if not callable(of):
            raise Refused(f"{place} has no function {name!r}. Name one in it that takes outputs and labels.")
    else:
        of = getattr(functional, named, None)
        if not callable(of) or not (named.endswith("_loss") or named.endswith("cross_entropy")):
            raise Refused(
                "--loss is a loss of torch.nn.functional, such as cross_entropy or mse_loss, or a function of outputs "
                f"and labels in your code, such as model.py:loss; got {named!r}."
            )
    return lambda model, batch: of(model(batch[0]), batch[1])


def _parted(named: str) -> tuple[str, str]:
    """File or module, and the function in it; an empty place where this is no such name."""
    place, _, name = named.rpartition(":")
    return (place, name) if name.isidentifier() else ("", "")


def _module(place: str) -> Any:
    path = Path(place)
    if path.suffix != ".py":
        sys.path.insert(0, os.getcwd())  # as python -m would
        return _ran(f"import {place}", lambda: importlib.import_module(place))
    if not path.is_file():
        raise Refused(f"{path} does not exist. Check the name, and the directory it is looked for in.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # what it imports lies beside it
    sys.modules[path.stem] = module
    loader = spec.loader
    _ran(str(path), lambda: loader.exec_module(module))
    return module


def _ran(what: str, code: Callable[[], Any]) -> Any:
    """Run the user's code; what it raises is said in one line."""
    try:
        return code()
    except Exception as error:
        raise Refused(f"{what} raised {type(error).__name__}: {error}. Correct that code.") from error


@dataclass
class State:
    """A state as it is in a file, and where the model's entries are in it."""

    path: Path
    whole: Any  # what the file holds
    entries: dict[str, Any]  # the state_dict in it
    prefix: str

    @classmethod
    def read(cls, path: Path, key: str | None) -> State:
        """Read a ``.pt``, ``.pth`` or ``.safetensors``; nothing in it is executed."""
        import torch

        if path.suffix not in STATES:
            raise Refused(f"{path}: a state is a {', a '.join(STATES)} file; got the suffix {path.suffix!r}.")
        if not path.is_file():
            raise Refused(f"{path} does not exist. Check the name, and the directory it is looked for in.")
        try:
            whole = _safetensors().load_file(path) if path.suffix == ".safetensors" else torch.load(
                path, map_location="cpu", weights_only=True
            )  # fmt: skip
        except Exception as error:
            words = str(error).strip().partition("\n")[0]
            words = words if " " in words else "torch.save did not write it"  # a byte that means nothing
            raise Refused(
                f"{path} cannot be read as tensors alone (nothing in a file is executed): {words}. Save "
                "model.state_dict()."
            ) from error
        entries = whole if key is None else whole.get(key) if isinstance(whole, dict) else None
        if not isinstance(entries, dict) or not all(isinstance(v, torch.Tensor) for v in entries.values()):
            names = (
                [name for name, value in whole.items() if isinstance(value, dict)] if isinstance(whole, dict) else []
            )
            raise Refused(
                f"{path} must hold a state_dict, names and tensors"
                + (f", under {key!r}" if key else "")
                + (f"; it has {', '.join(map(repr, names))}: choose one with --key." if names else ".")
            )
        prefix = next((p for p in _WRAPPED if entries and all(name.startswith(p) for name in entries)), "")
        return cls(path, whole, entries, prefix)

    def load_into(self, model: Any) -> None:
        """Give the model all entries."""
        state = {name.removeprefix(self.prefix): value for name, value in self.entries.items()}
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            words = " ".join(str(error).split())
            raise Refused(f"{self.path} is not a state of this model: {words[:400]}") from error

    def update(self, state: dict[str, Any]) -> None:
        """Take the entries of a model's state, in the dtypes they have here."""
        for name in self.entries:
            self.entries[name] = state[name.removeprefix(self.prefix)].to(self.entries[name].dtype).clone()


def write_state(whole: Any, path: Path) -> None:
    """Write tensors, or what holds them, as a whole or not at all."""
    import torch

    if path.suffix == ".safetensors":
        if any(not isinstance(value, torch.Tensor) for value in whole.values()):
            raise Refused(f"{path}: a .safetensors file holds tensors alone, and the state's file has more. Use .pt")
        with replacing(path) as unfinished:
            _safetensors().save_file({name: value.contiguous() for name, value in whole.items()}, unfinished)
        return
    with replacing(path) as unfinished:
        torch.save(whole, unfinished)


def check_state_suffix(path: Path) -> None:
    """Refuse an output that is no state file."""
    if path.suffix not in STATES:
        raise Refused(f"{path}: the output is a {', a '.join(STATES)} file; got the suffix {path.suffix!r}.")


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise Refused(
            "a .safetensors file needs the package safetensors. Install it with: pip install safetensors"
        ) from error


class Arrays:
    """Batches of rows of arrays in files, read anew each time: as they come, or in an order that is drawn once."""

    def __init__(self, paths: list[Path], size: int, *, shuffled: bool = False) -> None:
        self.values = [open_data(path).values for path in paths]
        self.size = size
        self._order = np.random.default_rng(0).permutation(sum(map(len, self.values))) if shuffled else None
        for path, values in zip(paths, self.values, strict=True):
            if shuffled and values.shape[1:] != self.values[0].shape[1:]:
                raise Refused(
                    f"{path}: samples of one data set have one shape; got {values.shape[1:]}, and "
                    f"{self.values[0].shape[1:]} in {paths[0]}. Leave one out."
                )

    def with_labels(self, paths: list[Path]) -> Labeled:
        """The same batches, each with its labels."""
        labels = Arrays(paths, self.size)
        values = [v[:, 0] if v.ndim == 2 and v.shape[1] == 1 else v for v in labels.values]
        whole = np.concatenate(values)
        rows = [len(v) for v in self.values]
        if len(whole) != sum(rows):
            raise Refused(
                f"{', '.join(map(str, paths))}: every sample has one label; got {len(whole)} labels and {sum(rows)} "
                "samples. Name the files that belong together."
            )
        labels.values = np.split(whole.astype(np.int64) if whole.dtype.kind in "iub" else whole, np.cumsum(rows)[:-1])
        labels._order = self._order
        return Labeled(self, labels)

    def __len__(self) -> int:
        if self._order is not None:
            return -(-len(self._order) // self.size)
        return sum(-(-len(values) // self.size) for values in self.values)

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._order is not None:
            ends = np.cumsum([len(values) for values in self.values])
            for start in range(0, len(self._order), self.size):
                rows = self._order[start : start + self.size]
                files = np.searchsorted(ends, rows, side="right")
                yield np.stack([self.values[k][row - ends[k]] for k, row in zip(files, rows, strict=True)])
            return
        for values in self.values:
            for start in range(0, len(values), self.size):
                yield np.array(values[start : start + self.size])


@dataclass
class Labeled:
    """Batches of samples and their labels."""

    samples: Arrays
    labels: Arrays

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return zip(self.samples, self.labels, strict=True)
