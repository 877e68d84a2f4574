"""The results of a run as one document: what was measured where, by whom, and who could not take part and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..files import Refused
from .contestants import present
from .contestants.contract import Contestant, Prepared, Unable
from .data import Data, Exact, missing_for
from .machine import describe
from .problem import Problem
from .timing import Runner, measure
from .traffic import copied, floor
from .verification import EXACTLY, OURS, THEIRS, Wrong, verify

FORMAT = 1
Document = dict[str, Any]
Row = dict[str, Any]


class Settings(NamedTuple):
    """How long to measure."""

    rounds: int  # at most, of each row
    budget: float  # seconds a row, after which no further round begins


def run(
    problems: Sequence[Problem],
    contestants: Sequence[Contestant],
    settings: Settings,
    advance: Callable[[int], None] = lambda done: None,
    checkout: Path | None = None,
) -> Document:
    """Verify and time every problem; `advance` is called with 1 after each."""
    here, absent = present(contestants)
    rows = []
    for row in _rows(problems, here, settings):
        rows.append(row)
        advance(1)
    return {
        "format": FORMAT,
        "machine": describe(here, checkout),
        "settings": settings._asdict(),
        "contestants": {c.key: c.what for c in here},
        "absent": absent,
        "rows": rows,
    }


def _rows(problems: Sequence[Problem], contestants: Sequence[Contestant], settings: Settings) -> Iterator[Row]:
    """One row after the other; data and exact results are kept as long as the next problem shares them."""
    data: Data | None = None
    known: dict[tuple[Any, ...], Exact] = {}
    made_for: tuple[Any, ...] = ()
    for problem in problems:
        needs = (problem.sizes, problem.layout, problem.dtype)
        reason = missing_for(problem.dtype)
        if reason is not None:
            raise Refused(f"{reason}, which is not installed. Install it, or leave {problem.dtype} out.")
        if data is None or needs != made_for:
            data, known, made_for = Data(problem), {}, needs
        yield _row(problem, data, known, contestants, settings)


def _row(
    problem: Problem,
    data: Data,
    known: dict[tuple[Any, ...], Exact],
    contestants: Sequence[Contestant],
    settings: Settings,
) -> Row:
    runners, errors, unable = {}, {}, {}
    for contestant in contestants:
        contestant.set_threads(problem.threads)
        try:
            prepared = contestant.prepare(problem, data)
            errors[contestant.key] = _verified(contestant, prepared, problem, data, known)
        except Unable as reason:
            unable[contestant.key] = str(reason)
        except Wrong as wrong:
            if contestant.name == "ours":
                raise
            unable[contestant.key] = f"wrong: {wrong}"
        else:
            runners[contestant.key] = Runner(prepared.call, contestant.pool if problem.threads > 1 else "")
    times = measure(runners, settings.rounds, settings.budget)
    least = floor(problem)
    return {
        "name": problem.name,
        "shape": list(problem.sizes),
        "layout": problem.layout,
        "dtype": problem.dtype,
        "operation": problem.operation,
        "threads": problem.threads,
        "bytes": {"copy": copied(problem), "floor": least.cached, "streamed": least.streamed},
        "times": {key: t._asdict() for key, t in times.items()},
        "errors": errors,
        "unable": unable,
    }


def _verified(
    contestant: Contestant, prepared: Prepared, problem: Problem, data: Data, known: dict[tuple[Any, ...], Exact]
) -> dict[str, float]:
    """Compare what a call computes with what is exact; a copy with x."""
    results = prepared.read(prepared.call())
    if contestant.copies:
        exact = known.setdefault(("copy",), Exact({"copy": data.x}, {}))
        return verify(contestant.key, results, exact, EXACTLY)
    wanted = (problem.does, contestant.eps)
    if wanted not in known:
        known[wanted] = data.exact(problem.does, contestant.eps)
    allowed = (OURS if contestant.name == "ours" else THEIRS)[problem.dtype]
    return verify(contestant.key, results, known[wanted], allowed)


def written(document: Document) -> str:
    """As JSON."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def read(path: Path) -> Document:
    """The document in a file that `written` made."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read as JSON ({error}). Name a file that --json wrote.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Refused(f"{path} is not a result of this version of batchnorm bench. Measure again with --json.")
    return document
