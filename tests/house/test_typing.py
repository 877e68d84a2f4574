"""Type checkers know every public signature: they accept right uses, and refuse wrong ones where they are."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import typing
from dataclasses import replace
from pathlib import Path

import pytest

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm import _options
from batchnorm.torch import _options as torch_options

ROOT = Path(__file__).parents[2]
RIGHT, WRONG = (ROOT / f"tests/typed/{name}.py" for name in ("right", "wrong"))


def _mypy() -> set[tuple[str, int, str]]:
    command = [sys.executable, "-m", "mypy", "--show-error-codes", "--no-error-summary", "--no-pretty"]
    run = subprocess.run(
        [*command, str(RIGHT), str(WRONG)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=280,
        env=os.environ | {"MYPYPATH": "src"},
    )
    found = re.findall(r"^tests/typed/(\w+)\.py:(\d+): error: .* \[([\w-]+)\]$", run.stdout, flags=re.M)
    assert len(found) == len([line for line in run.stdout.splitlines() if ": error:" in line]), run.stdout + run.stderr
    return {(file, int(line), code) for file, line, code in found}


def _pyright() -> set[tuple[str, int, str]]:
    command = [sys.executable, "-m", "basedpyright", "--project", "tests/typed", "--outputjson", "--pythonpath"]
    run = subprocess.run([*command, sys.executable], capture_output=True, text=True, cwd=ROOT, timeout=280)
    found = [d for d in json.loads(run.stdout)["generalDiagnostics"] if d["severity"] == "error"]
    return {(Path(d["file"]).stem, d["range"]["start"]["line"] + 1, d.get("rule", "")) for d in found}


CHECKERS = {"mypy": (_mypy, 0), "basedpyright": (_pyright, 1)}


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_right_uses_pass_and_wrong_ones_do_not(checker):
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed; it is in the extra dev")
    check, column = CHECKERS[checker]
    lines = enumerate(WRONG.read_text(encoding="utf-8").splitlines(), 1)
    expected = {("wrong", n, line.rpartition("# ")[2].split(", ")[column]) for n, line in lines if "  # " in line}
    assert len(expected) > 20
    assert check() == expected


OPTIONS = _options.by_name(_options.EPS, _options.MOMENTUM, *_options.EXTRA, *_options.RENORM_PARAMETERS)
OF_RECALIBRATE = (torch_options.HOW, torch_options.SAMPLES, torch_options.MAX_MEMORY, torch_options.ON_NONFINITE_BATCH)
OWN = {  # that mean something else in one function, or have other defaults
    bnt.recalibrate: _options.by_name(*OF_RECALIBRATE),
    bnt.freeze: torch_options.FREEZE,
    bnt.diagnose: _options.by_name(torch_options.HOW, replace(torch_options.SAMPLES, default=1024)),
    bnt.set_eps: _options.by_name(replace(_options.EPS, default=inspect.Parameter.empty)),
    **dict.fromkeys(
        (bn.merge_state_dicts, bnt.merge_state_dicts), _options.by_name(replace(_options.MOMENTUM, default=...))
    ),
}
SIGNATURES = [getattr(module, name) for module in (bn, bnt, bnt.functional) for name in module.__all__]
SIGNATURES = [thing for thing in SIGNATURES if callable(thing) and thing is not bnt.FrozenLayer]  # which frozen makes


@pytest.mark.parametrize("thing", SIGNATURES, ids=lambda thing: f"{thing.__module__}.{thing.__name__}")
def test_signatures_say_every_option_with_its_default_and_values(thing):
    """No ``**options``: an editor shows them; defaults are those of `_options`, and so are values that have names."""
    parameters = inspect.signature(thing).parameters.values()
    assert not [p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    hints = typing.get_type_hints(thing.__init__ if isinstance(thing, type) else thing)
    options = OPTIONS | OWN.get(thing, {})
    for p in parameters:
        if p.name not in options:
            continue
        usual = ... if thing is bnt.convert else options[p.name].default  # there: as it is
        assert p.default == usual or thing is bn.save_moments, p.name  # None there: not known
        choices = set(options[p.name].choices)
        if choices and p.name != "activation":
            hint = hints[p.name]
            said = {value for kind in (hint, *typing.get_args(hint)) for value in typing.get_args(kind)}
            assert {value for value in said if isinstance(value, str)} == choices, p.name
        elif p.name == "activation":
            assert {value for kind in typing.get_args(hints[p.name]) for value in typing.get_args(kind)} >= choices


LAYERS = [
    thing
    for module in (bn, bnt)
    for name in module.__all__
    if inspect.isclass(thing := getattr(module, name))
    and {"num_features", "affine"} <= {*inspect.signature(thing).parameters}
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer.__module__}.{layer.__name__}")
def test_every_layer_has_every_option(layer):
    expected = {"num_features", "affine", "track_running_stats", "eps", "momentum", "dtype"}
    expected |= {option.name for option in _options.EXTRA}
    if layer is bnt.SyncBatchNorm:
        expected -= {"virtual_batch_size"}
    assert len(LAYERS) >= 8
    assert expected <= inspect.signature(layer).parameters.keys()
