"""Everything around a layer in PyTorch: derivatives, transforms, compilers, checkpoints, processes, threads, files."""

from __future__ import annotations

import copy
import io
import os
import pickle
import socket
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import batchnorm.torch as bnt

# Of PyTorch's compiler and forward mode themselves.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

C = 4


def _randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _net(layer=bnt.BatchNorm2d, **options):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, C, 3, padding=1), layer(C, **options), torch.nn.Conv2d(C, 2, 3), layer(2, **options)
    )


class Residual(torch.nn.Module):
    """Every extra input at once: activation, mask and residual."""

    def __init__(self):
        super().__init__()
        self.bn = bnt.BatchNorm2d(C, activation="relu")

    def forward(self, x, mask):
        return self.bn(x, mask=mask, residual=x)


def _layers():
    return {"ours": bnt.BatchNorm2d, "accelerated": torch.nn.BatchNorm2d}


@pytest.fixture(params=["ours", "accelerated"])
def layer_class(request):
    """Our module as it is, and torch.nn's under `accelerate`."""
    if request.param == "ours":
        yield bnt.BatchNorm2d
    else:
        with bnt.accelerate():
            yield torch.nn.BatchNorm2d


# --- derivatives ---


@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("bias",), ("x", "bias"), ("weight", "bias"), ()], ids=str)
def test_any_subset_of_gradients(layer_class, wanted):
    layer, exact = layer_class(C), torch.nn.BatchNorm2d(C).double()
    leaves = []
    for module, dtype in ((layer, torch.float32), (exact, torch.float64)):
        x = _randn(3, C, 5, 5).to(dtype)
        named = {"x": x, "weight": module.weight, "bias": module.bias}
        for name, t in named.items():
            t.requires_grad_(name in wanted)
        y = module(x)
        assert y.requires_grad == bool(wanted)
        if wanted:
            (y * _randn(3, C, 5, 5, seed=1)).sum().backward()
        leaves.append(named)
    for name in named:
        a, b = (group[name].grad for group in leaves)
        if name in wanted:
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
        else:
            assert a is None


def test_forward_mode_and_second_derivatives_agree_with_pytorch(layer_class):
    layer, stock = layer_class(C).double(), torch.nn.BatchNorm2d(C).double()
    x, t = _randn(3, C, 2, 2, dtype=torch.float64), _randn(3, C, 2, 2, seed=1, dtype=torch.float64)

    def tangent(module):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(module(forward_ad.make_dual(x, t))).tangent

    def penalty(module):
        """A gradient penalty, and its derivative by the weight: a second derivative through the batch's statistics."""
        v = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(module(v).pow(3).sum(), v, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [module.weight, v])

    torch.testing.assert_close(tangent(layer), tangent(stock))
    for a, b in zip(penalty(layer), penalty(stock), strict=True):
        torch.testing.assert_close(a, b)


def test_third_derivatives():
    layer = bnt.BatchNorm1d(2, activation="silu").double()
    x = _randn(4, 2, dtype=torch.float64).requires_grad_()

    def second(v):
        (first,) = torch.autograd.grad(layer(v).pow(2).sum(), v, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), v, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, [x])


@pytest.mark.parametrize("options", [{}, {"activation": "relu", "running_correction": 0}], ids=str)
def test_functional_transforms(options):
    """grad, jvp, vmap and functional_call: of a layer in evaluation and, without running statistics, in training."""
    layer = bnt.BatchNorm1d(C, track_running_stats=False, **options).double()
    parameters = dict(layer.named_parameters())
    x = _randn(5, C, dtype=torch.float64)

    def loss(parameters, x):
        return functional_call(layer, parameters, (x,)).pow(3).sum()

    by_func = grad(loss)(parameters, x)
    loss(parameters, x).backward()
    for name, p in parameters.items():
        torch.testing.assert_close(by_func[name], p.grad)
    out, tangent = jvp(lambda v: loss(parameters, v), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(out, loss(parameters, x))
    assert abs(tangent) < 1e-8, "a shift changes nothing"
    batches = _randn(3, 5, C, dtype=torch.float64)
    torch.testing.assert_close(vmap(layer)(batches), torch.stack([layer(b) for b in batches]))
    mask = torch.arange(5) < 4
    masked = vmap(lambda b: layer(b, mask=mask))(batches)
    torch.testing.assert_close(masked, torch.stack([layer(b, mask=mask) for b in batches]))
    tracking = bnt.BatchNorm1d(C, **options).double().eval()
    per_sample = vmap(grad(lambda p, v: functional_call(tracking, p, (v[None],)).sum()), in_dims=(None, 0))
    assert per_sample(dict(tracking.named_parameters()), x)["weight"].shape == (5, C)


# --- compilers and exporters ---


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_compile_without_a_graph_break(training):
    """Outputs, gradients and running statistics of the compiled model are the eager one's."""
    model, mask = Residual().train(training), _randn(6, 8, 8, seed=1) < 0.5
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    for seed in range(2):
        leaves = [_randn(6, C, 8, 8, seed=seed).requires_grad_() for _ in range(2)]
        y, z = model(leaves[0], mask), compiled(leaves[1], mask)
        assert torch.equal(y, z)
        y.square().sum().backward()
        z.square().sum().backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    for a, b in zip(model.state_dict().values(), compiled.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_compile_of_existing_models_under_accelerate(backend):
    """Inductor has its own batch norm; where a backend keeps ATen's operations they are ours. Both agree with eager."""
    torch._dynamo.reset()  # shapes of other tests make sizes dynamic, and PyTorch 2.13's inductor fails on them
    model = _net(torch.nn.BatchNorm2d)
    with bnt.accelerate():
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)
        x = _randn(4, 3, 8, 8)
        served = sum(bnt.status().served.values())
        y = compiled(x)
        y.sum().backward()
        assert (sum(bnt.status().served.values()) > served) == (backend == "aot_eager")
        torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)
    assert compiled._orig_mod[1].num_batches_tracked == 1


