"""The page: its parts, the files beside this module, put together with the numbers of an explanation."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from ...._version import __version__
from ...text.language import LANGUAGES
from ...text.words import PAGE, SHARED
from ..facts import Facts
from .contents import contents

#: In the order in which they are read; each uses those before it.
SCRIPTS = ("numbers", "groups", "statistics", "running", "words", "drawing", "formulas", "charts", "main")

#: Height of the frame in a notebook, in pixels.
HEIGHT = 900


def page(e: Facts) -> str:
    """Return the whole page as one text."""
    parts = {
        "version": __version__,
        "style": _part("style.css"),
        "script": "\n".join(_part(f"{name}.js") for name in SCRIPTS),
        "words": _inside_script(dictionary()),
        "data": _inside_script(contents(e)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("page.html"))


def frame(e: Facts) -> str:
    """Return the page in an element of its own, apart from the styles and scripts around it."""
    inside = html.escape(page(e), quote=True)
    style = f"width: 100%; height: {HEIGHT}px; border: 1px solid #8884; border-radius: 8px"
    return f'<iframe srcdoc="{inside}" title="batchnorm explain" style="{style}"></iframe>'


def dictionary() -> dict[str, dict[str, str]]:
    """Return every sentence of the page by language and key."""
    sentences = SHARED | PAGE
    return {language: {key: texts[i] for key, texts in sentences.items()} for i, language in enumerate(LANGUAGES)}


def _inside_script(value: Any) -> str:
    """Return ``value`` as JSON in which no text can end the script element that it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _part(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
