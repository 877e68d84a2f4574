"""What the documents say is what happens: every snippet runs, and every output shown is its output.

In a page, blocks run from top to bottom in one namespace: ``pycon`` is a doctest; ``python`` runs, and a ``text`` block
right after it is what it prints; in ``console`` each line ``$ batchnorm ...`` runs, and prints what follows it.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import shlex
import types
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import batchnorm
from batchnorm.tools.cli import main

ROOT = Path(__file__).parents[2]
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
TUTORIALS = (ROOT / "docs" / "tutorial.md", ROOT / "docs" / "tutorial.zh-CN.md")
PAGES = [*READMES, *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```([\w{}-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"<!-- (accuracy-table|torch-speed-table|speed-table) -->\n(.*?)<!-- /\1 -->", re.DOTALL)


class Block(NamedTuple):
    language: str
    text: str
    line: int
    follows: bool  # nothing but blank lines between the block before and this one


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    text, end, found = page.read_text(encoding="utf-8"), 0, []
    for match in FENCE.finditer(text):
        follows = bool(found) and not text[end : match.start()].strip()
        found.append(Block(match[1], match[2], text.count("\n", 0, match.start()) + 2, follows))
        end = match.end()
    return found


def run_doctest(block: Block, page: Path, names: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(block.text, {}, page.name, str(page), block.line - 1)
    test.globs = names  # the page's own, not a copy: later blocks use what this one defines
    report = io.StringIO()
    doctest.DocTestRunner(verbose=False).run(test, out=report.write, clear_globs=False)
    assert not report.getvalue(), report.getvalue()


def run_python(block: Block, page: Path, names: dict[str, Any]) -> str:
    printed = io.StringIO()
    code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")  # tracebacks name the page's line
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


def entries_of(block: Block) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output shown for it."""
    parts = (entry.partition("\n") for entry in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:])
    return [(command, shown) for command, _, shown in parts]


def output_of(command: str) -> str:
    name, *arguments = shlex.split(command)
    assert name == "batchnorm", f"a console block runs batchnorm only, not {name}"
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        main(arguments)
    return "".join(text.detach().getvalue().decode() for text in (out, err))


def trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


