"""``batchnorm diagnose``: its options, and what is done with them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..text.arguments import PRINTED, add_json, positive
from ..text.language import add_language
from .loading import Arrays, Labeled, add_model_options, loaded, loss_of, need_torch, refusal


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
    parser.add_argument(
        "--loss",
        metavar="LOSS",
        help="also say what each layer costs in loss: the name of a function of torch.nn.functional, such as "
        "cross_entropy, or a function of yours, such as model.py:loss, of outputs and labels",
    )
    parser.add_argument("--labels", metavar="FILE", type=Path, nargs="+", help="for --loss: the labels of --train")
    parser.add_argument("--test-labels", metavar="FILE", type=Path, nargs="+", help="for --loss: the labels of --test")
    add_json(parser, "all numbers")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write a page: one file, for any browser")
    add_language(parser)
    parser.set_defaults(run=run_diagnose)


def run_diagnose(options: argparse.Namespace) -> None:
    """Do what the options say."""
    from ..files.atomic import check_json, check_output, replacing
    from ..files.progress import progress_on
    from ..text.lines import cells
    from ..text.terminal import words_for, writable

    need_torch()
    if options.json not in (None, PRINTED):
        check_json(options.json, "MODEL comes first: batchnorm diagnose MODEL --json")
        check_output(options.json)  # before the work
    if options.html is not None:
        check_output(options.html)
    import batchnorm.torch as bnt
    from batchnorm.torch._diagnosis import left_of, page_of, text_of

    train, test = _data_of(options)
    model, _ = loaded(options)
    loss = None if options.loss is None else loss_of(options.loss, options.model)
    words = words_for(options.lang, sys.stdout)
    try:
        with progress_on(sys.stderr) as progress:
            found = bnt.diagnose(
                model,
                train,
                test=test,
                loss=loss,
                samples=options.samples,
                how=options.how,
                progress=progress,
                verbose=False,
            )
    except (ValueError, TypeError, RuntimeError) as error:
        raise refusal(error, "diagnose") from error
    written = {options.json: found.to_json() + "\n"} if options.json not in (None, PRINTED) else {}

    def say(key: str, **values: object) -> str:
        return words(f"diagnose.{key}", **values)

    if options.html is not None:
        written[options.html] = page_of(found, say, "zh-CN" if words.language == "zh" else "en")
    for path, text in written.items():
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    if options.json == PRINTED:
        print(found.to_json())
        return
    said = [text_of(found, say, cells), *left_of(found.left, say)]
    print(writable("\n".join([*said, *(words("file_written", file=path) for path in written)]), sys.stdout))


def _data_of(options: argparse.Namespace) -> tuple[Arrays | Labeled, Arrays | Labeled | None]:
    """Training and test data, with labels where there is a loss."""
    from ..files import Refused

    files = {name: getattr(options, name) for name in ("train", "labels", "test", "test_labels")}
    labels = [name for name in ("labels", "test_labels") if files[name] is not None]
    if options.loss is None and labels:
        raise Refused(f"--{labels[0].replace('_', '-')} is for --loss. Name a loss, such as --loss cross_entropy.")
    needed = [] if options.loss is None else ["labels", *(["test_labels"] if options.test else [])]
    for name in needed:
        if files[name] is None:
            of = "--test" if name == "test_labels" else "--train"
            raise Refused(f"--loss needs the labels of {of}. Name their files: --{name.replace('_', '-')} FILE")
    if files["test_labels"] is not None and files["test"] is None:
        raise Refused("--test-labels are those of --test, which is missing. Half of --train has its --labels.")

    def read(name: str, of: str) -> Arrays | Labeled:
        rows = Arrays(files[name], options.batch_size, shuffled=not options.in_order)
        return rows if files[of] is None else rows.with_labels(files[of])

    return read("train", "labels"), None if options.test is None else read("test", "test_labels")
