"""`freeze`: what stays, under what; `unfreeze` is its inverse; a frozen layer keeps nothing for its backward."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import pickle
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import batchnorm.torch as bnt


class Act(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: torch.nn's forward by its own hand, dropout and an activation with a parameter."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.drop, self.act = nn.Dropout(0.5), nn.PReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.running_mean is not None
        assert self.num_batches_tracked is not None
        if self.training:
            self.num_batches_tracked.add_(1)
        x = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum or 0.0
        )
        y: torch.Tensor = self.act(self.drop(x))
        return y


class Centered(nn.Module):
    """A parametrization."""

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w - w.mean() + 1


def _parametrized() -> nn.Module:
    layer = nn.BatchNorm2d(4)
    parametrize.register_parametrization(layer, "weight", Centered())
    return layer


KINDS: dict[str, Callable[[], nn.Module]] = {
    "torch.nn": lambda: nn.BatchNorm2d(4),
    "torch.nn, momentum None": lambda: nn.BatchNorm2d(4, momentum=None),
    "torch.nn, not affine": lambda: nn.BatchNorm2d(4, affine=False),
    "torch.nn, in evaluation": lambda: nn.BatchNorm2d(4).eval(),
    "torch.nn, weight not trained": lambda: nn.BatchNorm2d(4).requires_grad_(False),
    "torch.nn, synchronized": lambda: nn.SyncBatchNorm(4),
    "ours": lambda: bnt.BatchNorm2d(4, activation="relu", keep_count=True),
    "ours, frozen by hand": lambda: bnt.BatchNorm2d(4, normalize_with="running", train_affine=False),
    "ours, ghosts": lambda: bnt.BatchNorm2d(4, virtual_batch_size=2),
    "ours, synchronized": lambda: bnt.SyncBatchNorm(4),
    "converted and synchronized": lambda: bnt.convert_sync(nn.BatchNorm2d(4), verbose=False),
    "a class of its own": lambda: Act(4),
    "parametrized": _parametrized,
}
OF_THEIR_OWN = ("a class of its own", "parametrized")


def network(kind: str) -> nn.Sequential:
    """A trained layer between others, and once more at the end: shared."""
    torch.manual_seed(0)
    layer = KINDS[kind]()
    was = layer.training
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Conv2d(4, 4, 1), layer, nn.Flatten(), nn.Linear(36, 2))
    layer.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 5, 5) * 2 + 1)
    layer.train(was)
    return model


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, n: int = 2) -> None:
    for _ in range(n):
        model(torch.randn(4, 3, 5, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # zeros, which momentum and decay would move weights by


def descent(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.1)


def bits(state: dict[str, Any]) -> dict[str, bytes]:
    return {name: t.detach().numpy().tobytes() for name, t in state.items()}


def own(layer: nn.Module) -> dict[str, bytes]:
    """Statistics, weight and bias; not what else is in a class of its own."""
    names = ("weight", "bias", "running_", "num_batches", "parametrizations")
    return {name: b for name, b in bits(layer.state_dict()).items() if name.startswith(names)}


def _pickled(model: nn.Module) -> nn.Module:
    again: nn.Module = pickle.loads(pickle.dumps(model))
    return again


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again: nn.Module = torch.load(file, weights_only=False)
    return again


def _written_to(model: nn.Module) -> nn.Module:
    for module in model.modules():
        module.training = True
    return model


def _loaded(model: nn.Module) -> nn.Module:
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=False)
    return model


def _trainable(model: nn.Module) -> nn.Module:
    return model.requires_grad_(True)  # as trainers do when they unfreeze a backbone


def _checkpointed(reentrant: bool) -> Callable[[nn.Module], nn.Module]:
    class Checkpointed(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = checkpoint(self.model, x.requires_grad_(), use_reentrant=reentrant)
            return y

    return Checkpointed


EVENTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "nothing": lambda model: model,
    "train": lambda model: model.train(),
    "eval and train": lambda model: model.eval().train(),
    "deepcopy": lambda model: copy.deepcopy(model).train(),
    "pickle": lambda model: _pickled(model).train(),
    "save": lambda model: _saved(model).train(),
    "load_state_dict": _loaded,
    "checkpoint": _checkpointed(False),
    "reentrant checkpoint": _checkpointed(True),
    "fuse": lambda model: bnt.fuse(model, verbose=False).train(),
    "freeze again": lambda model: bnt.freeze(model, verbose=False).train(),
}
NOT_FOR_A_CLASS_OF_ITS_OWN = {"training = True": _written_to, "requires_grad_(True)": _trainable}


def _layer_of(model: nn.Module) -> Any:
    return next(module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        (kind, event)
        for kind in KINDS
        for event in (*EVENTS, *(() if kind in OF_THEIR_OWN else NOT_FOR_A_CLASS_OF_ITS_OWN))
        if kind != "parametrized" or event not in ("pickle", "save")  # which PyTorch refuses
    ],
)
def test_a_frozen_layer_stays(kind: str, event: str):
    model = bnt.freeze(network(kind).train(), verbose=False)
    model = (EVENTS | NOT_FOR_A_CLASS_OF_ITS_OWN)[event](model)
    layer = _layer_of(model)
    assert len(bnt.frozen(model)) == 1
    before, optimizer = own(layer), descent(model)
    steps(model, optimizer)
    assert own(layer) == before
    x, drop = torch.randn(4, 4, 5, 5), getattr(layer, "drop", nn.Identity())
    drop.eval()
    ys = [layer(x), torch.cat([layer(sample) for sample in x.split(1)])]
    model.eval()
    ys.append(layer(x))
    assert all(torch.equal(y, ys[0]) for y in ys)
    assert own(layer) == before


def _without_gradients(optimizer: torch.optim.Optimizer) -> Any:
    return {
        k: (v.tolist() if isinstance(v, torch.Tensor) else v)
        for i, s in optimizer.state_dict()["state"].items()
        for k, v in {(i, name): value for name, value in s.items()}.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_unfreeze_is_the_inverse(kind: str):
    """By bits, with the state, the optimizer, hooks, repr and whatever is in the layers' dictionaries."""
    model = network(kind).train()
    layer = _layer_of(model)
    calls: list[int] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    optimizer = descent(model)
    steps(model, optimizer)

    def facts() -> Any:
        flags = [(p.requires_grad, id(p)) for p in model.parameters()]
        dictionaries = [{k: v for k, v in m.__dict__.items() if k[0] != "_"} for m in model.modules()]
        kinds = [(type(m), id(m), m.training, sorted(m.__dict__)) for m in model.modules()]
        state = bits(model.state_dict())
        return repr(model), list(state), state, flags, dictionaries, kinds, _without_gradients(optimizer)

    before = facts()
    bnt.freeze(model, verbose=False)
    assert facts()[1] == before[1]  # no name of the state is another
    bnt.freeze(model, train_affine=True, verbose=False)
    bnt.freeze(model, verbose=False)
    bnt.unfreeze(model, verbose=False)
    assert facts() == before
    assert bnt.frozen(model) == []
    assert not any(hasattr(module, "_before_freeze") for module in model.modules())
    calls.clear()
    model.train()(torch.randn(4, 3, 5, 5))
    assert len(calls) == 2  # the layer is in two places


