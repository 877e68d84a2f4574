"""A headless Chromium for the tests of pages: the system's, or the one that playwright has installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = "no Chromium here: install your system's chromium, or run `playwright install chromium`"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield the browser; without one, skip, or fail where BATCHNORM_BROWSER=required is set (as .ci/run does)."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = own if Path(own).exists() else next(filter(None, map(shutil.which, NAMES)), None)
        if found is None:
            (pytest.fail if os.environ.get("BATCHNORM_BROWSER") == "required" else pytest.skip)(MISSING)
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


class Watched:
    """A page, everything it complains about, and everything it asks for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def assert_quiet(self, url: str) -> None:
        """It has said nothing, and has loaded nothing but itself."""
        assert not self.complaints
        assert [r for r in self.requests if r != url and not r.startswith("about:")] == []
