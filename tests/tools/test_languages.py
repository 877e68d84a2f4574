"""English and Chinese: every sentence is there in both, and what is chosen is spoken."""

from __future__ import annotations

import re

import pytest

from batchnorm.tools.text import words
from batchnorm.tools.text.language import LANGUAGES, Words, language_of
from batchnorm.tools.text.lines import cells, paragraph, plain, width

DICTIONARIES = {name: getattr(words, name) for name in words.__all__ if name != "WORDS"}


def test_a_key_stands_in_one_dictionary() -> None:
    keys = [key for dictionary in DICTIONARIES.values() for key in dictionary]
    assert len(keys) == len(set(keys)) == len(words.WORDS) > 100


@pytest.mark.parametrize("key", words.WORDS)
def test_every_sentence_is_there_in_both_languages(key: str) -> None:
    english, chinese = words.WORDS[key]
    assert english
    assert chinese
    holes = [sorted(set(re.findall(r"\{\w+\}", text))) for text in (english, chinese)]
    assert holes[0] == holes[1]
    if key != "language":  # the button names the other language
        assert not re.search(r"[\u4e00-\u9fff]", english)
    assert not re.search(r"[\u4e00-\u9fff][,:;]", chinese)  # full-width signs between characters


@pytest.mark.parametrize(
    ("locale", "language"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh"}, "zh"),
        ({"LC_MESSAGES": "zh_TW", "LANG": "en_US.UTF-8"}, "zh"),
        ({"LC_ALL": "C.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"LC_ALL": "", "LANG": "zh_CN"}, "zh"),
        ({"LANG": "zhuang"}, "en"),
        ({}, "en"),
    ],
)
def test_the_locale_chooses(locale: dict[str, str], language: str) -> None:
    assert language_of(None, locale) == language
    assert [language_of(asked, locale) for asked in LANGUAGES] == [*LANGUAGES]


def test_another_language_is_refused() -> None:
    with pytest.raises(ValueError, match='lang must be "en", "zh", or None for the language of the locale; got \'fr\''):
        language_of("fr")


def test_a_missing_number_is_no_sentence() -> None:
    with pytest.raises(KeyError):
        Words("en")("row")


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_chinese_paragraph_is_broken_where_chinese_may_be(columns: int) -> None:
    text = "方差除以 m = 5：有偏（2）。“除以” m - 1 得到无偏方差 2.5，层的 running_var 用的就是它；" * 4
    lines = paragraph(text, columns)
    assert max(map(width, lines)) <= columns
    assert min(map(width, lines[:-1])) > columns - 20  # a word of Latin letters may not fit
    assert "".join(plain(line).strip() for line in lines).replace(" ", "") == text.replace(" ", "")
    for line in lines:
        assert plain(line).strip()[0] not in "，。：；）”"
        assert plain(line)[-1] not in "（“"


def test_columns_are_counted_as_terminals_do() -> None:
    assert [cells(text) for text in ("abc", "é√·│", "花萼", "e\u0301", "1 °C", "👩\u200d🔬")] == [3, 4, 4, 1, 4, 2]
