"""On a GPU our layers mean what they mean on the CPU, and where they can be PyTorch's own, they are, bit by bit."""

from __future__ import annotations

import copy
import io
import itertools
import pickle

import numpy as np
import plain_formulas
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import Failed, Ranks

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm.torch.functional import RunningStatistics, batch_norm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")

DEVICE = "cuda"
C = 5
SHAPES = {"1d": (8, C), "sequence": (6, C, 9), "2d": (6, C, 4, 7), "3d": (3, C, 4, 3, 5)}
LAYERS = {"1d": "BatchNorm1d", "sequence": "BatchNorm1d", "2d": "BatchNorm2d", "3d": "BatchNorm3d"}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# Of what float32 sums in an order of their own can do; float64 nearly exact.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def _randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _spread(layer):
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, layer.num_features))
        layer.bias.copy_(torch.linspace(-1, 1, layer.num_features))
    return layer


def _run(layer, x, g, residual=None, **selection):
    """y, and the gradients by x, residual, weight and bias."""
    leaves = [
        t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, residual) if t is not None
    ]
    if residual is not None:
        selection["residual"] = leaves[1]
    y = layer(leaves[0], **selection)
    wanted = [
        *leaves,
        *(p for p in (layer.weight, layer.bias) if p is not None and layer.__dict__.get("train_affine", True)),
    ]
    return [y.detach(), *torch.autograd.grad(y, wanted, g.to(y.dtype))]


def _assert_close(found, expected, dtype):
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        assert (a - b).abs().max() <= TOLERANCE[dtype] * b.abs().max().clamp(min=1), i


def _state(layer):
    return {name: value.clone() for name, value in layer.state_dict().items()}


def _same(state, other):
    return all(torch.equal(value, other[name]) for name, value in state.items())


# --- by default: PyTorch's own ---


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_by_default_a_layer_is_torch_nns_bit_by_bit(kind, dtype):
    parameters = torch.float64 if dtype is torch.float64 else torch.float32
    stock, ours = (
        _spread(getattr(module, LAYERS[kind])(C, device=DEVICE, dtype=parameters)) for module in (torch.nn, bnt)
    )
    for step in range(2):
        x, g = (_randn(*SHAPES[kind], seed=2 * step + i, dtype=dtype).to(DEVICE) for i in range(2))
        for a, b in zip(_run(ours, x, g), _run(stock, x, g), strict=True):
            assert torch.equal(a, b)
    assert _same(ours.state_dict(), stock.state_dict())
    assert torch.equal(ours.eval()(x), stock.eval()(x))


# --- options: what the same layer means on the CPU, in float64 ---

OPTIONS = {
    "relu": {"activation": "relu"},
    "silu": {"activation": "silu"},
    "leaky": {"activation": ("leaky_relu", 0.3)},
    "biased": {"running_correction": 0},
    "counted": {"keep_count": True},
    "ghosts": {"virtual_batch_size": 2},
    "renorm": {"renorm": bn.Renorm(1.2, 0.3, 0, 0, 0)},
    "ghosts, renorm": {"virtual_batch_size": 3, "renorm": bn.Renorm(1.2, 0.3, 0, 0, 0), "activation": "relu6"},
    "frozen": {"normalize_with": "running", "update_running_stats": False},
    "constants": {"train_affine": False},
    "cumulative": {"momentum": None, "on_nonfinite": "skip"},
}
SELECTIONS = ("all", "mask", "sample_weight", "both")


def _selection(name, x):
    shape, g = (x.shape[0], *x.shape[2:]), torch.Generator().manual_seed(5)
    mask = torch.rand(shape, generator=g) < 0.7
    mask[..., :2] = True
    sample_weight = torch.rand(shape, generator=g) * 2 + 0.5
    return {key: t for key, t in (("mask", mask), ("sample_weight", sample_weight)) if name in (key, "both")}


