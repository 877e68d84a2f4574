"""`diagnose`: the factors are an identity, planted causes come first, and the model stays as it is."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from chromium import Watched
from pairs import pairs
from torch import nn

import batchnorm.torch as bnt
from batchnorm._findings import findings_of
from batchnorm.tools.explain import page as explained
from batchnorm.torch._norms import norms_of, record_of

NAMES = ["1", "4", "7"]


def data(seed: int, n: int = 640, spread: float = 1.0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of 32 around four centers."""
    random = torch.Generator().manual_seed(seed)
    centers = 1.5 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 4, (n,), generator=random)
    x = centers[y] + torch.randn(n, 6, generator=random)
    return list(zip((x * spread).split(32), y.split(32), strict=True))


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def trained(seed: int, make: Callable[[int], nn.Module] = nn.BatchNorm1d) -> nn.Sequential:
    """A network after 12 epochs."""
    return copy.deepcopy(_trained(seed, make))


@functools.cache
def _trained(seed: int, make: Callable[[int], nn.Module]) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n in (6, 24, 24):
        layers += [nn.Linear(n, 24), make(24), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(24, 4)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(12):
        for batch in data(100 * seed + epoch):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return model.eval()


SEEDS = (11, 12, 13)


@pytest.fixture(scope="module", params=SEEDS)
def healthy(request) -> nn.Sequential:
    return trained(request.param)


def test_a_healthy_network(healthy):
    for more in ({}, {"loss": loss}):
        found = bnt.diagnose(healthy, data(1), test=data(2), verbose=False, **more)
        assert found.findings == [], str(found)


PLANTED = [*itertools.combinations(NAMES, 1), *itertools.combinations(NAMES, 2)]


@pytest.mark.parametrize(
    ("healthy", "spoilt", "statistic"),
    pairs(SEEDS, PLANTED, ("running_var", "running_mean")),
    indirect=["healthy"],
    ids=str,
)
def test_planted_layers_come_first(healthy, spoilt, statistic):
    model = copy.deepcopy(healthy)
    for name in spoilt:
        layer = model.get_submodule(name)
        if statistic == "running_var":
            layer.running_var.mul_(6)
        else:
            layer.running_mean.add_(2 * layer.running_var.sqrt())
    for more in ({}, {"loss": loss}):
        found = bnt.diagnose(model, data(1), test=data(2), verbose=False, **more)
        assert {each.layer for each in found.findings[: len(spoilt)]} == {*spoilt}, str(found)
        assert {each.code for each in found.findings} == {"lag"}
        if more:
            costs = [layer.loss - found.losses["recalibrated"] for layer in found.layers if layer.name in spoilt]
            assert min(costs) > 0


def _dropout(model: nn.Sequential) -> nn.Sequential:
    noisy = copy.deepcopy(model)
    noisy[3] = nn.Sequential(nn.Dropout(0.5), noisy[3])
    with bnt.recalibrate(noisy, data(1), verbose=False):
        pass
    noisy[4].train()
    noisy[3][0].train()
    with torch.no_grad():  # what training with dropout leaves
        noisy[4].momentum = None
        noisy[4].reset_running_stats()
        for x, _ in data(1):
            noisy(x)
    noisy[4].momentum = 0.1
    return noisy.eval()


def test_other_causes_are_told_by_name(healthy):
    found = bnt.diagnose(healthy, data(1), test=data(2, spread=3.0), loss=loss, verbose=False)
    assert {each.code for each in found.findings} == {"shift"}, str(found)
    late = copy.deepcopy(healthy)
    late[4].momentum, late[4].num_batches_tracked[()] = 0.003, 258
    assert bnt.diagnose(late, data(1), test=data(2), verbose=False).findings == []  # it was gathered otherwise
    late[4].running_var.mul_(6)
    found = bnt.diagnose(late, data(1), test=data(2), verbose=False)
    assert [each.code for each in found.findings] == ["lag", "start"]
    found = bnt.diagnose(_dropout(healthy), data(1), test=data(2), verbose=False)
    assert ("dropout", "4") in [each[:2] for each in found.findings], str(found)
    noisy = _dropout(healthy)
    bnt.recalibrate(noisy, data(1), verbose=False)
    assert bnt.diagnose(noisy, data(1), test=data(2), verbose=False).findings == []  # two causes that cancel are none
    x, y = (torch.cat(part) for part in zip(*data(1), strict=True))
    order = torch.argsort(y)
    batches = list(zip(x[order].split(32), y[order].split(32), strict=True))
    model = copy.deepcopy(healthy)
    bnt.recalibrate(model, batches, how="batches", verbose=False)
    found = bnt.diagnose(model, batches, test=data(2), verbose=False)
    assert found.findings[0].code == "batching", str(found)
    assert found.findings[0].layer == "1"


@pytest.mark.parametrize("make", [nn.BatchNorm1d, bnt.BatchNorm1d, lambda n: bnt.BatchNorm1d(n, running_correction=0)])
def test_the_factors_are_an_identity(make):
    model = trained(1, make).double()
    batches = [(x.double(), y) for x, y in data(1)]
    test = [(x.double(), y) for x, y in data(2, spread=2.0)]
    found = bnt.diagnose(model, batches, test=test, verbose=False)
    recalibrated = copy.deepcopy(model)
    bnt.recalibrate(recalibrated, batches, verbose=False)
    seen: list[torch.Tensor] = []
    for name, layer in zip(NAMES, found.layers, strict=True):
        hook = recalibrated.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        recalibrated.eval()(torch.cat([x for x, _ in test]))
        hook.remove()
        x, own = seen.pop().detach().numpy(), model.get_submodule(name)
        var, eps = x.var(0, ddof=getattr(own, "running_correction", 1)), own.eps
        off = (own.running_var.numpy() + eps) / (var + eps)
        assert np.allclose(np.prod(layer.variance, axis=0), off, rtol=1e-12, atol=0)
        moved = (own.running_mean.numpy() - x.mean(0)) / np.sqrt(var + eps)
        assert np.allclose(np.sum(layer.mean, axis=0), moved, rtol=1e-12, atol=1e-12)
        assert layer.m == 32


def test_nothing_is_changed():
    model = trained(2)
    model[4].train()
    state, rng = [t.numpy().tobytes() for t in model.state_dict().values()], torch.get_rng_state()
    modes = [m.training for m in model.modules()]

    def failing(model: nn.Module, batch: Any) -> float:
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError
        return float(loss(model, batch))

    for given in (loss, failing):
        calls: list[int] = []
        try:
            bnt.diagnose(model, data(1, 128), loss=given, verbose=False)
        except ValueError:
            assert given is failing
        assert [t.numpy().tobytes() for t in model.state_dict().values()] == state
        assert torch.equal(torch.get_rng_state(), rng)
        assert [m.training for m in model.modules()] == modes
        assert not any(m._forward_pre_hooks for m in model.modules())


def test_the_report(capsys):
    model = trained(3)
    model[4].running_var.mul_(6)
    found = bnt.diagnose(model, data(1), loss=loss)
    text = capsys.readouterr().out
    assert text == f"{found}\n" == f"{found!r}\n"
    assert re.search(
        r"^the loss is [\d.]+ in evaluation, [\d.]+ with batch statistics and [\d.]+ after recalibration, so .* cost",
        text,
    )
    assert re.search(r"^4 +32 +\S+ +[567]\.\d\d +[567]\.\d\d +1.00 ", text, re.MULTILINE)
    assert (
        "1  layer 4: its running statistics are not those that the update rule gives at these weights (lag: var" in text
    )
    facts = json.loads(found.to_json())
    assert facts["findings"][0]["code"] == "lag"
    assert facts["losses"] == found.losses
    assert [layer["name"] for layer in facts["layers"]] == NAMES
    assert 5 < facts["layers"][1]["variance"]["lag"] < 7
    healthy = bnt.diagnose(trained(3), data(1), verbose=False)
    assert str(healthy).endswith("no fault was found")
    assert json.loads(healthy.to_json())["losses"] is None
    model[1].running_mean[0] = torch.nan
    spoilt = bnt.diagnose(model, data(1), verbose=False)
    assert spoilt.findings[0].code == "non-finite"
    assert json.loads(spoilt.to_json())["layers"][0]["mean"]["lag"] is None


def test_the_page():
    model = nn.Sequential()
    for name, layer in trained(3).named_children():
        model.add_module("<b>" if name == "4" else name, layer)
    layer = model.get_submodule("<b>")
    layer.running_var.mul_(6)
    layer.running_mean[5] += 40
    found = bnt.diagnose(model.eval(), data(1), test=data(2), loss=loss, verbose=False)
    text = found.to_html()
    assert "<script" not in text
    assert "//" not in text.replace("</", "")  # nothing from elsewhere
    root = ElementTree.fromstring(text.partition("\n")[2])  # every element is closed, every name escaped
    assert [each.text for each in root.iterfind(".//h2/code")] == ["layer 1", "layer <b>", "layer 7"]
    assert len(root.findall(".//ol/li")) == len(found.findings)
    for drawing, layer in zip(root.iterfind(".//svg"), found.layers, strict=True):
        one = float(drawing.find("line").get("x1"))
        bars = [each for each in drawing.iterfind("rect") if each.get("class") in ("more", "less")]
        logs = [math.exp(np.sqrt(np.mean(np.log(factor) ** 2))) for factor in layer.variance]
        widths = [float(bar.get("width")) for bar in bars]
        assert np.allclose(widths, 90 * np.log10(logs), atol=0.11)  # 90 to ×10, on a log axis
        for bar, factor in zip(bars, layer.variance, strict=True):
            more = np.log(factor).mean() > 0
            assert bar.get("class") == ("more" if more else "less")
            edge = float(bar.get("x")) + (0 if more else float(bar.get("width")))
            assert edge == pytest.approx(one, abs=0.11)
    off = [[each.text for each in drawing.iterfind("text[@class='off']")] for drawing in root.iterfind(".//svg")]
    assert off[0] == off[2] == []
    assert len(off[1]) == 2
    assert off[1][0][:2] in ("×5", "×6")
    first = root.findall(".//tbody")[1].find("tr")
    assert first.find("td").text == "5"  # the channel that is off by most
    assert "put back alone" in text
    ours, theirs = (
        re.findall(r"--[a-z]+: #[0-9a-f]{6}", css)
        for css in (text, Path(explained.__file__).with_name("style.css").read_text())
    )
    assert ours == theirs
    assert found._repr_html_().startswith("<iframe srcdoc=")
    model[0].weight.data[0] = 0  # a variance of 0, and NaN
    model.get_submodule("7").running_mean[0] = torch.nan
    broken = bnt.diagnose(model, data(1), verbose=False).to_html()
    ElementTree.fromstring(broken.partition("\n")[2])
    healthy = bnt.diagnose(trained(3), data(1), verbose=False).to_html()
    assert "<h1>No fault was found</h1>" in healthy
    assert "put back alone" not in healthy


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1100, "light")])
def test_the_page_fits(browser, width, scheme):
    long = nn.Sequential()
    long.add_module("a_name_that_is_much_longer_than_a_telephone_is_wide_" * 2, trained(3))
    text = bnt.diagnose(long.eval(), data(1), verbose=False).to_html()
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:
        page = context.new_page()
        watched = Watched(page)
        page.set_content(text)
        page.locator("summary").first.click()
        assert page.locator("tbody").first.is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(18, 23, 28)" if scheme == "dark" else "rgb(246, 247, 249)")
        assert watched.complaints == watched.requests == []


