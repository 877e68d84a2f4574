"""The command ``batchnorm``: its commands, how it ends, and what it prints when an input is refused."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType

from .._version import __version__
from .bench.command import add_bench
from .data_commands import add_explain, add_moments, add_normalize
from .models.diagnosing import add_diagnose
from .models.recalibrating import add_recalibrate
from .why.command import add_why

DONE, REFUSED, INTERRUPTED = 0, 2, 130


class Stopped(BaseException):
    """A signal asked the process to end; raised so that unfinished outputs are removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (the process's arguments by default) and return its exit status.

    0: done. 2: an input was refused, the reason is on stderr. 130: interrupted by Ctrl-C; 143: ended by SIGTERM.
    """
    with _streams_there():
        return _main(argv)


@contextmanager
def _streams_there() -> Iterator[None]:
    """Have what is written to a stream that the caller closed go nowhere."""
    closed = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    with open(os.devnull, "w", encoding="utf-8") if closed else nullcontext() as nowhere:
        for name in closed:
            setattr(sys, name, nowhere)
        try:
            yield
        finally:
            for name in closed:
                setattr(sys, name, None)


def _main(argv: Sequence[str] | None) -> int:
    try:
        with _ended_by_exception():
            return _run(argv)
    except KeyboardInterrupt:
        print("batchnorm: interrupted; unfinished files were removed.", file=sys.stderr)
        return INTERRUPTED
    except Stopped as stopped:
        return 128 + stopped.number
    except BrokenPipeError:  # the reader, such as head, has closed the pipe: not a fault
        _drop_output()
        return 128 + 13
    except OSError as error:  # of a file that no command has a better sentence for, or of a full disk
        print(f"batchnorm: {_said(error)}. Check names, permissions, and the space that is left.", file=sys.stderr)
        if error.filename is None:
            _drop_output()
        return REFUSED


def _drop_output() -> None:
    """Have what is not yet written go nowhere, or Python would try once more at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _said(error: OSError) -> str:
    from .text.lines import printable

    where = "standard output" if error.filename is None else printable(str(error.filename))
    return f"{where} cannot be used: {error.strerror or error}"


def _run(argv: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed its message, or the help
        return int(stop.code or 0)
    from .files import Refused
    from .text.lines import printable

    try:
        options.run(options)
    except Refused as refusal:
        print(f"batchnorm: {printable(str(refusal))}", file=sys.stderr)
        return REFUSED
    sys.stdout.flush()
    return DONE


@contextmanager
def _ended_by_exception() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception for the time of the block, where nobody else handles them."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may set handlers
    ours = [n for n in numbers if signal.getsignal(n) is signal.SIG_DFL]
    for n in ours:
        signal.signal(n, stop)
    try:
        yield
    finally:
        for n in ours:
            signal.signal(n, signal.SIG_DFL)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="batchnorm",
        description="Explain batch normalization, test it by experiments, and apply it to your data.",
        epilog="batchnorm COMMAND --help says what a command does, with all its options.",
    )
    parser.add_argument("--version", action="version", version=f"batchnorm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_explain(commands)
    add_why(commands)
    add_normalize(commands)
    add_moments(commands)
    add_recalibrate(commands)
    add_diagnose(commands)
    add_bench(commands)
    return parser