def _compare(options, selection, kind, dtype, channels_last=False, residual=False):
    """Three steps and an evaluation on the GPU, beside those of the same layer in float64 on the CPU."""
    cls = getattr(bnt, LAYERS[kind])
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    ours = _spread(cls(C, device=DEVICE, dtype=wide, **options))
    exact = _spread(cls(C, dtype=torch.float64, **options))
    for step in range(4):
        if step == 3:
            ours.eval(), exact.eval()
        x, g, r = (_randn(*SHAPES[kind], seed=3 * step + i, dtype=dtype) for i in range(3))
        if channels_last:
            x, g, r = (t.contiguous(memory_format=CHANNELS_LAST[t.dim()]) for t in (x, g, r))
        chosen = _selection(selection, x)
        given = {"residual": r} if residual else {}
        found = _run(
            ours, *(t.to(DEVICE) for t in (x, g, *given.values())), **{k: t.to(DEVICE) for k, t in chosen.items()}
        )
        expected = _run(exact, *(t.double() for t in (x, g, *given.values())), **chosen)
        assert found[0].device.type == DEVICE
        assert found[0].dtype == found[1].dtype == dtype
        if channels_last:
            assert found[0].is_contiguous(memory_format=CHANNELS_LAST[x.dim()])
        _assert_close(found, expected, dtype)
        _assert_close(ours.state_dict().values(), exact.state_dict().values(), wide)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("options", OPTIONS)
def test_options_mean_what_they_mean_on_the_cpu(options, selection):
    _compare(OPTIONS[options], selection, "2d", torch.float32)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_rank_and_dtype_with_mask_residual_and_activation(dtype, kind):
    _compare({"activation": "relu"} if dtype.itemsize > 2 else {}, "mask", kind, dtype, residual=True)


@pytest.mark.parametrize(("kind", "selection"), [*itertools.product(["2d", "3d"], ["all", "sample_weight"])])
def test_channels_last_is_kept(kind, selection):
    _compare({"activation": "silu", "keep_count": True}, selection, kind, torch.float32, True, residual=True)


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_variants_are_the_plain_formulas(weighted, renorm, size):
    """Gradients too, against autograd of the formulas in float64, which know nothing of tables and merging."""
    x, g = _randn(7, C, 6) * 3 + 1, _randn(7, C, 6, seed=1)
    layer = _spread(bnt.BatchNorm1d(C, device=DEVICE, dtype=torch.float64, virtual_batch_size=size))
    layer.renorm = bn.Renorm(1.5, 0.5, 0, 0, 0) if renorm else None
    layer(_randn(20, C, 6, seed=2).to(DEVICE) * 2)  # running statistics that are somewhere
    running = [t.detach().cpu().clone().numpy() for t in (layer.running_mean, layer.running_var)]
    corrected = plain_formulas.Renormalized(*running, 1.5, 0.5)
    sample_weight = _selection("sample_weight", x)["sample_weight"] if weighted else None
    found = _run(layer, x.to(DEVICE), g.to(DEVICE), sample_weight=sample_weight.to(DEVICE) if weighted else None)
    parameters = (p.detach().cpu().numpy() for p in (layer.weight, layer.bias))
    options = {
        "size": size,
        "renorm": corrected if renorm else None,
        "counted": sample_weight.numpy() if weighted else None,
    }
    exact = plain_formulas.batch_norm(x.numpy(), g.numpy(), *parameters, **options)
    for a, b in zip(found, exact, strict=True):
        np.testing.assert_allclose(a.cpu().numpy(), b, rtol=1e-5 if weighted else 1e-9, atol=1e-5 if weighted else 1e-9)


def test_second_derivatives():
    layer = _spread(bnt.BatchNorm1d(2, device=DEVICE, dtype=torch.float64, activation="silu", virtual_batch_size=3))
    x = _randn(6, 2, 3).to(DEVICE).requires_grad_()
    mask = (_randn(6, 3, seed=1) < 0.8).to(DEVICE)

    def call(x, w, b):
        return torch.func.functional_call(layer, {"weight": w, "bias": b}, (x, mask))

    leaves = (x, layer.weight.detach().requires_grad_(), layer.bias.detach().requires_grad_())
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


# --- refusals: the same rules, and nothing changed ---


def _on(values):
    return torch.as_tensor(values).to(DEVICE).expand(6, 9)


