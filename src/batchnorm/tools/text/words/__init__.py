"""The dictionary: every sentence of the reports and the page, in English and in Chinese beside each other."""

from .diagnose import DIAGNOSE
from .explain import EXPLAIN
from .page import PAGE
from .remarks import REMARKS
from .shared import SHARED
from .why import WHY

#: The sentences by their keys, in the order of ``language.LANGUAGES``. ``{name}`` is filled in.
WORDS: dict[str, tuple[str, str]] = SHARED | REMARKS | EXPLAIN | PAGE | WHY | DIAGNOSE

__all__ = ["DIAGNOSE", "EXPLAIN", "PAGE", "REMARKS", "SHARED", "WHY", "WORDS"]