@pytest.fixture
def _a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder; and not a terminal: 80 columns, no colors, whatever the tests run in."""
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_a_place_of_its_own")
@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIALS[1]], ids=name_of)
def test_snippets_run_and_print_what_is_shown(page: Path) -> None:
    run_blocks(page, blocks_of(page))


def run_blocks(page: Path, blocks: list[Block]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks:
        if block.language == "pycon":
            run_doctest(block, page, names)
        elif block.language == "python":
            printed = run_python(block, page, names)
        elif block.language == "console":
            for command, shown in entries_of(block):
                assert trimmed(output_of(command)) == trimmed(shown), f"{page.name}, line {block.line}: $ {command}"
        elif block.language == "text" and block.follows:
            assert trimmed(block.text) == trimmed(printed), f"{page.name}, line {block.line}"


def test_both_readmes_have_the_same_blocks_and_figures() -> None:
    english, chinese = ([(block.language, block.text) for block in blocks_of(page)] for page in READMES)
    assert english == chinese
    assert len(english) >= 10
    assert figures_of(READMES[0]) == figures_of(READMES[1])


@pytest.mark.usefixtures("_a_place_of_its_own")
def test_the_chinese_tutorial_has_the_blocks_of_the_english_one() -> None:
    """Those run there; what is shown in Chinese, the explanation, runs here, after the blocks before it."""
    english, chinese = map(blocks_of, TUTORIALS)
    own = [
        i for i, (a, b) in enumerate(zip(english, chinese, strict=True)) if (a.language, a.text) != (b.language, b.text)
    ]
    assert len(own) == 2
    assert 'lang="zh"' in chinese[own[0]].text
    run_blocks(TUTORIALS[1], chinese[: own[-1] + 1])


def figures_of(page: Path) -> list[list[str]]:
    """The numbers of each measured table; sorted, since word order differs between languages."""
    tables = TABLE.findall(page.read_text(encoding="utf-8"))
    return [sorted(n.rstrip(".") for n in re.findall(r"\d[\d.e×+-]*", table)) for _, table in tables]


def modules() -> list[str]:
    found = [info.name for info in pkgutil.walk_packages(batchnorm.__path__, "batchnorm.")]
    return ["batchnorm", *(name for name in found if name not in ("batchnorm.__main__", "batchnorm._native"))]


class Finder(doctest.DocTestFinder):
    """Finds classes in the file that they stand in, which is where their methods are, not where they say they are."""

    def _from_module(self, module: Any, thing: Any) -> bool:
        if isinstance(thing, type) and thing.__module__.startswith("batchnorm"):
            homes = [f.__globals__["__name__"] for f in vars(thing).values() if isinstance(f, types.FunctionType)]
            home = next((name for name in homes if name.startswith("batchnorm")), thing.__module__)
            return home == module.__name__
        return super()._from_module(module, thing)  # type: ignore[misc, no-any-return]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_hold(name: str) -> None:
    report = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False)
    for test in Finder(exclude_empty=True).find(importlib.import_module(name), name):
        runner.run(test, out=report.write)
    assert not report.getvalue(), report.getvalue()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        assert (page.parent / link).exists(), f"{page.name} links to {link}, which does not exist"


def test_commands_of_contributing_choose_tests_that_exist() -> None:
    chosen = re.findall(
        r'(tests/\S+\.py) -k "?([a-z_]+(?: or [a-z_]+)*)', (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    )
    assert chosen
    for file, words in chosen:
        names = re.findall(r"def (test_\w+)", (ROOT / file).read_text(encoding="utf-8"))
        assert not [word for word in words.split(" or ") if not any(word in name for name in names)], file


def test_nothing_says_to_install_the_library_from_an_index() -> None:
    """No index has it: documents say `pip install ".[torch]"` in a clone, messages name the package that is missing."""
    texts = [*PAGES, ROOT / "CHANGELOG.md", *(ROOT / "src").rglob("*.py"), *(ROOT / "cpp").rglob("*.cpp")]
    found = [name_of(path) for path in texts if re.search(r"pip install[^\n`&;]*batchnorm", path.read_text("utf-8"))]
    assert not found


GENERATED = re.compile(r"^<!-- (why|[\w-]+-table)\b.*?^<!-- /\1 -->$", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"^\$\$.*?\$\$$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ +```.*?^ +```$", re.MULTILINE | re.DOTALL)
REFERENCES = re.compile(r"^## References\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`+[^`]+`+|\$[^$]+\$|\]\([^)]*\)|https?:\S+")
NOT_PROSE = re.compile(r"\s*$|#|\||!\[|<!--|:|\([\w-]+\)=$|\*\*[^*]+\*\*$")
ITEM = re.compile(r"^\s*(?:[*-]|\d+\.) +")
LEAD = re.compile(r"^(?:\*\*[^*]+\*\*|\*[^*]+\*) +")  # **What it is about.** Then the sentence.
# What ends a sentence, and what begins the next one; "S. Ioffe" and "e.g. this" are no ends.
TWO = re.compile(r"(?<!\b[A-Z])(?<!e\.g)(?<!i\.e)[.!?][)*\"”]* +[(*\"“\[]*[A-Z`]|[。！？][）」]?[^）」*]")
COMPLETE = re.compile(r"[.!?:。！？：][)*\"”）」]*$|\)$")
BRITISH = re.compile(
    r"\b(?:\w*(?:normal|standard|synchron|general|initial|optim|organ|recogn|summar|regular|special|serial|minim|maxim|util|real)"
    r"is(?:e[sdr]?|ing|ations?)|(?:\w*(?:col|behavi|neighb|fav)our\w*)|grey|(?:kilo|centi|milli)?met(?:re)s?|centres?|analyse[sd]?"
    r"|(?:model|label|travel|cancel)l(?:ed|ing)|licence|learnt)\b",
    re.IGNORECASE,
)


def prose_of(text: str) -> list[tuple[int, str]]:
    """The lines of prose with their numbers: no code, formulas, tables, headings, references, nor a program's words."""

    def blank(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    for pattern in (FENCE, INDENTED, GENERATED, FORMULA, REFERENCES):
        text = pattern.sub(blank, text)
    return [(i, line) for i, line in enumerate(text.split("\n"), 1) if not NOT_PROSE.match(line)]


def sentences_broken(text: str) -> list[str]:
    """The lines that hold two sentences, or end inside one."""
    lines = prose_of(text)
    follows = {i for i, line in lines if not ITEM.match(line)}
    found = []
    for i, line in lines:
        words = SPAN.sub(lambda match: match[0][0] + "x" + match[0][-1], ITEM.sub("", line)).strip()
        if TWO.search(LEAD.sub("", words)):
            found.append(f"line {i} holds two sentences: {line}")
        if i + 1 in follows and not COMPLETE.search(words):
            found.append(f"line {i} ends inside a sentence: {line}")
    return found


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"], ids=name_of)
def test_each_line_of_prose_is_one_sentence(page: Path) -> None:
    assert not sentences_broken(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text", ["One sentence. Another one.", "A sentence that\ngoes on.", "* **Lead.** One. Two.", "一句话。又一句。"]
)
def test_a_broken_line_is_found(text: str) -> None:
    assert sentences_broken(text)


def test_what_only_looks_like_two_sentences_is_left() -> None:
    assert not sentences_broken(
        "**Lead.** One, of S. Ioffe, `a. B` and [a link](b.md. C).\n\n* One:\n  two.\n\n| A. B |\n"
    )


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"], ids=name_of)
def test_spelling_is_american(page: Path) -> None:
    found = [
        f"line {i}: {match[0]}"
        for i, line in prose_of(page.read_text(encoding="utf-8"))
        for match in BRITISH.finditer(SPAN.sub("", line))
    ]
    assert not found
    assert BRITISH.search("a normalised colour")


ALIAS = '"normalise"'  # the command's other name


def test_spelling_of_the_code_is_american() -> None:
    """Names, comments and messages of the package, the core, the tests and the benchmarks; not this file's examples."""
    kinds = ("*.py", "*.pyi", "*.js", "*.html", "*.css", "*.h", "*.cpp")
    files = [
        f for part in ("src", "cpp", "tests", "benchmarks", "examples") for k in kinds for f in (ROOT / part).rglob(k)
    ]
    assert len(files) > 200
    found = [
        f"{file.relative_to(ROOT)}:{number}: {match[0]}"
        for file in files
        if file != Path(__file__)
        for number, line in enumerate(file.read_text(encoding="utf-8").replace(ALIAS, "").splitlines(), 1)
        for match in BRITISH.finditer(line)
    ]
    assert not found
