"""The page: its parts, the files beside this module, put together with the numbers of an explanation."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from ...._version import __version__
from ..facts import Facts
from .contents import contents

#: In the order in which they are read; each uses those before it.
SCRIPTS = ("numbers", "groups", "statistics", "running", "words", "drawing", "formulas", "charts", "main")

#: Height of the frame in a notebook, in pixels.
HEIGHT = 900


def page(e: Facts) -> str:
    """Return the whole page as one text."""
    data = json.dumps(contents(e), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    parts = {
        "version": __version__,
        "style": _part("style.css"),
        "script": "\n".join(_part(f"{name}.js") for name in SCRIPTS),
        "data": data.replace("<", "\\u003c"),  # so that no name in the data can end the script element
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("page.html"))


def frame(e: Facts) -> str:
    """Return the page in an element of its own, apart from the styles and scripts around it."""
    inside = html.escape(page(e), quote=True)
    style = f"width: 100%; height: {HEIGHT}px; border: 1px solid #8884; border-radius: 8px"
    return f'<iframe srcdoc="{inside}" title="batchnorm explain" style="{style}"></iframe>'


def _part(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
