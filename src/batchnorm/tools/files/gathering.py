"""The moments of files: of one, for what is done with it, or of several together, saved."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ... import _blocks as blocks
from ..._foreign import Rounded, rounding
from ..._moments import Moments
from ..._options import EPS
from ..._plan import Axis, make_plan
from ..text.remarks import gaps, narrow
from .atomic import check_output, replacing
from .data import AS_FOUND, Data, Reading
from .moments_files import check_format, suffix_of, write
from .opening import check_input, open_data
from .refused import Refused
from .saved_moments import SavedMoments, check_fit
from .text_source import said

#: progress(phase, values) → a function to call with the number of values done since.
Progress = Callable[[str, int], blocks.Advance]


@dataclass(frozen=True)
class Gathering:
    """What ``batchnorm moments`` was asked to do."""

    sources: tuple[Path, ...]
    target: Path
    axis: Axis = 1
    reading: Reading = AS_FOUND
    nan_policy: str | None = None
    eps: float = EPS.default


def gather_files(request: Gathering, progress: Progress = lambda phase, total: lambda done: None) -> list[str]:
    """Save the moments of all files together, merged in their order; return what was done, in sentences."""
    _check(request)
    saved: SavedMoments | None = None
    remarks: list[str] = []
    for path in request.sources:
        names = saved.names if saved is not None else None
        data = opened(path, replace(request.reading, names=names))
        kept = kept_axes(data, request.axis)
        m = gathered(data, kept, request.nan_policy, progress, every_channel=False)
        one = SavedMoments(m, kept, names_of(data, kept), request.eps)
        if saved is not None:
            check_fit(saved, str(request.sources[0]), m.shape, one.names, str(data))
            one = replace(saved, moments=saved.moments + m)
        saved = one
        whose = f"{data}: " if len(request.sources) > 1 else ""
        remarks += [
            f"Note: {whose}{remark}." for remark in (*data.remarks, *about_gaps(data, kept, m, request.nan_policy))
        ]
    assert saved is not None  # the command asks for one file or more
    _refuse_nothing(saved.moments, f"{data}{' and the files before it' * (len(request.sources) > 1)}", saved.channel)
    with replacing(request.target) as unfinished:
        write(unfinished, saved, suffix_of(request.target))
    m, files = saved.moments, len(request.sources)
    of = said(request.sources[0]) if files == 1 else f"{files} files together"
    remarks += [f"Note: {remark}." for remark in narrow(m.m2 / m.count, request.eps, saved.channel, own=False)]
    return [f"{request.target}: the moments of {of}: {counted(m)}.", *remarks]


def _check(request: Gathering) -> None:
    """Refuse what cannot work before any work is done."""
    try:
        EPS.checked(request.eps, request.target.name)
    except ValueError as error:
        raise Refused(f"{error}.") from error
    for path in request.sources:
        check_input(path)
    check_format(request.target, "-o")
    target = check_output(request.target)
    for path in request.sources:
        if os.path.realpath(path) == str(target):
            raise Refused(f"-o {request.target} is also an input. Name a file of its own.")


def opened(path: Path, reading: Reading) -> Data:
    """Open a file whose moments are wanted: an integer that float64 would round is refused."""
    data = open_data(path, reading)
    if data.rounded is not None:
        raise Refused(f"{data}: {rounding(data.rounded)}, or leave the column out with --columns.")
    return data


def kept_axes(data: Data, axis: Axis) -> tuple[int, ...]:
    """Return the axes of the channels, or refuse them."""
    try:
        return make_plan(data.values.shape, axis).axis
    except ValueError as error:
        raise Refused(f"{data}: {error}") from error


def names_of(data: Data, kept: tuple[int, ...]) -> tuple[str, ...] | None:
    """Return the names of the channels, where they are columns that have some."""
    return data.names if kept == (1,) else None


def gathered(
    data: Data, kept: tuple[int, ...], nan_policy: str | None, progress: Progress, every_channel: bool = True
) -> Moments:
    """Return the moments of the data, each of a value or more if asked; what is missing is treated as asked."""
    if nan_policy == "raise":
        data.refuse_gaps()
    advance = progress("gathering moments", data.values.size)
    try:
        m = blocks.gather(data.values, kept, advance, blocks.load_exactly, data.nan_policy(nan_policy))
    except Rounded as error:
        raise Refused(f"{data}: {error}.") from error
    if every_channel:
        _refuse_nothing(m, str(data), data.channel if kept == (1,) else "channel {}".format)
    return m


def _refuse_nothing(m: Moments, who: str, name: Callable[[int], str]) -> None:
    empty = np.flatnonzero(m.count.ravel() == 0)
    if empty.size:
        raise Refused(f"{who}: {name(int(empty[0]))} holds no value, all are missing. Leave it out, with --columns.")


def about_gaps(data: Data, kept: tuple[int, ...], m: Moments, nan_policy: str | None) -> tuple[str, ...]:
    """Say what is missing and was left out of the moments."""
    if data.nan_policy(nan_policy) != "omit":
        return ()
    total = data.values.size // max(1, m.mean.size)
    name = data.channel if kept == (1,) else "channel {}".format
    return gaps(m.count, total, name, data.table is not None)


def counted(m: Moments) -> str:
    """Return how many channels and values moments are of, in words."""
    channels, least, most = m.mean.size, m.count.min(), m.count.max()
    count = f"{least:.0f}" if least == most else f"{least:.0f} to {most:.0f}"
    values = f"{count} {'value' if most == 1 else 'values'}"
    return f"1 channel of {values}" if channels == 1 else f"{channels} channels of {values} each"
