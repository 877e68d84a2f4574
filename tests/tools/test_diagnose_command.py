"""``batchnorm diagnose``: the user's code, a state and arrays in; a diagnosis out, or a refusal and no file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch.nn import BatchNorm1d, Linear, Sequential

import batchnorm.torch as bnt
from batchnorm.tools.cli import main
from batchnorm.tools.text.language import Words
from batchnorm.tools.text.lines import cells
from batchnorm.torch._diagnosis import left_of

MODEL = """
from torch import nn


RUNS = []
RUNS.append(1)


def half(outputs, labels):
    assert len(RUNS) == 1  # the file ran once
    return nn.functional.cross_entropy(outputs, labels) / 2


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
    labels = (x @ np.eye(3, 4)).argmax(1).astype("int32")
    np.save("labels.npy", labels)
    np.savetxt("labels.csv", labels, fmt="%d")
    np.save("half.npy", labels[400:])
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
    assert "1  layer 1: its running statistics are those of data unlike the test data" in capsys.readouterr().out
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


def test_what_a_layer_costs(model, capsys):
    x, y = (np.concatenate([np.load(name) for name in names]) for names in (["a.npy", "b.npy"], ["labels.npy"]))
    model[1].running_var *= 6
    torch.save(model.state_dict(), "m.pt")
    options = ["--loss", "cross_entropy", "--labels", "labels.npy", "--json"]
    assert main([*COMMAND, *options, "--in-order"]) == 0
    facts = json.loads(capsys.readouterr().out)
    batches = [(x[i:j], y[i:j].astype(np.int64)) for a, b in ((0, 400), (400, 640)) for i, j in _parts(a, b)]
    loss = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    found = bnt.diagnose(model, batches, loss=loss, verbose=False)
    assert facts["losses"] == found.losses
    assert [each["loss"] for each in facts["layers"]] == [each.loss for each in found.layers]
    assert main([*COMMAND, "--loss", "model.py:half", *options[2:]]) == 0
    drawn = json.loads(capsys.readouterr().out)["losses"]
    assert main([*COMMAND, *options]) == 0
    whole = json.loads(capsys.readouterr().out)["losses"]
    assert drawn == pytest.approx({name: value / 2 for name, value in whole.items()}, rel=1e-6)
    test = ["--test", "b.npy", "--test-labels", "half.npy"]
    assert main([*COMMAND, *options[:3], "labels.npy", *test]) == 0
    said = capsys.readouterr().out
    assert said.startswith("the loss is ")
    assert said.splitlines()[2].endswith("  loss")


def _parts(start, stop):
    return [(i, min(i + 32, stop)) for i in range(start, stop, 32)]


def test_chinese(model, capsys):
    model[1].running_var *= 6
    torch.save(model.state_dict(), "m.pt")
    assert main([*COMMAND, "--lang", "zh", "--html", "d.html"]) == 0
    said = capsys.readouterr().out
    assert not re.search(r"\b(the|of|is|are|was|and|layer|call)\b", said.replace("bnt.recalibrate", "")), said
    assert "1  层 1：它的滑动统计量不是更新规则在当前权重下会给出的（lag：方差 ×" in said
    assert said.endswith("d.html：已写入\n")
    rows = [line for line in said.splitlines()[1:4]]
    assert len({cells(row) for row in rows}) == 1, rows  # columns of a terminal, of which a character takes two
    page = Path("d.html").read_text(encoding="utf-8")
    assert '<html lang="zh-CN">' in page
    text = " ".join(ElementTree.fromstring(page.partition("\n")[2]).find("body").itertext())
    assert not re.search(r"\b(the|of|is|are|was|and|layer|off|channels?|variance|mean)\b", text), text
    left = Sequential(BatchNorm1d(3), Linear(3, 2), BatchNorm1d(2, track_running_stats=False), BatchNorm1d(2))
    left[2].eval()
    found = bnt.diagnose(bnt.freeze(left, only="3", verbose=False), [torch.randn(9, 3)] * 4, verbose=False)
    words = lambda key, **values: Words("zh")(f"diagnose.{key}", **values)  # noqa: E731
    assert left_of(found.left, words) == [
        "未处理 2（BatchNorm1d）：它没有滑动统计量（track_running_stats=False）",
        "未处理 3（BatchNorm1d）：它已冻结（update_running_stats=False）",
    ]
    assert left_of(found.left)[0] == "left 2 (BatchNorm1d): it has no running statistics (track_running_stats=False)"


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
        (["--loss", "cross_entropy"], "--loss needs the labels of --train. Name their files: --labels FILE"),
        (["--labels", "labels.npy"], "--labels is for --loss"),
        (["--loss", "softmax", "--labels", "labels.npy"], "--loss is a loss of torch.nn.functional"),
        (["--loss", "model.py:none", "--labels", "labels.npy"], "model.py has no function 'none'"),
        (
            ["--loss", "cross_entropy", "--labels", "half.npy"],
            "half.npy: every sample has one label; got 240 labels and 640 samples",
        ),
        (["--loss", "cross_entropy", "--labels", "labels.npy", "--test", "a.npy"], "--loss needs the labels of --test"),
        (
            ["--loss", "cross_entropy", "--labels", "labels.npy", "--test-labels", "half.npy"],
            "--test-labels are those of --test, which is missing",
        ),
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
