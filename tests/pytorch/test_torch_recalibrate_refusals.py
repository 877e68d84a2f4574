"""What `recalibrate` leaves or refuses, and that what fails changes nothing."""

from __future__ import annotations

import copy
import threading
from typing import ClassVar

import pytest
import torch
from torch import nn

import batchnorm.torch as bnt
from recalibration import Branches, Oracle, assert_close, dense, everything, filled, recalibrate, statistics

# --- what is left, and what is refused ---


def test_layers_that_are_left():
    model = filled(
        nn.Sequential(
            nn.BatchNorm1d(3), bnt.BatchNorm1d(3, update_running_stats=False), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        )
    )
    model[3] = nn.BatchNorm1d(3, track_running_stats=False).double()
    model.unused = nn.BatchNorm1d(2).double()
    model.forward = lambda x: model[3](model[2](model[1](model[0](x))))
    frozen = model[1].running_mean.clone()
    done = recalibrate(model, [dense(48)], only=lambda name, layer: name != "2")
    assert [layer.name for layer in done.layers] == ["0"]
    assert {name: reason.partition(" (")[0] for name, _, reason in done.left} == {
        "1": "it is frozen", "3": "it has no running statistics", "unused": "no batch reached it",
    }  # fmt: skip
    assert torch.equal(model[1].running_mean, frozen)
    assert float(model[2].running_mean[0]) == 0.7


def test_what_is_said(capsys):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    model[1].requires_grad_(False)
    x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    bnt.recalibrate(model, [x, x], only="0")
    assert capsys.readouterr().out == (
        "recalibrated 1 batch normalization (whole: the whole data as one batch) from 4 samples in 2 batches, in "
        "one pass\n"
        "the mean of layer 0 moved most, by 1.73 standard deviations; the variance of layer 0 changed most, by a "
        "factor of 133\n"
    )
    bnt.recalibrate(nn.BatchNorm1d(2), [x / 10, x / 10])
    assert capsys.readouterr().out.endswith(
        "\nthe mean of the model itself moved most, by 1.73 standard deviations; the variance of the model itself "
        "changed most, by a factor of 0.0133\n"
    )
    recalibrate(model, [x, x])
    assert capsys.readouterr().out == ""


def _shared():
    norm = nn.BatchNorm1d(3)
    return nn.Sequential(norm, nn.Linear(3, 3), norm, nn.BatchNorm1d(3))


