"""All chosen experiments, run and read: one document of plain values, which is the JSON file and all that is drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..._version import __version__
from ..files import Refused
from ..files.gathering import Progress
from .catalogue import Entry, experiment
from .data import Data
from .experiment import Numbers, Run, Runs
from .workers import Task, do

FORMAT, VERSION = "batchnorm why", 2
Document = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What to run."""

    entries: Sequence[Entry]
    data: Data
    seeds: int
    quick: bool
    jobs: int


def study(request: Request, progress: Progress) -> Document:
    """Run the experiments and return the document. The same request gives the same bits, for any number of jobs."""
    tasks = [
        Task(entry.name, setting, seed)
        for entry in request.entries
        for seed in range(request.seeds)
        for setting in experiment(entry.name).plan(request.quick).settings()
    ]
    numbers = _done(tasks, request, progress)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "versions": {"batchnorm": __version__} | {name: metadata.version(name) for name in ("torch", "numpy")},
        "data": request.data.described(),
        "seeds": list(range(request.seeds)),
        "quick": request.quick,
        "experiments": [_read(entry, tasks, numbers, request.quick) for entry in request.entries],
    }
    return parsed(written(document))  # what is drawn is what the file holds


def _done(tasks: Sequence[Task], request: Request, progress: Progress) -> list[Numbers | None]:
    numbers: list[Numbers | None] = [None] * len(tasks)
    places = {id(task): i for i, task in enumerate(tasks)}
    advance = {
        entry.name: progress(entry.name, sum(task.experiment == entry.name for task in tasks))
        for entry in request.entries
    }

    def done(task: Task, result: Numbers) -> None:
        numbers[places[id(task)]] = result
        advance[task.experiment](1)

    do(tasks, request.data, request.jobs, done)
    return numbers


def _read(entry: Entry, tasks: Sequence[Task], numbers: Sequence[Numbers | None], quick: bool) -> dict[str, Any]:
    runs = [
        Run(task.setting, task.seed, result)
        for task, result in zip(tasks, numbers, strict=True)
        if task.experiment == entry.name and result is not None
    ]
    module = experiment(entry.name)
    plan = module.plan(quick)
    return {
        **asdict(entry),
        "title": entry.title,
        "question": entry.question,
        **asdict(module.summarize(Runs(runs))),
        "settings": plan.common,
        "runs": [
            {"setting": {k: run.setting[k] for k in run.setting if k not in plan.common}, "seed": run.seed,
             "numbers": run.numbers}
            for run in runs
        ],
    }  # fmt: skip


def written(document: Document) -> str:
    """Return the JSON text: strict, a part a line, and the same bits for the same document."""
    parts = [f'"{key}": {_line(value)}' for key, value in document.items() if key != "experiments"]
    experiments = ",\n".join(map(_experiment_text, document["experiments"]))
    return "{\n" + ",\n".join(parts) + f',\n"experiments": [\n{experiments}\n]\n}}\n'


def _experiment_text(experiment: dict[str, Any]) -> str:
    parts = [f' "{key}": {_line(value)}' for key, value in experiment.items() if key != "runs"]
    runs = ",\n".join(f"  {_line(run)}" for run in experiment["runs"])
    return "{\n" + ",\n".join(parts) + f',\n "runs": [\n{runs}\n ]\n}}'


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def parsed(text: str) -> Document:
    """Return the document of a JSON text."""
    document: Document = json.loads(text)
    return document


def read(path: Path) -> Document:
    """Return the document that an earlier call wrote."""
    try:
        document = parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}. Name a file that batchnorm why wrote.") from error
    except ValueError as error:
        raise Refused(f"{path} is not JSON ({error}). Name a file that batchnorm why wrote.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Refused(f'{path} holds no results of batchnorm why: "format" must be "{FORMAT}". Run it again.')
    if document.get("version") != VERSION:
        raise Refused(f"{path} has version {document.get('version')!r}; this batchnorm reads {VERSION}. Run it again.")
    return document
