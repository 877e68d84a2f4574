"""Forwards that wait for each other: each has a thread, one runs at a time, and is told when to go on."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ._batches import Batch
from ._footprint import Storages

Tensor = torch.Tensor

END = -1  # where a forward is that has ended


class _Stop(BaseException):
    """Ends the forward of a batch where it waits."""


_here = threading.local()


def current() -> Run | None:
    """The run whose thread this is."""
    return getattr(_here, "run", None)


class Run:
    """The forward of one batch, which goes from layer to layer when it is told to."""

    def __init__(self, batch: Batch, settings: Settings, memory: Storages | None = None) -> None:
        self.number, self.samples, self.bytes = batch.number, batch.samples, batch.bytes
        self.at = END  # the layer where it waits
        self.table: Tensor | None = None  # what it handed in there
        self.reached: list[int] = []  # all layers so far
        self._call: Callable[[], Any] | None = batch.call
        self._settings, self.memory = settings, memory
        self._error: BaseException | None = None
        self._is_ended = False
        self.has_left = False  # of itself
        self._go: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._back: queue.SimpleQueue[None] = queue.SimpleQueue()
        work, name = contextvars.copy_context().run, f"batch {batch.number}"
        self._thread = threading.Thread(target=work, args=(self._run,), name=name, daemon=True)

    # --- in the thread that tells it what to do ---

    def go_on(self) -> None:
        """Go to the next layer where it waits, or to the end; raise what the forward raises."""
        if self._thread.ident is None:
            self._thread.start()
        self._go.put(None)
        self._back.get()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def stop(self) -> None:
        """End where it waits, and wait for that, even if interrupted: until then it uses the model."""
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

    # --- in its own ---

    def _run(self) -> None:
        _here.run = self
        self._go.get()
        try:
            if not self._is_ended and self._call is not None:
                with self._settings.entered(), self.memory or contextlib.nullcontext():
                    self._call()
        except _Stop:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.at, self.table, self._call = END, None, None
            self._back.put(None)

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
        self._back.put(None)
        self._go.get()
        self.table = None
        self.check()


class Settings:
    """The calling thread's settings of PyTorch, for the threads that compute in its stead."""

    def __init__(self, device: torch.device) -> None:
        self.mode: Any = contextlib.nullcontext()  # one of PyTorch's functions, besides
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
            stack.enter_context(self.mode)
            yield
