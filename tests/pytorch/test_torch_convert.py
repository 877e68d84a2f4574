"""`convert` and `revert`: a change of class and of nothing else, and what is left is named."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re

import pytest
import torch
from torch import nn
from torch.ao.quantization import fuse_modules
from torch.ao.quantization.quantize_fx import fuse_fx
from torch.fx.experimental import optimization
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.mkldnn import to_mkldnn

import batchnorm.torch as bnt

LAYERS = {
    "1d": (nn.BatchNorm1d, bnt.BatchNorm1d, (6, 4)),
    "2d": (nn.BatchNorm2d, bnt.BatchNorm2d, (3, 4, 5, 2)),
    "3d": (nn.BatchNorm3d, bnt.BatchNorm3d, (2, 4, 3, 2, 3)),
}


class FrozenBatchNorm2d(nn.Module):
    """As detection libraries have it: no batch norm of torch.nn's."""


class Centred(nn.BatchNorm2d):
    """A subclass, whose forward may be anything."""


class BatchNormBlock(nn.Module):
    """Named after what is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def _parametrized() -> nn.Module:
    layer = nn.BatchNorm1d(4)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside"])
@pytest.mark.parametrize("kind", LAYERS)
def test_only_the_class_changes(kind, inside):
    theirs, ours, _ = LAYERS[kind]
    layer = theirs(4, eps=0.01, momentum=None, dtype=torch.float64).eval()
    layer.weight.requires_grad_(False)
    calls: list[str] = []
    layer.register_forward_hook(lambda *_: calls.append("hook"))
    held = dict(layer.__dict__)
    tensors = [*layer.parameters(), *layer.buffers()]
    model = nn.Sequential(nn.Identity(), nn.Sequential(layer)) if inside else layer

    assert bnt.convert(model, verbose=False) is model
    assert type(layer) is ours
    assert layer.__dict__ == held
    assert all(a is b for a, b in zip([*layer.parameters(), *layer.buffers()], tensors, strict=True))
    layer(torch.ones(LAYERS[kind][2], dtype=torch.float64))
    assert calls == ["hook"]

    assert bnt.revert(model, verbose=False) is model
    assert type(layer) is theirs
    assert layer.__dict__ == held


@pytest.mark.parametrize("kind", LAYERS)
def test_a_converted_layer_computes_what_it_did(kind):
    theirs, _, shape = LAYERS[kind]
    expected = theirs(4)
    layer = bnt.convert(copy.deepcopy(expected), verbose=False)
    generator = torch.Generator().manual_seed(1)
    for training in (True, False):
        x = torch.randn(shape, generator=generator)
        torch.testing.assert_close(layer.train(training)(x), expected.train(training)(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.state_dict(), expected.state_dict())


def test_a_module_that_stands_twice_stays_one_and_again_changes_nothing(capsys):
    shared = nn.BatchNorm1d(4)
    model = nn.Sequential(shared, nn.BatchNorm1d(4), shared)
    bnt.convert(model)
    assert model[0] is model[2] is shared
    bnt.convert(model)
    assert capsys.readouterr().out == "converted 2 batch normalizations\nconverted 0 batch normalizations\n"


def test_what_is_left_is_named_by_class_and_reason(capsys):
    model = nn.ModuleDict(
        {
            "synced": nn.SyncBatchNorm(4),
            "own": Centred(4),
            "lazy": nn.LazyBatchNorm2d(),
            "frozen": FrozenBatchNorm2d(),
            "also_own": Centred(4),
            "block": BatchNormBlock(),
            "extra": bnt.BatchNorm1d(4, activation="relu"),
            "instance": nn.InstanceNorm2d(4),
            "group": nn.GroupNorm(2, 4),
            "parametrized": _parametrized(),
        }
    )
    classes = {name: type(module) for name, module in model.named_modules() if name != "block.norm"}
    bnt.convert(model)
    assert capsys.readouterr().out.splitlines() == [
        "converted 1 batch normalization",
        "layer synced (SyncBatchNorm) is left: it gathers statistics from several processes; convert_sync makes it "
        "ours",
        "layers own, also_own (Centred) are left: a class of its own may compute something else; "
        "accelerate() serves it if it calls PyTorch's batch normalization",
        "layer lazy (LazyBatchNorm2d) is left: it has no parameters yet; call the model once, then convert",
        "layer frozen (FrozenBatchNorm2d) is left: the class is not torch.nn's, whatever it computes",
        "layer parametrized (ParametrizedBatchNorm1d) is left: it is parametrized, which is a class of its own; remove "
        "the parametrizations, then convert",
    ]
    assert type(model["block"].norm) is bnt.BatchNorm1d
    assert {name: type(module) for name, module in model.named_modules() if name != "block.norm"} == classes
    bnt.convert(nn.SyncBatchNorm(4))
    assert "the model itself (SyncBatchNorm) is left: " in capsys.readouterr().out


def test_a_lazy_layer_can_be_converted_once_it_has_parameters():
    model = nn.Sequential(nn.LazyBatchNorm1d())
    model(torch.randn(3, 4))
    assert type(bnt.convert(model, verbose=False)[0]) is bnt.BatchNorm1d


def test_many_names_are_counted(capsys):
    bnt.convert(nn.Sequential(*(nn.SyncBatchNorm(1) for _ in range(12))))
    assert "layers 0, 1, 2, 3, 4, 5, …, 11 (12 in all) (SyncBatchNorm) are left: " in capsys.readouterr().out


def test_revert_leaves_what_torch_cannot_say(capsys):
    model = nn.Sequential(
        bnt.BatchNorm1d(4),
        bnt.BatchNorm1d(4, activation=("leaky_relu", 0.2), running_correction=0),
        bnt.BatchNorm2d(4, on_nonfinite="skip"),
    )
    bnt.revert(model)
    assert capsys.readouterr().out.splitlines() == [
        "reverted 1 batch normalization",
        "layer 1 (BatchNorm1d) is left: torch.nn's has no activation=('leaky_relu', 0.2), running_correction=0",
        "layer 2 (BatchNorm2d) is left: torch.nn's has no on_nonfinite='skip'",
    ]
    assert [type(m) for m in model] == [nn.BatchNorm1d, bnt.BatchNorm1d, bnt.BatchNorm2d]
    assert model[0].__dict__.keys() == nn.BatchNorm1d(4).__dict__.keys()


# --- reports ---


def test_reports_are_returned_and_say_what_is_printed(capsys):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), Centred(4), nn.BatchNorm2d(4))
    same, converted = bnt.convert(model, return_report=True)
    assert same is model
    assert capsys.readouterr().out == f"{converted}\n" == f"{converted!r}\n"
    assert (converted.did, converted.layers, converted.total) == ("converted", ("1", "4"), 3)
    assert [left[:2] for left in converted.left] == [("3", "Centred")]

    fused, report = bnt.fuse(model, verbose=False, return_report=True)
    assert fused is not model
    assert (report.did, report.layers, report.total) == ("fused", ("1",), 3)
    assert report.fused_with == {"1": "relu"}
    assert report.left[0] == ("4", "BatchNorm2d", "no fusable activation follows (its output is returned)")
    assert report.left[1:] == converted.left
    assert report.untraced == ()

    model[4].on_nonfinite = "skip"
    same, report = bnt.revert(model, verbose=False, return_report=True)
    assert same is model
    assert (report.did, report.layers, report.total) == ("reverted", ("1",), 3)
    assert report.left == (("4", "BatchNorm2d", "torch.nn's has no on_nonfinite='skip'"),)

    same, report = bnt.convert_sync(model, verbose=False, return_report=True)
    assert same is model
    assert (report.did, report.layers, report.left) == ("converted", ("1", "4"), converted.left)
    assert capsys.readouterr().out == ""

    alone, report = bnt.convert(nn.BatchNorm1d(4), return_report=True)
    assert type(alone) is bnt.BatchNorm1d
    assert (report.layers, report.left, report.options) == (("",), (), {})
    assert pickle.loads(pickle.dumps(report)) == report
    assert dataclasses.replace(report, layers=()) != report


# --- options ---


def test_options_are_set_in_all_layers_of_ours(capsys):
    """In those that are converted, in those that were before, in synchronized ones; others are as they were."""
    shared = nn.BatchNorm2d(4)
    before = bnt.BatchNorm1d(4, activation="relu", on_nonfinite="raise")
    synced = bnt.convert_sync(nn.BatchNorm1d(4), verbose=False)
    model = nn.Sequential(shared, nn.Sequential(shared, before), synced, Centred(4), nn.SyncBatchNorm(4))
    _, report = bnt.convert(model, on_nonfinite="skip", momentum=None, keep_count=True, return_report=True)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "converted 1 batch normalization",
        "set momentum=None, on_nonfinite='skip', keep_count=True in 3 batch normalizations",
    ]
    assert report.layers == ("0",)
    assert report.set_in == ("0", "1.1", "2")
    assert report.options == {"momentum": None, "on_nonfinite": "skip", "keep_count": True}
    for layer in (shared, before, synced):
        assert (layer.momentum, layer.on_nonfinite, layer.keep_count) == (None, "skip", True)
    assert (shared.activation, before.activation, synced.activation) == (None, "relu", None)
    assert (model[3].momentum, model[4].momentum) == (0.1, 0.1)
    bnt.convert(model, activation=None, verbose=False)
    assert before.activation is None, "None is a value"


@pytest.mark.parametrize(
    ("last", "options", "said"),
    [
        (
            nn.BatchNorm1d(4, track_running_stats=False),
            {"on_nonfinite": "skip", "normalize_with": "running"},
            "convert: layer 1: normalize_with='running' needs running statistics, and the layer has none",
        ),
        (bnt.SyncBatchNorm(4), {"virtual_batch_size": 2}, "convert: layer 1: virtual_batch_size makes ghost batches"),
        (bnt.BatchNorm1d(4), {"momentum": float("nan")}, "convert: momentum is the weight of the new batch"),
    ],
    ids=["no running statistics", "synchronized", "wrong everywhere"],
)
def test_options_are_checked_before_anything_changes(last, options, said):
    model = nn.Sequential(nn.BatchNorm1d(4), last)
    before = [(type(layer), dict(vars(layer))) for layer in model]
    with pytest.raises(ValueError, match=re.escape(said)):
        bnt.convert(model, **options)
    assert [(type(layer), dict(vars(layer))) for layer in model] == before


# --- tools of PyTorch's ---


def _folded(model: nn.Sequential) -> nn.Module:
    return nn.Sequential(fuse_conv_bn_eval(model[0], model[1]), *model[2:])


# Tools that know torch.nn's layers, as docs/pytorch.md lists them: what each makes of a model, and of a layer of ours.
TOOLS = {
    "fuse_conv_bn_eval": (_folded, "drops"),
    "convert_sync_batchnorm": (lambda model: nn.SyncBatchNorm.convert_sync_batchnorm(model).eval(), "drops"),
    "to_mkldnn": (lambda model: nn.Sequential(ToMkldnn(), to_mkldnn(model), ToDense()), "drops"),
    "fx.optimization.fuse": (optimization.fuse, "keeps"),
    "fuse_fx": (fuse_fx, "keeps"),
    "fuse_modules": (lambda model: fuse_modules(model, ["0", "1"]), "refuses"),
}


class ToMkldnn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to_mkldnn()


class ToDense(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to_dense()


def _trained() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    model(torch.randn(8, 3, 8, 8) + 1)
    return model.eval()


@pytest.mark.parametrize("name", TOOLS)
def test_tools_of_torch_are_right_after_revert(name):
    tool, _ = TOOLS[name]
    x = torch.randn(2, 3, 8, 8)
    for ours in (bnt.convert, bnt.fuse):
        expected = _trained()(x)
        reverted = bnt.revert(ours(_trained(), verbose=False), verbose=False)
        torch.testing.assert_close(tool(reverted)(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TOOLS)
def test_what_tools_of_torch_make_of_an_activation(name):
    tool, does = TOOLS[name]
    x = torch.randn(2, 3, 8, 8)
    model = bnt.convert(_trained()[:2], verbose=False)
    dropped = model(x)
    assert dropped.min() < -1
    model[1].activation = "relu"
    kept = model(x)
    assert kept.min() == 0
    if does == "refuses":
        with pytest.raises(AssertionError, match="did not find fuser method"):
            tool(model)
        return
    torch.testing.assert_close(tool(model)(x), {"drops": dropped, "keeps": kept}[does], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["convert", "revert", "fuse"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [(nn.BatchNorm1d, "the class BatchNorm1d"), ([nn.BatchNorm1d(2)], "type list"), ({"weight": 1}, "type dict")],
    ids=["class", "list", "dict"],
)
def test_what_is_not_a_module_is_refused(name, wrong, said):
    with pytest.raises(
        TypeError, match=rf"{name}: model must be a torch\.nn\.Module; got .*{said}; pass a model itself"
    ):
        getattr(bnt, name)(wrong)


def test_silence_can_be_asked_for(capsys):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.SyncBatchNorm(4))
    bnt.revert(bnt.fuse(bnt.convert(model, verbose=False), verbose=False), verbose=False)
    assert capsys.readouterr().out == ""
