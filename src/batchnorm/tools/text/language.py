"""Which language a report speaks, and how it says a sentence of the dictionary in it."""

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


class Words:
    """The sentences of one language.

    >>> Words("en")("row", n=3), Words("zh")("row", n=3)
    ('row 3', '第 3 行')
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._place = LANGUAGES.index(language)

    def __call__(self, key: str, **values: object) -> str:
        """Return the sentence of ``key``, its holes filled in."""
        return _HOLE.sub(lambda hole: str(values[hole[1]]), WORDS[key][self._place])

    def joined(self, parts: Iterable[object]) -> str:
        """Return "a", "a and b", or "a, b and c".

        >>> Words("en").joined("abc"), Words("zh").joined("abc")
        ('a, b and c', 'a、b 和 c')
        """
        *texts, last = map(str, parts)
        return f"{self('comma').join(texts)}{self('and')}{last}" if texts else last


ENGLISH = Words("en")