def _export_operators(program):
    return {str(n.target) for n in program.graph.nodes if n.op == "call_function"}


@pytest.mark.slow
def test_an_exported_model_does_not_need_us():
    model, mask = Residual().eval(), torch.ones(2, 8, 8, dtype=torch.bool)
    x = _randn(2, C, 8, 8)
    program = torch.export.export(model, (x, mask))
    assert not any("batchnorm::" in name or name.startswith("batchnorm.") for name in _export_operators(program))
    torch.testing.assert_close(program.module()(x, mask), model(x, mask))
    training = torch.export.export(_net().train(), (_randn(4, 3, 8, 8),))
    assert any("batch_norm" in name for name in _export_operators(training))


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "trace"])
def test_onnx_export_runs_elsewhere(dynamo, tmp_path):
    """The exported file, run by onnxruntime, gives the model's outputs."""
    import onnxruntime

    model, x, path = _net(activation="relu").eval(), _randn(2, 3, 8, 8), tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter itself
        torch.onnx.export(model, (x,), str(path), dynamo=dynamo, **({} if dynamo else {"opset_version": 17}))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-4, atol=1e-5)


def test_torch_fx_sees_one_node():
    traced = torch.fx.symbolic_trace(Residual())
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["bn"]
    x, mask = _randn(4, C, 3, 3), torch.rand(4, 3, 3) < 2
    torch.testing.assert_close(traced(x, mask), Residual()(x, mask))


