"""Styled lines on a terminal: colors through rich where there are any to show, else plain text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from .language import Words, language_of
from .lines import Line, plain

if TYPE_CHECKING:
    from rich.console import Console

#: Colors of middling lightness, readable on black and on white; "lit" brings its own background.
STYLES = {
    "title": "bold",
    "number": "bold #2b88c9",
    "heading": "bold",
    "quiet": "#7f858d",
    "result": "bold #2b88c9",
    "lit": "bold #10243a on #9ad1f5",
    "kept": "bold #2e9156",
    "lost": "bold #d4541c",
    "warning": "#d4541c",
}

#: What stands for a character that the terminal's encoding lacks.
ASCII = str.maketrans(
    {"·": "*", "√": "sqrt", "²": "^2", "…": "...", "⋮": ":", "│": "|", "─": "-", "┌": "+", "┐": "+", "└": "+", "┘": "+",
     "█": "#", "▇": "#", "▆": "*", "▅": "+", "▄": "=", "▃": "-", "▂": ":", "▁": ".",
     "░": ".", "→": ">", "Σ": "sum", "–": "-", "×": "x"}
)  # fmt: skip

#: What an encoding of Chinese has.
ENCODABLE = "均值，方差。"

NARROWEST, WIDEST = 60, 100


def columns_of(stream: TextIO) -> int:
    """Return the width to write for: the terminal's, within reason; COLUMNS or 80 where there is no terminal."""
    if stream.isatty():
        found = shutil.get_terminal_size().columns
    else:
        text = os.environ.get("COLUMNS", "")
        found = int(text) if text.isdigit() else 80
    return min(max(found, NARROWEST), WIDEST)


def show(lines: Sequence[Line], stream: TextIO) -> None:
    """Write ``lines``; in color when ``stream`` is a terminal, rich is installed and NO_COLOR is not set."""
    console = _console(stream)
    if console is None:
        text = "\n".join(map(plain, lines)).rstrip() + "\n"
        stream.write(writable(text, stream))
        return
    from rich.text import Text

    for one in lines:
        console.print(Text.assemble(*((writable(t, stream), STYLES.get(s, "")) for t, s in one)), soft_wrap=True)


def _console(stream: TextIO) -> Console | None:
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, highlight=False)


def words_for(asked: str | None, stream: TextIO) -> Words:
    """Return the words of the language to write to ``stream``: what was asked, else the locale's.

    Where the locale is Chinese but the stream's encoding has no Chinese, English is read better than escapes.
    """
    language = language_of(asked)
    if asked is None and writable(ENCODABLE, stream) != ENCODABLE:
        language = "en"
    return Words(language)


def utf8(stream: TextIO) -> bool:
    """Return whether ``stream`` takes any character that is not a lone surrogate."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"


def writable(text: str, stream: TextIO) -> str:
    """Return ``text`` in characters that ``stream`` can encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(ASCII).encode(encoding, "backslashreplace").decode(encoding)
    return text
