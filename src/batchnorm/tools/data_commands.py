"""The commands for data in a file: ``explain``, ``normalize`` and ``moments``, their options and what they call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._options import NAN_POLICY
from .files.formats import READABLE_OR, TABLES_OR, TEXTS
from .text.arguments import PRINTED, add_json
from .text.language import Said, add_language

if TYPE_CHECKING:
    from .explain import Explanation


def add_explain(commands: Any) -> None:
    parser = commands.add_parser(
        "explain",
        help="show what batch normalization does to an array or a table",
        description="Show which values are averaged together, the formulas with their numbers, every channel before "
        "and after, and what is kept and lost. Without FILE, it explains an example of five rows and five columns.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", type=Path, help=f"{READABLE_OR}, or - for standard input")
    _add_data_options(parser)
    parser.add_argument(
        "--channel",
        default="0",
        metavar="C",
        help="channel whose numbers the formulas show: a number, or a column's name (default: 0)",
    )
    parser.add_argument(
        "--rows",
        type=_rows,
        default=12,
        metavar="N",
        help="number of rows in the table of channels, or all (default: 12)",
    )
    add_language(parser)
    form = parser.add_mutually_exclusive_group()
    add_json(form, "all numbers")
    form.add_argument(
        "--html",
        type=Path,
        metavar="PAGE",
        help="write a page to play with: one file, for any browser, without a network",
    )
    parser.set_defaults(run=_explain)


def add_normalize(commands: Any) -> None:
    parser = commands.add_parser(
        "normalize",
        aliases=["normalise"],
        help="write a normalized copy of a file",
        description="Normalize an array or a table. A file larger than memory is read in blocks. OUT appears only "
        "when it is complete, and it may be IN.",
    )
    parser.add_argument("input", metavar="IN", type=Path, help=f"{READABLE_OR}, or - for standard input")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        required=True,
        help=f"where to write: an array to .npy (or .npz to .npz), a table to {TABLES_OR}",
    )
    _add_data_options(parser)
    moments = parser.add_mutually_exclusive_group()
    moments.add_argument(
        "--save-moments",
        metavar="FILE",
        type=Path,
        help="save the moments of IN and eps there: .json or .safetensors",
    )
    moments.add_argument(
        "--use-moments",
        metavar="FILE",
        type=Path,
        help="normalize with the moments and the eps saved there, not with those of IN",
    )
    for name in ("--moments", "--eval"):
        parser.add_argument(name, nargs="?", action=_Replaced, help=argparse.SUPPRESS)
    parser.set_defaults(run=_normalize)


def add_moments(commands: Any) -> None:
    parser = commands.add_parser(
        "moments",
        help="save the moments of one file, or of several together",
        description="Gather count, mean and variance of every channel, merge those of all files, and save them for "
        "normalize --use-moments or bn.load_moments. From every table it takes the columns that it takes from the "
        "first, by name.",
    )
    parser.add_argument("inputs", nargs="+", metavar="FILE", type=Path, help=f"{READABLE_OR}, or - for standard input")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="where to save them: .json or .safetensors"
    )
    _add_data_options(parser)
    parser.set_defaults(run=_moments)


# Options


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--axis",
        type=_axis,
        metavar="A",
        help="axis of the channels (default: 1); several are written as 1,3 or --axis=-1,-2; the word none averages "
        "over all axes together",
    )
    parser.add_argument("--eps", type=float, help="number that is added to the variance (default: 1e-5)")
    parser.add_argument("--key", help="name of the array in an .npz")
    parser.add_argument(
        "--columns",
        metavar="A,B",
        help="columns of a table, by name or number, counted from 0 (default: all that hold numbers)",
    )
    header = parser.add_mutually_exclusive_group()
    header.add_argument(
        "--header",
        action="store_true",
        default=None,
        dest="header",
        help=f"the first line of a {TEXTS} holds names",
    )
    header.add_argument(
        "--no-header",
        action="store_false",
        default=None,
        dest="header",
        help="the first line is data (default: it is data if all its cells are numbers)",
    )
    parser.add_argument(
        "--delimiter",
        type=_delimiter,
        metavar="D",
        help=f'what stands between the cells of a {TEXTS}, such as ";" or tab (default: what the file shows)',
    )
    parser.add_argument(
        "--decimal", choices=(".", ","), metavar="S", help="decimal sign, . or , (default: what the file shows)"
    )
    parser.add_argument(
        "--nan-policy",
        choices=NAN_POLICY.choices,
        help="what a missing value (NaN) does: it spreads over its channel, is left out of the statistics, or is "
        "refused (default: omit for tables, propagate for arrays)",
    )


def _axis(text: str) -> tuple[int, ...]:
    if text.strip().lower() in ("", "none"):
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an axis: give an integer such as 1 or -1, several such as 1,3, or none"
        ) from None


def _rows(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows: give a positive integer, or all")
    return int(text)


def _delimiter(text: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(text.lower(), text)
    if len(delimiter) != 1 or delimiter.isalnum() or delimiter in "\"'+-._\r\n\0":
        raise argparse.ArgumentTypeError(
            f'{text!r} is not a delimiter: give one sign that no number holds, such as ";" or "|", or tab'
        )
    return delimiter


class _Replaced(argparse.Action):
    """An option whose one name meant two things: to overwrite a file, and to use it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(
            f"{'/'.join(self.option_strings)} does not exist: --save-moments FILE saves the moments of IN, "
            "--use-moments FILE normalizes with those saved there"
        )


