"""The dictionary: every sentence of the reports and the page, in English and in Chinese beside each other."""

from .explain import EXPLAIN
from .page import PAGE
from .shared import SHARED

#: The sentences by their keys, in the order of ``language.LANGUAGES``. ``{name}`` is filled in.
WORDS: dict[str, tuple[str, str]] = SHARED | EXPLAIN | PAGE

__all__ = ["EXPLAIN", "PAGE", "SHARED", "WORDS"]
