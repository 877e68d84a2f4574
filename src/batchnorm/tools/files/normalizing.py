"""The file command: read IN, gather or load its moments, write OUT. The outputs appear at the end, or not at all."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ... import _blocks as blocks
from ..._foreign import Rounded
from ..._moments import Moments
from ..._options import EPS
from ..._plan import Axis
from ..text.remarks import narrow
from .atomic import check_output, replacing
from .data import AS_FOUND, Data, Reading
from .formats import FORMATS, Format, suffix_of, wrong_suffix
from .gathering import Progress, about_gaps, counted, gathered, kept_axes, names_of, opened
from .moments_files import check_format, read, write
from .moments_files import suffix_of as moments_suffix
from .opening import check_input
from .refused import Refused
from .saved_moments import SavedMoments, check_fit


@dataclass(frozen=True)
class Request:
    """What ``batchnorm normalize`` was asked to do; ``eps`` None means that of the moments used, or the default."""

    source: Path
    target: Path
    axis: Axis | None = None
    reading: Reading = AS_FOUND
    nan_policy: str | None = None
    eps: float | None = None
    save_moments: Path | None = None
    use_moments: Path | None = None


def normalize_file(request: Request, progress: Progress = lambda phase, total: lambda done: None) -> list[str]:
    """Write the normalized file, and the moments where asked for; return what was done, in sentences."""
    kind = _check_paths(request)
    saved = None if request.use_moments is None else read(request.use_moments, "--use-moments")
    names = None if saved is None else saved.names
    data = opened(request.source, replace(request.reading, names=names))
    axis = (1 if saved is None else saved.axis) if request.axis is None else request.axis
    kept = kept_axes(data, axis)
    m = _moments(data, kept, request, saved, progress)
    eps = _eps(request, saved)
    try:
        with ExitStack() as outputs:
            temporary = outputs.enter_context(replacing(request.target))
            if request.save_moments is not None:
                beside = outputs.enter_context(replacing(request.save_moments))
                write(beside, SavedMoments(m, kept, names_of(data, kept), eps), moments_suffix(request.save_moments))
            advance = progress("normalizing", data.values.size)
            kind.write(temporary, kind, data, lambda y: blocks.apply(data.values, m, kept, eps, y, advance))
    except Rounded as error:
        raise Refused(f"{data}: {error}.") from error
    return _report(request, data, m, kept, saved)


def _check_paths(request: Request) -> Format:
    """Refuse what cannot work before any work is done; return the format of the output."""
    source = check_input(request.source)
    suffix = suffix_of(request.target)
    if suffix not in source.into:
        raise Refused(
            f"{wrong_suffix(request.target)}; from a {source.suffix} file these can be written: "
            f"{', '.join(source.into)}."
        )
    if request.eps is not None:
        try:
            EPS.checked(request.eps, str(request.source))
        except ValueError as error:
            raise Refused(f"{error}.") from error
    target = check_output(request.target)
    for option, path in (("--save-moments", request.save_moments), ("--use-moments", request.use_moments)):
        if path is None:
            continue
        if os.path.realpath(path) in (str(target), os.path.realpath(request.source)):
            raise Refused(f"{option} {path} is also the input or the output. Name a file of its own.")
        check_format(path, option)
    if request.save_moments is not None:
        check_output(request.save_moments)
    return FORMATS[suffix]


def _eps(request: Request, saved: SavedMoments | None) -> float:
    if request.eps is not None:
        return request.eps
    return EPS.default if saved is None or saved.eps is None else saved.eps


def _moments(
    data: Data, kept: tuple[int, ...], request: Request, saved: SavedMoments | None, progress: Progress
) -> Moments:
    shape = tuple(data.values.shape[a] for a in kept)
    if saved is not None:
        check_fit(saved, str(request.use_moments), shape, names_of(data, kept), str(data))
        if (saved.moments.count == 0).any():
            raise Refused(
                f"{request.use_moments} has a channel of no values. Save moments of data that has every channel."
            )
        return saved.moments
    m = gathered(data, kept, request.nan_policy, progress)
    if (m.count <= 1).all():
        raise Refused(
            f"{data} has one value per channel (shape {data.values.shape}, channels on axis {_axes(kept)}), so "
            "every variance is 0 and "
            "every output would be 0. Give more rows, choose another --axis, or use saved moments: --use-moments FILE."
        )
    return m


def _report(request: Request, data: Data, m: Moments, kept: tuple[int, ...], saved: SavedMoments | None) -> list[str]:
    x = data.values
    name = data.channel if kept == (1,) else "channel {}".format
    of = "of this file" if saved is None else f"saved in {request.use_moments}"
    lines = [
        f"{request.target}: shape {x.shape}, {blocks.working_dtype(x.dtype)}, channels on axis {_axes(kept)}.",
        f"Normalized with the moments {of}: {counted(m)}.",
    ]
    if request.save_moments is not None:
        lines.append(f"Moments saved in {request.save_moments}.")
    if saved is not None:
        lines += _about_eps(request, saved)
    if blocks.working_dtype(x.dtype) != x.dtype.newbyteorder("="):
        lines.append(f"The input is {x.dtype}; it was converted to float64.")
    lines += [f"Note: {remark}." for remark in data.remarks]
    if saved is None:
        lines += [f"Note: {remark}." for remark in about_gaps(data, kept, m, request.nan_policy)]
    lines += [f"Note: {remark}." for remark in narrow(m.var(), _eps(request, saved), name, own=saved is None)]
    if broken := int(np.count_nonzero(~np.isfinite(m.mean))):
        lines.append(f"{broken} of the channels hold NaN or infinity; all their outputs are NaN.")
    return lines


def _about_eps(request: Request, saved: SavedMoments) -> list[str]:
    """Say where eps is not the one that the moments were saved with."""
    if saved.eps is None:
        return [f"Note: {request.use_moments} holds no eps; {_eps(request, saved):g} was added to the variance."]
    if request.eps not in (None, saved.eps):
        return [f"Note: eps is {request.eps:g}, as asked; the moments were saved with {saved.eps:g}."]
    return []


def _axes(kept: tuple[int, ...]) -> str:
    return str(kept[0]) if len(kept) == 1 else str(kept)
