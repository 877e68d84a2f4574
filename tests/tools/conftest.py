"""What tests of the tools share: a directory of their own; the page of the worked example."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from batchnorm.tools.explain import EXAMPLE, explain


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of the test's own, and the default width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def example(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    from pages import opened  # which imports PyTorch

    with opened(browser, explain(EXAMPLE, 2).to_html(), tmp_path) as page:
        yield page