# What is called


def _explain(options: argparse.Namespace) -> None:
    from .explain.report import report
    from .text.terminal import columns_of, show, utf8, words_for

    if options.html is not None:
        _write_page(options)
        return
    if options.json not in (None, PRINTED):
        _write_json(options)
        return
    explanation = _explanation(options)
    if options.json is PRINTED:
        print(explanation.to_json(ascii_only=not utf8(sys.stdout)))
        return
    words = words_for(options.lang, sys.stdout)
    show(report(explanation, words, columns_of(sys.stdout), rows=options.rows), sys.stdout)


def _write_json(options: argparse.Namespace) -> None:
    from .files.atomic import check_json, check_output, replacing

    check_json(options.json, "The data's file comes first: batchnorm explain FILE --json")
    check_output(options.json)  # before a long read
    explanation = _explanation(options)
    with replacing(options.json) as unfinished:
        # a name may be no text: its bytes are written as JSON's escapes
        unfinished.write_text(explanation.to_json() + "\n", encoding="utf-8", errors="backslashreplace")


def _write_page(options: argparse.Namespace) -> None:
    from .files import Refused
    from .files.atomic import check_output, replacing
    from .text.terminal import words_for, writable

    target = check_output(options.html)  # before a long read
    if options.file is not None and options.file.exists() and target == options.file.resolve():
        raise Refused(f"{options.html} is the data itself. Name another file for the page.")
    explanation = _explanation(options)
    with replacing(options.html) as unfinished:
        unfinished.write_text(explanation.to_html(), encoding="utf-8", errors="replace")  # a name may be no text
    said = words_for(options.lang, sys.stdout)("page_written", file=options.html)
    print(writable(said, sys.stdout))


def _explanation(options: argparse.Namespace) -> Explanation:
    from .._options import EPS
    from .explain import EXAMPLE, explain
    from .files import Reading, Refused, open_data

    source: str
    names: Sequence[str] | None = None
    remarks: Sequence[str] = ()
    nan_policy: Any = options.nan_policy or "propagate"
    if options.file is None:
        options = argparse.Namespace(**{**vars(options), "axis": (2,) if options.axis is None else options.axis})
        x, source = EXAMPLE, Said("the_example")
        _refuse_file_options(options)
    else:
        data = open_data(options.file, Reading(**_reading(options)))
        x, names, source, remarks = data.values, data.names, str(data), data.remarks
        nan_policy = data.nan_policy(options.nan_policy)
        if nan_policy == "raise":
            data.refuse_gaps()
    axis = (1,) if options.axis is None else options.axis
    names = names if axis in ((1,), (-1,)) else None
    try:
        return explain(
            x,
            axis,
            channel=_channel(options.channel, names, source),
            eps=EPS.default if options.eps is None else options.eps,
            nan_policy=nan_policy,
            names=names,
            source=source,
            remarks=remarks,
            lang=options.lang,
        )
    except (ValueError, TypeError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{source}: {str(error).removeprefix('explain: ')}.") from error


def _reading(options: argparse.Namespace) -> dict[str, Any]:
    """How the file is to be read."""
    return {name: getattr(options, name) for name in ("key", "columns", "header", "delimiter", "decimal")}


def _refuse_file_options(options: argparse.Namespace) -> None:
    from .files import Refused

    for name, value in _reading(options).items():
        if value is not None:
            given = "no-header" if options.header is False else name
            raise Refused(f"--{given} is for a file, and none was named: batchnorm explain FILE.")


def _channel(text: str, names: Sequence[str] | None, source: str) -> int:
    """Return the number of a channel given by number or by name."""
    from .files import Refused

    if names is not None and list(names).count(text) == 1:
        return list(names).index(text)
    try:
        return int(text)
    except ValueError:
        known = f"; its columns are {', '.join(names[:12])}{', …' * (len(names) > 12)}" if names else ""
        raise Refused(
            f"{source} has no channel {text!r}{known}. Give --channel a number, counted from 0, or a column's name."
        ) from None


def _normalize(options: argparse.Namespace) -> None:
    from .files import Reading, Request, normalize_file
    from .files.progress import progress_on
    from .text.terminal import writable

    request = Request(
        source=options.input,
        target=options.output,
        axis=options.axis,
        eps=options.eps,
        nan_policy=options.nan_policy,
        save_moments=options.save_moments,
        use_moments=options.use_moments,
        reading=Reading(**_reading(options)),
    )
    with progress_on(sys.stderr) as progress:
        report = normalize_file(request, progress)
    print(writable("\n".join(report), sys.stdout))


def _moments(options: argparse.Namespace) -> None:
    from .files import Gathering, Reading, gather_files
    from .files.progress import progress_on
    from .text.terminal import writable

    request = Gathering(
        sources=tuple(options.inputs),
        target=options.output,
        axis=1 if options.axis is None else options.axis,
        reading=Reading(**_reading(options)),
        nan_policy=options.nan_policy,
        **({} if options.eps is None else {"eps": options.eps}),
    )
    with progress_on(sys.stderr) as progress:
        report = gather_files(request, progress)
    print(writable("\n".join(report), sys.stdout))
