"""The drivers run as programs of their own, from wherever one stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRIVERS = [*(ROOT / "tests" / "fuzz").glob("fuzz_*.py"), ROOT / "tests" / "breaks" / "breaks.py"]


@pytest.mark.slow
@pytest.mark.parametrize("path", DRIVERS, ids=lambda path: path.name)
def test_a_driver_runs_by_itself(path: Path, tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert "usage:" in run.stdout
