"""A bar for each phase of a long work: on a terminal, through rich where it is installed, else nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from ..._blocks import Advance
from .gathering import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars


def _silent(phase: str, total: int) -> Advance:
    return lambda done: None


@contextmanager
def progress_on(stream: TextIO, *, still: bool = False) -> Iterator[Progress]:
    """Yield a function that begins a phase of so many values; the bars go when the work is done.

    `still`: drawn only when there is progress, by the caller's thread; another one would disturb work that is timed.
    """
    bars = _bars(stream, still)
    if bars is None:
        yield _silent
        return

    def begin(phase: str, total: int) -> Advance:
        task = bars.add_task(phase, total=total)
        return lambda done: bars.update(task, advance=done, refresh=still)

    with bars:
        yield begin


def _bars(stream: TextIO, still: bool) -> Bars | None:
    if not stream.isatty():
        return None
    try:
        from rich import progress as rich
        from rich.console import Console
    except ImportError:
        return None
    text = rich.TextColumn("{task.description:<18}")
    columns = (text, rich.BarColumn(), rich.TaskProgressColumn(), rich.TimeRemainingColumn())
    return rich.Progress(*columns, console=Console(file=stream), transient=True, auto_refresh=not still)
