"""Records and conventions: the one table is what the frameworks compute, and what the documents say."""

from __future__ import annotations

import re
from pathlib import Path

import frameworks
import numpy as np
import pytest

import batchnorm as bn
from batchnorm import _options
from batchnorm._findings import OTHERWISE
from batchnorm._records import CONVENTIONS, Convention

DOCS = Path(__file__).parents[2] / "docs"
RECORDED = frameworks.recorded()


def arguments(convention: Convention) -> dict:
    """What makes one of our layers behave as the framework's default."""
    momentum = convention.momentum_here(convention.momentum)
    return {
        "axis": convention.axis,
        "eps": convention.eps,
        "momentum": momentum,
        "running_correction": convention.correction,
    }


@pytest.mark.parametrize("name", frameworks.RUN)
def test_a_record_evaluates_as_the_framework_does(name):
    convention, theirs = CONVENTIONS[name], RECORDED[name]
    assert {*convention.names} == {*theirs["arrays"]}
    record = convention.record("theirs", theirs["arrays"], eps=convention.eps)
    assert (record.channels, record.axis, record.momentum, record.batches) == (2, convention.axis, None, None)
    y = frameworks.evaluated(record, frameworks.BATCHES[0])
    np.testing.assert_allclose(y, theirs["evaluated"], rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("name", [name for name in frameworks.RUN if CONVENTIONS[name].correction is not None])
def test_our_layer_with_its_conventions_trains_as_the_framework_does(name):
    convention, theirs = CONVENTIONS[name], RECORDED[name]
    layer = bn.BatchNorm(2, **arguments(convention))
    layer.load_state_dict(layer.state_dict() | {"weight": frameworks.WEIGHT, "bias": frameworks.BIAS})
    y = [layer(x) for x in frameworks.BATCHES][-1]
    np.testing.assert_allclose(y, theirs["trained"], rtol=3e-6, atol=3e-6)
    state = layer.state_dict()
    ours = dict(zip(convention.names, (state[n] for n in CONVENTIONS["PyTorch"].names), strict=True))
    for each, values in theirs["arrays"].items():
        np.testing.assert_allclose(ours[each], values, rtol=1e-6, err_msg=each)


@pytest.mark.filterwarnings("ignore")  # of other libraries' own
@pytest.mark.parametrize("name", frameworks.RUN)
def test_the_recorded_numbers_are_those_of_the_framework(name):
    try:
        _, numbers = frameworks.RUN[name]()
    except ImportError as error:
        pytest.skip(f"{name} is too large for every run, so its numbers are recorded: {error}")
    for part in ("arrays", "trained", "evaluated"):
        here, there = (each[part] if part == "arrays" else {part: each[part]} for each in (numbers, RECORDED[name]))
        assert here.keys() == there.keys()
        for each in here:
            np.testing.assert_allclose(here[each], there[each], rtol=3e-6, atol=3e-6)


def test_haiku_corrects_for_the_start_and_has_no_counterpart():
    a, (mean, var) = 0.01, np.zeros((2, 2))
    for x in frameworks.BATCHES:
        mean, var = (1 - a) * mean + a * x.mean(0), (1 - a) * var + a * x.var(0)
    theirs = RECORDED["Haiku"]["arrays"]
    np.testing.assert_allclose(theirs["mean_ema/average"], mean / (1 - 0.99**2), rtol=1e-5)
    np.testing.assert_allclose(theirs["var_ema/average"], var / (1 - 0.99**2), rtol=1e-5)


def test_a_momentum_is_exact_and_arrays_alone_say_no_more_than_they_do():
    assert CONVENTIONS["Keras"].momentum_here(0.99) == 0.01
    assert CONVENTIONS["Flax"].momentum_here(0.997) == 0.003
    assert CONVENTIONS["MLX"].momentum_here(0.1) == 0.1
    record = CONVENTIONS["Keras"].record("bn", {"gamma": np.ones(3)}, momentum=0.9, axis=1)
    assert (record.momentum, record.eps, record.mean, record.correction, record.axis) == (0.1, None, None, 0, 1)
    with pytest.raises(ValueError, match="bn: its framework has no names for running statistics"):
        CONVENTIONS["Equinox"].record("bn", {})


# --- what is said of them ---


def _row(name: str, convention: Convention) -> list[str]:
    """The cells of a row of the documents' table that the table of the code has."""
    names = "no names" if convention.names is None else ", ".join(convention.names)
    momentum = "no default" if convention.momentum is None else f"{convention.momentum:g}"
    if convention.momentum is not None:
        momentum += f" → {convention.momentum_here(convention.momentum):g}"
    said = {1: "unbiased → 1", 0: "biased → 0", None: "no counterpart"}[convention.correction]
    return [name, names, str(convention.axis), momentum, f"{convention.eps:.0e}".replace("e-0", "e-"), said]


def test_the_table_of_the_documents_is_that_of_the_code():
    page = (DOCS / "layouts.md").read_text(encoding="utf-8")
    section = page[page.index("(conventions)=") :]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:2] == "| "]
    assert rows[1:] == [_row(name, convention) for name, convention in CONVENTIONS.items()]


def test_the_recipe_uses_the_names_of_the_table():
    text = (DOCS / "how-to" / "port-parameters.md").read_text(encoding="utf-8")
    found = {name: eval(value) for name, value in re.findall(r"^(OURS|KERAS|FLAX|ONNX) = (\(.*\))$", text, re.M)}
    assert found == {
        ours: CONVENTIONS[name].names
        for ours, name in (("OURS", "PyTorch"), ("KERAS", "Keras"), ("FLAX", "Flax"), ("ONNX", "ONNX"))
    }


def test_messages_name_frameworks_that_do_so():
    assert OTHERWISE == "Keras, Flax, Equinox and ONNX"
    for option, wants in ((_options.MOMENTUM, ("weighs", "old")), (_options.RUNNING_CORRECTION, ("correction", 0))):
        words = f"{option.rule} {option.fix}"
        named = [name for name in CONVENTIONS if re.search(rf"\b{re.escape(name)}\b", words.replace("as PyTorch", ""))]
        assert named == ["Keras", "Flax", "ONNX"]
        assert all(getattr(CONVENTIONS[name], wants[0]) == wants[1] for name in named)
    assert (_options.EPS.default, _options.MOMENTUM.default, _options.RUNNING_CORRECTION.default) == (
        CONVENTIONS["PyTorch"][2:4] + CONVENTIONS["PyTorch"][5:]
    )