PLACES = torch.arange(54).reshape(6, 9)
REFUSED = {
    "one value": (lambda layer, x: layer(x[:1, :, :1]), "one value per channel"),
    "a mask of nothing": (lambda layer, x: layer(x, mask=_on(False)), "select nothing"),
    "a mask of one": (lambda layer, x: layer(x, mask=_on(PLACES == 7)), "one counted value"),
    "negative weights": (lambda layer, x: layer(x, sample_weight=_on(-1.0)), "non-negative; got -1"),
    "NaN weights": (lambda layer, x: layer(x, sample_weight=_on(torch.nan)), "finite .*got nan"),
    "small weights": (lambda layer, x: layer(x, sample_weight=_on(0.01)), "sum is more than 1; .*running_correction=0"),
    "a mask elsewhere": (
        lambda layer, x: layer(x, mask=PLACES > 1),
        r"on the input's device, cuda:0; got one on cpu; use mask.to\(input.device\)",
    ),
    "an input elsewhere": (lambda layer, x: layer(x.cpu()), "must be on one device; got cpu and cuda:0"),
    "not finite": (lambda layer, x: _with(layer, on_nonfinite="raise")(x / 0), "on_nonfinite='raise'"),
    "a ghost of one": (lambda layer, x: _with(layer, virtual_batch_size=5)(x[..., :1]), "every ghost batch"),
    "a ghost of nothing": (
        lambda layer, x: _with(layer, virtual_batch_size=3)(x, mask=_on(PLACES < 27)),
        "ghost 1 of 2 .*has 0",
    ),
    "an operation": (
        lambda layer, x: torch.ops.batchnorm.forward(x, None, None, None, None, None, None, 1e-5, 0, 0.0),
        "computes on the CPU; got tensors on cuda:0",
    ),
}


def _with(layer, **options):
    for name, value in options.items():
        setattr(layer, name, value)
    return layer


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_those_of_the_cpu(name):
    call, words = REFUSED[name]
    layer = bnt.BatchNorm1d(C, device=DEVICE)
    before = _state(layer)
    with pytest.raises(ValueError, match=words):
        call(layer, _randn(6, C, 9, dtype=torch.float32).to(DEVICE))
    assert _same(layer.state_dict(), before)


def test_single_values_empty_batches_and_values_that_are_not_finite():
    x = _randn(6, C, 9, dtype=torch.float32).to(DEVICE)
    lenient = bnt.BatchNorm1d(C, device=DEVICE, on_single_value="running", on_nonfinite="skip")
    before = _state(lenient)
    one = torch.arange(54, device=DEVICE).reshape(6, 9) == 7
    assert torch.allclose(lenient(x, mask=one), F.batch_norm(x, lenient.running_mean, lenient.running_var))
    lenient(x[:1, :, :1])
    lenient(x * torch.nan)
    lenient(x[:0])
    assert _same(lenient.state_dict(), before)


# --- models ---


def _model():
    torch.manual_seed(0)
    first = [torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
    return torch.nn.Sequential(*first, torch.nn.Conv2d(8, 4, 3), torch.nn.BatchNorm2d(4)).to(DEVICE)


def _image(n=4):
    return _randn(n, 3, 12, 12, dtype=torch.float32).to(DEVICE)


def _step(model, x):
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters()), *_state(model).values()]


def test_accelerate_leaves_the_gpu_alone():
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        expected = _step(_model(), _image())
        with bnt.accelerate():
            before = bnt.status()
            found = _step(_model(), _image())
            after = bnt.status()
    assert (before.served, before.passed_on) == (after.served, after.passed_on)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_convert_revert_and_fuse():
    expected = _step(_model(), _image())
    model = bnt.convert(_model(), verbose=False)
    assert type(model[1]) is bnt.BatchNorm2d
    torch.testing.assert_close(_step(model, _image()), expected, rtol=1e-4, atol=1e-4)
    assert type(bnt.revert(model, verbose=False)[1]) is torch.nn.BatchNorm2d
    fused = bnt.fuse(_model(), verbose=False)
    torch.testing.assert_close(_step(fused, _image()), expected, rtol=1e-4, atol=1e-4)


