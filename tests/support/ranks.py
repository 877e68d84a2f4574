"""Processes that are the ranks of process groups (gloo on loopback), kept for many checks."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

# The ranks are forks of one process that has imported PyTorch, which takes seconds, and has computed nothing, since
# libgomp does not survive a fork.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pytest", "batchnorm.torch"])


class Failed(Exception):
    """What a rank raised: its type, message and traceback."""

    def __init__(self, kind: str, message: str, trace: str) -> None:
        super().__init__(f"{kind}: {message}\n{trace}")
        self.kind, self.message, self.trace = kind, message, trace

    def __reduce__(self) -> Any:
        return Failed, (self.kind, self.message, self.trace)


def group_of(ranks: tuple[int, ...] | None) -> Any:
    """In a worker: the process group of those ranks, made before by all; None: all of them."""
    return None if ranks is None else _groups[ranks]


_groups: dict[tuple[int, ...], Any] = {}


class Ranks:
    """So many processes; `run` calls a function in some of them, at once, and returns what each returned or raised."""

    def __init__(self, world: int, groups: list[tuple[int, ...]], seconds: float = 60) -> None:
        self.folder = tempfile.TemporaryDirectory()
        rendezvous = os.path.join(self.folder.name, "rendezvous")
        self.pipes, self.processes = [], []
        self.calls = 0
        for rank in range(world):
            here, there = _SERVER.Pipe()
            process = _SERVER.Process(target=_work, args=(rank, world, rendezvous, groups, seconds, there), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any, ranks: Any = None) -> list[Any]:
        """Call ``function(rank, *arguments[rank])`` in each of the ranks; a function of this name and module."""
        ranks = range(len(self.pipes)) if ranks is None else ranks
        self.calls += 1
        for i, rank in enumerate(ranks):
            self.pipes[rank].send((self.calls, function, [a[i] for a in arguments]))
        return [self._answer(rank) for rank in ranks]

    def _answer(self, rank: int) -> Any:
        """What a rank says to this call; answers to calls that were given up come late, and do not count."""
        end = time.monotonic() + 100
        while True:
            alive = self.processes[rank].is_alive()
            if self.pipes[rank].poll(0.2):
                try:
                    call, answer = self.pipes[rank].recv()
                except EOFError:
                    return Failed("Dead", f"rank {rank} has ended", "")
                if call == self.calls:
                    return answer
            elif not alive or time.monotonic() > end:
                return Failed("Dead", f"rank {rank} did not answer", "")

    def close(self) -> None:
        """End all processes that have not ended."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join(5)
        self.folder.cleanup()


def _work(rank: int, world: int, rendezvous: str, groups: list[tuple[int, ...]], seconds: float, pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    timeout = datetime.timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world, timeout=timeout)
    for ranks in groups:
        _groups[ranks] = dist.new_group(list(ranks), timeout=timeout)
    while True:
        try:
            call, function, arguments = pipe.recv()
        except (EOFError, ConnectionResetError):
            os._exit(0)
        try:
            answer: Any = function(rank, *arguments)
        except Exception as error:
            answer = Failed(type(error).__name__, str(error), traceback.format_exc())
        pipe.send((call, answer))