def test_the_mode_that_was_asked_for_meanwhile_comes_back():
    model = bnt.freeze(nn.Sequential(Act(4)).train(), verbose=False)
    model.eval()
    assert not bnt.unfreeze(model, verbose=False)[0].training
    model = bnt.freeze(model, verbose=False).train()
    assert (model[0].training, model[0].drop.training) == (False, True)
    assert bnt.unfreeze(model, verbose=False)[0].training


SWITCHES = list(itertools.product(("auto", "batch", "running"), (None, False, True), (False, True)))


@pytest.mark.parametrize(("normalize_with", "update_running_stats", "train_affine"), SWITCHES)
@pytest.mark.parametrize("kind", ["torch.nn", "ours"])
def test_every_combination_of_switches_is_that_of_the_layer(kind, normalize_with, update_running_stats, train_affine):
    torch.manual_seed(1)
    model, x = nn.Sequential(KINDS[kind]()), torch.randn(4, 4, 3, 3, requires_grad=True)
    options = {"activation": "relu", "keep_count": True} if kind == "ours" else {}
    switches = {
        "normalize_with": normalize_with, "update_running_stats": update_running_stats, "train_affine": train_affine,
    }  # fmt: skip
    built = bnt.BatchNorm2d(4, **options, **switches)
    bnt.freeze(model, **switches, verbose=False)
    for training in (True, False):
        y, expected = model.train(training)(x), built.train(training)(x)
        assert torch.equal(y, expected)
        assert bits(model[0].state_dict()) == bits(built.state_dict())
        assert y.requires_grad
    assert [p.requires_grad for p in model.parameters()] == [train_affine] * 2
    assert bnt.frozen(model)[0][2:5] == (normalize_with, update_running_stats, train_affine)
    other = bnt.freeze(model, verbose=False)
    assert bnt.frozen(other)[0][2:] == ("running", False, False, "switches")


