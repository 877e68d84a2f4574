"""`fuse` and what a forward decides by: asked again in each call, or the module is left, with what it read."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import logging
import os
import pickle
import random
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import batchnorm.torch as bnt


class Settings:
    of_class = 1.0

    def __init__(self) -> None:
        self.factor = 1.0
        self.inner = {"factors": [1.0, 2.0]}


FACTOR = 1.0
TABLE = {"factors": [1.0]}
SETTINGS = Settings()
ACTIVATION = torch.sigmoid
COUNTER = itertools.count()
GENERATOR = np.random.default_rng(0)
CALLS = 0
LOG = logging.getLogger("model")


def helper(x: Tensor) -> Tensor:
    return FACTOR * x


def make_scaled(factor: float) -> Callable[[Tensor], Tensor]:
    """A function with a variable around it, and another that sets it."""

    def scaled(x: Tensor) -> Tensor:
        return factor * x

    def scale(to: float) -> None:
        nonlocal factor
        factor = to

    scaled.scale = scale
    return scaled


SCALED = make_scaled(1.0)


class Net(nn.Module):
    factor_of_class = 1.0

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.bn, self.body = nn.BatchNorm2d(3), body
        self.other = nn.ModuleList([nn.Identity()])
        self.bias: nn.Parameter | None = nn.Parameter(torch.ones(3, 1, 1))
        self.plain = torch.ones(())
        self.factor, self.name, self.settings = 1.0, "one", Settings()
        self.space, self.factors, self.chosen = SimpleNamespace(factor=1.0), [1.0, 2.0], {"a"}
        self.array, self.scaled = np.ones(2), make_scaled(1.0)
        self.python, self.numpy, self.torch = random.Random(1), np.random.default_rng(1), torch.Generator()
        self.legacy = np.random.RandomState(1)
        self.calls: list[int] = []
        self.iterator = itertools.count()

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.bn(self.body(self, x)))

    def extra_of_class(self, x: Tensor) -> Tensor:
        return x

    @property
    def twice(self) -> float:
        return 2 * self.factor


def _x() -> Tensor:
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def _fused(body: Callable[[Any, Tensor], Any]) -> tuple[nn.Module, nn.Module]:
    """The fused model, and one that runs the same kernels unfused; equal attributes, none shared."""
    model = Net(body)
    return bnt.fuse(model), bnt.convert(copy.deepcopy(model), verbose=False)


def _is_fused(model: nn.Module, x: Tensor) -> bool:
    """Whether this call would run the fused forward."""
    return "forward" in model.__dict__ and model.forward._applies((x,))


# --- asked again in each call ---


def _set_global(name: str, value: Any) -> Callable[[nn.Module], Any]:
    return lambda _: pytest.MonkeyPatch().setitem(globals(), name, value)


@contextlib.contextmanager
def _globals_put_back():
    names = ("FACTOR", "TABLE", "SETTINGS", "ACTIVATION", "SCALED", "helper")
    kept = {name: globals()[name] for name in names}
    of_class, scaled = Settings.of_class, Net.factor_of_class
    try:
        yield
    finally:
        globals().update(kept)
        Settings.of_class, Net.factor_of_class = of_class, scaled
        TABLE["factors"][:] = [1.0]
        SETTINGS.factor, SETTINGS.inner = 1.0, {"factors": [1.0, 2.0]}
        SCALED.scale(1.0)


def _three(name: str) -> Callable[[Any], None]:
    return lambda m: setattr(m, name, 3.0)


READ: dict[str, tuple[Callable[[Any, Tensor], Any], Callable[[Any], Any]]] = {
    "a number": (lambda m, x: x * m.factor, _three("factor")),
    "another type": (lambda m, x: x * m.factor if type(m) and isinstance(m.factor, float) else -x, _three("factor")),
    "a text": (lambda m, x: x if m.name == "one" else -x, lambda m: setattr(m, "name", "two")),
    "an attribute that goes": (lambda m, x: x if hasattr(m, "name") else -x, lambda m: delattr(m, "name")),
    "one that comes": (lambda m, x: x if getattr(m, "late", None) is None else -x, lambda m: setattr(m, "late", 1)),
    "by a property": (lambda m, x: x * m.twice, _three("factor")),
    "in a list": (lambda m, x: x * m.factors[0], lambda m: m.factors.__setitem__(0, 3.0)),
    "the length of a list": (lambda m, x: x * len(m.factors), lambda m: m.factors.append(1.0)),
    "in a set": (lambda m, x: x if "b" in m.chosen else -x, lambda m: m.chosen.add("b")),
    "in an object": (lambda m, x: x * m.settings.factor, lambda m: setattr(m.settings, "factor", 3.0)),
    "deep in an object": (
        lambda m, x: x * m.settings.inner["factors"][1],
        lambda m: m.settings.inner["factors"].__setitem__(1, 3.0),
    ),
    "in a namespace": (lambda m, x: x * m.space.factor, lambda m: setattr(m.space, "factor", 3.0)),
    "in an array": (lambda m, x: x if m.array[0] == 1 else -x, lambda m: m.array.fill(3)),
    "of the class": (lambda m, x: x * m.factor_of_class, lambda m: setattr(Net, "factor_of_class", 3.0)),
    "of the class, hidden": (lambda m, x: x * m.factor_of_class, _three("factor_of_class")),
    "of an object's class": (lambda m, x: x * m.settings.of_class, lambda m: setattr(Settings, "of_class", 3.0)),
    "a class by its name": (lambda m, x: x * Settings.of_class, lambda m: setattr(Settings, "of_class", 3.0)),
    "a tensor that is there": (lambda m, x: x if m.bias is None else x + m.bias, lambda m: setattr(m, "bias", None)),
    "a list of modules": (
        lambda m, x: [x := layer(x) for layer in m.other][-1],
        lambda m: m.other.append(nn.Hardtanh()),
    ),
    "how many modules": (lambda m, x: x * len(m.other), lambda m: m.other.append(nn.Identity())),
    "a module that comes": (
        lambda m, x: x if not hasattr(m, "more") else m.more(x),
        lambda m: m.add_module("more", nn.Tanh()),
    ),
    "a function it holds": (lambda m, x: m.scaled(x), lambda m: setattr(m, "scaled", torch.neg)),
    "a method": (lambda m, x: m.extra_of_class(x), lambda m: setattr(m, "extra_of_class", torch.neg)),
    "a global": (lambda m, x: x * FACTOR, _set_global("FACTOR", 3.0)),
    "a global in a function": (lambda m, x: helper(x), _set_global("FACTOR", 3.0)),
    "a global function": (lambda m, x: helper(x), _set_global("helper", torch.neg)),
    "a global function of PyTorch": (lambda m, x: ACTIVATION(x), _set_global("ACTIVATION", torch.neg)),
    "in a global dictionary": (lambda m, x: x * TABLE["factors"][0], lambda m: TABLE["factors"].append(1.0)),
    "in a global object": (lambda m, x: x * SETTINGS.factor, lambda m: setattr(SETTINGS, "factor", 3.0)),
    "a variable around a function": (lambda m, x: SCALED(x), lambda m: SCALED.scale(3.0)),
    "one around a function it holds": (lambda m, x: m.scaled(x), lambda m: m.scaled.scale(3.0)),
}


@pytest.mark.parametrize("name", READ)
def test_what_a_forward_read_is_compared_in_each_call(name, capsys):
    body, change = READ[name]
    fused, expected = _fused(body)
    assert "fused 1 of 1" in capsys.readouterr().out
    with _globals_put_back():
        for is_fused in (True, False):
            assert _is_fused(fused, _x()) == is_fused
            torch.testing.assert_close(fused(_x()), expected(_x()), rtol=0, atol=0)
            if is_fused:
                change(fused)
                change(expected)
    with _globals_put_back():
        torch.testing.assert_close(fused.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_a_value_that_comes_back_is_fused_again():
    fused, _ = _fused(lambda m, x: x * m.factor)
    seen = []
    for factor in (1.0, 2.0, 1, 1.0):
        fused.factor = factor
        seen.append(_is_fused(fused, _x()))
    assert seen == [True, False, False, True]


SWITCHES: dict[str, tuple[Callable[[Any, Tensor], Any], Any]] = {
    "grad mode": (lambda m, x: x if torch.is_grad_enabled() else -x, torch.no_grad),
    "inference mode": (lambda m, x: x if not torch.is_inference_mode_enabled() else -x, torch.inference_mode),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_are_asked_for_in_each_call(name, capsys):
    body, switched = SWITCHES[name]
    fused, expected = _fused(body)
    assert "fused 1 of 1" in capsys.readouterr().out
    for context, is_fused in ((contextlib.nullcontext, True), (switched, False)):
        with context():
            assert _is_fused(fused, _x()) == is_fused
            torch.testing.assert_close(fused(_x()), expected(_x()), rtol=0, atol=0)


# --- left, with what was read ---


def _counts_globally(m: Any, x: Tensor) -> Tensor:
    global CALLS
    CALLS += 1
    return x * CALLS


def _counts_in_default(m: Any, x: Tensor, calls: list[int] = [0]) -> Tensor:  # noqa: B006 - that is the case
    calls[0] += 1
    return x * calls[0]


def _opens(m: Any, x: Tensor) -> Tensor:
    with open(os.devnull) as file:
        return x * len(file.read())


def _draws_of_numpy(m: Any, x: Tensor) -> Tensor:
    return x if np.random.rand() < 0.5 else -x  # noqa: NPY002 - that is the case


def _state_of_numpy() -> str:
    return repr(np.random.get_state())  # noqa: NPY002 - as above


def _keeps(m: Any, x: Tensor) -> Tensor:
    m.calls.append(1)
    return x * len(m.calls)


def _catches(m: Any, x: Tensor) -> Tensor:
    try:
        return x if random.random() < 0.5 else -x
    except Exception:
        return x


LEFT: dict[str, tuple[str, Callable[[Any, Tensor], Any]]] = {
    "Python's random": ("calls Random.random", lambda m, x: x if random.random() < 0.5 else -x),
    "random.choice": ("calls random.Random.choice", lambda m, x: random.choice([x, -x])),
    "its own Random": ("calls Random.random", lambda m, x: x if m.python.random() < 0.5 else -x),
    "NumPy's random": ("changes random numbers (numpy.random)", _draws_of_numpy),
    "its own Generator": ("random numbers (self.numpy)", lambda m, x: x if m.numpy.random() < 0.5 else -x),
    "its own RandomState": ("random numbers (self.legacy)", lambda m, x: x if m.legacy.rand() < 0.5 else -x),
    "a global Generator": ("random numbers (GENERATOR)", lambda m, x: x if GENERATOR.random() < 0.5 else -x),
    "a new Generator": ("its forward calls", lambda m, x: x if np.random.default_rng().random() < 0.5 else -x),
    "PyTorch's random": ("makes a tensor of its own", lambda m, x: x if torch.rand(()) < 0.5 else -x),
    "its own torch.Generator": ("of its own", lambda m, x: x if torch.rand((), generator=m.torch) < 0.5 else -x),
    "a draw that is caught": ("calls Random.random", _catches),
    "a clock": ("calls time.time", lambda m, x: x * time.time()),
    "the environment": ("calls os._Environ", lambda m, x: x if "SOME_NAME" in os.environ else -x),
    "a file": ("open, and a trace", _opens),
    "autocast": ("calls torch.is_autocast_enabled", lambda m, x: x if torch.is_autocast_enabled("cpu") else -x),
    "threads": ("calls torch.get_num_threads", lambda m, x: x * torch.get_num_threads()),
    "determinism": (
        "calls torch.are_deterministic_algorithms_enabled",
        lambda m, x: x if torch.are_deterministic_algorithms_enabled() else -x,
    ),
    "a counter of its own": ("changes self.calls", _keeps),
    "a counter that is a default": ("changes ", _counts_in_default),
    "a global counter": ("sets the global CALLS", _counts_globally),
    "an iterator": ("reads self.iterator, which is of the class count", lambda m, x: x * next(m.iterator)),
    "a global iterator": (
        "reads COUNTER, which is of the class count",
        lambda m, x: x * max(zip(COUNTER, "a", strict=False))[0],
    ),
    "prints": ("calls print", lambda m, x: (print("called"), x)[1]),
    "logs": ("calls logging.Logger.warning", lambda m, x: (LOG.warning("called"), x)[1]),
    "a tensor's value": ("computes in Python with the values", lambda m, x: x * float(m.plain)),
    "parameters by a list": (
        "of a tensor that a trace does not follow",
        lambda m, x: x * sum(p.sum() for p in m.parameters()),
    ),
    "the mode of a part": ("calls torch.nn.modules.module.Module.eval", lambda m, x: (m.bn.eval(), x)[1]),
    "its dictionary": ("reads self.__dict__", lambda m, x: x * m.__dict__["factor"]),
    "its buffers": ("reads self._buffers", lambda m, x: x if m._buffers.get("late") is None else -x),
    "an attribute of a tensor": ("asks a value for .mark", lambda m, x: x if hasattr(x, "mark") else -x),
    "a gradient": ("asks a value for .grad", lambda m, x: x if x.grad is None else -x),
    "a dtype by identity": ("are the same object", lambda m, x: x if x.dtype is torch.float32 else -x),
    "a dtype as text": ("the text of a value", lambda m, x: x if str(x.dtype) == "torch.float32" else -x),
    "a dtype as a key": ("the hash of a value", lambda m, x: x * {torch.float32: 2}.get(x.dtype, 1)),
    "identity": ("asks for the type of a value", lambda m, x: x if type(x) is Tensor else -x),
    "sets of a tensor": ("sets .mark of a tensor", lambda m, x: (setattr(x, "mark", 1), x)[1]),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_a_trace_would_freeze_is_left(name, capsys):
    reason, body = LEFT[name]
    torch.manual_seed(0)
    before = random.getstate(), _state_of_numpy(), torch.get_rng_state(), copy.deepcopy(TABLE)
    calls = CALLS, list(_counts_in_default.__defaults__[0]), GENERATOR.bit_generator.state
    fused, _ = _fused(body)
    said = capsys.readouterr().out
    assert said.startswith("fused 0 of 1"), said
    shorter = sys.version_info < (3, 11) and "a trace would keep what that did once" in said  # a frame has no class
    assert reason in said or shorter
    assert "forward" not in fused.__dict__
    assert random.getstate() == before[0]
    assert _state_of_numpy() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert calls == (CALLS, _counts_in_default.__defaults__[0], GENERATOR.bit_generator.state)
    assert (fused.calls, fused.legacy.rand()) == ([], np.random.RandomState(1).rand())


def test_a_block_that_is_drawn_is_drawn_in_each_call(capsys):
    """Stochastic depth: the block is skipped by chance, in each call anew."""

    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return x if random.random() < 0.5 else x + F.relu(self.bn(x))

    fused = bnt.fuse(Drawn())
    assert "cannot be traced: its forward calls Random.random" in capsys.readouterr().out
    random.seed(0)
    skipped = [torch.equal(fused(_x()), _x()) for _ in range(40)]
    assert 5 < sum(skipped) < 35


def test_a_running_profiler_is_not_put_out(capsys):
    import cProfile

    with cProfile.Profile() as profile:
        bnt.fuse(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    assert "a profiler is running" in capsys.readouterr().out
    assert profile.getstats()


def test_garbage_collected_meanwhile_is_not_the_forwards():
    """Callbacks of the collector (Hypothesis has one) and finalizers run in the midst of whatever is run."""
    collected = 0

    def callback(phase: str, info: dict[str, int]) -> None:
        nonlocal collected
        collected += time.time() > 0

    thresholds = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1)
    try:
        fused = bnt.fuse(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), verbose=False)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(callback)
    assert collected
    assert gc.isenabled()
    assert _is_fused(fused, _x())


@pytest.mark.parametrize("made", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copied", "pickled"])
@pytest.mark.parametrize("name", ["global", "own", "class", "library"])
def test_copies_compare_with_what_was_traced(name, made, capsys):
    """Not with what they find when they are made."""
    fused = bnt.fuse(COPIED[name](), verbose=False)
    with _globals_put_back():
        assert _is_fused(made(fused), _x())
        CHANGES[name](fused)
        assert not _is_fused(made(fused), _x())
    with _globals_put_back():
        again = made(fused)
        CHANGES[name](again)
        assert not _is_fused(again, _x())


class _Copied(nn.Module):
    of_class = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.factors = nn.BatchNorm2d(3), [1.0]


class OfGlobal(_Copied):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(helper(x)))


class Own(_Copied):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(x * self.factors[0]))


class OfClass(_Copied):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(x * self.of_class))


class OfLibrary(_Copied):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(ACTIVATION(x)))


COPIED = {"global": OfGlobal, "own": Own, "class": OfClass, "library": OfLibrary}
CHANGES: dict[str, Callable[[Any], Any]] = {
    "global": _set_global("FACTOR", 2.0),
    "own": lambda m: m.factors.append(1.0),
    "class": lambda m: setattr(m, "of_class", 2.0),
    "library": _set_global("ACTIVATION", torch.tanh),
}
