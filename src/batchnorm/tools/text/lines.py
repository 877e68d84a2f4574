"""Lines of text in which some words have a style; where and how they are shown is decided elsewhere."""

from __future__ import annotations

from unicodedata import combining, east_asian_width

#: A text and the name of its style; "" is none.
Span = tuple[str, str]
Line = tuple[Span, ...]

INDENT = "    "
TIE = "\N{NO-BREAK SPACE}"
EMPTY: Line = ()


def line(*spans: str | Span) -> Line:
    """Return a line of plain texts and (text, style) pairs."""
    return tuple((s, "") if isinstance(s, str) else s for s in spans)


def cells(text: str) -> int:
    """Return how many columns of a terminal ``text`` takes: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(2 if east_asian_width(c) in "WF" else 0 if combining(c) else 1 for c in text)


def printable(text: str) -> str:
    """Return ``text`` on one line and without control characters: names and paths may hold any."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def cut(text: str, columns: int) -> str:
    """Return ``text`` in at most ``columns`` columns, an ellipsis for what is cut off."""
    if cells(text) <= columns:
        return text
    while cells(text) > columns - 1:
        text = text[:-1]
    return text + "…"


def fit(text: str, columns: int) -> str:
    """Return ``text`` in exactly ``columns`` columns: cut, or followed by blanks."""
    text = cut(text, columns)
    return text + " " * (columns - cells(text))


def width(of: Line) -> int:
    """Return how many columns a line takes."""
    return sum(cells(text) for text, _ in of)


def plain(of: Line) -> str:
    """Return a line's text, without styles and without blanks at its end."""
    return "".join(text for text, _ in of).rstrip()


def paragraph(text: str, columns: int, *, style: str = "", first: Line = ((INDENT, ""),)) -> list[Line]:
    """Return ``text`` broken into lines of at most ``columns``; ``first`` begins it, and the rest lines up below."""
    margin = width(first)
    broken = [""]
    for word in text.split(" "):
        longer = f"{broken[-1]} {word}" if broken[-1] else word
        if cells(longer) <= columns - margin or not broken[-1]:
            broken[-1] = longer
        else:
            broken.append(word)
    begins = (first, *([((" " * margin, ""),)] * (len(broken) - 1)))
    return [(*begin, (part.replace(TIE, " "), style)) for begin, part in zip(begins, broken, strict=True)]


def tied(text: str) -> str:
    """Return ``text`` as one word for :func:`paragraph`: a line never breaks inside it."""
    return text.replace(" ", TIE)
