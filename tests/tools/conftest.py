"""What tests of the page of `explain` share: the page of the worked example."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import opened
from playwright.sync_api import Browser, Page

from batchnorm.tools.explain import EXAMPLE, explain


@pytest.fixture
def example(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    with opened(browser, explain(EXAMPLE, 2).to_html(), tmp_path) as page:
        yield page
