"""English and Chinese: every sentence is there in both, and what is chosen is spoken."""

from __future__ import annotations

import io
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchnorm.tools.cli import main
from batchnorm.tools.explain import EXAMPLE, explain
from batchnorm.tools.text import words
from batchnorm.tools.text.language import LANGUAGES, Words, language_of
from batchnorm.tools.text.lines import cells, paragraph, plain, width
from batchnorm.tools.text.terminal import words_for

DICTIONARIES = {name: getattr(words, name) for name in words.__all__ if name != "WORDS"}


def test_a_key_stands_in_one_dictionary() -> None:
    keys = [key for dictionary in DICTIONARIES.values() for key in dictionary]
    assert len(keys) == len(set(keys)) == len(words.WORDS) > 100


def test_every_sentence_is_there_in_both_languages() -> None:
    for key, (english, chinese) in words.WORDS.items():
        assert english, key
        assert chinese, key
        holes = [sorted({hole.lower() for hole in re.findall(r"\{\w+\}", text)}) for text in (english, chinese)]
        assert holes[0] == holes[1], key
        if key != "language":  # the button names the other language
            assert not re.search(r"[\u4e00-\u9fff]", english), key
        assert not re.search(r"[\u4e00-\u9fff][,:;]", chinese), key  # full-width signs between characters


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


ENGLISH = re.compile(
    r"\b(the|of|and|values?|columns?|channels?|rows?|batch(es)?|before|after|with|is|are|was|in|it)\b", re.IGNORECASE
)
OF_ARRAYS = {
    "the example": (EXAMPLE, {"axis": 2}),
    "images": (np.random.default_rng(0).normal(size=(8, 20, 3, 3)).astype(np.float32), {"channel": 3}),
    "no axis": (np.arange(12), {"axis": ()}),
    "every axis": (np.ones((2, 3)), {"axis": (0, 1)}),
    "nan and infinity": (np.array([[np.nan, 1, np.inf], [2, 2, 3.0]]), {}),
    "missing": (np.array([[np.nan, 1, np.nan], [2, 2, 3.0], [4, 5, 2]]), {"nan_policy": "omit"}),
    "constant and tiny": (np.array([[1, 1e-4], [1, 2e-4], [1, 3e-4]]), {}),
    "huge": (np.array([[1e200], [2e200], [3.0]]), {}),
    "an outlier": (np.array([[1], [2], [3], [2], [1], [900.0]]), {}),
    "outliers": (np.r_[np.linspace(0, 1, 200), 300, 400].reshape(-1, 1), {}),
    "alike": (np.arange(4.0)[:, None].repeat(2, axis=1), {}),
    "coarse": ((np.arange(200.0)[:, None] % 3 + 1e7).astype(np.float32), {}),
}


@pytest.mark.parametrize("case", OF_ARRAYS)
def test_a_chinese_report_has_no_english_sentence(case: str) -> None:
    x, options = OF_ARRAYS[case]
    e = explain(x, **options, lang="zh")
    for columns in (60, 100):
        text = e.to_text(columns)
        assert not ENGLISH.search(without_commands(text)), text
        assert re.search(r"[\u4e00-\u9fff]", text)
    assert not re.search(r"[\u4e00-\u9fff]", e.to_text(lang="en"))


def without_commands(text: str) -> str:
    return re.sub(r"batchnorm (explain|why)\b.*?(  |\n)|docs/\S+|--[\w-]+", "", text)


def test_a_chinese_report_of_a_file_has_no_english_remark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tables = {
        "a.csv": "名;1;x\n甲;1,5;n/a\n\n乙;2;3\n丙;4;5\n丁;7;8\n合计;14,5;16\n",
        "b.csv": "Datum,kg,ok,n\n1.2.2023,12 kg,yes,1\n2.2.2023,13 kg,no,2\n",
        "c.csv": '"","a","t"\n"1",5,"x"\n"2",6,"y"\n',
        "d.csv": "id,a,b\n" + "".join(f"{i},{i * i},{i}\n" for i in range(100)) + "100,7,1O\n",
        "e.csv": 'a,b,c\n1,"1,5",9007199254740993\n2,"2,5",1\n',
        "f.csv": "5,1,x\n6,2,y\n",
    }
    pq.write_table(
        pa.table({"n": pa.array([2**53 + 1, 2], pa.int64()), "x": [0.5, 1.5], "名": ["甲", "乙"]}), "g.parquet"
    )
    for name, content in tables.items():
        Path(name).write_text(content, encoding="utf-8")
    for name in [*tables, "g.parquet"]:
        assert main(["explain", name, "--lang", "zh"]) == 0
        text = capsys.readouterr().out
        assert not ENGLISH.search(without_commands(text)), text
        assert "注：" in text


def test_the_command_takes_the_language_of_the_locale(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert main(["explain"]) == 0
    assert capsys.readouterr().out.startswith(" 示例表格的批归一化\n 5 行，5 列 ")
    assert main(["explain", "--lang", "en"]) == 0
    assert "Every column has a mean and a variance of its own." in capsys.readouterr().out
    assert main(["explain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "the worked example"


def test_a_stream_without_chinese_gets_english_unless_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN")
    ascii_, chinese = (io.TextIOWrapper(io.BytesIO(), encoding=name) for name in ("ascii", "gb18030"))
    assert [words_for(None, s).language for s in (ascii_, chinese)] == ["en", "zh"]
    assert words_for("zh", ascii_).language == "zh"


def test_what_is_said_survives_a_pickle() -> None:
    said = explain(np.eye(3, dtype=int)).remarks[0]
    again = pickle.loads(pickle.dumps(said))
    assert again == said == "int64 was converted to float64"
    assert Words("zh").told(again) == "int64 已转换为 float64"
