"""The file command: read IN, gather or load its moments, write OUT. The outputs appear at the end, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import _blocks as blocks
from .._plan import Axis, make_plan
from ..moments import Moments
from .arrays import create_npy, replace_in_npz
from .atomic import check_output, replacing
from .data import DELIMITERS, TABLES, Data, check_input, open_data
from .parquet_tables import write_parquet
from .refused import Refused
from .saved_moments import SavedMoments, check_fit, read_moments, write_moments
from .text_tables import write_text_table

#: progress(phase, values) → a function to call with the number of values done since.
Progress = Callable[[str, int], blocks.Advance]


@dataclass(frozen=True)
class Request:
    """What ``batchnorm normalize`` was asked to do."""

    source: Path
    target: Path
    axis: Axis | None = None
    key: str | None = None
    columns: str | None = None
    header: bool | None = None
    eps: float = 1e-5
    moments: Path | None = None
    evaluate: bool = False


def normalize_file(request: Request, progress: Progress = lambda phase, total: lambda done: None) -> list[str]:
    """Write the normalised file, and the moments where asked for; return what was done, in sentences."""
    kind = _check_paths(request)
    data = open_data(request.source, key=request.key, columns=request.columns, header=request.header)
    saved = read_moments(request.moments) if request.evaluate and request.moments else None
    kept = _kept(data, request.axis, saved)
    m = _moments(data, kept, request, saved, progress)
    with ExitStack() as outputs:
        temporary = outputs.enter_context(replacing(request.target))
        if request.moments is not None and saved is None:
            write_moments(outputs.enter_context(replacing(request.moments)), SavedMoments(m, kept, _names(data, kept)))
        _write(temporary, kind, data, m, kept, request.eps, progress("normalising", data.values.size))
    return _report(request, data, m, kept)


def _check_paths(request: Request) -> str:
    """Refuse what cannot work before any work is done; return the kind of the output."""
    source_kind = check_input(request.source)
    kind = request.target.suffix.lower()
    possible = {".npy": (".npy",), ".npz": (".npz", ".npy")}.get(source_kind, TABLES)
    if kind not in possible:
        came = f"the extension {request.target.suffix}" if kind else "no extension"
        raise Refused(
            f"{request.target} has {came}; from a {source_kind} file these can be written: {', '.join(possible)}."
        )
    if not request.eps > 0 or request.eps == float("inf"):
        raise Refused(
            f"--eps {request.eps}: eps is added to the variance and must be positive and finite. The default is 1e-5."
        )
    if request.evaluate and request.moments is None:
        raise Refused("--eval normalises with saved moments, and none were named. Add --moments FILE.")
    target = check_output(request.target)
    if request.moments is None:
        return kind
    if os.path.realpath(request.moments) in (str(target), os.path.realpath(request.source)):
        raise Refused(f"--moments {request.moments} is also the input or the output. Name a file of its own.")
    if not request.evaluate:
        check_output(request.moments)
    return kind


def _kept(data: Data, axis: Axis | None, saved: SavedMoments | None) -> tuple[int, ...]:
    if axis is None:
        axis = 1 if saved is None else saved.axis
    try:
        return make_plan(data.values.shape, axis).axis
    except ValueError as error:
        raise Refused(f"{data}: {error}") from error


def _names(data: Data, kept: tuple[int, ...]) -> tuple[str, ...] | None:
    return data.names if kept == (1,) else None


def _moments(
    data: Data, kept: tuple[int, ...], request: Request, saved: SavedMoments | None, progress: Progress
) -> Moments:
    shape = tuple(data.values.shape[a] for a in kept)
    if saved is not None:
        check_fit(saved, str(request.moments), shape, _names(data, kept), str(data))
        if (saved.moments.count == 0).any():
            raise Refused(f"{request.moments} has a channel of no values. Save moments of data that has every channel.")
        return saved.moments
    m = blocks.gather(data.values, kept, progress("gathering moments", data.values.size))
    if (m.count <= 1).any():
        raise Refused(
            f"{data} has one value per channel (shape {data.values.shape}, channels on axis {_axes(kept)}), so "
            "every variance is 0 and "
            "every output would be 0. Give more rows, choose another --axis, or use saved moments: --eval "
            "--moments FILE."
        )
    return m


def _write(
    path: Path, kind: str, data: Data, m: Moments, kept: tuple[int, ...], eps: float, advance: blocks.Advance
) -> None:
    x = data.values
    dtype = blocks.working_dtype(x.dtype)
    fortran = x.flags.f_contiguous and not x.flags.c_contiguous
    if kind == ".npy":
        mapped = create_npy(path, x.shape, dtype, fortran)
        blocks.apply(x, m, kept, eps, mapped, advance)
        mapped.flush()
        return
    y = np.empty(x.shape, dtype, order="F" if fortran else "C")
    blocks.apply(x, m, kept, eps, y, advance)
    if kind == ".npz":
        assert data.key is not None  # _check_paths lets only an .npz become one
        replace_in_npz(data.path, data.key, y, path)
    else:
        assert data.table is not None  # likewise
        if kind == ".parquet":
            write_parquet(path, data.table, y)
        else:
            write_text_table(path, data.table, y, DELIMITERS[kind])


def _report(request: Request, data: Data, m: Moments, kept: tuple[int, ...]) -> list[str]:
    x = data.values
    channels = m.mean.size
    least, most = m.count.min(), m.count.max()
    counted = f"{least:.0f}" if least == most else f"{least:.0f} to {most:.0f}"
    of = f"saved in {request.moments}" if request.evaluate else "of this file"
    lines = [
        f"{request.target}: shape {x.shape}, {blocks.working_dtype(x.dtype)}, channels on axis {_axes(kept)}.",
        f"Normalised with the moments {of}: {channels} {'channel' if channels == 1 else 'channels'}, m = {counted}.",
    ]
    if request.moments is not None and not request.evaluate:
        lines.append(f"Moments saved in {request.moments}.")
    if blocks.working_dtype(x.dtype) != x.dtype.newbyteorder("="):
        lines.append(f"The input is {x.dtype}; it was converted to float64.")
    lines += [f"Note: {remark}." for remark in data.remarks]
    if broken := int(np.count_nonzero(~np.isfinite(m.mean))):
        lines.append(f"{broken} of the channels hold NaN or infinity; all their outputs are NaN.")
    return lines


def _axes(kept: tuple[int, ...]) -> str:
    return str(kept[0]) if len(kept) == 1 else str(kept)