def _sized(layer: nn.BatchNorm1d, **values: list[float]) -> None:
    """Give a layer these weights and variances, and a mean that is not the start's."""
    layer.running_mean.fill_(1)
    for name, each in values.items():
        getattr(layer, "running_var" if name == "var" else name).data.copy_(torch.tensor(each))


@pytest.mark.parametrize(
    ("options", "change", "codes"),
    [
        ({}, lambda layer: None, ["never-updated"]),
        ({}, lambda layer: layer.running_var.zero_(), ["never-updated"]),
        ({}, lambda layer: layer.running_mean.fill_(torch.inf), ["non-finite"]),
        ({}, lambda layer: layer.half().running_var.fill_(torch.inf), ["overflow fp16"]),
        ({}, lambda layer: layer.half().running_var.fill_(torch.nan), ["non-finite"]),
        ({}, lambda layer: _sized(layer, var=[1, 2e5, 1]), ["beyond fp16"]),
        ({}, lambda layer: _sized(layer, var=[1, 6e4, 1]), []),
        ({}, lambda layer: layer.running_mean.fill_(-1e5), ["beyond fp16"]),
        ({"eps": 1e-9, "affine": False}, lambda layer: _sized(layer, var=[2e-8, 2e-8, 2e-8]), ["beyond fp16"]),
        ({"eps": 1e-9, "affine": False}, lambda layer: _sized(layer, var=[1e-6, 1e-6, 1e-6]), []),
        ({}, lambda layer: layer.running_var.fill_(-1), ["negative variance"]),
        ({}, lambda layer: (layer.running_mean.fill_(1), layer.running_var[0].fill_(1e-6)), ["eps decides"]),
        ({"momentum": 0.9}, lambda layer: layer.running_mean.fill_(1), ["large momentum"]),
        (
            {"momentum": 0.003}, lambda layer: (layer.running_mean.fill_(1), layer.num_batches_tracked.fill_(258)),
            ["start"],
        ),
        ({}, lambda layer: (layer.running_mean.fill_(1), layer.num_batches_tracked.fill_(258)), []),
        ({"momentum": None}, lambda layer: layer.running_mean.fill_(1), []),
        ({"track_running_stats": False}, lambda layer: None, []),
        ({}, lambda layer: _sized(layer, var=[1e3, 1e-4, 2e3]), ["constant channels"]),
        ({}, lambda layer: _sized(layer, var=[1e3, 2e-3, 2e3]), []),
        ({}, lambda layer: _sized(layer, weight=[1, 0, 2]), ["dead channels"]),
        ({}, lambda layer: _sized(layer, weight=[1, -9e-4, 1]), ["dead channels"]),
        ({}, lambda layer: _sized(layer, weight=[1, -2e-3, 1]), []),
        ({}, lambda layer: _sized(layer, weight=[0, 0, 0]), ["dead channels"]),
        ({}, lambda layer: _sized(layer, weight=[-20, 1, 1], var=[1e-4, 1, 1]), ["runaway channels"]),
        ({}, lambda layer: _sized(layer, weight=[9, 1, 1], var=[1e-4, 1, 1]), []),
        ({"affine": False}, lambda layer: _sized(layer, var=[2, 1, 1]), []),
    ],
)  # fmt: skip
def test_what_a_record_tells_by_itself(options, change, codes):
    layer = nn.BatchNorm1d(3, **options)
    change(layer)
    found = findings_of(record_of(norms_of(layer)[0]))
    assert [each.code for each in found] == codes
    if codes == ["runaway channels"]:
        assert (
            "1 of 3 channels are multiplied by more than 1000; channel 0 is multiplied by 1.91e+03" in found[0].sentence
        )
    if codes == ["beyond fp16"]:
        assert re.search(r"[13] of 3 channels would not survive .* have -?(inf|0|1) and (inf|0|1)$", found[0].sentence)
    if codes == ["start"]:
        assert found[0].sentence == (
            "46% of the statistics still come from their start values, after 258 batches with momentum=0.003"
        )


