"""``batchnorm diagnose``: its options, and what is done with them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..text.arguments import PRINTED, add_json, positive
from .loading import Arrays, add_model_options, loaded, need_torch


def add_diagnose(commands: Any) -> None:
    """Add the command to the commands of ``batchnorm``."""
    parser = commands.add_parser(
        "diagnose",
        help="find out what is wrong with the running statistics of a PyTorch model",
        description="Build a model, load its state, and compare the running statistics of each layer with those of "
        "some data. This imports MODEL and runs it: use code that you trust. Nothing is changed.",
    )
    add_model_options(parser)
    parser.add_argument(
        "--test", metavar="FILE", type=Path, nargs="+", help="other samples to compare with (default: half of --train)"
    )
    parser.add_argument(
        "--samples",
        type=positive,
        default=1024,
        metavar="N",
        help="how many samples of each to look at (default: 1024)",
    )
    parser.add_argument("--in-order", action="store_true", help="take the rows as they come, not in a random order")
    parser.add_argument(
        "--how",
        choices=("whole", "pooled"),
        default="whole",
        help="pooled is for models whose batches take different branches",
    )
    add_json(parser, "all numbers")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write a page: one file, for any browser")
    parser.set_defaults(run=run_diagnose)


def run_diagnose(options: argparse.Namespace) -> None:
    """Do what the options say."""
    from ..files import Refused
    from ..files.atomic import check_json, check_output, replacing
    from ..text.terminal import writable

    need_torch()
    if options.json not in (None, PRINTED):
        check_json(options.json, "MODEL comes first: batchnorm diagnose MODEL --json")
        check_output(options.json)  # before the work
    if options.html is not None:
        check_output(options.html)
    import torch

    import batchnorm.torch as bnt

    train, test = (
        None if paths is None else Arrays(paths, options.batch_size, shuffled=not options.in_order)
        for paths in (options.train, options.test)
    )
    assert train is not None
    model, _ = loaded(options)
    try:
        model.to(torch.device(options.device))
        found = bnt.diagnose(model, train, test=test, samples=options.samples, how=options.how, verbose=False)
    except (ValueError, TypeError, RuntimeError) as error:
        raise Refused(str(error).removeprefix("diagnose: ")) from error
    written = {options.json: found.to_json() + "\n"} if options.json not in (None, PRINTED) else {}
    written |= {} if options.html is None else {options.html: found.to_html()}
    for path, text in written.items():
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    if options.json == PRINTED:
        print(found.to_json())
        return
    said = [str(found), *(f"left {name} ({kind}): {why}" for name, kind, why in found.left)]
    print(writable("\n".join([*said, *(f"{path}: written" for path in written)]), sys.stdout))
