"""``batchnorm recalibrate``: the user's code, states and arrays in, a state out, or a refusal and no file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import batchnorm.torch as bnt
from batchnorm.tools.cli import main

MODEL = """
import torch

from parts import WIDTH


def build():
    layers = torch.nn.Linear(3, WIDTH), torch.nn.BatchNorm1d(WIDTH), torch.nn.ReLU(), torch.nn.BatchNorm1d(WIDTH)
    return torch.nn.Sequential(*layers)


ready = build()
number = 5


def broken():
    raise OSError("no data here")


def partly_frozen():
    import batchnorm.torch

    return batchnorm.torch.freeze(build(), only="3", verbose=False)


def interrupted():
    model = build()
    model[2].register_forward_hook(stop)
    return model


def stop(*_):
    raise KeyboardInterrupt
"""

NOT_HERE = "meta:7" if torch.cuda.is_available() else "cuda"
SKIP = ["--on-nonfinite", "skip"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A directory with a model, its state and two arrays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    Path("parts.py").write_text("WIDTH = 4\n")
    Path("model.py").write_text(MODEL)
    torch.manual_seed(0)
    torch.save(_model().state_dict(), "m.pt")
    x = np.random.default_rng(0).normal(3, 5, (300, 3))
    np.save("a.npy", x[:100].astype("float32"))
    np.save("b.npy", x[100:])
    np.save("bad.npy", np.full((4, 3), np.nan))
    return torch.from_numpy(x).float()


def _model():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.BatchNorm1d(4))


def _expected(x, state, **options):
    model = _model()
    model.load_state_dict(state)
    bnt.recalibrate(model, x.split(128) if options else [x], verbose=False, **options)
    return model.state_dict()


def _same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        if "num_batches" not in name:
            assert torch.allclose(found[name], value, rtol=1e-4), name


def test_a_state_of_all_arrays_together(here, capsys):
    assert main(["recalibrate", "model.py:build", "--state", "m.pt", "--train", "a.npy", "b.npy", "-o", "out.pt"]) == 0
    found = torch.load("out.pt", weights_only=True)
    _same(found, _expected(here, torch.load("m.pt", weights_only=True)))
    assert int(found["1.num_batches_tracked"]) == 3
    said = capsys.readouterr().out
    whole = "recalibrated 2 batch normalizations (whole: the whole data as one batch)"
    assert said.startswith(f"{whole} from 300 samples in 3")
    assert said.endswith("\nout.pt: written\n")
    frozen = "model.py:partly_frozen"
    assert main(["recalibrate", frozen, "--train", "a.npy", "bad.npy", "-o", "o.pt", *SKIP, "--lang", "zh"]) == 0
    said = capsys.readouterr().out
    assert not re.search(r"\b(the|of|batch|left|layer|data|one)\b", said), said
    first, moved, *rest = said.splitlines()
    assert first == "用 2 个批、104 个样本重新校准了 1 个批归一化层（whole：全部数据作为一个批），数据读取了一遍"
    assert moved.startswith("均值移动最多的是层 1，移动了 ")
    frozen = "未处理 3（BatchNorm1d）：它已冻结（update_running_stats=False）"
    assert rest == ["略去了含 NaN 或无穷大的 1 个批", frozen, "o.pt：已写入"]


def test_options(here, capsys):
    options = ["--how", "batches", "--only", "1", "--samples", "256", "--json", "--batch-size", "64"]
    np.save("all.npy", here.numpy())
    assert main(["recalibrate", "model.py:ready", "--train", "all.npy", "-o", "m.pt", *options, "--state", "m.pt"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["how"], facts["samples"], facts["batches"], len(facts["layers"])) == ("batches", 256, 4, 1)
    again = ["recalibrate", "model:build", "--train", "all.npy", "-o", "n.pt", "--max-memory", "0.5", "--state", "m.pt"]
    assert main([*again, "--json", "n.json"]) == 0
    assert capsys.readouterr().out.endswith("n.pt: written\nn.json: written\n")
    assert json.loads(Path("n.json").read_text())["how"] == "whole"
    Path("n.pt").unlink()
    for file, why in (("all.npy", "must end in .json; got all.npy"), ("no/n.json", "no does not exist")):
        assert main([*again, "--json", file]) == 2
        assert why in capsys.readouterr().err
    assert not Path("n.pt").exists()


@pytest.mark.parametrize("key", [None, "weights"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_keeps_all_else(here, key, prefix):
    """Names with a wrapper's prefix, dtypes and other entries stay."""
    state = {f"{prefix}{name}": value for name, value in torch.load("m.pt", weights_only=True).items()}
    torch.save(state if key is None else {key: state, "optimizer": {"lr": 0.1}, "epoch": 7}, "c.pt")
    named = [] if key is None else ["--key", key]
    command = ["recalibrate", "model.py:build", "--state", "c.pt", *named, "--train", "a.npy", "b.npy", "-o", "c.pt"]
    assert main(command) == 0
    found = torch.load("c.pt", weights_only=True)
    if key is not None:
        assert (found.pop("optimizer"), found.pop("epoch")) == ({"lr": 0.1}, 7)
        found = found[key]
    expected = _expected(here, torch.load("m.pt", weights_only=True))
    _same(found, {f"{prefix}{name}": value for name, value in expected.items()})


