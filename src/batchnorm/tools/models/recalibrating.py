"""``batchnorm recalibrate``: its options, and what is done with them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..text.arguments import PRINTED, add_json, positive
from ..text.language import add_language
from .loading import Arrays, add_model_options, check_state_suffix, loaded, need_torch, refusal, write_state


def add_recalibrate(commands: Any) -> None:
    """Add the command to the commands of ``batchnorm``."""
    parser = commands.add_parser(
        "recalibrate",
        help="compute the running statistics of a PyTorch model anew from data",
        description="Build a model, load its state, recalibrate it on data, and write the state with the new running "
        "statistics. This imports MODEL and runs it: use code that you trust. OUT appears only when it is complete, "
        "and it may be STATE.",
    )
    add_model_options(parser)
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="where to write the state")
    parser.add_argument(
        "--how",
        choices=("whole", "pooled", "batches"),
        default="whole",
        help="the statistics of the whole data as one batch (default), the merged moments of all batches, or the "
        "mean over batches",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help='layer to recalibrate, or a pattern such as "backbone.*"; may be repeated',
    )
    parser.add_argument("--samples", type=positive, metavar="N", help="stop after the batch that completes N samples")
    parser.add_argument(
        "--on-nonfinite",
        choices=("raise", "skip"),
        default="raise",
        help="refuse a batch with NaN or infinity (default), or leave it out from that layer on",
    )
    parser.add_argument(
        "--max-memory",
        type=_gib,
        metavar="GIB",
        help="most memory for the batches that run side by side (default: half of the free memory)",
    )
    add_json(parser, "the numbers of what was done")
    add_language(parser)
    parser.set_defaults(run=run_recalibrate)


def _gib(text: str) -> int:
    try:
        size = int(float(text) * 2**30)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in GiB: give a positive number, such as 4 or 0.5")
    return size


def run_recalibrate(options: argparse.Namespace) -> None:
    """Do what the options say."""
    from ..files.atomic import check_json, check_output, replacing
    from ..files.progress import progress_on
    from ..text.terminal import words_for, writable

    need_torch()
    check_state_suffix(options.output)
    check_output(options.output)  # before the work
    file = None if options.json in (None, PRINTED) else options.json
    if file is not None:
        check_json(file, "MODEL comes first: batchnorm recalibrate MODEL --json")
        check_output(file)
    import batchnorm.torch as bnt
    from batchnorm.torch._diagnosis import left_of
    from batchnorm.torch._recalibration import text_of

    data = Arrays(options.train, options.batch_size)
    model, state = loaded(options)
    try:
        with progress_on(sys.stderr) as progress:
            done = bnt.recalibrate(
                model,
                data,
                how=options.how,
                samples=options.samples,
                only=options.only,
                on_nonfinite=options.on_nonfinite,
                max_memory=options.max_memory,
                progress=progress,
                verbose=False,
            )
    except (ValueError, TypeError, RuntimeError) as error:
        raise refusal(error, "recalibrate") from error
    new = {name: value.cpu() for name, value in model.state_dict().items()}
    if state is not None:
        state.update(new)
    write_state(new if state is None else state.whole, options.output)
    if file is not None:
        with replacing(file) as unfinished:
            unfinished.write_text(done.to_json() + "\n", encoding="utf-8")
    elif options.json is not None:
        print(done.to_json())
        return
    words = words_for(options.lang, sys.stdout)

    def say(key: str, **values: object) -> str:
        return words(f"diagnose.{key}", **values)

    written = [options.output] if file is None else [options.output, file]
    said = [text_of(done, say), *left_of(done.left, say), *(words("file_written", file=path) for path in written)]
    print(writable("\n".join(said), sys.stdout))
