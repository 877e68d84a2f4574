"""Runs as tasks for a few processes. What a run gives does not depend on how many there are, nor on which does it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

from ..files import Refused
from .data import Data
from .experiment import Numbers, Setting


@dataclass(frozen=True)
class Task:
    """One run to do."""

    experiment: str
    setting: Setting
    seed: int

    def __str__(self) -> str:
        varied = ", ".join(f"{k}={v}" for k, v in self.setting.items() if isinstance(v, str | int | float))
        return f"{self.experiment}, seed {self.seed} ({varied})"


Done = Callable[[Task, Numbers], None]


def available() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def do(tasks: Sequence[Task], data: Data, jobs: int, done: Done) -> None:
    """Do all tasks; ``done`` is called with each as it ends. Processes end with this call, however it ends."""
    jobs = min(jobs, len(tasks))
    if jobs == 1:
        with _one_thread():
            for task in tasks:
                done(task, _numbers(task, data))
        return
    with _workers(jobs, data) as workers:
        _distribute(tasks, workers, done)


def _numbers(task: Task, data: Data) -> Numbers:
    from .catalogue import experiment

    return experiment(task.experiment).run(task.setting, task.seed, data)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The bits of a sum in PyTorch depend on the number of threads: all runs have one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _work(tasks: Any) -> None:
    """What a worker does: take the data, then a task, send its numbers, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the main process ends this one
    with _one_thread():
        try:
            data = tasks.recv()
        except EOFError:
            return
        while True:
            try:
                task = tasks.recv()
            except EOFError:
                return
            try:
                answer: Any = (True, _numbers(task, data))
            except Exception:
                answer = (False, traceback.format_exc())
            try:
                tasks.send(answer)
            except BrokenPipeError:  # the main process is gone
                return


@dataclass
class _Worker:
    process: BaseProcess
    tasks: Any  # a Connection, which is a class of its own on each system
    needs: Data | None  # before its first task: as an argument, it makes `start` wait for ever for one that has died


@contextmanager
def _workers(count: int, data: Data) -> Iterator[list[_Worker]]:
    started: list[_Worker] = []
    try:
        for _ in range(count):
            _start(started, data)
        yield started
    finally:
        for worker in started:
            worker.tasks.close()
            worker.process.kill()  # it has nothing to put in order
        for worker in started:
            worker.process.join()


def _start(started: list[_Worker], data: Data) -> None:
    """Start a process anew rather than fork: threads, and PyTorch's, do not survive a fork."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    with _interrupts_held():
        process.start()
        started.append(_Worker(process, ours, data))
    theirs.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A signal of the block comes after it; what is started inside is deaf to Ctrl-C from its first moment."""
    if sys.platform == "win32":
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it lets these signals through when it starts, so it starts before
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _distribute(tasks: Sequence[Task], workers: Sequence[_Worker], done: Done) -> None:
    waiting = list(reversed(tasks))
    busy: dict[Any, tuple[_Worker, Task]] = {}
    idle = list(workers)
    while waiting or busy:
        while waiting and idle:
            worker, task = idle.pop(0), waiting.pop()
            busy[worker.tasks] = (worker, task)
            with _naming(worker, task):
                if worker.needs is not None:
                    worker.tasks.send(worker.needs)
                    worker.needs = None
                worker.tasks.send(task)
        for ready in connection.wait(list(busy)):
            worker, task = busy.pop(ready)
            with _naming(worker, task):
                well, answer = worker.tasks.recv()
            if not well:
                raise RuntimeError(f"the run {task} failed:\n{answer}")
            done(task, answer)
            idle.append(worker)


@contextmanager
def _naming(worker: _Worker, task: Task) -> Iterator[None]:
    """Say which run a worker was at when it died."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        worker.process.join(5)
        code = worker.process.exitcode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        raise Refused(
            f"A process {how} in the run {task}; it may have been out of memory. Nothing was written; try again with "
            "--jobs 1."
        ) from error