def test_only_some_layers_and_the_report(capsys):
    class BatchNormFrozen(nn.Module):
        pass

    model = nn.Sequential(nn.BatchNorm2d(4), Act(4), nn.Sequential(nn.BatchNorm2d(4)), BatchNormFrozen())
    bnt.freeze(model)
    assert capsys.readouterr().out == (
        "froze 3 batch normalizations\n"
        "layer 1 (Act) is kept in evaluation: code that writes to its `training` undoes that\n"
        "layer 3 (BatchNormFrozen) is left: the class is not torch.nn's, whatever it computes\n"
    )
    bnt.unfreeze(model, only=["0", "1"])
    assert capsys.readouterr().out == "unfroze 2 batch normalizations\n"
    assert [(layer.name, layer.kind, layer.how) for layer in bnt.frozen(model)] == [("2.0", "BatchNorm2d", "switches")]
    bnt.freeze(model, only="1", train_affine=True)
    assert [layer.train_affine for layer in bnt.frozen(model)] == [True, False]
    assert bnt.frozen(model)[0].how == "train()"
    assert bnt.freeze(model, only=lambda name, layer: False, verbose=False) is model


def test_what_was_converted_since_stays_converted():
    model = nn.Sequential(nn.BatchNorm2d(4))
    bnt.freeze(model, verbose=False)
    bnt.convert_sync(model, verbose=False)
    bnt.unfreeze(model, verbose=False)
    assert type(model[0]) is bnt.SyncBatchNorm
    assert type(bnt.revert(model, verbose=False)[0]) is nn.BatchNorm2d
    bnt.freeze(model, verbose=False)
    assert type(bnt.revert(model, verbose=False)[0]) is bnt.BatchNorm2d  # torch.nn's has no switches
    bnt.unfreeze(model, verbose=False)
    assert type(model[0]) is nn.BatchNorm2d


@pytest.mark.parametrize(
    ("layer", "switches", "kind", "said"),
    [
        (nn.LazyBatchNorm2d, {}, ValueError, "freeze: 1 (LazyBatchNorm2d) has no parameters yet"),
        (
            lambda: nn.BatchNorm2d(4, track_running_stats=False), {}, ValueError,
            "freeze: 1 (BatchNorm2d): normalize_with='running' needs running statistics",
        ),
        (
            lambda: Act(4), {"normalize_with": "batch"}, ValueError,
            "freeze: 1 (Act) is a class of its own, which has no switches",
        ),
        (lambda: Act(4), {"update_running_stats": True}, ValueError, "got 'running' and True; leave it out with only="),
        (lambda: nn.BatchNorm2d(4), {"normalize_with": "runing"}, ValueError, "did you mean 'running'?"),
        (lambda: nn.BatchNorm2d(4), {"train_affine": None}, TypeError, "freeze: train_affine must be True, or False"),
    ],
)  # fmt: skip
def test_refusals_change_nothing(layer, switches, kind, said):
    model = nn.Sequential(nn.BatchNorm2d(4), layer())
    before = [copy.copy(module.__dict__) for module in model.modules()]
    with pytest.raises(kind, match=re.escape(said)):
        bnt.freeze(model, **switches)
    assert [module.__dict__ for module in model.modules()] == before
    assert model[0].weight.requires_grad
    assert type(model[0]) is nn.BatchNorm2d