@pytest.mark.parametrize(
    ("train", "kind", "said"),
    [
        (torch.ones(8, 6), TypeError, "diagnose: train must be an iterable of batches, as in training; got Tensor"),
        ([torch.ones(8, 6)] * 3, ValueError, "diagnose: train must have 4 batches at least, as in training"),
        (7, TypeError, "train must be an iterable of batches, as in training; got int"),
    ],
)
def test_refusals(train, kind, said):
    with pytest.raises(kind, match=re.escape(said)):
        bnt.diagnose(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), train)
    with pytest.raises(TypeError, match="diagnose: model must be a"):
        bnt.diagnose(nn.BatchNorm1d, train)


def test_refusals_are_its_own():
    """Also where `recalibrate` refuses, whose options it does not have, and of what a loss returns."""
    model, data = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), [torch.ones(8, 6)] * 4
    with pytest.raises(TypeError, match=r"diagnose: loss must return a number, .*; got a tensor of shape \(8, 3\)"):
        bnt.diagnose(model, data, loss=lambda model, batch: model(batch))
    nn.init.constant_(model[0].weight, torch.nan)
    with pytest.raises(ValueError, match=r"diagnose: it compares with .* mean nan .* Leave the batch out$"):
        bnt.diagnose(model, data)


def test_progress():
    told: list[Any] = []

    def begin(phase: str, total: int) -> Callable[[int], None]:
        told.append([phase, total, 0])
        return lambda done, one=told[-1]: one.__setitem__(2, one[2] + done)

    model, calls = trained(3), list[int]()
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    bnt.diagnose(model, data(1, 128), loss=loss, progress=begin, verbose=False)
    assert len(calls) == 2 * (7 + 3)  # seven forwards of a half, and one for each layer that is put back
    assert told == [["recalibrating", 3, 3], ["diagnosing", 8, 8]]
    told.clear()
    bnt.diagnose(trained(3), data(1, 128), progress=begin, verbose=False)
    assert told == [["recalibrating", 3, 3], ["diagnosing", 3, 3]]


