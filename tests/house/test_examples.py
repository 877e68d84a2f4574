"""The examples run, without a warning, and the numbers they print are those they claim."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "FORCE_COLOR"} | {"COLUMNS": "120", "PYTHONUTF8": "1"}

pytestmark = [
    pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are in a checkout only"),
    pytest.mark.slow,
]


def printed(script: str, *options: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), "--quick", *options]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=ENVIRONMENT, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return result.stdout


def cells(text: str, name: str) -> list[str]:
    """The row of a table that begins with that name."""
    rows = [
        [cell.strip() for cell in line.strip("│ ").split("│")] for line in text.splitlines() if line.startswith("│")
    ]
    found = [row[1:] for row in rows if row[0] == name]
    assert len(found) == 1, f"one row named {name!r} in\n{text}"
    return found[0]


def percent(cell: str) -> float:
    return float(re.match(r"([\d.]+)%", cell)[1])


def test_digits_cnn():
    """Both learn. Accuracies of 497 images after 60 steps agree within 0.08: rounding sends training on other ways."""
    text = printed("digits_cnn.py", "--threads", "1")
    stock, ours = cells(text, "PyTorch"), cells(text, "batchnorm")
    assert min(float(stock[0]), float(ours[0])) > 0
    assert stock[1] == "1.00×"
    assert abs(float(ours[1].rstrip("×")) - float(stock[0]) / float(ours[0])) < 0.02
    assert min(float(stock[2]), float(ours[2])) > 0.8
    assert abs(float(stock[2]) - float(ours[2])) < 0.08
    assert re.search(r"native_batch_norm: 549 served, 0 passed on", text), "9 layers, 60 steps and an evaluation"
    assert re.search(r"native_batch_norm_backward: 540 served, 0 passed on", text)


def test_padded_segmentation():
    text = printed("padded_segmentation.py")
    plain, padded, masked = (cells(text, name) for name in ("as it is", "padded to 28×28", "padded, with mask"))
    assert masked[:2] == plain[:2], "mean and standard deviation"
    assert abs(float(padded[0]) - float(plain[0])) > 0.1
    assert float(masked[2]) < 1e-6
    assert float(padded[2]) > 0.1
    changes = dict(re.findall(r"whole network, (\w+ mask): padding changes the scores by at most (\S+)", text))
    assert float(changes["with mask"]) < 1e-5, "convolutions of another shape may round otherwise"
    assert float(changes["without mask"]) > 0.1
    for name in ("with mask", "without mask"):
        of_all, of_ink = (percent(cell) for cell in cells(text, name))
        assert 40 < of_all <= 100
        assert 0 <= of_ink <= 100


def test_finetune_small_batches():
    text = printed("finetune_small_batches.py")
    assert "a batch of one, stock: ValueError: Expected more than 1 value per channel" in text
    assert "a batch of one, ours: scores of shape (1, 10)" in text
    ways = {
        name: percent(cells(text, name)[0])
        for name in (
            "not fine-tuned",
            "stock, batches of one dropped",
            'ours, on_single_value="running"',
            "statistics frozen",
            "statistics estimated anew, frozen",
        )
    }
    assert all(0 <= accuracy <= 100 for accuracy in ways.values())
    best = re.search(r"best here: (.*);", text)[1]
    assert ways[best] == max(ways.values())


def test_finetune_frozen():
    text = printed("finetune_frozen.py")
    by_hand, once, ours = (
        cells(text, name) for name in ("layer.eval(), at each epoch", "layer.eval(), once", "bnt.freeze(model), once")
    )
    assert [row[0] for row in (by_hand, once, ours)] == ["no, to the bit", "yes", "no, to the bit"]
    assert abs(percent(ours[2]) - percent(by_hand[2])) < 3, "rounding alone"
    assert percent(ours[2]) > 20, "twice as many as by chance"
    share = float(re.search(r"a step with bnt.freeze takes ([\d.]+) of the time", text)[1])
    assert abs(share - float(ours[1]) / float(by_hand[1])) < 0.02