def test_states_copies_and_pickles_go_to_and_fro():
    layer = bnt.BatchNorm1d(C, device=DEVICE, keep_count=True, renorm=bn.Renorm())
    layer(_randn(8, C, dtype=torch.float32).to(DEVICE))
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert again.running_count.device.type == DEVICE
        assert _same(again.state_dict(), layer.state_dict())
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    on_cpu = bnt.BatchNorm1d(C, keep_count=True)
    on_cpu.load_state_dict(torch.load(file, map_location="cpu"))
    assert _same(on_cpu.state_dict(), copy.deepcopy(layer).cpu().state_dict())
    moved = copy.deepcopy(on_cpu).to(DEVICE)
    assert _same(moved.state_dict(), layer.state_dict())
    x = _randn(8, C, seed=1, dtype=torch.float32)
    _assert_close([moved.eval()(x.to(DEVICE))], [on_cpu.eval()(x)], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_computes_16_bit_data_with_float32_parameters(dtype):
    class Masked(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 8, 3), norm

        def forward(self, x, **more):
            return self.norm(self.conv(x), **more)

    torch.manual_seed(0)
    model = Masked(bnt.BatchNorm2d(8, activation="relu")).to(DEVICE)
    stock = Masked(torch.nn.BatchNorm2d(8)).to(DEVICE)
    stock.conv.load_state_dict(model.conv.state_dict())
    mask = torch.ones(4, 10, 10, dtype=torch.bool, device=DEVICE)
    for more in ({}, {"mask": mask}):
        with torch.autocast(DEVICE, dtype=dtype):
            y, expected = model(_image(), **more), F.relu(stock(_image()))
        assert y.dtype == dtype
        _assert_close([y], [expected], dtype)
        y.float().square().sum().backward()
    assert model.norm.weight.grad.dtype == torch.float32
    _assert_close([model.norm.running_var], [stock.norm.running_var], torch.float32)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_counts_once(use_reentrant):
    layer = bnt.BatchNorm2d(3, device=DEVICE, running_correction=0)
    x = _image().requires_grad_()
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()
    assert layer.num_batches_tracked == 1


def test_a_cuda_graph_replays_a_layer_with_a_mask():
    """While a graph is captured nothing waits for the device."""
    layer = bnt.BatchNorm2d(3, device=DEVICE, activation="relu")
    x, mask = _image(), torch.ones(4, 12, 12, dtype=torch.bool, device=DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        layer(x, mask=mask)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = layer(x, mask=mask)
    x.copy_(_randn(4, 3, 12, 12, seed=7) * 3 + 2)
    graph.replay()
    exact = bnt.BatchNorm2d(3, dtype=torch.float64, activation="relu")(x.cpu().double())
    _assert_close([y], [exact], torch.float32)
    assert layer.num_batches_tracked == 2


COMPILED = {
    "plain": ({}, False),
    "mask": ({"on_nonfinite": "skip"}, True),
    "renorm": ({"renorm": bn.Renorm(1.2, 0.3, 0, 0, 0)}, False),
    "running": ({"normalize_with": "running", "update_running_stats": True}, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_layers(name):
    options, masked = COMPILED[name]
    layer = _spread(bnt.BatchNorm2d(3, device=DEVICE, activation="relu", **options))
    layer.running_mean.fill_(0.5)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True)
    more = {"mask": torch.rand(4, 12, 12, device=DEVICE) < 0.7} if masked else {}
    for step in range(2):
        x, g = (_randn(4, 3, 12, 12, seed=2 * step + i, dtype=torch.float32).to(DEVICE) for i in range(2))
        _assert_close(_run(compiled, x, g, **more), _run(layer, x, g, **more), torch.float32)
    _assert_close(compiled.state_dict().values(), layer.state_dict().values(), torch.float32)


# --- functions, and statistics of several ---


def test_the_function_that_changes_nothing():
    x, weight = _randn(6, C, 4).to(DEVICE), torch.linspace(0.5, 2, C, dtype=torch.float64, device=DEVICE)
    mask = bnt.mask_from_lengths(torch.tensor([4, 1, 2, 4, 3, 4], device=DEVICE))
    given = RunningStatistics.initial(C, device=DEVICE, dtype=torch.float64)
    whole, stats = batch_norm(x, given, weight, mask=mask, activation="relu", training=True)
    exact, expected = batch_norm(
        x.cpu(),
        RunningStatistics(*(t.cpu() for t in given)),
        weight.cpu(),
        mask=mask.cpu(),
        activation="relu",
        training=True,
    )
    _assert_close([whole, *stats], [exact, *expected], torch.float64)
    parts, _ = batch_norm(list(x.split(2)), given, weight, mask=list(mask.split(2)), activation="relu", training=True)
    _assert_close([torch.cat(parts)], [exact], torch.float64)

    def loss(x, weight):
        return batch_norm(x, None, weight, training=True)[0].pow(4).mean()

    _assert_close([torch.func.grad(loss)(x, weight)], [torch.func.grad(loss)(x.cpu(), weight.cpu())], torch.float64)
    assert torch.func.vmap(lambda w: loss(x, w))(torch.stack([weight, weight])).device.type == DEVICE
    with pytest.raises(ValueError, match="finite and non-negative"):
        batch_norm(x, None, sample_weight=-torch.ones(6, 4, device=DEVICE), training=True)


def test_states_of_several_devices_are_merged_on_that_of_the_first():
    layers = [bnt.BatchNorm1d(C, momentum=1.0, dtype=torch.float64, device=d) for d in (DEVICE, "cpu", DEVICE)]
    parts = [_randn(n, C, seed=n) + n for n in (4, 9, 6)]
    for layer, x in zip(layers, parts, strict=True):
        layer(x.to(layer.weight.device))
    merged = bnt.merge_state_dicts(layers, [4, 9, 6])
    assert {value.device.type for value in merged.values()} == {DEVICE}
    _assert_close(
        [merged["running_mean"], merged["running_var"]],
        [torch.cat(parts).mean(0), torch.cat(parts).var(0)],
        torch.float64,
    )
    assert merged["num_batches_tracked"] == 3


def _synchronized(rank, x, g, reproducible):
    layer = _spread(bnt.SyncBatchNorm(C, device=DEVICE, dtype=torch.float64, reproducible=reproducible))
    results = _run(layer, x.to(DEVICE), g.to(DEVICE))
    return [t.cpu().numpy() for t in (*results[:2], *_state(layer).values())]


@pytest.mark.slow
@pytest.mark.parametrize("reproducible", [False, True])
def test_ranks_that_share_a_gpu_are_one_batch(reproducible):
    """Through gloo, since NCCL wants a device for each rank."""
    ranks = Ranks(2, [])
    x, g = _randn(7, C, 3) * 2 + 1, _randn(7, C, 3, seed=1)
    try:
        found = ranks.run(_synchronized, [x[:3], x[3:]], [g[:3], g[3:]], [reproducible] * 2)
    finally:
        ranks.close()
    assert not any(isinstance(answer, Failed) for answer in found), found
    exact = _spread(bnt.BatchNorm1d(C, dtype=torch.float64))
    y, by_x, *_ = _run(exact, x, g)
    for i, expected in enumerate((y, by_x)):
        np.testing.assert_allclose(
            np.concatenate([answer[i] for answer in found]), expected.numpy(), rtol=1e-10, atol=1e-12
        )
    for answer in found:
        for value, expected in zip(answer[2:], exact.state_dict().values(), strict=True):
            np.testing.assert_allclose(value, expected.numpy(), rtol=1e-10)


@pytest.mark.skipif(not dist.is_nccl_available(), reason="this PyTorch has no NCCL")
def test_nccl_carries_the_tables(tmp_path):
    """Of one rank, as NCCL wants a device for each; the collective is made although nobody else is there."""
    from batchnorm.torch import _ranks

    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        layer = bnt.SyncBatchNorm(C, device=DEVICE)
        x = _randn(6, C, 3, dtype=torch.float32).to(DEVICE)
        assert torch.equal(layer(x), bnt.BatchNorm1d(C, device=DEVICE)(x))
        message = torch.arange(9, dtype=torch.float64, device=DEVICE)
        ranks = _ranks.Ranks(None, False, "SyncBatchNorm")
        gathered = ranks._collective(message)
        assert len(gathered) == 1
        assert torch.equal(gathered[0], message)
    finally:
        dist.destroy_process_group()


def test_groups_and_a_ghost_of_one():
    """Labels may lie on the CPU; the statistics are those of layers on the CPU."""
    x, labels = _randn(21, C, dtype=torch.float32), torch.arange(21) % 3
    here = bnt.GroupedBatchNorm1d(C, 3, virtual_batch_size=3, on_single_value="running")
    there = copy.deepcopy(here).to(DEVICE)
    for given in (labels, labels.to(DEVICE), labels.flip(0)):
        y = there(x.to(DEVICE), given)
        torch.testing.assert_close(y.cpu(), here(x, given.cpu()), rtol=2e-5, atol=2e-5)
    for a, b in zip(here.buffers(), there.buffers(), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=2e-5, atol=2e-5)
    before = there.eval()(x.to(DEVICE), labels)
    bnt.set_eps(there, 1e-4)
    torch.testing.assert_close(there(x.to(DEVICE), labels), before, rtol=2e-5, atol=2e-5)