@pytest.mark.parametrize("function", [bnt.freeze, bnt.unfreeze, bnt.frozen])
def test_what_is_no_model_is_refused(function):
    with pytest.raises(TypeError, match=f"{function.__name__}: model must be a torch.nn.Module; got the class"):
        function(nn.BatchNorm2d)


def test_a_model_in_distributed_data_parallel_is_refused():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        _wrapped_models_are_refused()
        gc.collect()  # before the group: a wrapped model that is its last owner waits for its threads with the GIL
    finally:
        torch.distributed.destroy_process_group()


def _wrapped_models_are_refused() -> None:
    model = network("torch.nn")
    ddp = nn.parallel.DistributedDataParallel(model)
    with pytest.raises(ValueError, match=r"freeze: DistributedDataParallel exchanges the gradients .* freeze\(ddp"):
        bnt.freeze(ddp)
    assert bnt.frozen(ddp) == []
    bnt.freeze(ddp, train_affine=True, verbose=False)  # all gradients are there
    before, optimizer = own(_layer_of(ddp))["running_var"], descent(ddp)
    steps(ddp, optimizer, 3)
    assert own(_layer_of(ddp))["running_var"] == before
    bnt.unfreeze(ddp, verbose=False)
    bnt.freeze(model, verbose=False)  # before wrapping
    ddp = nn.parallel.DistributedDataParallel(model)
    before, optimizer = own(_layer_of(ddp)), descent(ddp)
    steps(ddp, optimizer, 3)
    assert own(_layer_of(ddp)) == before
    with pytest.raises(ValueError, match="unfreeze: DistributedDataParallel exchanges the gradients"):
        bnt.unfreeze(ddp)
    assert len(bnt.frozen(ddp)) == 1


@pytest.mark.slow
def test_a_compiled_model_is_frozen_and_unfrozen():
    model = network("torch.nn").train()
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(4, 3, 5, 5)
    compiled(x)
    bnt.freeze(compiled, verbose=False)
    before = own(_layer_of(model))
    y = compiled(x)
    y.sum().backward()
    assert torch.allclose(y, model(x))
    assert own(_layer_of(model)) == before
    bnt.unfreeze(compiled, verbose=False)
    compiled(x)
    assert own(_layer_of(model)) != before


# --- what is kept for the backward ---


def kept(call: Callable[[], torch.Tensor], least: int) -> tuple[torch.Tensor, int]:
    """The result, and how many elements of at least so large tensors autograd keeps for it."""
    found: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        y = call()
    return y, sum(t.numel() for t in found if t.numel() >= least)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_a_frozen_layer_keeps_nothing_and_gives_the_same_gradients(activation, residual, channels_last, dtype):
    torch.manual_seed(2)
    x, r, g = (torch.randn(3, 6, 5, 7).to(dtype) for _ in range(3))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    leaves = [x.requires_grad_(), *([r.requires_grad_()] if residual else [])]
    layer = bnt.BatchNorm2d(6, activation=activation, normalize_with="running", update_running_stats=False)
    with torch.no_grad():
        nn.init.normal_(layer.weight), nn.init.normal_(layer.bias), layer.running_var.uniform_(0.5, 2)
    found = []
    for layer.train_affine in (True, False):
        y, elements = kept(lambda: layer(x, residual=r if residual else None), x.numel())
        found.append([y, *torch.autograd.grad(y, leaves, g)])
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(*found, strict=True))
    told = activation == "relu"
    expected = 0 if activation is None else 1 if told or not residual else 2
    assert elements == expected * x.numel()
    if told:
        y, _ = kept(lambda: layer(x, residual=r if residual else None), x.numel())
        y_is_kept: list[bool] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: y_is_kept.append(t.numel() == x.numel() and bool((t >= 0).all())) or t, lambda t: t
        ):
            layer(x, residual=r if residual else None)
        assert any(y_is_kept)