def test_a_layer_with_another_eps_is_a_remark():
    model = trained(3)
    model[4].eps = 1e-3
    found = bnt.diagnose(model, data(1), verbose=False).findings
    assert [each[:3] for each in found] == [
        ("other eps", "4", "it has eps=0.001, and most layers of the model have eps=1e-05")
    ]
    assert found[0].is_remark
    assert "bnt.set_eps" in found[0].fix
    assert found[0].fix.endswith("0.001 is the default of Keras, 1e-05 that of PyTorch and Flax")
    model[7].eps = 1e-4  # then there is no usual one
    assert bnt.diagnose(model, data(1), verbose=False).findings == []


def test_few_positions_are_a_remark():
    model = trained(4)
    found = bnt.diagnose(model, [x[:8] for x, _ in data(1)], test=[x for x, _ in data(2)], verbose=False)
    assert [each[:2] for each in found.findings if each.code == "few positions"] == [
        ("few positions", n) for n in NAMES
    ]


def test_a_layer_left_in_training():
    model = trained(3)
    model[4].train()
    found = bnt.diagnose(model, data(1), test=data(2), verbose=False)
    assert [each[:3] for each in found.findings] == [
        (
            "left in training", "4",
            "it is in training mode and the model is not, so in evaluation it normalizes with the batch",
        )
    ]  # fmt: skip
    assert "1  layer 4: it is in training mode" in str(found)
    assert "layer 4: it is in training mode" in found.to_html()
    assert json.loads(found.to_json())["findings"][0]["code"] == "left in training"
    frozen = bnt.freeze(trained(3), only="4", verbose=False)
    frozen[4].train()  # it does the same in either mode
    partly = trained(3).train()
    partly[1].eval()
    for meant in (frozen, partly):
        assert bnt.diagnose(meant, data(1), test=data(2), verbose=False).findings == []


