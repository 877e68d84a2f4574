"""A refused call changes nothing: the NumPy side's refusals are made to happen, and what is there compared by bits.

What is there: parameters, running statistics, counts, options, what backward differentiates, and arrays given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import test_errors
import test_layer_errors

import batchnorm as bn

X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
GOOD = {"x": X, "residual": X[::-1].copy(), "grad_y": X * X}

LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cumulative": {"momentum": None},
    "everything kept": {"keep_count": True, "on_nonfinite": "raise", "activation": "relu"},
    "biased": {"running_correction": 0, "keep_count": True},
    "ghosts": {"virtual_batch_size": 2, "on_nonfinite": "raise"},
    "renorm": {"renorm": bn.Renorm(start=0, r_end=2, d_end=2)},
    "frozen statistics": {"normalize_with": "running"},
    "batch in evaluation": {"normalize_with": "batch", "update_running_stats": True},
    "no parameters": {"affine": False, "dtype": np.float64},
    "no statistics": {"track_running_stats": False},
}


Call = Callable[[bn.BatchNorm], object]


def _made(options: dict[str, Any], training: bool) -> bn.BatchNorm1d:
    layer = bn.BatchNorm1d(3, **options)
    layer(X)
    layer.train(training)
    layer(X + 1, residual=GOOD["residual"])
    return layer


def _everything(layer: bn.BatchNorm) -> list[Any]:
    """All that a layer has, as bits."""
    arrays = {name: (value.dtype, value.tobytes()) for name, value in layer.state_dict().items()}
    gradients = [None if g is None else g.tobytes() for g in layer.backward(GOOD["grad_y"])]
    options = {name: getattr(layer, name) for name in layer._settable if name not in arrays}
    return [arrays, gradients, {k: v for k, v in options.items() if not isinstance(v, np.ndarray)}, layer.training]


def _while(change: Callable[[bn.BatchNorm], Callable[[], None]], call: Call) -> Call:
    """A call while the layer is changed; what the call may have done to it is seen before it is changed back."""

    def run(layer: bn.BatchNorm) -> object:
        back = change(layer)
        before = layer.state_dict()
        try:
            return call(layer)
        finally:
            after = layer.state_dict()
            back()
            assert all(value.tobytes() == after[name].tobytes() for name, value in before.items())

    return run


def _filled(name: str, value: Any) -> Callable[[bn.BatchNorm], Callable[[], None]]:
    def change(layer: bn.BatchNorm) -> Callable[[], None]:
        array = getattr(layer, name)
        before = array.copy()
        array[...] = value
        return lambda: array.__setitem__(..., before)

    return change


def _read_only(name: str) -> Callable[[bn.BatchNorm], Callable[[], None]]:
    def change(layer: bn.BatchNorm) -> Callable[[], None]:
        array = getattr(layer, name)
        array.flags.writeable = False
        return lambda: setattr(array.flags, "writeable", True)

    return change


def _loads(spoil: Callable[[dict[str, Any]], object]) -> Call:
    """A state in which every array is another, and one is bad."""

    def call(layer: bn.BatchNorm) -> object:
        state: dict[str, Any] = {name: value * 0 + 3 for name, value in layer.state_dict().items()}
        spoil(state)
        return layer.load_state_dict(state)

    return call


def _updates(m: Callable[[], bn.Moments]) -> Call:
    return lambda layer: layer.running.update(m())


def _forward(x: np.ndarray) -> Call:
    return lambda layer: layer(x)


EYE = bn.moments(np.eye(3))
HUGE = np.where(X > 0, np.float32(3e38), np.float32(-3e38))  # whose variance float32 does not hold
CALLS: dict[str, tuple[str, Call]] = {  # what a layer must have for it
    "backward of another shape": ("", lambda layer: layer.backward(X[:2])),
    "running_mean = 3.0": ("running", lambda layer: setattr(layer, "running_mean", 3.0)),
    "a momentum beyond 1": ("", lambda layer: setattr(layer, "momentum", 2.0)),
    "infinity": ("raises", _forward(np.where(np.arange(3) == 1, np.inf, X).astype(np.float32))),
    "beyond float32": ("raises", _forward(HUGE)),
    "a full count": ("running", _while(_filled("num_batches_tracked", 2**63 - 1), _updates(lambda: EYE))),
    "a count below 0": ("cumulative", _while(_filled("num_batches_tracked", -1), _updates(lambda: EYE))),
    "a variance below 0": ("normalizes", _while(_filled("running_var", -1), _forward(X))),
    "moments of other channels": ("running", _updates(lambda: bn.moments(np.eye(4)))),
    "moments of ghosts": ("running", _updates(lambda: bn.moments(np.eye(3), virtual_batch_size=2))),
    "moments of nothing": ("running", _updates(lambda: bn.Moments.empty(3))),
    "moments of half a value": ("running", _updates(lambda: bn.Moments(0.5, np.zeros(3), np.ones(3)))),
    "load: beyond float32": ("single", _loads(lambda state: state.update(running_var=np.full(3, 1e39)))),
    "load: beyond int64": (
        "running", _loads(lambda state: state.update(num_batches_tracked=np.array(2**63, np.uint64)))
    ),
    **{f"load: {name}": ("single", _loads(spoil)) for name, spoil, _ in test_layer_errors.STATES},
    **{
        f"{name} that is read-only: {what}": (name, _while(_read_only(name), call))
        for name in ("running_mean", "running_var", "num_batches_tracked", "running_count")
        for what, call in {
            "load": _loads(dict),
            "load without it": _loads(lambda state: state.pop("running_count", None)),
            "update_running_stats": _updates(lambda: EYE),
            "reset": lambda layer: layer.reset_running_stats(),
        }.items()
    },
    "a weight that is read-only: load": ("weight", _while(_read_only("weight"), _loads(dict))),
}  # fmt: skip


def _applies(layer: bn.BatchNorm, needs: str) -> bool:
    updates = layer.training if layer.update_running_stats is None else layer.update_running_stats
    statistics = {"auto": "batch" if layer.training else "running"}.get(layer.normalize_with, layer.normalize_with)
    known = {
        "": True,
        "running": layer.running is not None,
        "cumulative": layer.running is not None and layer.momentum is None,
        "raises": layer.on_nonfinite == "raise" and updates,
        "normalizes": layer.running is not None and statistics == "running",
        "single": layer.running is not None and layer.weight is not None,  # and all of it is float32
    }
    return known[needs] if needs in known else getattr(layer, needs) is not None


#: What may pass: layers that normalize with running statistics need no variance of the batch.
TAKEN = {
    "x": (
        "shape (4, 3, 0)",
        "shape (0, 3)",
        "shape (0, 3, 5)",
        "shape (1, 3)",
        "shape (1, 3, 1)",
        "shape (1, 3, 1, 1)",
    ),
    "mask": ("nothing", "one"),
    "sample_weight": ("nothing", "one"),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_refused_call_changes_nothing_in_a_layer(name, training):
    layer = _made(LAYERS[name], training)
    before = _everything(layer)
    refused = 0

    def refuses(what: str, call: Call, may_pass: bool = False) -> None:
        nonlocal layer, refused
        try:
            call(layer)
        except (TypeError, ValueError, MemoryError):
            assert _everything(layer) == before, what
            refused += 1
        else:
            assert may_pass, f"{what} was not refused"
            layer = _made(LAYERS[name], training)

    for bad in test_errors.TABLE:
        if bad.argument in ("x", "mask", "sample_weight", "residual", "grad_y"):
            good = {key: value.copy() for key, value in GOOD.items()}
            value = bad.make(good)
            cell = f"{bad.argument} {bad.what}"
            if bad.argument == "grad_y":
                refuses(cell, lambda layer, value=value: layer.backward(value))
                continue
            given = {"x": good["x"], bad.argument: value}
            refuses(cell, lambda layer, given=given: layer(**given), bad.what in TAKEN.get(bad.argument, ()))
    for what, (needs, call) in CALLS.items():
        if _applies(layer, needs):
            with np.errstate(all="ignore"):
                refuses(what, call)
    assert refused > 60


FUNCTION_OPTIONS: tuple[dict[str, Any], ...] = (
    {}, {"activation": "relu"}, {"virtual_batch_size": 2}, {"correction": (np.ones(3), np.zeros(3))}
)  # fmt: skip


@pytest.mark.parametrize("name", test_errors.FUNCTIONS)
def test_a_refused_call_of_a_function_writes_nothing(name):
    """Whatever options stand beside the bad argument; `out` above all."""
    function = test_errors.FUNCTIONS[name]
    parameters = inspect.signature(function).parameters
    refused = 0
    for options in FUNCTION_OPTIONS:
        for bad in test_errors.TABLE:
            if name not in bad.functions or bad.argument not in parameters or not parameters.keys() >= options.keys():
                continue
            good = test_errors._good()
            if "virtual_batch_size" in options:
                good["moments"] = bn.moments(good["x"], **options)
            given = good | {bad.argument: bad.make(good)} | options
            given = {key: value for key, value in given.items() if key in parameters}
            before = test_errors._contents(given)
            try:
                function(**given)
            except (TypeError, ValueError, MemoryError):
                refused += 1
                assert test_errors._contents(given) == before, f"{bad.argument} {bad.what} {options}"
            else:
                assert options, f"{bad.argument} {bad.what}"
    assert refused > 60
