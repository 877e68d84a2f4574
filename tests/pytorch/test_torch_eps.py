"""`set_eps`: evaluation is the same function with another eps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import batchnorm.torch as bnt


def _model(dtype=torch.float64, **options):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3),
        nn.BatchNorm1d(3, eps=1e-3),
        nn.Sequential(bnt.BatchNorm1d(3, eps=1e-3, keep_count=True, activation="relu", **options)),
        bnt.SyncBatchNorm(3, eps=1e-2),
    )
    for _ in range(3):
        model(torch.randn(8, 2, 9) * 0.1)
    return model.to(dtype).eval()


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_evaluation_stays_and_eps_changes(dtype, correction):
    model, x = _model(dtype, running_correction=correction), torch.randn(4, 2, 9, dtype=dtype)
    before, own = copy.deepcopy(model), model[1].running_var
    assert bnt.set_eps(model, 1e-5) is model
    assert [model[i].eps for i in (1, 3)] == [model[2][0].eps, 1e-5] == [1e-5, 1e-5]
    assert model[1].running_var is own, "the buffer stays the object that it is"
    torch.testing.assert_close(model(x), before(x), rtol=1e-13 if dtype is torch.float64 else 1e-5, atol=0)
    count = model[2][0], before[2][0]
    gaps = [layer.running_variance(1) - layer.running_variance(0) for layer in count]
    torch.testing.assert_close(gaps[0], gaps[1], rtol=1e-12 if dtype is torch.float64 else 1e-5, atol=0)
    bnt.set_eps(model, 1e-2, only="3")
    assert (model[1].eps, model[3].eps) == (1e-5, 1e-2)
    torch.testing.assert_close(model(x), before(x), rtol=1e-12 if dtype is torch.float64 else 1e-5, atol=0)
    bnt.set_eps(model, 0.0)  # of a tool that drops it
    torch.testing.assert_close(model(x), before(x), rtol=1e-12 if dtype is torch.float64 else 1e-5, atol=0)


def _small(model):
    with torch.no_grad():
        model[2][0].running_var[1] = 1e-4


REFUSED = {
    "negative": (_small, 1e-2, ValueError, r"layer 2\.0 has eps=0\.001 and a running variance of 0\.0001 in channel 1"),
    "none": (lambda m: m.append(nn.BatchNorm1d(3, track_running_stats=False)), 1e-5, ValueError, "layer 4 has no run"),
    "lazy": (lambda m: m.append(nn.LazyBatchNorm1d()), 1e-5, ValueError, "layer 4 has running statistics without"),
    "a number": (lambda m: None, "1e-5", TypeError, "set_eps: eps must be finite"),
    "below zero": (lambda m: None, -1.0, ValueError, "set_eps: eps must be finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_changes_nothing(name):
    change, eps, kind, words = REFUSED[name]
    model = _model()
    change(model)
    before = {n: v.clone() for n, v in model[:4].state_dict().items()}
    own = [m.eps for m in model.modules() if hasattr(m, "eps")]
    with pytest.raises(kind, match=words):
        bnt.set_eps(model, eps)
    assert own == [m.eps for m in model.modules() if hasattr(m, "eps")]
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items() if n in before)
    with pytest.raises(TypeError, match="set_eps: model must be"):
        bnt.set_eps(model.state_dict(), 1e-5)
