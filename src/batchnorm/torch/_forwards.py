"""Forwards that wait for each other: one runs at a time, and is told when to go on.

Each has a stack of its own, in the caller's thread, by `greenlet`. Where that is not installed, and for models that
change what a thread has once (autocast, say) around their layers, each has a thread of its own. That is slower: every
thread has its own helpers of OpenMP's, and its own heap.
"""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch

from ._batches import Batch
from ._footprint import Storages

Tensor = torch.Tensor

END = -1  # where a forward is that has ended

_here = threading.local()


class _Stop(BaseException):
    """Ends the forward of a batch where it waits."""


class NeedsThread(Exception):
    """A forward waits where it has changed what its thread has once."""


def current() -> Run | None:
    """The run that is running."""
    return getattr(_here, "run", None)


class Run(ABC):
    """The forward of one batch, which goes from layer to layer when it is told to."""

    def __init__(self, batch: Batch, settings: Settings, memory: Storages | None = None) -> None:
        self.number, self.samples, self.bytes = batch.number, batch.samples, batch.bytes
        self.at = END  # the layer where it waits
        self.table: Tensor | None = None  # what it handed in there
        self.reached: list[int] = []  # all layers so far
        self.has_left = False  # of itself
        self.settings, self.memory = settings, memory
        self._call: Callable[[], Any] | None = batch.call
        self._error: BaseException | None = None
        self._is_ended = False

    # --- by who tells it what to do ---

    def go_on(self) -> None:
        """Go to the next layer where it waits, or to the end; raise what the forward raises."""
        self._switch()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @abstractmethod
    def _switch(self) -> None:
        """Let it run until it waits, or has ended."""

    @abstractmethod
    def stop(self) -> None:
        """End where it waits, and wait for that, even if interrupted: until then it uses the model."""

    # --- by itself ---

    def _forward(self) -> None:
        try:
            if not self._is_ended and self._call is not None:
                self._run(self._call)
        except _Stop:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.at, self.table, self._call = END, None, None

    def _run(self, call: Callable[[], Any]) -> None:
        call()

    def check(self) -> None:
        """End here if it is to end."""
        if self._is_ended:
            raise _Stop

    def leave(self) -> None:
        """End here, of itself."""
        self.has_left = True
        raise _Stop

    def wait(self, i: int, table: Tensor) -> None:
        """Hand in the moments of a layer's input, and wait."""
        self.at, self.table = i, table
        self._give_back()
        self.table = None
        self.check()

    @abstractmethod
    def _give_back(self) -> None:
        """Let who tells it what to do run."""


class Light(Run):
    """In the caller's thread."""

    def __init__(self, batch: Batch, settings: Settings, memory: Storages | None = None) -> None:
        from greenlet import greenlet

        super().__init__(batch, settings, memory)
        self._stack = greenlet(self._forward)
        self._stack.gr_context = contextvars.copy_context()

    def _switch(self) -> None:
        with self.memory or contextlib.nullcontext():
            _here.run = self
            try:
                self._stack.switch()
            finally:
                _here.run = None

    def stop(self) -> None:
        self._is_ended = True
        while self._stack and not self._stack.dead:
            self._switch()
        if self._error is not None and not isinstance(self._error, Exception):
            raise self._error

    def _give_back(self) -> None:
        if state_of_thread(self.memory is not None) != self.settings.state:
            raise NeedsThread
        self._stack.parent.switch()


class Threaded(Run):
    """In a thread of its own."""

    def __init__(self, batch: Batch, settings: Settings, memory: Storages | None = None) -> None:
        super().__init__(batch, settings, memory)
        self._go: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._back: queue.SimpleQueue[None] = queue.SimpleQueue()
        work, name = contextvars.copy_context().run, f"batch {batch.number}"
        self._thread = threading.Thread(target=work, args=(self._work,), name=name, daemon=True)

    def _switch(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        self._go.put(None)
        self._back.get()

    def stop(self) -> None:
        self._is_ended = True
        self._go.put(None)
        interrupted: BaseException | None = None
        while self._thread.is_alive():
            try:
                self._thread.join()
            except BaseException as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted

    def _work(self) -> None:
        _here.run = self
        self._go.get()
        self._forward()
        self._back.put(None)

    def _run(self, call: Callable[[], Any]) -> None:
        with self.settings.entered(), self.memory or contextlib.nullcontext():
            call()

    def _give_back(self) -> None:
        self._back.put(None)
        self._go.get()


def is_light() -> bool:
    """Whether forwards can wait without threads."""
    return find_spec("greenlet") is not None


def state_of_thread(is_measured: bool = False) -> tuple[Any, ...]:
    """What a thread has once, and a forward may change for a while."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        [(kind, torch.get_autocast_dtype(kind)) for kind in kinds],
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack() - is_measured,
        torch._C._are_functorch_transforms_active(),
        torch.cuda.current_stream() if torch.cuda.is_initialized() else None,
    )


class Settings:
    """The calling thread's settings of PyTorch, for the threads that compute in its stead."""

    def __init__(self, device: torch.device) -> None:
        with torch.no_grad():
            self.state = state_of_thread()
        self.inference = torch.is_inference_mode_enabled()
        kinds = {"cpu", device.type} - {"meta"}
        self.autocast = [
            (kind, torch.get_autocast_dtype(kind)) for kind in sorted(kinds) if torch.is_autocast_enabled(kind)
        ]
        default = torch.get_default_device()
        self.default = None if default == torch.device("cpu") else default
        self.stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.default is not None:
                stack.enter_context(self.default)
            if self.stream is not None:
                stack.enter_context(torch.cuda.stream(self.stream))
            for kind, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype, cache_enabled=torch.is_autocast_cache_enabled()))
            stack.enter_context(torch.inference_mode() if self.inference else torch.no_grad())
            yield
