"""States of models trained apart, merged: those of all the data."""

from __future__ import annotations

import collections

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_torch_variants import C, _randn

import batchnorm.torch as bnt


def _trained(x, **options):
    """A layer whose running statistics are those of one batch, exactly."""
    layer = bnt.BatchNorm1d(C, momentum=1.0, dtype=torch.float64, **options)
    layer(x)
    return layer


@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=5),
    correction=st.sampled_from([0, 1]),
    seed=st.integers(0, 1000),
)
def test_merged_running_statistics_are_those_of_all_the_data(counts, correction, seed):
    """The law of total variance, with offsets between the parts."""
    parts = [_randn(n, C, seed=seed + i) * (i + 1) + 10 * i for i, n in enumerate(counts)]
    layers = [_trained(x, running_correction=correction) for x in parts]
    merged = bnt.merge_state_dicts(layers, counts, running_correction=correction)
    whole = torch.cat(parts)
    torch.testing.assert_close(merged["running_mean"], whole.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged["running_var"], whole.var(0, correction=correction), rtol=1e-12, atol=1e-12)
    assert merged["num_batches_tracked"] == len(counts)
    again = bnt.merge_state_dicts([layer.state_dict() for layer in layers[::-1]], counts[::-1],
                                 running_correction=correction)  # fmt: skip
    torch.testing.assert_close(again["running_var"], merged["running_var"], rtol=1e-13, atol=0)


def _model():
    return torch.nn.Sequential(torch.nn.Linear(2, C), torch.nn.BatchNorm1d(C), torch.nn.Linear(C, 1))


def test_a_whole_model_is_merged_parameters_averaged_by_their_shares():
    torch.manual_seed(0)
    models = [_model() for _ in range(3)]
    for i, model in enumerate(models):
        model(torch.randn(8, 2) + i)
    merged = bnt.merge_state_dicts([m.state_dict() for m in models], [10, 0, 30])
    assert isinstance(merged, collections.OrderedDict)
    assert list(merged) == list(models[0].state_dict())
    target = _model()
    target.load_state_dict(merged)
    torch.testing.assert_close(target[0].weight, 0.25 * models[0][0].weight + 0.75 * models[2][0].weight)
    assert target[1].num_batches_tracked == 2, "a state of no positions is not there"
    mean = 0.25 * models[0][1].running_mean + 0.75 * models[2][1].running_mean
    torch.testing.assert_close(target[1].running_mean, mean)
    between = 0.25 * (models[0][1].running_mean - mean) ** 2 + 0.75 * (models[2][1].running_mean - mean) ** 2
    within = (9 * models[0][1].running_var + 29 * models[2][1].running_var) / 39
    torch.testing.assert_close(target[1].running_var, within + between * 40 / 39)


def test_equal_states_stay_as_they_are():
    """Pooling the ranks of data-parallel training: parameters are alike there, and keep their bits."""
    models = [_model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    merged = bnt.merge_state_dicts(models, [7, 13], running_correction=0)
    for name, value in models[0].state_dict().items():
        assert name.endswith("batches_tracked") or torch.equal(merged[name], value), name
        assert merged[name].data_ptr() != value.data_ptr()


STATE = {"running_mean": torch.zeros(C), "running_var": torch.ones(C)}
REFUSED_STATES = {
    "nothing": ([], [], ValueError, "at least one state"),
    "not a state": ([STATE, [1]], [2, 2], TypeError, "number 1 is list"),
    "names": ([STATE, {"running_mean": torch.zeros(C), "x": 1}], [2, 2], ValueError, "lacks running_var and has x"),
    "shapes": ([STATE, STATE | {"running_var": torch.ones(4)}], [2, 2], ValueError, r"\(3,\) .*\(4,\)"),
    "dtypes": ([STATE, STATE | {"running_var": torch.ones(C).double()}], [2, 2], ValueError, "float32 .*float64"),
    "counts": ([STATE, STATE], [2], ValueError, "got 1 for 2 states"),
    "shares as counts": ([STATE, STATE], [1, 1], ValueError, "above 1, or 0; .*running_correction=0"),
    "negative": ([STATE, STATE], [2, -1], ValueError, "number 1 is -1"),
    "NaN": ([STATE, STATE], [2, float("nan")], ValueError, "number 1 is nan"),
    "zeros": ([STATE, STATE], [0, 0], ValueError, "nothing to merge"),
    "integers": ([{"a": torch.tensor(1)}, {"a": torch.tensor(2)}], [2, 2], ValueError, "a .int64. differs"),
    "objects": ([{"a": "b"}, {"a": "c"}], [2, 2], ValueError, "not an array"),
}


@pytest.mark.parametrize("name", REFUSED_STATES)
def test_states_that_do_not_fit_are_refused(name):
    states, counts, kind, words = REFUSED_STATES[name]
    with pytest.raises(kind, match=words):
        bnt.merge_state_dicts(states, counts)
