"""``batchnorm diagnose``: the user's code, a state and arrays in; a diagnosis out, or a refusal and no file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import batchnorm.torch as bnt
from batchnorm.tools.cli import main

MODEL = """
from torch import nn


def build():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))


def stopped():
    raise KeyboardInterrupt
"""
COMMAND = ["diagnose", "model.py:build", "--state", "m.pt", "--train", "a.npy", "b.npy", "--batch-size", "32"]


@pytest.fixture(autouse=True)
def model(tmp_path, monkeypatch):
    """A directory with a recalibrated model, its state and rows that are sorted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    Path("model.py").write_text(MODEL)
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(3, 5, (640, 3)).astype("float32")
    x = x[np.argsort(x[:, 0])]
    np.save("a.npy", x[:400])
    np.save("b.npy", x[400:])
    np.save("shifted.npy", 4 * x)
    np.save("short.npy", x[:64])
    np.save("wide.npy", np.ones((200, 5), "float32"))
    nn = torch.nn
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))
    bnt.recalibrate(model, torch.from_numpy(x), verbose=False)
    torch.save(model.state_dict(), "m.pt")
    return model


def test_what_it_finds(model, capsys):
    assert main(COMMAND) == 0
    healthy = capsys.readouterr().out
    assert healthy.endswith("no fault was found\n"), healthy
    assert main([*COMMAND, "--in-order"]) == 0  # sorted, and the second half is other data
    assert "(shift: " in capsys.readouterr().out
    assert main([*COMMAND, "--test", "shifted.npy"]) == 0
    assert "1  layer 1: its running statistics are of other data than the test" in capsys.readouterr().out
    model[1].running_var *= 6
    torch.save({"weights": model.state_dict()}, "m.pt")
    before = Path("m.pt").read_bytes()
    assert main([*COMMAND, "--key", "weights", "--samples", "320", "--how", "pooled", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["findings"][0]["code"], facts["findings"][0]["layer"]) == ("lag", "1")
    assert main([*COMMAND, "--key", "weights", "--json", "d.json", "--html", "d.html"]) == 0
    said = capsys.readouterr().out
    assert "1  layer 1: its running statistics are not those that the update rule gives at these weights (lag: " in said
    assert said.endswith("\nd.json: written\nd.html: written\n")
    assert Path("d.html").read_text().count("<svg") == 2
    assert json.loads(Path("d.json").read_text())["findings"][0]["layer"] == "1"
    assert Path("m.pt").read_bytes() == before


def test_rows_are_drawn_from_all_files_once(tmp_path):
    from batchnorm.tools.models.loading import Arrays

    paths = [tmp_path / "a.npy", tmp_path / "b.npy"]
    rows = np.concatenate([np.load(path) for path in paths])
    data = Arrays(paths, 128, shuffled=True)
    drawn = np.concatenate(list(data))
    assert [len(batch) for batch in data] == [128] * len(data)
    assert not np.array_equal(drawn, rows)
    assert np.array_equal(drawn[np.lexsort(drawn.T)], rows[np.lexsort(rows.T)])
    assert np.array_equal(drawn, np.concatenate(list(data)))
    whole = Arrays(paths, 128)
    assert [len(batch) for batch in whole] == [128, 128, 128, 16, 128, 112]
    assert np.array_equal(np.concatenate(list(whole)), rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--train", "short.npy"], "train must have 4 batches at least, as in training"),
        (["--train", "wide.npy"], "batch 0"),
        (["--train", "a.npy", "wide.npy"], "wide.npy: samples of one data set have one shape; got (5,), and (3,) in"),
        (["--test", "c.npy"], "c.npy does not exist"),
        (["--json", "d.txt"], "--json: the file's name must end in .json; got d.txt. MODEL comes first"),
        (["--json", "none/d.json"], "the directory"),
        (["--html", "none/d.html"], "the directory"),
        (["--samples", "0"], "'0' is not a positive integer"),
    ],
)
def test_refusals(options, words, capsys):
    before = sorted(Path().iterdir())
    assert main([*COMMAND, *([] if "--json" in options else ["--json", "d.json"]), *options]) == 2
    assert words in capsys.readouterr().err
    assert [path for path in sorted(Path().iterdir()) if path.name != "__pycache__"] == before


def test_an_interruption_leaves_no_file():
    assert main(["diagnose", "model.py:stopped", "--train", "a.npy", "--json", "d.json"]) == 130
    assert not Path("d.json").exists()


def test_the_help_says_that_code_is_run(capsys):
    assert main(["diagnose", "--help"]) == 0
    assert "imports MODEL and runs it" in " ".join(capsys.readouterr().out.split())