def test_safetensors(here):
    save_file(torch.load("m.pt", weights_only=True), "m.safetensors")
    command = ["recalibrate", "model.py:build", "--state", "m.safetensors", "--train", "a.npy", "b.npy"]
    assert main([*command, "-o", "n.safetensors"]) == 0
    found, expected = load_file("n.safetensors"), _expected(here, torch.load("m.pt", weights_only=True))
    _same(dict(sorted(found.items())), dict(sorted(expected.items())))


REFUSED = {
    "no function": (["model.py"], "Write it as model.py:build"),
    "no file": (["models.py:build"], "models.py does not exist"),
    "no module": (["models:build"], "import models raised ModuleNotFoundError"),
    "no name": (["model.py:make"], "model.py has no 'make'"),
    "no model": (["model.py:number"], "raised TypeError: 'int' object is not callable"),
    "broken": (["model.py:broken"], "model.py:broken() raised OSError: no data here. Correct that code."),
    "another width": (["model.py:build", "--train", "wide.npy"], "got RuntimeError from batch 0"),
    "NaN": (
        ["model.py:build", "--train", "bad.npy"],
        "of layer 1, from batch 0. Leave the batch out, or use --on",
    ),
    "no array": (["model.py:build", "--train", "c.npy"], "c.npy does not exist"),
    "no state": (["model.py:build", "--state", "s.pt"], "s.pt does not exist"),
    "another state": (["model.py:build", "--state", "other.pt"], "other.pt is not a state of this model"),
    "a checkpoint": (["model.py:build", "--state", "checkpoint.pt"], "it has 'weights': choose one with --key"),
    "a pickle": (["model.py:build", "--state", "pickled.pt"], "nothing in a file is executed"),
    "a suffix": (["model.py:build", "--state", "a.npy"], "a state is a .pt, a .pth, a .safetensors file"),
    "a device": (["model.py:build", "--device", "cpus"], "--device cpus cannot be used: Expected one of cpu"),
    "no such device": (["model.py:build", "--device", NOT_HERE], f"--device {NOT_HERE} cannot be used: "),
    "integers": (["model.py:build", "--train", "whole.npy"], "Leave the batch out, or make MODEL one that takes it"),
    "one sample": (["model.py:build", "--train", "one.npy"], "layer 1: a variance needs more than one position"),
    "text": (["model.py:build", "--state", "text.pt"], "executed): torch.save did not write it. Save model.state"),
    "only": (["model.py:build", "--only", "norm"], "only names no batch normalization of this model; got 'norm'"),
    "output": (["model.py:build", "-o", "out.npy"], "the output is a .pt, a .pth, a .safetensors file"),
    "a folder": (["model.py:build", "-o", "none/out.pt"], "the directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case, capsys):
    options, words = REFUSED[case]
    np.save("whole.npy", np.ones((4, 3), "int64"))
    np.save("one.npy", np.ones((1, 3), "float32"))
    Path("text.pt").write_text("hi")
    np.save("wide.npy", np.ones((4, 5), "float32"))
    torch.save({"a": torch.ones(1)}, "other.pt")
    torch.save({"weights": _model().state_dict(), "epoch": 1}, "checkpoint.pt")
    torch.save(_model(), "pickled.pt")
    before = sorted(Path().iterdir())
    train = [] if "--train" in options else ["--train", "a.npy"]
    output = [] if "-o" in options else ["-o", "out.pt"]
    assert main(["recalibrate", *options, *train, *output]) == 2
    assert words in capsys.readouterr().err
    assert [path for path in sorted(Path().iterdir()) if path.name != "__pycache__"] == before


def test_an_interruption_leaves_no_file():
    assert main(["recalibrate", "model.py:interrupted", "--train", "a.npy", "-o", "out.pt"]) == 130
    assert not Path("out.pt").exists()


def test_the_help_says_that_code_is_run(capsys):
    assert main(["recalibrate", "--help"]) == 0
    assert "imports MODEL and runs it" in " ".join(capsys.readouterr().out.split())
