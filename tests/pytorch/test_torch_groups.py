"""Grouped batch normalization: G layers on the samples of their groups, by bits; models that are converted; labels."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import batchnorm as bn
import batchnorm.torch as bnt

C = 3
KINDS = {2: bnt.GroupedBatchNorm1d, 3: bnt.GroupedBatchNorm1d, 4: bnt.GroupedBatchNorm2d, 5: bnt.GroupedBatchNorm3d}
LABELS = {
    "mixed": [2, 0, 1, 0, 2, 2, 1, 0, 0, 2],
    "sorted": [0, 0, 0, 1, 1, 1, 1, 2, 2, 2],
    "an empty group": [2, 0, 2, 0, 2, 2, 0, 0, 0, 2],
    "one group": [1] * 10,
}
OPTIONS = {
    "none": {},
    "many": {"activation": "gelu", "keep_count": True, "running_correction": 0, "momentum": None},
    "ghosts": {"virtual_batch_size": 2, "on_single_value": "running"},
    "renorm": {"renorm": bn.Renorm(start=0, r_end=1, d_end=1)},
    "shared": {"share_affine": True},
    "not affine": {"affine": False},
    "without statistics": {"track_running_stats": False},
}


def _randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _grouped(shape, **options):
    layer = KINDS[len(shape)](C, 3, **options)
    for i, parameter in enumerate(layer.parameters()):
        parameter.data += _randn(C, seed=i)
    for i, one in enumerate(layer.layers):
        one(_randn(8, *shape[1:], seed=i) + i)
    return layer


def _separate(layer):
    """Layers that have nothing in common but, where it is shared, their parameters."""
    return [copy.deepcopy(one) for one in layer.layers]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", [(10, C), (10, C, 2), (10, C, 2, 3), (10, C, 1, 2, 2)], ids=str)
def test_it_is_a_layer_for_each_group(shape, options):
    """Outputs, gradients and statistics by bits, for every order of the labels; in training and in evaluation."""
    x, grad, residual = (_randn(*shape, seed=i) for i in range(3))
    grouped = _grouped(shape, **OPTIONS[options])
    for name in LABELS:
        for training in (True, False):
            layer, labels = copy.deepcopy(grouped).train(training), torch.tensor(LABELS[name])
            separate = _separate(layer)
            at, of_residual = x.clone().requires_grad_(), residual.clone().requires_grad_()
            y = layer(at, labels, residual=of_residual)
            y.backward(grad)
            for g, one in enumerate(separate):
                here = labels == g
                of_x, of_r = x[here].requires_grad_(), residual[here].requires_grad_()
                expected = one(of_x, residual=of_r)
                if here.any():
                    expected.backward(grad[here])
                    assert torch.equal(of_r.grad, of_residual.grad[here]), name
                    assert torch.equal(of_x.grad, at.grad[here]), name
                assert torch.equal(y[here], expected), name
                for b, other in zip(layer.layers[g].buffers(), one.buffers(), strict=True):
                    assert torch.equal(b, other), name
            if options == "shared":
                sums = [
                    sum(p.grad for p in ps if p.grad is not None)
                    for ps in zip(*(s.parameters() for s in separate), strict=True)
                ]
                for parameter, expected in zip(layer.layers[0].parameters(), sums, strict=True):
                    torch.testing.assert_close(parameter.grad, expected)
            else:
                of_all = [p.grad for one in separate for p in one.parameters()]
                assert [p.grad is None for p in layer.parameters()] == [g is None for g in of_all]
                assert all(g is None or torch.equal(p.grad, g) for p, g in zip(layer.parameters(), of_all, strict=True))


@pytest.mark.parametrize("which", ["mask", "sample_weight"])
def test_masks_and_weights_go_with_their_samples(which):
    x, labels = _randn(10, C, 4), torch.tensor(LABELS["mixed"])
    given = _randn(10, 4, seed=1) > -1 if which == "mask" else _randn(10, 4, seed=1).abs()
    for value in (given, given[:1], given[0]):  # the others are broadcast over samples
        layer = _grouped(x.shape)
        separate = _separate(layer)
        y = layer(x, labels, **{which: value})
        for g, one in enumerate(separate):
            here = labels == g
            of_group = value[here] if value is given else value
            assert torch.equal(y[here], one(x[here], **{which: of_group}))
            assert torch.equal(layer.layer(g).running_var, one.running_var)


@pytest.mark.parametrize("zero", [False, True])
def test_masks_of_a_block(zero):
    """Those of `masked` are of the whole batch, whatever the labels are."""
    x, labels, mask = _randn(10, C, 4), torch.tensor(LABELS["mixed"]), _randn(10, 4, seed=1) > -1
    weight = _randn(10, seed=2).abs().reshape(10, 1).expand(10, 4)
    grouped = _grouped(x.shape)
    for given in ({}, {"sample_weight": weight}):
        by_hand, inside = copy.deepcopy(grouped), copy.deepcopy(grouped)
        expected = by_hand(x, labels, mask=mask, **given)
        with bnt.masked(inside, mask, zero=zero):
            y = inside(x, labels, **given)
        assert torch.equal(y, torch.where(mask.unsqueeze(1), expected, 0.0) if zero else expected)
        for a, b in zip(inside.buffers(), by_hand.buffers(), strict=True):
            assert torch.equal(a, b)


def test_labels_of_other_kinds_and_one_label_for_all():
    x, labels = _randn(10, C), torch.tensor(LABELS["mixed"])
    grouped = _grouped(x.shape)
    expected = copy.deepcopy(grouped)(x, labels)
    for given in (labels.int(), labels.to(torch.uint8), LABELS["mixed"], labels.numpy()):
        assert torch.equal(copy.deepcopy(grouped)(x, given), expected)
    one = copy.deepcopy(grouped.layer(2))
    assert torch.equal(grouped(x, 2), one(x))
    assert torch.equal(grouped.layer(2).running_mean, one.running_mean)
    assert grouped.eval()(x[:0], labels[:0]).shape == (0, C)
    assert grouped.train()(x[:0], labels[:0]).shape == (0, C)
    assert [int(layer.num_batches_tracked) for layer in grouped.layers] == [1, 1, 2]


def test_channels_last_stays_and_gives_the_same_bits():
    x, labels = _randn(10, C, 4, 5), torch.tensor(LABELS["mixed"])
    grouped = _grouped(x.shape)
    y = copy.deepcopy(grouped)(x.contiguous(memory_format=torch.channels_last), labels)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, grouped(x, labels))


def test_a_group_of_one_is_refused_by_name_or_normalized_as_in_evaluation():
    """Whatever the groups before it have counted is as it was."""
    x, labels = _randn(7, C), torch.tensor([0, 2, 0, 1, 0, 1, 1])
    grouped = _grouped(x.shape, on_nonfinite="skip")
    before = {name: value.clone() for name, value in grouped.state_dict().items()}
    with pytest.raises(ValueError, match="GroupedBatchNorm1d, group 2: BatchNorm1d: one value per channel"):
        grouped(x, labels)
    assert all(torch.equal(value, before[name]) for name, value in grouped.state_dict().items())
    for layer in grouped.layers:
        layer.on_single_value = "running"
    evaluated = copy.deepcopy(grouped.layer(2)).eval()
    assert torch.equal(grouped(x, labels)[1:2], evaluated(x[1:2]))
    assert [int(layer.num_batches_tracked) for layer in grouped.layers] == [2, 2, 1]


X, MIXED = _randn(10, C), torch.tensor(LABELS["mixed"])
REFUSED = {
    "no labels": (X, None, {}, ValueError, "needs the group of each sample"),
    "floats": (X, MIXED.float(), {}, TypeError, "integers; got dtype torch.float32"),
    "bools": (X, MIXED > 1, {}, TypeError, "integers; got dtype torch.bool"),
    "labels on meta": (X, MIXED.to("meta"), {}, ValueError, "tensors must have values; got one on meta, or a fake"),
    "a table": (X, MIXED.reshape(2, 5), {}, ValueError, r"one axis, .*got shape \(2, 5\)"),
    "too few": (X, MIXED[:9], {}, ValueError, r"got 9 labels for an input of shape \(10, 3\)"),
    "too large": (X, MIXED + 1, {}, ValueError, "from 0 to 2 with 3 groups; got 3"),
    "negative": (X, MIXED - 1, {}, ValueError, "from 0 to 2 with 3 groups; got -1"),
    "an int too large": (X, 3, {}, ValueError, "from 0 to 2 with 3 groups; got 3"),
    "a bool": (X, True, {}, TypeError, "a group is an int; got True"),
    "channels": (X[:, :2], MIXED, {}, ValueError, "group 0: BatchNorm1d: expected 3 channels"),
    "a batch not finite": (
        torch.where(torch.arange(10).reshape(-1, 1) == 9, torch.nan, X), MIXED, {"on_nonfinite": "raise"}, ValueError,
        "group 2: .*channel 0 of the batch",
    ),
    "padding alone": (X, MIXED, {"mask": MIXED < 2}, ValueError, "group 2: .*mask and sample_weight select no"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_changes_nothing(name):
    x, labels, options, kind, words = REFUSED[name]
    given = {"mask": options["mask"]} if "mask" in options else {}
    grouped = _grouped(X.shape, **{k: v for k, v in options.items() if k != "mask"})
    before = {n: value.clone() for n, value in grouped.state_dict().items()}
    with pytest.raises(kind, match=words):
        grouped(x, labels, **given)
    assert all(torch.equal(value, before[n]) for n, value in grouped.state_dict().items())


def test_an_empty_list_has_the_labels_of_an_empty_batch():
    layer = bnt.GroupedBatchNorm1d(3, 2).eval()
    with bnt.groups(layer, []):
        assert layer(X[:0]).shape == layer(X[:0], []).shape == (0, 3)


def test_constructors_refuse():
    for number, kind in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(kind, match="GroupedBatchNorm2d: groups must be an int of at least 1"):
            bnt.GroupedBatchNorm2d(3, number)
    with pytest.raises(TypeError, match="share_affine must be True or False"):
        bnt.GroupedBatchNorm2d(3, 2, 1)
    with pytest.raises(ValueError, match="did you mean 'relu'"):
        bnt.GroupedBatchNorm2d(3, 2, activation="rellu")


@pytest.mark.parametrize("share_affine", [False, True])
def test_states_copies_pickles_and_casts(share_affine):
    x = X.double()
    grouped = _grouped(X.shape, share_affine=share_affine, keep_count=True)
    other = bnt.GroupedBatchNorm1d(C, 3, share_affine, keep_count=True)
    other.load_state_dict(grouped.state_dict())
    buffer = io.BytesIO()
    torch.save(grouped, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(grouped),
        pickle.loads(pickle.dumps(grouped)),
        torch.load(buffer, weights_only=False),
        other,
    ]
    wide = [layer.double() for layer in (grouped, *copies)]
    expected = wide[0](x, MIXED)
    for layer in wide[1:]:
        assert torch.equal(layer(x, MIXED), expected)
        assert len(list(layer.parameters())) == (2 if share_affine else 6)
        assert (layer.layer(0).weight is layer.layer(2).weight) is share_affine


def test_pooled_is_one_layer_of_the_groups_moments():
    parts = [_randn(n, C, seed=n).double() * (n + 1) + 5 * n for n in (4, 6, 9)]
    grouped = bnt.GroupedBatchNorm1d(C, 3, momentum=1.0, dtype=torch.float64, keep_count=True)
    for g, x in enumerate(parts):
        grouped(x, g)
    pooled, whole = grouped.eval().pooled([4, 6, 9]), torch.cat(parts)
    assert type(pooled) is bnt.BatchNorm1d
    assert not pooled.training
    torch.testing.assert_close(pooled.running_mean, whole.mean(0))
    torch.testing.assert_close(pooled.running_var, whole.var(0))
    assert pooled.num_batches_tracked == 3
    assert pooled.weight is not grouped.layer(0).weight
    equal = grouped.pooled()  # a batch each
    mean = torch.stack([x.mean(0) for x in parts]).mean(0)
    torch.testing.assert_close(equal.running_mean, mean)
    between = torch.stack([(x.mean(0) - mean) ** 2 + x.var(0) for x in parts]).mean(0)
    torch.testing.assert_close(equal.running_var, between)
    assert bnt.GroupedBatchNorm1d(C, 2).pooled().num_batches_tracked == 0
    with pytest.raises(ValueError, match="pooled needs running statistics"):
        bnt.GroupedBatchNorm1d(C, 2, track_running_stats=False).pooled()


def _model():
    return nn.Sequential(
        nn.Linear(C, C), nn.BatchNorm1d(C), nn.Sequential(nn.ReLU(), bnt.BatchNorm1d(C, renorm=bn.Renorm()))
    )


def test_convert_groups_replaces_layers_by_groups_that_begin_as_they_were(capsys):
    model = _model()
    model(_randn(8, C))
    own, before = model[1], copy.deepcopy(model).eval()
    result, report = bnt.convert_groups(model, 2, share_affine=True, return_report=True)
    assert result is model
    assert capsys.readouterr().out == "converted 2 batch normalizations\n"
    assert (report.layers, report.total, report.left) == (("1", "2.1"), 2, ())
    assert model[1].layer(0) is own, "an optimizer keeps its parameters"
    assert len(list(model.parameters())) == 6
    assert model[2][1].layer(1).renorm == bn.Renorm()
    model.eval()
    with bnt.groups(model, MIXED % 2):
        torch.testing.assert_close(model(X), before(X))
    bnt.convert_groups(model, 5)
    assert capsys.readouterr().out == "converted 0 batch normalizations\n", "grouped layers are not grouped again"
    assert bnt.convert(model, on_nonfinite="skip", verbose=False)[1].layer(1).on_nonfinite == "skip"


def test_convert_groups_of_a_layer_itself_of_chosen_shared_and_other_layers(capsys):
    alone = bnt.convert_groups(nn.BatchNorm2d(C), 2, verbose=False)
    assert type(alone) is bnt.GroupedBatchNorm2d
    shared = nn.BatchNorm1d(C)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.BatchNorm1d(C), "d": nn.SyncBatchNorm(C)})
    bnt.convert_groups(model, 2, only=["a", "d"])
    assert "layer d (SyncBatchNorm) is left" in capsys.readouterr().out
    assert model["a"] is model["b"][0]
    assert type(model["a"]) is bnt.GroupedBatchNorm1d
    assert type(model["c"]) is nn.BatchNorm1d
    before = [type(m) for m in model.modules()]
    for given, kind, words in (
        ({"groups": 0}, ValueError, "convert_groups: groups must be"),
        ({"groups": 2, "only": "e"}, ValueError, "only names no batch normalization"),
        ({"groups": 2, "only": "d"}, ValueError, "got layer d, a SyncBatchNorm: it has ranks in common already"),
        ({"groups": 2, "share_affine": None}, TypeError, "convert_groups: share_affine must be"),
    ):
        with pytest.raises(kind, match=words):
            bnt.convert_groups(model, **given)
    assert before == [type(m) for m in model.modules()]
    left = nn.Sequential(bnt.SyncBatchNorm(C), type("OwnNorm", (nn.BatchNorm1d,), {})(C), nn.BatchNorm1d(C))
    _, report = bnt.convert_groups(left, 2, verbose=False, return_report=True)
    assert [name for name, *_ in report.left] == ["0", "1"], "ours, too, is not left without a word"
    assert report.left[1][2].endswith("all groups share it, unless you put a grouped layer in its place")
    fused = bnt.fuse(nn.Sequential(nn.Linear(C, C), nn.BatchNorm1d(C), nn.ReLU()), verbose=False)
    with pytest.raises(ValueError, match="layer 1 is part of a fused step; convert the model, then fuse it"):
        bnt.convert_groups(fused, 2)


def test_labels_of_a_block_nest_and_end_with_it():
    model = bnt.convert_groups(_model(), 3, verbose=False)
    direct = copy.deepcopy(model)
    block = bnt.groups(model, MIXED)
    with block, bnt.groups(model, 1):
        model(X)
    assert [int(layer.num_batches_tracked) for layer in model[1].layers] == [0, 1, 0]
    with pytest.raises(RuntimeError), block:
        raise RuntimeError
    with pytest.raises(ValueError, match="needs the group of each sample"):
        model(X)
    with block:
        y = model[1](X)
        assert torch.equal(model[1](X, 0), copy.deepcopy(direct[1])(X, 0)), "labels that are passed go before"
    direct[1](X, 1)
    assert torch.equal(y, direct[1](X, MIXED))
    for labels, kind in ((MIXED.float(), TypeError), (MIXED.reshape(5, 2), ValueError)):
        with pytest.raises(kind, match="groups: labels"):
            bnt.groups(model, labels)
    with pytest.raises(ValueError, match="groups: labels are for grouped layers"):
        bnt.groups(nn.Linear(1, 1), MIXED)
    with pytest.raises(TypeError, match="groups: model must be"):
        bnt.groups([model], MIXED)


def test_functions_on_models_find_the_layers():
    model = bnt.convert_groups(_model(), 3, verbose=False)
    assert len(bnt.state_names(model)) == 30
    with bnt.groups(model, MIXED):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with bnt.hold(model):
            held = model(X)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(held, model(X))
        batches = [(_randn(10, C, seed=i) + i).split(10)[0] for i in range(4)]
        bnt.recalibrate(model, batches, verbose=False)
        whole, labels = model[0](torch.cat(batches)), MIXED.repeat(4)
        for g in range(3):
            torch.testing.assert_close(model[1].layer(g).running_mean, whole[labels == g].mean(0))
        bnt.freeze(model)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        frozen = model.train()(X)
        assert torch.equal(frozen, model.eval()(X))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    bnt.unfreeze(model)
    fused = bnt.fuse(model, verbose=False)
    with bnt.groups(fused, MIXED), bnt.groups(model, MIXED):
        assert torch.equal(fused(X), model(X))
    bnt.revert(model, verbose=False)
    assert type(model[1].layer(1)) is nn.BatchNorm1d
    assert model[1](X, MIXED).shape == X.shape, "layers of torch.nn's are called as they are"


def test_parts_of_a_batch_and_adaptation_are_those_of_each_group():
    """`one_update` and `adapt`: as separate layers on the samples of their groups; a refused part counts nowhere."""
    x, labels = _randn(20, C, 4, 5), torch.tensor([*LABELS["mixed"], *LABELS["an empty group"]])
    grouped = _grouped(x.shape)
    separate = _separate(grouped)
    with bnt.one_update(grouped):
        for part, of_part in zip(x.split(10), labels.split(10), strict=True):
            grouped(part, of_part)
        with pytest.raises(ValueError, match=r"group 2: .*one value per channel"):
            grouped(x[:5, :, :1, :1], [0, 0, 1, 1, 2])
    for g, one in enumerate(separate):
        here = labels == g
        with bnt.one_update(one):
            one(x[:10][here[:10]])
            one(x[10:][here[10:]])
        assert int(one.num_batches_tracked) == 2
        for buffer, expected in zip(grouped.layer(g).buffers(), one.buffers(), strict=True):
            assert torch.equal(buffer, expected)
    grouped.eval()
    with bnt.adapt(grouped, 30.0), bnt.groups(grouped, labels):
        y = grouped(x)
    for g, one in enumerate(separate):
        with bnt.adapt(one.eval(), 30.0):
            assert torch.equal(y[labels == g], one(x[labels == g]))


class _Labelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = bnt.GroupedBatchNorm1d(C, 3)

    def forward(self, x, labels):
        return self.norm(x, labels)


def test_recalibrate_with_labels_in_the_batches():
    """Batches without one of the groups: pooled; the whole data as one batch is refused, for they part."""
    labels = [torch.tensor(each) for each in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 2, 2, 2], [2, 0, 2, 0, 0, 0])]
    data = [(_randn(6, C, seed=i) + i, each) for i, each in enumerate(labels)]
    model = _Labelled()
    with pytest.raises(ValueError, match=r'must call the same layers in the same order.*use how="pooled"'):
        bnt.recalibrate(model, data, forward=lambda model, batch: model(*batch))
    bnt.recalibrate(model, data, how="pooled", verbose=False, forward=lambda model, batch: model(*batch))
    x, of_all = torch.cat([x for x, _ in data]), torch.cat(labels)
    for g in range(3):
        torch.testing.assert_close(model.norm.layer(g).running_var, x[of_all == g].var(0))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
def test_compiled_checkpointed_and_recorded():
    model = bnt.convert_groups(_model(), 3, verbose=False)
    compiled, plain = torch.compile(model, backend="eager"), copy.deepcopy(model)
    for labels in (MIXED, torch.tensor(LABELS["an empty group"])):
        with bnt.groups(model, labels), bnt.groups(plain, labels):
            assert torch.equal(compiled(X), plain(X))
    whole = torch.compile(bnt.GroupedBatchNorm1d(C, 3), backend="eager", fullgraph=True)
    assert torch.equal(whole(X, 1), bnt.GroupedBatchNorm1d(C, 3)(X, 1))
    at = X.clone().requires_grad_()
    before = int(model[1].layer(0).num_batches_tracked)
    with bnt.groups(model, MIXED):
        torch.utils.checkpoint.checkpoint(model[:2], at, use_reentrant=False).sum().backward()
    assert int(model[1].layer(0).num_batches_tracked) == before + 1
    with pytest.raises(ValueError, match="labels of samples are looked at"):
        torch.jit.trace(_Labelled(), (X, MIXED), check_trace=False)


def test_split_batch_norm_of_timm():
    """SplitBatchNorm2d: equal parts of a batch, each with a layer of its own; its first layer evaluates."""
    SplitBatchNorm2d = pytest.importorskip("timm.layers").SplitBatchNorm2d
    theirs = SplitBatchNorm2d(C, num_splits=3)
    ours = bnt.GroupedBatchNorm2d(C, 3)
    for i, layer in enumerate([theirs, *theirs.aux_bn]):
        layer.weight.data += _randn(C, seed=i)
        ours.layer(i).load_state_dict({n: v for n, v in layer.state_dict().items() if "aux_bn" not in n})
    for seed in range(3):
        x = (_randn(12, C, 4, 4, seed=seed) * 2 + 1).requires_grad_()
        copied = x.detach().clone().requires_grad_()
        a, b = theirs(x), ours(copied, torch.arange(3).repeat_interleave(4))
        torch.testing.assert_close(a, b)
        for y in (a, b):
            (y * _randn(12, C, 4, 4, seed=9)).sum().backward()
        torch.testing.assert_close(x.grad, copied.grad)
    for i, layer in enumerate([theirs, *theirs.aux_bn]):
        torch.testing.assert_close(ours.layer(i).running_var, layer.running_var)
        torch.testing.assert_close(ours.layer(i).weight.grad, layer.weight.grad)
    torch.testing.assert_close(theirs.eval()(x), ours.eval()(x, 0))
