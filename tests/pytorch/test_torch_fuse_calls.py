"""`fuse` and what a forward calls: whatever it is, the process lives, and the module is fused right or left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fuse_calls import WAYS

SCRIPT = Path(__file__).parents[1] / "support" / "fuse_calls.py"


def _run(*args: int) -> dict[str, str]:
    """What became of each callable, by name; a process that dies names the last."""
    command = [sys.executable, "-X", "faulthandler", str(SCRIPT), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"died at {lines[-1:]}: {done.stderr[-3000:]}"
    wrong = [line for line in lines if " wrong" in line]
    assert not wrong, "\n".join(wrong)
    return {name: said for name, _, said in (line.rpartition(" ") for line in lines)}


def test_ways_out_of_a_trace():
    """Custom derivatives, scripts, transforms, checkpoints, copies: left; what is only computing: fused."""
    became = _run()
    assert list(became) == list(WAYS)
    fused = {name for name, said in became.items() if said == "fused"}
    assert fused == {
        "isinstance",
        "torch.ops",
        "torch.ops, an overload",
        "torch.ops.prims",
        "a view of bits",
        "data",
        "stack of itself",
        "in a list",
    }


@pytest.mark.slow
def test_a_sample_of_everything_public():
    """Of torch, torch.nn.functional, Tensor, NumPy, builtins…; ``fuse_calls.py 0 1`` takes all of them."""
    became = _run(len(WAYS), 17)
    assert len(became) > 150
    assert set(became.values()) == {"fused", "left"}