class _Shared(nn.Module):
    """Calls a layer on two inputs, the second times `scale` and off by `offset`; has heads that evaluation leaves."""

    def __init__(self, scale: float, offset: float) -> None:
        super().__init__()
        self.norm, self.auxiliary, self.unused = (nn.BatchNorm1d(6) for _ in range(3))
        self.last = nn.Linear(6, 4)
        self.scale, self.offset = scale, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.auxiliary(x)
        return self.last(self.norm(x) + self.norm(x.roll(1, 0) * self.scale + self.offset))


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1.05, 0.1), (4, 0), (1, 5)])
def test_layers_that_are_called_twice_or_never(scale, offset):
    torch.manual_seed(0)
    model, random = _Shared(scale, offset).train(), torch.Generator().manual_seed(4)
    train, test = (
        [(torch.randn(32, 6, generator=random), torch.zeros(32, dtype=int)) for _ in range(20)] for _ in range(2)
    )
    for x, _ in train * 3:
        model(x)
    found = bnt.diagnose(model.eval(), train, test=test, how="pooled", verbose=False).findings
    differ = max(scale, offset) > 2
    assert [each[:2] for each in found] == [*[("shared", "norm")] * differ, ("never called", "unused")]
    assert found[-1].is_remark
    if differ:
        assert found[0].sentence.startswith("it is called 2 times per batch, and no running average fits all: call 2 ")
        factor, distance = float(found[0].numbers["factor"]), float(found[0].numbers["distance"])
        assert 0.9 * scale**2 < factor < 1.1 * scale**2
        assert (distance > 1) == (offset > 1)
    blind = bnt.diagnose(model, train, test=test, how="pooled", loss=lambda *_: 1.0, verbose=False).findings
    assert [each.is_remark for each in blind] == [True] * len(found)


@pytest.mark.parametrize("size", [2, 8])
def test_calls_on_few_samples_are_alike(size):
    for seed in range(8):
        torch.manual_seed(seed)
        model = _Shared(1, 0).train()
        train = list(torch.randn(40, 6).split(size))
        for x in train:
            model(x)
        model.forward = lambda x, model=model: model.last(model.norm(x) + model.norm(torch.randn_like(x)))
        found = bnt.diagnose(model.eval(), train, how="pooled", verbose=False).findings
        assert "shared" not in {each.code for each in found}, (seed, found)
