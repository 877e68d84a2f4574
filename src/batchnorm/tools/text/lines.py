"""Lines of text in which some words have a style; where and how they are shown is decided elsewhere."""

from __future__ import annotations

from unicodedata import combining, east_asian_width

#: A text and the name of its style; "" is none.
Span = tuple[str, str]
Line = tuple[Span, ...]

#: No line ends after the ones, nor begins with the others.
_OPENING, _CLOSING = "（「“《([", "，。：；、！？）」”》)],.:;%"
INDENT = "    "
TIE = "\N{NO-BREAK SPACE}"
EMPTY: Line = ()


def line(*spans: str | Span) -> Line:
    """Return a line of plain texts and (text, style) pairs."""
    return tuple((s, "") if isinstance(s, str) else s for s in spans)


def cells(text: str) -> int:
    """Return how many columns of a terminal ``text`` takes: two for a wide character, none for a combining one.

    Of letters beyond U+0300, rich says it where it is installed: it knows how characters join.
    """
    if all(c < "\N{COMBINING GRAVE ACCENT}" or _is_sign(c) for c in text):
        return len(text)
    try:
        from rich.cells import cell_len
    except ImportError:
        return sum(2 if east_asian_width(c) in "WF" else 0 if combining(c) else 1 for c in text)
    return cell_len(text)


def _is_sign(character: str) -> bool:
    """Whether it is a sign of one column: a dash, an arrow, of mathematics, a part of a box or bar."""
    return "\u2010" <= character <= "\u25ff" and not _is_wide(character)


def printable(text: str) -> str:
    """Return ``text`` on one line and without control characters: names and paths may hold any."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def cut(text: str, columns: int) -> str:
    """Return ``text`` in at most ``columns`` columns, an ellipsis for what is cut off."""
    if cells(text) <= columns:
        return text
    while cells(text) > columns - 1:
        text = text[:-1]
    return text.rstrip() + "…"


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
    for word in _words(text):
        if cells((broken[-1] + word).rstrip(" ")) > columns - margin and broken[-1]:
            broken[-1] = broken[-1].rstrip(" ")
            broken.append("")
        broken[-1] += word
    begins = (first, *([((" " * margin, ""),)] * (len(broken) - 1)))
    return [(*begin, (part.replace(TIE, " "), style)) for begin, part in zip(begins, broken, strict=True)]


def _words(text: str) -> list[str]:
    """Return ``text`` in parts after which a line may end: at blanks, and beside wide characters.

    >>> _words("a b"), _words("方差（1.5）是 m。")
    (['a ', 'b'], ['方', '差', '（1.5）', '是 ', 'm。'])
    """
    parts = [""]
    for before, after in zip(text, text[1:] + " ", strict=True):
        parts[-1] += before
        beside = _is_wide(before) or _is_wide(after)
        if after != " " and (before == " " or (beside and after not in _CLOSING and before not in _OPENING)):
            parts.append("")
    return parts


def _is_wide(character: str) -> bool:
    return east_asian_width(character) in "WF"


def tied(text: str) -> str:
    """Return ``text`` as one word for :func:`paragraph`: a line never breaks inside it."""
    return text.replace(" ", TIE)
