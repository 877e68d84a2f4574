"""The deliberate breaks of `breaks.py` can still be made; what catches them is in docs/tests.md."""

from __future__ import annotations

import ast

import breaks


def test_each_break_is_found_once_and_is_another_program():
    found = breaks.all_breaks()
    assert len(found) >= 60
    assert len({(b.file, b.what) for b in found}) == len(found)
    for broken in found:
        text = broken.made_in((breaks.ROOT / broken.file).read_text(encoding="utf-8"))
        if broken.file.endswith(".py"):
            ast.parse(text)
        assert broken.old != broken.new, broken
        for name in broken.first.split():
            assert breaks.path_of(name).is_file()


def test_the_table_is_of_these_breaks_and_all_are_caught():
    """Each line is of a break that there is, and names a test that there is."""
    rows, known = breaks.table_of(breaks.PAGE.read_text(encoding="utf-8")), breaks.all_breaks()
    assert rows.keys() <= {breaks.key_of(broken) for broken in known}, "run tests/breaks/breaks.py --write"
    assert len(rows) >= 60
    for key, row in rows.items():
        file, _, test = row.removeprefix(key).strip("` |").partition("::")
        text = breaks.path_of(file).read_text(encoding="utf-8")
        assert f"def {test.partition(' ')[0]}(" in text, row
