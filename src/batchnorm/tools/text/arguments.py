"""What the arguments of several commands share: a positive number, and ``--json [FILE]``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

PRINTED = Path("-")  # of --json without a file


def positive(text: str) -> int:
    """A positive integer of a command line."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def add_json(parser: Any, what: str) -> None:
    """Add ``--json [FILE]``, which prints ``what`` or writes it to a file."""
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=PRINTED,
        metavar="FILE",
        help=f"print {what} as JSON, or write them to FILE, whose name ends in .json; NaN and infinity become text",
    )