# --- checkpoints, processes, threads ---


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_updates_running_statistics_once(use_reentrant):
    layer, plain = (bnt.BatchNorm2d(C, momentum=0.5, activation="relu") for _ in range(2))
    x, v = (_randn(3, C, 5, 5).requires_grad_() for _ in range(2))
    y = checkpoint(layer, x, use_reentrant=use_reentrant)
    y.square().sum().backward()
    plain(v).square().sum().backward()
    assert layer.num_batches_tracked == 1
    for a, b in zip(layer.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(x.grad, v.grad)


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _train_in_parallel(rank, world, port, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    torch.set_num_threads(1)
    for name, layer in _layers().items():
        handle = bnt.accelerate() if name == "accelerated" else None
        model = torch.nn.parallel.DistributedDataParallel(_net(layer))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            model(_randn(4, 3, 8, 8, seed=10 * step + rank)).square().mean().backward()
            optimizer.step()
        results[rank, name] = {k: v.clone().numpy() for k, v in model.module.state_dict().items()}
        if handle:
            handle.remove()
        del model, optimizer  # before their group: the other way round could stand still
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ddp_on_gloo():
    """Two processes: parameters agree between ranks, and between our modules and torch.nn's under accelerate."""
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_train_in_parallel, args=(2, _free_port(), results), nprocs=2)
        results = dict(results)
    assert len(results) == 4
    names = [n for n in results[0, "ours"] if "running" not in n]
    for name in names:
        ours, other = results[0, "ours"][name], results[1, "ours"][name]
        assert np.array_equal(ours, other), name
        np.testing.assert_allclose(ours, results[0, "accelerated"][name], rtol=1e-4, atol=1e-5)
    assert results[0, "ours"]["1.num_batches_tracked"] == 3


class _Normalizing(torch.utils.data.Dataset):
    def __init__(self, layer):
        self.layer = layer.eval()

    def __len__(self):
        return 8

    def __getitem__(self, i):
        with torch.no_grad():
            return self.layer(_randn(64, C, 24, 24, seed=i)).sum((0, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_dataloader_workers_compute(start):
    layer = bnt.BatchNorm2d(C)
    layer(_randn(64, C, 24, 24))  # the parent has used its threads
    data = _Normalizing(layer)
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=start, timeout=60)
    found = torch.cat(list(loader))
    torch.testing.assert_close(found, torch.stack([data[i] for i in range(8)]))


def test_evaluation_shared_between_threads(layer_class):
    """One model, many threads, evaluation: the same bits as alone."""
    model = _net(layer_class)
    model(_randn(8, 3, 16, 16))
    model.eval()
    inputs = [_randn(4, 3, 16, 16, seed=i) for i in range(4)]
    with torch.no_grad():
        alone = [model(x) for x in inputs]
        wrong = []

        def work(i):
            with torch.no_grad():
                wrong.extend(i for _ in range(20) if not torch.equal(model(inputs[i]), alone[i]))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


# --- copies and files ---


def test_copies_pickles_and_files(tmp_path):
    layer = bnt.BatchNorm2d(C, activation=("leaky_relu", 0.2), on_nonfinite="skip", running_correction=0)
    layer(_randn(3, C, 5, 5) + 1)
    path = tmp_path / "layer.pt"
    torch.save(layer, path)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    restored = bnt.BatchNorm2d(C, activation=("leaky_relu", 0.2), on_nonfinite="skip", running_correction=0)
    restored.load_state_dict(torch.load(buffer))
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(path, weights_only=False), restored]
    x = _randn(3, C, 5, 5, seed=2)
    expected = layer(x)
    for other in copies:
        assert repr(other) == repr(layer)
        assert torch.equal(other(x), expected)
        assert torch.equal(other.running_var, layer.running_var)


# --- precision, devices that are none ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(layer_class, dtype):
    """The convolution's 16-bit output is normalized with float32 parameters, and stays 16-bit, as in PyTorch."""
    model, exact = _net(layer_class), _net(torch.nn.BatchNorm2d)
    x = _randn(4, 3, 12, 12)
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
        y.float().square().sum().backward()
    assert y.dtype == dtype
    assert model[1].weight.grad.dtype == torch.float32
    assert model[1].running_var.dtype == torch.float32
    torch.testing.assert_close(y.float(), exact(x), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("options", [{}, {"activation": "relu", "running_correction": 0}], ids=str)
def test_meta_and_fake_tensors(options):
    layer = bnt.BatchNorm2d(C, device="meta", **options)
    x = torch.empty(3, C, 5, 5, device="meta").contiguous(memory_format=torch.channels_last)
    y = layer(x, residual=x)
    assert (y.device.type, y.shape, y.stride()) == ("meta", x.shape, x.stride())
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        y = bnt.BatchNorm2d(C, **options)(torch.empty(3, C, 5, 5), mask=torch.ones(3, 5, 5, dtype=torch.bool))
        assert y.shape == (3, C, 5, 5)


@pytest.mark.parametrize("selection", ["all", "mask", "sample_weight"])
@pytest.mark.parametrize(
    "options", [{}, {"running_correction": 0}, {"on_nonfinite": "skip", "momentum": None}], ids=str
)
def test_pytorchs_own_operations_mean_the_same(selection, options, monkeypatch):
    """What other devices compute: y, gradients and running statistics as the kernels give them."""
    from batchnorm.torch import _layers

    results = []
    for ours in (True, False):
        monkeypatch.setattr(_layers, "is_native", lambda _, ours=ours: ours)
        layer = bnt.BatchNorm2d(C, activation="silu", **options).double()
        x, r = (_randn(5, C, 3, 4, seed=s, dtype=torch.float64).requires_grad_() for s in range(2))
        for step in range(2):
            given = {"mask": _randn(5, 3, 4, seed=7) < 0.6} if selection == "mask" else {}
            if selection == "sample_weight":
                given = {"sample_weight": _randn(5, 3, 4, seed=7, dtype=torch.float64).abs() + 0.5}
            y = layer(x + step, residual=r, **given)
        grads = torch.autograd.grad(y.pow(3).sum(), [x, r, layer.weight, layer.bias])
        layer.eval()
        results.append([y, *grads, *layer.state_dict().values(), layer(x, residual=r, **given)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_a_batch_in_inference_mode_and_without_grad(layer_class):
    layer, x = layer_class(C), _randn(3, C, 5, 5)
    expected = F.batch_norm(x, None, None, layer.weight, layer.bias, True)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=2e-6)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=2e-6)
    assert layer.num_batches_tracked == 2
