"""The page of `batchnorm explain --html`, as a picture of its upper part. Needs playwright and a Chromium."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from chromium import chromium

from batchnorm.tools.explain import EXAMPLE, explain

WIDTH, HEIGHT = 1120, 862
COLORS = 160  # flat areas and text: a palette keeps the file small


def main() -> None:
    """Write page.png."""
    with tempfile.TemporaryDirectory() as place, chromium() as browser:
        file = Path(place) / "page.html"
        file.write_text(explain(EXAMPLE, 2).to_html(), encoding="utf-8")
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, locale="en-US", color_scheme="light")
        page.goto(file.as_uri())
        page.locator("#before .cell").nth(12).hover()
        picture = Image.open(io.BytesIO(page.screenshot()))
    palette = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    palette.save(Path(__file__).parent / "page.png", optimize=True)


if __name__ == "__main__":
    main()