class ByContent(nn.Module):
    """The branch follows the data: the second batch (negative) goes another way."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.c(self.a(x) if float(x[0, 0]) > 0 else self.b(x))


def _signs():
    return [torch.ones(4, 3).double(), -torch.ones(4, 3).double() * torch.arange(1.0, 5)[:, None].double()]


def _bad(batch, value=torch.nan):
    data = [t.clone() for t in dense(48).split(12)]
    data[batch][3, 1] = value
    return data


REFUSED = {
    "no module": (lambda: nn.BatchNorm1d, [], {}, TypeError, "model must be a torch.nn.Module"),
    "no layer": (lambda: nn.Sequential(nn.Linear(3, 3)), [dense(4)], {}, ValueError, "got none"),
    "all left": (
        lambda: nn.BatchNorm1d(3, track_running_stats=False), [dense(4)], {}, ValueError,
        "got 1 batch normalization: the model itself, it has no running statistics",
    ),
    "lazy": (lambda: nn.LazyBatchNorm1d(), [dense(4)], {}, ValueError, "which is lazy.*Call the model once first"),
    "meta": (lambda: nn.BatchNorm1d(3, device="meta"), [dense(4)], {}, ValueError, "got one on meta"),
    "how": (Branches, [dense(4)], {"how": "wholes"}, ValueError, "how says what.*did you mean 'whole'"),
    "samples": (Branches, [dense(4)], {"samples": 0}, ValueError, "samples is a number of samples"),
    "memory": (Branches, [dense(4)], {"max_memory": "4 GiB"}, TypeError, "max_memory is a number of bytes"),
    "nonfinite": (Branches, [dense(4)], {"on_nonfinite": "propagate"}, ValueError, "on_nonfinite says"),
    "only": (Branches, [dense(4)], {"only": "left.1"}, ValueError, "did you mean 'left.2'"),
    "text": (Branches, "data.npy", {}, TypeError, "data must be an iterable of batches"),
    "a number": (Branches, 5, {}, TypeError, "data must be an iterable of batches"),
    "a batch that is none": (Branches, ["x"], {}, ValueError, "batch 0 could not be read.*forward=lambda"),
    "no batch": (Branches, [], {}, ValueError, "data must have a batch at least"),
    "empty batches": (Branches, [dense(4)[:0]] * 2, {}, ValueError, "more than one position per channel.*got 0"),
    "one position": (Branches, [dense(1)], {}, ValueError, "more than one position per channel in all data; got 1"),
    "one position, pooled": (Branches, [dense(1)], {"how": "pooled"}, ValueError, "in all data; got 1"),
    "one position in a batch": (
        Branches, dense(5).split([4, 1]), {"how": "batches"}, ValueError, "got 1 from batch 1 at left.0",
    ),
    "a tensor by batch": (Branches, dense(5), {"how": "batches"}, ValueError, r"Use data.split\(batch_size\)"),
    "another width": (
        Branches, [dense(4), torch.ones(4, 2).double()], {}, ValueError,
        "got RuntimeError from batch 1, before the first batch normalization",
    ),
    "another dtype": (Branches, [dense(4).float()], {}, ValueError, "got RuntimeError from batch 0"),
    "NaN": (Branches, _bad(2), {}, ValueError, "mean nan and variance nan in channel 0 of layer left.0, from batch 2"),
    "infinity, pooled": (Branches, _bad(1, torch.inf), {"how": "pooled"}, ValueError, "of layer left.0, from batch 1"),
    "NaN everywhere": (
        Branches, [dense(4) * torch.nan] * 2, {"on_nonfinite": "skip"}, ValueError, "got NaN or infinity in every one",
    ),
    "NaN everywhere, pooled": (
        Branches, [dense(4) * torch.nan] * 2, {"on_nonfinite": "skip", "how": "pooled"}, ValueError,
        "got NaN or infinity in every one",
    ),
    "overflow": (
        lambda: nn.Sequential(nn.BatchNorm1d(3)).half(), [dense(4)], {}, ValueError,
        r"finite in the dtype of the layer, torch.float16.*channel 2.*model.float\(\)",
    ),
    "a shared layer": (_shared, [dense(4)], {}, ValueError, "got layer 0 a second time, in batch 0.*how=\"pooled\""),
    "a shared layer, last": (
        lambda: _shared()[:3], [dense(4)], {"max_memory": 1}, ValueError, "got layer 0 a second time, in batch 0",
    ),
    "branches": (
        ByContent, _signs(), {}, ValueError,
        "got batch 1 at layer b when batch 0 was at layer a.*no common statistics of the whole data.*how=\"pooled\"",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    build, data, options, kind, words = REFUSED[case]
    model = build()
    if isinstance(model, nn.Module) and case not in ("lazy", "meta", "overflow"):
        filled(model)
    before = everything(model) if isinstance(model, nn.Module) and case != "meta" and case != "lazy" else None
    if case == "overflow":
        data = [torch.tensor([[1.0, 2.0, 3e4], [3.0, 4.0, -3e4]]).half()]
    with pytest.raises(kind, match=words) as caught:
        recalibrate(model, data, **options)
    assert str(caught.value).startswith("recalibrate: ")
    if before is not None:
        assert everything(model) == before


def test_tensors_of_inference_mode_are_refused_outside_of_it():
    with torch.inference_mode():
        model = torch.nn.BatchNorm1d(3)
        bnt.recalibrate(model, [torch.randn(5, 3)], verbose=False)
    with pytest.raises(ValueError, match=r"recalibrate: running statistics must be tensors that can be written; got"):
        bnt.recalibrate(model, [torch.randn(5, 3)], verbose=False)


def test_pooled_takes_what_whole_refuses():
    shared = filled(_shared())
    expected = Oracle(shared, [lambda m, b=b: m(b) for b in dense(48).split(12)]).by_batch("pooled")
    recalibrate(shared, dense(48).split(12), how="pooled")
    assert_close(statistics(shared), expected)
    branches = recalibrate(filled(ByContent()), _signs(), how="pooled")
    assert [layer.count for layer in branches.layers] == [4.0, 4.0, 8.0]


@pytest.mark.parametrize("max_memory", [None, 1])
@pytest.mark.parametrize("how", ["whole", "pooled", "batches"])
@pytest.mark.parametrize("batch", [0, 2])
def test_skipping_a_batch(how, batch, max_memory):
    """Left out from the layer on where it is not finite: in the first that is everywhere."""
    model, data = filled(Branches()), _bad(batch)
    other = copy.deepcopy(model)
    done = recalibrate(model, data, how=how, on_nonfinite="skip", max_memory=max_memory)
    recalibrate(other, data[:batch] + data[batch + 1 :], how=how)
    assert_close(statistics(model), statistics(other))
    assert done.skipped == 1


# --- nothing is changed by what fails ---


class Fails(nn.Module):
    """Raises in its n-th call, of all of its class: a count on itself would be a value that the model keeps."""

    calls: ClassVar[list[int]] = [0]

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error = at, error
        Fails.calls[0] = 0

    def forward(self, x):
        Fails.calls[0] += 1
        if Fails.calls[0] == self.at:
            raise self.error("planted")
        return x


def _failing(at, error):
    layers = [nn.BatchNorm1d(3), Fails(at, error), nn.Linear(3, 3), bnt.BatchNorm1d(3, keep_count=True)]
    return filled(nn.Sequential(*layers, nn.Dropout(), nn.BatchNorm1d(3)))


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("options", [{}, {"max_memory": 1}, {"how": "pooled"}, {"how": "batches"}], ids=str)
def test_a_failure_at_each_batch_changes_nothing(options, error):
    data = dense(40).split(10)
    for at in range(1, 5):
        model = _failing(at, error)
        model[0].eval()
        model[3].register_forward_hook(lambda *_: None)
        before = everything(model)
        with pytest.raises(ValueError if error is RuntimeError else error, match="planted") as caught:
            recalibrate(model, data, **options)
        if error is RuntimeError:
            assert f"got RuntimeError from batch {at - 1}, after 0: planted. Nothing is changed" in str(caught.value)
        assert everything(model) == before
        assert [t.name for t in threading.enumerate() if t.name.startswith("batch ")] == []


@pytest.mark.parametrize("how", ["whole", "pooled"])
def test_a_failure_at_each_layer_and_read_changes_nothing(monkeypatch, how):
    """Wherever statistics are gathered, written or read, in the thread of the caller: as Ctrl-C."""
    from batchnorm.torch import _definitions, _layer_inputs
    from batchnorm.torch import _recalibrate as module

    model, data = filled(Branches()), dense(40).split(10)
    before = everything(model)
    planned = [(_layer_inputs, "write"), (_definitions, "write"), (_definitions, "_of_moments"), (module, "_compared")]
    failures = 0
    for where, name in planned:
        real = getattr(where, name)
        for at in range(1, 40):
            left = [at]

            def plan(*args, real=real, left=left):
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt("planted")
                return real(*args)

            with monkeypatch.context() as patch:
                patch.setattr(where, name, plan)
                try:
                    recalibrate(model, data, how=how).undo()
                    break
                except KeyboardInterrupt:
                    failures += 1
            assert everything(model) == before
            assert [t.name for t in threading.enumerate() if t.name.startswith("batch ")] == []
    assert failures >= 10


class Copies(torch.Tensor):
    """A buffer that is interrupted when it is written for the n-th time."""

    left: ClassVar[list[int]] = [0]

    def copy_(self, *args):
        Copies.left[0] -= 1
        if Copies.left[0] == 0:
            raise KeyboardInterrupt
        return super().copy_(*args)


def test_an_interrupted_write_is_undone():
    model, data = filled(nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))), [dense(40)]
    for layer in model:
        for name in ("running_mean", "running_var"):
            layer._buffers[name] = layer._buffers[name].as_subclass(Copies)
    before = {k: v.as_subclass(torch.Tensor).clone() for k, v in model.state_dict().items()}
    interrupted = 0
    for at in range(1, 40):
        Copies.left[0] = at
        try:
            recalibrate(model, data).undo()
        except KeyboardInterrupt:
            interrupted += 1
        Copies.left[0] = 0
        assert all(torch.equal(v.as_subclass(torch.Tensor), before[k]) for k, v in model.state_dict().items()), at
    assert interrupted >= 8


def test_a_reader_that_fails(monkeypatch):
    def batches():
        yield dense(4)
        raise OSError("disk")

    model = filled(Branches())
    before = everything(model)
    with pytest.raises(ValueError, match=r"batch 1 could not be read; got OSError: disk\. Nothing is changed"):
        recalibrate(model, batches())
    assert everything(model) == before