@pytest.mark.parametrize("freeze", ["switches", "requires_grad", None])
def test_the_input_is_let_go(freeze):
    """Without anything that watches: after the forward of a frozen layer x is nobody's."""
    model = nn.Sequential(bnt.BatchNorm2d(4)).eval()
    if freeze == "switches":
        bnt.freeze(model, verbose=False).train()
    elif freeze == "requires_grad":
        model.requires_grad_(False)
    x = torch.randn(2, 4, 3, 3, requires_grad=True) * 1.0
    gone = weakref.ref(x)
    y = model(x)
    del x
    assert (gone() is None) == (freeze is not None)
    assert y.requires_grad


@pytest.mark.parametrize("activation", [None, "relu"])
def test_derivatives_of_a_frozen_layer(activation):
    torch.manual_seed(3)
    layer = bnt.freeze(nn.Sequential(bnt.BatchNorm2d(3, activation=activation)), verbose=False)[0].double()
    layer.running_var.uniform_(0.5, 2)
    x, r = (torch.randn(2, 3, 2, 2, dtype=torch.double, requires_grad=True) for _ in range(2))
    for inputs in ((x,), (x, r)):

        def call(x: torch.Tensor, r: torch.Tensor | None = None) -> torch.Tensor:
            y: torch.Tensor = layer(x, residual=r)
            return y

        assert torch.autograd.gradcheck(call, inputs, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(call, inputs)
        cubes = [(call(*inputs) ** 3).sum()]
        for _ in range(3):  # of a third derivative
            cubes.append(torch.autograd.grad(cubes[-1], x, create_graph=True)[0].sum())
        if len(inputs) == 2:
            g = torch.ones_like(x, requires_grad=True)
            by_both = torch.autograd.grad(call(x, r), (x, r), g, create_graph=True)
            through = torch.autograd.grad(by_both[0].sum() + 2 * by_both[1].sum(), g)[0]
            apart = [torch.autograd.grad(call(x, r), leaf, torch.ones_like(x))[0] for leaf in (x, r)]
            assert torch.allclose(through, apart[0] + 2 * apart[1])
        scale = layer.weight.detach() / (layer.running_var + layer.eps).sqrt()
        through = call(*inputs) > 0 if activation else torch.ones_like(x)
        assert torch.allclose(cubes[-1], (6 * scale.view(3, 1, 1) ** 3 * through).sum())
        by = torch.func.grad(lambda x: layer(x).square().sum())(x)
        assert torch.allclose(by, torch.autograd.grad(layer(x).square().sum(), x)[0])


@pytest.mark.slow
def test_a_compiled_frozen_layer_keeps_nothing_either():
    layer = bnt.freeze(nn.Sequential(bnt.BatchNorm2d(3)), verbose=False)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    y, elements = kept(lambda: torch.compile(layer, backend="aot_eager")(x), x.numel())
    assert elements == 0
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(layer(x).sum(), x)[0])


def test_the_operation_refuses_what_it_cannot_tell():
    g, table = torch.ones(2, 3), torch.ones(4, 3, dtype=torch.float64)
    native: Any = torch.ops.batchnorm.frozen_gradients
    for args, said in (
        ((g, table, None, 1e-5, 1, 0.0), "without x an activation's derivative is told by y; pass y"),
        ((g, table[:2], None, 1e-5, 0, 0.0), "moments must be the table that forward returned"),
        ((g.half(), table, None, 1e-5, 2, 0.0, g.half()), "y does not tell the derivative of relu6 in float16"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            native(*args)


def test_what_is_rounded_to_zero_gets_no_gradient_in_16_bits():
    """As from PyTorch's ReLU, which knows its output only; so a frozen layer need not keep x."""
    layer = bnt.BatchNorm1d(1, affine=False, activation="relu").half().eval()
    layer.running_var.fill_(60000.0)  # the least float16 over a standard deviation of 245 is rounded to 0
    x = torch.tensor([[6e-8], [1.0], [-1.0]]).half().requires_grad_()
    y = layer(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert (y > 0).tolist() == (grad > 0).tolist() == [[False], [True], [False]]
