"""Which language a report speaks, and how it says the sentences of the dictionary in it."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Mapping

from .words import WORDS

#: In the order in which the dictionary has its texts.
LANGUAGES = ("en", "zh")

#: What says which language a process speaks; the first that is set decides.
_LOCALE = ("LC_ALL", "LC_MESSAGES", "LANG")
_HOLE = re.compile(r"\{(\w+)\}")


def language_of(asked: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """Return the language asked for, or the locale's: Chinese where that is zh, else English.

    >>> language_of("zh"), language_of(None, {"LANG": "zh_CN.UTF-8"}), language_of(None, {"LC_ALL": "C", "LANG": "zh"})
    ('zh', 'zh', 'en')
    """
    if asked is not None:
        if asked not in LANGUAGES:
            raise ValueError(f'lang must be "en", "zh", or None for the language of the locale; got {asked!r}')
        return asked
    locale = next((environment[name] for name in _LOCALE if environment.get(name)), "")
    return "zh" if re.match(r"zh\b|zh_", locale.lower()) else "en"


def add_language(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--lang``."""
    parser.add_argument("--lang", choices=LANGUAGES, help="language of the report; default that of the locale")


class Said(str):
    """A sentence, or a part of one, that every language has; as a text it is English.

    >>> column = Said("column_number", index=4)
    >>> column, Words("zh").told(column)
    ('column 4', '第 4 列')
    """

    __slots__ = ("key", "values")
    key: str
    values: dict[str, object]

    def __new__(cls, key: str, **values: object) -> Said:
        made = super().__new__(cls, ENGLISH(key, **values))
        made.key, made.values = key, values
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, object]]:
        return (self.key,), self.values


class Listed(tuple[object, ...]):
    """Things in a row, without an "and" before the last."""


class Words:
    """The sentences of one language.

    >>> Words("en")("row", n=3), Words("zh")("row", n=3)
    ('row 3', '第 3 行')
    >>> Words("en").count("rows", 1), Words("en").count("rows", 3), Words("zh").count("rows", 3)
    ('1 row', '3 rows', '3 行')
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._place = LANGUAGES.index(language)

    def __call__(self, key: str, **values: object) -> str:
        """Return the sentence of ``key``, its holes filled in; the text for ``{Name}`` begins with a capital letter."""

        def filled(hole: re.Match[str]) -> str:
            name = hole[1]
            text = self.told(values[name.lower()])
            if name[0].isupper():
                text = text[:1].upper() + text[1:]
            before, after = hole.string[: hole.start()][-1:], hole.string[hole.end() :][:1]
            return f"{_blank(before, text[:1])}{text}{_blank(text[-1:], after)}"

        return _HOLE.sub(filled, WORDS[key][self._place])

    def told(self, value: object) -> str:
        """Return a value as text: what is said in this language, and several things one after the other."""
        if isinstance(value, Said):
            return self(value.key, **value.values)
        if isinstance(value, Listed):
            return self("comma").join(map(self.told, value))
        return self.joined(value) if isinstance(value, tuple) else str(value)

    def count(self, key: str, n: int) -> str:
        """Return a number of things."""
        return self(f"{key}_one" if n == 1 else f"{key}_many", n=many(n))

    def sentences(self, parts: Iterable[object]) -> str:
        """Return sentences one after the other: Chinese ones have no blank between them."""
        return (" " if self.language == "en" else "").join(map(self.told, parts))

    def joined(self, parts: Iterable[object]) -> str:
        """Return "a", "a and b", or "a, b and c".

        >>> Words("en").joined("abc"), Words("zh").joined("abc")
        ('a, b and c', 'a、b 和 c')
        """
        *texts, last = map(self.told, parts)
        return f"{self('comma').join(texts)}{self('and')}{last}" if texts else last


def _blank(before: str, after: str) -> str:
    """Return the blank that Chinese puts between its characters and others; signs bring their own."""
    chinese = ["\u4e00" <= c <= "\u9fff" for c in (before, after)]
    other = [c != "" and ((c.isascii() and c.isalnum()) or c in "'\"%()-√") for c in (before, after)]
    return " " * ((chinese[0] and other[1]) or (other[0] and chinese[1]))


ENGLISH = Words("en")


def many(count: int) -> str:
    """Return a count, a long one with its thousands set apart: ``9999``, ``1 124 250``. The blanks do not break."""
    return str(count) if count < 10_000 else f"{count:,}".replace(",", "\N{NO-BREAK SPACE}")
