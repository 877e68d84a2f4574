"""A fused model among others: the modules around, hooks, copies, files, compilers."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from fuse_models import (
    DenseNet,
    Net,
    ResidualBlock,
    ResNet,
    _x,
    assert_same,
    fused_and_converted,
    passes_of,
)
from torch import Tensor, nn

import batchnorm.torch as bnt


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors are tiny; on a busy machine threads that wait for each other cost seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- the modules around ---


def test_the_model_given_is_as_it_was_and_learns_with_the_fused_one():
    model = ResNet()
    model.layer1[0].bn1.register_forward_hook(lambda *_: None)
    before = {name: (type(m), m, m.training, set(m.__dict__)) for name, m in model.named_modules()}
    fused = bnt.fuse(model, verbose=False)
    fused.eval()
    fused.layer1[0].register_forward_hook(lambda *_: None)
    fused.fc = nn.Identity()
    assert {name: (type(m), m, m.training, set(m.__dict__)) for name, m in model.named_modules()} == before
    assert not model.layer1[0]._forward_hooks

    fused = bnt.fuse(model, verbose=False)
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.1)
    start = copy.deepcopy(model.state_dict())
    for seed in range(2):
        optimizer.zero_grad()
        fused(_x(seed=seed)).square().mean().backward()
        optimizer.step()
    assert int(model.stem[1].num_batches_tracked) == 2
    assert not torch.equal(model.stem[1].weight, start["stem.1.weight"])
    torch.testing.assert_close(model.state_dict(), fused.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(model.eval()(_x()), fused.eval()(_x()), rtol=1e-4, atol=1e-4)

    fused.double()
    assert {t.dtype for t in model.state_dict().values()} == {torch.float64, torch.int64}
    torch.testing.assert_close(model(_x().double()), fused(_x().double()))


def test_tensors_that_are_no_buffers_are_shared_too():
    model = Net(lambda m, x: F.relu(m.norm(x)) * m.scale)
    model.scale, model.listed = torch.tensor(2.0, requires_grad=True) * 1, [model.conv.weight]
    fused = bnt.fuse(model, verbose=False)
    assert fused.scale is model.scale
    assert fused.listed[0] is model.conv.weight
    assert passes_of(fused, _x()) == []


def test_each_part_called_by_itself_computes_what_it_did():
    fused, expected = fused_and_converted(ResNet())
    x = _x(4, 4, 3, 3)
    block, block_expected = fused.layer1[1], expected.layer1[1]
    assert_same(block, block_expected, x)
    assert passes_of(block, x) == []
    assert torch.equal(block.bn1(_x(4, 6, 2, 2)), block_expected.bn1(_x(4, 6, 2, 2)))
    assert torch.equal(fused.layer1[:1](x), expected.layer1[:1](x))
    assert torch.equal(fused.features(_x()), expected.features(_x()))
    first, first_expected = (nn.Sequential(*list(m.children())[1:3]) for m in (fused, expected))
    assert torch.equal(first(_x()), first_expected(_x()))


HOOKED = ["stem", "layer1.0", "layer1.1.downsample", "layer1.0.bn2", "layer1.0.relu", "stem.2"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", HOOKED)
def test_hooks_see_what_they_saw(name, when):
    """Forward, pre and backward hooks, there when the model is fused or registered later."""

    def hook(model: nn.Module, seen: list[Tensor]) -> None:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
        module.register_forward_hook(lambda _, args, y: seen.append(y.detach().clone()))
        module.register_full_backward_hook(lambda _, by_input, by_output: seen.append(by_output[0].clone()))

    model = ResNet()
    for m in model.modules():
        if isinstance(m, nn.ReLU):
            m.inplace = False  # full backward hooks do not go with writing in place
        elif isinstance(m, ResidualBlock):
            m.writes = False
    seen: list[Tensor] = []
    seen_expected: list[Tensor] = []
    if when == "before":
        hook(model, seen)
    fused, expected = fused_and_converted(model)
    if when == "after":
        hook(fused, seen)
    else:
        module = expected.get_submodule(name)
        for hooks in (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks):
            hooks.clear()
    hook(expected, seen_expected)
    assert_same(fused, expected, _x())
    assert len(seen) == len(seen_expected) >= 9
    for a, b in zip(seen, seen_expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_hooked_layers_are_named_and_the_rest_is_fused(capsys):
    model = ResNet()
    model.stem[1].register_forward_hook(lambda *_: None)
    model.layer1[0].relu.register_forward_pre_hook(lambda *_: None)
    bnt.fuse(model)
    printed = capsys.readouterr().out
    assert "layer stem.1 (BatchNorm2d) is left: it has hooks, which see what a fused step does not compute" in printed
    assert "layer layer1.0.bn1 (BatchNorm2d) is left: no fusable activation follows (ReLU with hooks)" in printed
    assert " layer1.0.bn2 with add\n" in printed


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("layer1.1.bn2", nn.Identity()),
        ("layer1.0.relu", nn.GELU()),
        ("layer1.0", nn.Conv2d(4, 4, 1)),
        ("fc", nn.ReLU()),
    ],
    ids=["batch norm", "activation", "block", "head"],
)
def test_a_module_put_in_the_place_of_another_is_used(name, module):
    fused, expected = fused_and_converted(ResNet())
    for model in (fused, expected):
        model.set_submodule(name, copy.deepcopy(module))
    assert_same(fused, expected, _x())


def test_a_layer_appended_is_called():
    fused, expected = fused_and_converted(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    for model in (fused, expected):
        model.append(nn.Tanh())
    assert_same(fused, expected, _x())


def test_modules_that_a_model_holds_in_lists_of_its_own():
    class Listing(Net):
        def __init__(self) -> None:
            super().__init__(lambda m, x: m.steps[1](m.steps[0](x)))
            self.steps = [self.bn, self.relu]

    fused, expected = fused_and_converted(Listing())
    assert fused.steps[0] is fused.bn
    assert passes_of(fused, _x()) == []
    assert_same(fused, expected, _x())


def test_revert_takes_the_fusing_back():
    model = ResNet()
    fused = bnt.revert(bnt.fuse(model, verbose=False), verbose=False)
    assert [type(m) for m in fused.modules()] == [type(m) for m in model.modules()]
    assert [m.__dict__.keys() for m in fused.modules()] == [m.__dict__.keys() for m in model.modules()]
    assert torch.equal(fused.eval()(_x()), model.eval()(_x()))


# --- copies, files, compilers ---


def _copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def _pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _fused_again(model: nn.Module) -> nn.Module:
    return bnt.fuse(model, verbose=False)


@pytest.mark.parametrize("made", [_copied, _pickled, _saved, _fused_again], ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("build", [ResNet, DenseNet])
def test_copies_stay_fused_and_are_models_of_their_own(made, build):
    fused, expected = fused_and_converted(build())
    made_from = made(fused)
    assert passes_of(made_from, _x()) == []
    assert_same(made_from, expected, _x())
    if made is not _fused_again:
        with torch.no_grad():
            for parameter in fused.parameters():
                parameter.zero_()
        assert_same(made_from, expected, _x())


def test_compiled():
    fused, expected = fused_and_converted(ResNet())
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    for training in (True, False):
        torch.testing.assert_close(compiled.train(training)(_x()), expected.train(training)(_x()), rtol=1e-6, atol=1e-6)


def test_exported():
    fused, expected = fused_and_converted(ResNet().eval())
    exported = torch.export.export(fused, (_x(),))
    torch.testing.assert_close(exported.module()(_x()), expected(_x()), rtol=1e-4, atol=1e-5)


def test_traced_by_others_it_is_the_forward_of_its_class():
    fused, expected = fused_and_converted(ResNet().eval())
    assert torch.equal(torch.fx.symbolic_trace(fused)(_x()), expected(_x()))
    assert torch.equal(torch.fx.symbolic_trace(nn.Sequential(fused))(_x()), expected(_x()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is (deprecated|not supported):DeprecationWarning")
def test_traced_by_torch_jit():
    """Without its warning that a comparison of shapes is decided for good."""
    fused, expected = fused_and_converted(ResNet().eval())
    traced = torch.jit.trace(fused, (_x(),))
    torch.testing.assert_close(traced(_x(2, 3, 7, 7)), expected(_x(2, 3, 7, 7)), rtol=1e-4, atol=1e-5)


def test_a_graph_module_can_be_fused():
    expected = bnt.convert(ResNet().eval(), verbose=False)
    fused = bnt.fuse(torch.fx.symbolic_trace(expected), verbose=False)
    assert passes_of(fused, _x()) == []
    assert torch.equal(fused(_x()), expected(_x()))


def test_functional_calls():
    fused, expected = fused_and_converted(ResNet().eval())
    parameters = {name: 2 * p.detach() for name, p in fused.named_parameters()}
    y = torch.func.functional_call(fused, parameters, (_x(),))
    assert torch.equal(y, torch.func.functional_call(expected, parameters, (_x(),)))
    assert not torch.equal(y, expected(_x()))


def test_a_model_that_cannot_be_copied_is_refused():
    model = nn.Sequential(nn.BatchNorm1d(3))
    model.lock = threading.Lock()
    with pytest.raises(
        TypeError, match=r"fuse: the modules of a model must be copyable .* got a Sequential that is not"
    ):
        bnt.fuse(model)
