"""Why a column of a text table is left out: what its cells hold."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..._left_out import NOTHING, LeftOut, shown
from ..text.language import Said
from .text_form import COMMA_NUMBER, GROUPED_NUMBER, Form, is_missing

#: Cells looked at to say what a column holds.
LOOKED_AT = 200

_BOOLEANS = frozenset(("true", "false", "yes", "no", "t", "f", "y", "n"))
_DATE = re.compile(
    r"\s*(\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{4}年\d{1,2}月\d{1,2}日"
    r"|\d{1,2}[- ][A-Za-z]{3,9}\.?[- ]\d{2,4}|[A-Za-z]{3,9}\.? \d{1,2},? \d{4})"
    r"([T ]\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?\s*(Z|[AaPp][Mm]|[+-]\d{2}:?\d{2})?)?\s*"
)
_TIME = re.compile(r"\s*\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?\s*([AaPp][Mm])?\s*")
_UNIT = re.compile(r"\s*([$€£¥]\s?)?[+-]?\d[\d.,'’ \u00a0\u202f]*([eE][+-]?\d+)?\s*(%|[^\d\s.,;:-][^\d;:]{0,11})?\s*")

_CONVERTIBLE = Said("fix_signs")


def of_text(column: int, name: str | None, cells: Sequence[str], form: Form, bad: tuple[int, str] | None) -> LeftOut:
    """Say what a column of text holds; ``bad`` are the line and the text of its first cell that is no number."""
    if bad is None:
        return LeftOut(column, name, NOTHING)
    filled = [c for c in cells[: LOOKED_AT * 50] if not is_missing(c)][:LOOKED_AT] or [bad[1]]
    if all(c.strip().lower() in _BOOLEANS for c in filled):
        return LeftOut(column, name, "booleans")
    if all(_DATE.fullmatch(c) or _TIME.fullmatch(c) for c in filled):
        return LeftOut(column, name, "dates")
    numbers = sum(form.number(c) is not None for c in filled)
    odd = next((c for c in filled if form.number(c) is None), bad[1])
    rest = [c for c in filled if form.number(c) is None]
    said = shown(odd)
    if form.decimal == "." and all(map(COMMA_NUMBER.fullmatch, rest)) and rest:
        return LeftOut(column, name, Said("holds_commas", said=said), Said("fix_commas"))
    if rest and all(map(GROUPED_NUMBER.fullmatch, rest)):
        return LeftOut(column, name, Said("holds_thousands", said=said), _CONVERTIBLE)
    if 2 * numbers >= len(filled):
        slip = Said("holds_slip", said=shown(bad[1]), line=bad[0])
        return LeftOut(column, name, slip, Said("fix_slip"))
    if rest and all(map(_UNIT.fullmatch, rest)):
        return LeftOut(column, name, Said("holds_units", said=said), _CONVERTIBLE)
    return LeftOut(column, name, "text")
