"""``batchnorm why``: its options, and what is done with them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..text.arguments import positive
from ..text.language import add_language

if TYPE_CHECKING:
    from ..text.language import Words
    from ..text.lines import Line
    from .catalogue import Entry
    from .study import Document

SEEDS, QUICK_SEEDS = 5, 2
#: What is needed: as people call it, and as pip does.
PACKAGES = {
    "torch": ("PyTorch", "torch"),
    "sklearn": ("scikit-learn", "scikit-learn"),
    "matplotlib": ("matplotlib", "matplotlib"),
    "rich": ("rich", "rich"),
}
#: Where the report and the numbers go if nobody names another place.
PAGE, NUMBERS = Path("why.html"), Path("why.json")
NARROW = 72  # columns of a terminal
YES = ("y", "yes", "是", "好")


def add_why(commands: Any) -> None:
    """Add the command to the commands of ``batchnorm``."""
    parser = commands.add_parser(
        "why",
        help="run experiments that show what batch normalization is good for",
        description="Train small networks with and without batch normalization on real data, and say which claims of "
        "papers hold. The command prints what came out. It writes a page with figures, and "
        "all numbers as JSON, if you name the files or say yes. It takes two to three minutes on two cores, and a "
        "second run gives the same bits.",
    )
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help="experiment to run, as --list names it (default: all)"
    )
    parser.add_argument(
        "--list", action="store_true", help="say what the experiments ask and which papers claim it; run nothing"
    )
    parser.add_argument(
        "--data",
        default="digits",
        metavar="D",
        help="digits (scikit-learn's, the default), or mnist:DIR with the four files of MNIST, .gz or not",
    )
    parser.add_argument(
        "--seeds",
        type=positive,
        metavar="N",
        help=f"number of random seeds, each a run of its own (default: {SEEDS}, or {QUICK_SEEDS} with --quick)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="take fewer steps, settings and seeds; the result is a first look, not evidence",
    )
    parser.add_argument("--jobs", type=positive, metavar="N", help="number of processes (default: one per processor)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report with figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument(
        "--from", type=Path, dest="saved", metavar="FILE", help="read results that --json wrote, and run nothing"
    )
    add_language(parser)
    parser.set_defaults(run=run_why)


def run_why(options: argparse.Namespace) -> None:
    """Do what the options say."""
    from ..text.language import Words, language_of
    from .catalogue import chosen

    words = Words(language_of(options.lang))
    entries = chosen(options.experiments)
    if options.list:
        _print([(entry.name, _listed(entry, words)) for entry in entries])
    elif options.saved is not None:
        _draw_saved(options, words)
    else:
        _run(options, words)


def _listed(entry: Entry, words: Words) -> str:
    from .sentences import told

    return words.sentences([told(entry.question, words), words("why.from_paper", **asdict(entry.paper))])


def _draw_saved(options: argparse.Namespace, words: Words) -> None:
    from ..files import Refused
    from ..files.atomic import check_output

    if options.experiments:
        raise Refused("--from draws all that the file holds, so name no EXPERIMENT with it.")
    _need("matplotlib")
    from .study import read

    if options.html is not None:
        _distinct(check_output(options.html), options.saved.resolve())
    document = read(options.saved)
    try:
        page = _page(document, words)
        findings = _findings(document, words)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise Refused(f"{options.saved} is damaged: {error!r}. Run batchnorm why again.") from error
    html = options.html or _asked(words("why.ask_page", html=PAGE), [PAGE], words)
    _show(document, findings, words)
    _tell(_write({html: page} if html else {}), words("why.unasked_page", options=f"--html {PAGE}"), words)


def _run(options: argparse.Namespace, words: Words) -> None:
    from ..files.atomic import check_output
    from ..files.progress import progress_on
    from .catalogue import chosen

    _need("torch", "matplotlib", "rich", *(["sklearn"] if options.data == "digits" else []))
    if options.html is not None and options.json is not None:
        _distinct(check_output(options.html), check_output(options.json))
    for path in filter(None, (options.html, options.json)):
        check_output(path)
    from .data import load
    from .study import Request, study, written
    from .workers import available

    request = Request(
        entries=chosen(options.experiments),
        data=load(options.data),
        seeds=options.seeds or (QUICK_SEEDS if options.quick else SEEDS),
        quick=options.quick,
        jobs=options.jobs or available(),
    )
    html, json = options.html, options.json
    if html is None and json is None and _asked(words("why.ask", html=PAGE, json=NUMBERS), [PAGE, NUMBERS], words):
        html, json = PAGE, NUMBERS
    with progress_on(sys.stderr) as progress:
        document = study(request, progress)
    texts = {json: written(document)} if json else {}
    done = _write(texts | ({html: _page(document, words)} if html else {}))
    _show(document, _findings(document, words), words)
    _tell(done, words("why.unasked", options=f"--html {PAGE} --json {NUMBERS}"), words)


def _asked(question: str, files: list[Path], words: Words) -> Path | None:
    """Ask on a terminal whether to write files that nobody named; the first of them if yes."""
    from ..files.atomic import check_output
    from ..text.terminal import writable

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    if there := tuple(str(path) for path in files if path.exists()):
        print(writable(words("why.replaces", files=there), sys.stdout))
    try:
        answer = input(writable(question, sys.stdout))
    except EOFError:
        return None
    if answer.strip().lower() not in YES:
        return None
    for path in files:
        check_output(path)
    return files[0]


def _tell(written: list[Path], otherwise: str, words: Words) -> None:
    """Say which files were written, or else how to have them."""
    from ..text.lines import EMPTY, paragraph
    from ..text.terminal import columns_of, show

    names = tuple(map(str, written))
    text = words("why.wrote", files=names) if names else otherwise
    show([EMPTY, *paragraph(text, columns_of(sys.stdout), first=EMPTY)], sys.stdout)


def _need(*names: str) -> None:
    """Refuse to begin where a package is missing."""
    from ..files import Refused

    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise Refused(
            f"batchnorm why needs {', '.join(PACKAGES[name][0] for name in missing)}, which is not installed. Install "
            f"it with: pip install {' '.join(PACKAGES[name][1] for name in missing)}"
        )


def _distinct(one: Path, other: Path) -> None:
    from ..files import Refused

    if one == other:
        raise Refused(f"The report and the results cannot both be {one}. Name another file with --html or --json.")


def _page(document: Document, words: Words) -> str:
    from .report import html

    return html(document, words)


def _write(texts: dict[Path, str]) -> list[Path]:
    """Write all files, or none of them."""
    from ..files.atomic import replacing

    with ExitStack() as files:
        for path, text in texts.items():
            files.enter_context(replacing(path)).write_text(text, encoding="utf-8")
    return list(texts)


def _findings(document: Document, words: Words) -> list[tuple[str, str]]:
    from .report import found

    return [(experiment["name"], found(experiment, document, words)) for experiment in document["experiments"]]


def _show(document: Document, findings: list[tuple[str, str]], words: Words) -> None:
    """Print what came out, and before it what its numbers are."""
    from ..text.lines import EMPTY, paragraph
    from ..text.terminal import columns_of
    from .sentences import told
    from .statistics import count

    head = [words("why.ran", name=document["data"]["name"], seeds=told(count(document["seeds"]), words))]
    head += [words("why.numbers")] if len(document["seeds"]) > 1 else []
    head += [words("why.quick")] if document["quick"] else []
    _print(findings, paragraph(words.sentences(head), columns_of(sys.stdout), first=EMPTY))


def _print(entries: Sequence[tuple[str, str]], head: Sequence[Line] = ()) -> None:
    """Print names and what is said of each: beside the name, or below it where there is little room."""
    from ..text.lines import EMPTY, INDENT, fit, line, paragraph, printable
    from ..text.terminal import columns_of, show

    columns, margin = columns_of(sys.stdout), max(len(name) for name, _ in entries) + 2
    lines: list[Line] = [*head, EMPTY] if head else []
    for name, text in entries:
        if columns < NARROW:
            lines += [line((printable(name), "heading")), *paragraph(printable(text), columns, first=line(INDENT))]
        else:
            first = line((fit(printable(name), margin), "heading"))
            lines += paragraph(printable(text), columns, first=first)
    show(lines, sys.stdout)
