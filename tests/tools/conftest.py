"""What tests of pages share: one browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import chromium
from pages import opened
from playwright.sync_api import Browser, Page

from batchnorm.tools.explain import EXAMPLE, explain


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def example(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    with opened(browser, explain(EXAMPLE, 2).to_html(), tmp_path) as page:
        yield page
