"""``batchnorm why``: its options, and what is done with them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .study import Document

SEEDS, QUICK_SEEDS = 5, 2
PACKAGES = {"torch": "PyTorch", "sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"}


def add_why(commands: Any) -> None:
    """Add the command to the commands of ``batchnorm``."""
    parser = commands.add_parser(
        "why",
        help="run experiments that show what batch normalization is good for",
        description="Train small networks with and without batch normalization on real data, and report what came out, "
        "for the papers' claims and against them: a finding a line here, figures and readings in an HTML page, all "
        "numbers as JSON. Takes two to three minutes on two cores; a second run gives the same bits.",
    )
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="which to run, see --list; default all")
    parser.add_argument("--list", action="store_true", help="list the experiments and their papers, and run nothing")
    parser.add_argument(
        "--data",
        default="digits",
        metavar="D",
        help="digits (scikit-learn's, the default), or mnist:DIR with the four files of MNIST, .gz or not",
    )
    parser.add_argument(
        "--seeds",
        type=_positive,
        metavar="N",
        help=f"how many of each run; default {SEEDS}, {QUICK_SEEDS} with --quick",
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps, settings and seeds: a try, not evidence")
    parser.add_argument("--jobs", type=_positive, metavar="N", help="processes; default the processors there are")
    parser.add_argument(
        "--html", type=Path, default=Path("why.html"), metavar="FILE", help="the report; default why.html"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("why.json"), metavar="FILE", help="the results; default why.json"
    )
    parser.add_argument(
        "--from", type=Path, dest="saved", metavar="FILE", help="draw the report of these results, and run nothing"
    )
    parser.set_defaults(run=run_why)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def run_why(options: argparse.Namespace) -> None:
    """Do what the options say."""
    from .catalogue import chosen

    entries = chosen(options.experiments)
    if options.list:
        _print([(entry.name, f"{entry.question} {entry.paper.authors} {entry.paper.year}, arXiv:{entry.paper.arxiv}")
                for entry in entries])  # fmt: skip
    elif options.saved is not None:
        _draw_saved(options)
    else:
        _run(options)


def _draw_saved(options: argparse.Namespace) -> None:
    from ..files import Refused
    from ..files.atomic import check_output

    if options.experiments:
        raise Refused("--from draws all that the file holds, so name no EXPERIMENT with it.")
    _need("matplotlib")
    from .study import read

    _distinct(check_output(options.html), options.saved.resolve())
    document = read(options.saved)
    try:
        page = _page(document)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise Refused(f"{options.saved} is damaged: {error!r}. Run batchnorm why again.") from error
    _write({options.html: page})
    _print_findings(document)


def _run(options: argparse.Namespace) -> None:
    from ..files.atomic import check_output
    from ..files.progress import progress_on
    from .catalogue import chosen

    _need("torch", "matplotlib", "rich", *(["sklearn"] if options.data == "digits" else []))
    _distinct(check_output(options.html), check_output(options.json))
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
    with progress_on(sys.stderr) as progress:
        document = study(request, progress)
    _write({options.json: written(document), options.html: _page(document)})
    _print_findings(document)
    print(f"\nResults in {options.json}, the report in {options.html}.")


def _need(*names: str) -> None:
    """Refuse to begin where a package is missing."""
    from ..files import Refused

    missing = [PACKAGES[name] for name in names if find_spec(name) is None]
    if missing:
        raise Refused(
            f"batchnorm why needs {', '.join(missing)}, which is not installed. Install what it needs with: "
            'pip install "batchnorm[why]".'
        )


def _distinct(one: Path, other: Path) -> None:
    from ..files import Refused

    if one == other:
        raise Refused(f"The report and the results cannot both be {one}. Name another file with --html or --json.")


def _page(document: Document) -> str:
    from .report import html

    return html(document)


def _write(texts: dict[Path, str]) -> None:
    """Write all files, or none of them."""
    from ..files.atomic import replacing

    with ExitStack() as files:
        for path, text in texts.items():
            files.enter_context(replacing(path)).write_text(text, encoding="utf-8")


def _print_findings(document: Document) -> None:
    if document["quick"]:
        print("A quick run, with fewer steps, settings and seeds: a try, not evidence.\n")
    _print([(e["name"], f"{e['verdict']}. {e['finding']}.") for e in document["experiments"]])


def _print(entries: Sequence[tuple[str, str]]) -> None:
    """Print names and, beside them, what is said of each."""
    from ..text.lines import fit, line, paragraph, printable
    from ..text.terminal import columns_of, show

    columns, margin = columns_of(sys.stdout), max(len(name) for name, _ in entries) + 2
    for name, text in entries:
        first = line((fit(printable(name), margin), "heading"))
        show(paragraph(printable(text), columns, first=first), sys.stdout)
