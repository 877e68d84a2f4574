"""A slice of the files that ``fuzz_files.py`` draws; more by ``python tests/fuzz/fuzz_files.py --seconds 600``."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_files import one


@pytest.mark.parametrize("first", [0, 20, 40])
def test_files_drawn_at_random(first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = [one(seed) for seed in range(first, first + 20)]
    assert len(set(outcomes)) > 3, "most kinds of files and outcomes"
    assert list(tmp_path.iterdir()) == []
