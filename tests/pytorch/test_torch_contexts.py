"""Contexts over a model: kinds of layers × what is done inside, nested, left by exceptions, in threads, compiled."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from context_models import CONTEXTS, KINDS, attributes_of, bits_of, model_of, outcome_of, same, serves, x_of
from pairs import covering, rest_slow
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm.torch as bnt

# --- kinds × contexts × situations: what comes out of a block by itself comes out in every situation ---


def _nested(model: nn.Module, context: Any, run: Any) -> list[Tensor]:
    block = context(model)
    with block, context(model[2]):
        found = run(model)
        with block:
            pass
        return found + run(model, 6)


def _after_exceptions(model: nn.Module, context: Any, run: Any) -> list[Tensor]:
    block = context(model)
    for _ in range(2):
        with contextlib.suppress(ZeroDivisionError), bnt.hold(model), block:
            run(model)
            raise ZeroDivisionError
    with block:
        return run(model) + run(model, 6)


def _among_threads(model: nn.Module, context: Any, run: Any) -> list[Tensor]:
    """Others enter and leave, in any order, while this one is inside."""
    done = threading.Event()
    block = context(model)

    def work(own: Any) -> None:
        while not done.is_set():
            with own:
                time.sleep(0.0005)

    threads = [threading.Thread(target=work, args=(own,)) for own in (block, block, context(model))]
    with block:
        for thread in threads:
            thread.start()
        found = run(model) + run(model, 6)
    done.set()
    for thread in threads:
        thread.join()
    return found


def _compiled(model: nn.Module, context: Any, run: Any) -> list[Tensor]:
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with bnt.hold(model):
        compiled(x_of(3))
    with context(compiled):
        return run(model, 9, compiled) + run(model, 6, compiled)


def _checkpointed(model: nn.Module, context: Any, run: Any) -> list[Tensor]:
    with context(model):
        return [t for seed in (9, 6) for t in run(model, seed, lambda x: checkpoint(model, x, use_reentrant=False))]


SITUATIONS = {
    situation.__name__.strip("_"): situation
    for situation in (_nested, _after_exceptions, _among_threads, _compiled, _checkpointed)
}
TABLE = [
    (kind, context, situation)
    for situation in SITUATIONS
    for context in CONTEXTS
    for kind in ("torch.nn", "torch.nn, all batches", "of its own", "ours", "ours, ghosts", "converted, frozen",
                 "synchronized")
    if serves(context, kind) and (situation != "compiled" or kind in ("torch.nn", "of its own", "ours"))
]  # fmt: skip
BY_CHANCE = [i for i, row in enumerate(TABLE) if row[1:] == ("one_update", "among_threads")]  # so they find it often


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of a graph with a break
@pytest.mark.parametrize(("kind", "context", "situation"), rest_slow(TABLE, *covering(TABLE), *BY_CHANCE))
def test_a_block_is_the_same_in_every_situation(kind, context, situation):
    model = model_of(kind).train(context != "adapt")
    attributes, before = attributes_of(model), bits_of(model)
    expected = copy.deepcopy(model)
    with CONTEXTS[context](expected):
        outcome = outcome_of(expected) + outcome_of(expected, 6)
    found = SITUATIONS[situation](model, CONTEXTS[context], outcome_of)
    torch.testing.assert_close(found, outcome)
    torch.testing.assert_close(model.state_dict(), expected.state_dict())
    assert attributes_of(model) == attributes
    assert (bits_of(model) == before) == (context in ("hold", "adapt"))


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_of_all_kinds_are_left_in_any_order(kind):
    model = model_of(kind).train("running" not in kind)
    bits, attributes = bits_of(model), attributes_of(model)
    random = np.random.default_rng(0)
    makes = [make for context, make in CONTEXTS.items() if serves(context, kind)] * 2
    for _ in range(5):
        blocks = [makes[i](model) for i in random.permutation(len(makes))]
        for block in blocks:
            block.__enter__()
        model(x_of().to(model[0].weight.dtype))
        for i in random.permutation(len(blocks)):
            blocks[i].__exit__(None, None, None)
        assert attributes_of(model) == attributes
    assert bits_of(model) == bits, "one of them was hold"


@pytest.mark.parametrize(
    ("kind", "context"),
    [(kind, c) for kind in ("torch.nn", "of its own", "ours", "synchronized") for c in CONTEXTS if serves(c, kind)],
)
def test_a_copy_that_is_made_inside_is_in_no_block(kind, context):
    """An average of weights that begins there, or a model that is saved whole, is not held for good."""
    model = model_of(kind)
    attributes = attributes_of(model)
    with CONTEXTS[context](model), bnt.hold(model[2]):
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model[2])]
    for copied in copies[:2]:
        assert attributes_of(copied) == attributes
        assert bits_of(copied) == bits_of(model)
        copied(x_of(5))
        assert all(int(layer.num_batches_tracked) == 4 for layer in (copied[1], copied[2][1]))
    assert attributes_of(copies[2]) == attributes_of(model[2])
    assert int(model[1].num_batches_tracked) == 3


CHANGES = {
    "convert": lambda model: bnt.convert(model, update_running_stats=False),
    "convert_sync": bnt.convert_sync,
    "convert_groups": lambda model: bnt.convert_groups(model, 2),
    "revert": bnt.revert,
    "freeze": bnt.freeze,
    "unfreeze": bnt.unfreeze,
    "fuse": bnt.fuse,
    "recalibrate": lambda model: bnt.recalibrate(model, [x_of()]),
    "diagnose": lambda model: bnt.diagnose(model, [x_of()] * 4),
}


@pytest.mark.parametrize("who", CHANGES)
def test_what_changes_layers_is_refused_inside(who):
    """The end of the block would undo it, in part: a layer that was frozen inside of `hold` would move again."""
    for kind, context in (("torch.nn", "hold"), ("torch.nn", "adapt"), ("ours", "hold"), ("ours", "one_update")):
        model = model_of(kind)
        if who == "unfreeze":
            bnt.freeze(model, verbose=False)
        bits, attributes = bits_of(model), attributes_of(model)
        with (
            CONTEXTS[context](model[2]),
            pytest.raises(ValueError, match=rf"{who}: .* got layer 2\.1 inside of one; call {who} before or after"),
        ):
            CHANGES[who](model)
        assert attributes_of(model) == attributes
        assert bits_of(model) == bits


@pytest.mark.parametrize("context", ["one_update", "adapt"])
def test_a_forward_that_others_have_put_into_a_layer_is_called(context):
    """As accelerate's hooks are, which move a layer to its device first."""
    model, expected = model_of("torch.nn").train(context != "adapt"), model_of("torch.nn").train(context != "adapt")
    expected.load_state_dict(model.state_dict())
    own, calls = model[1].forward, []
    model[1].forward = lambda x: own(calls.append(x) or x + 1)
    with CONTEXTS[context](expected):
        ys = [expected[1](x + 1) for x in (x_of(5), x_of(6))]
    with CONTEXTS[context](model):
        assert all(torch.equal(model[1](x), y) for x, y in zip((x_of(5), x_of(6)), ys, strict=True))
    assert len(calls) == 2
    torch.testing.assert_close(model[1].state_dict(), expected[1].state_dict())


# --- hold ---


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", KINDS)
def test_hold_keeps_statistics_and_changes_no_result(kind, training):
    model = model_of(kind).train(training)
    expected = outcome_of(copy.deepcopy(model))
    bits, attributes = bits_of(model), attributes_of(model)
    with bnt.hold(model):
        for _ in range(2):  # the second forward of a held model is that of the first one
            assert same(outcome_of(model), expected)
            assert bits_of(model) == bits
    assert attributes_of(model) == attributes
    assert same(outcome_of(model), expected)
    moves = (training and "without" not in kind) or kind == "ours, moves always"
    assert (bits_of(model) != bits) == moves, "afterwards they move again"


@pytest.mark.parametrize("kind", KINDS)
def test_hold_nests_and_is_left_in_any_way(kind):
    model = model_of(kind)
    bits, attributes = bits_of(model), attributes_of(model)
    one, two = bnt.hold(model), bnt.hold(model[2])
    with one, one, two:
        pass
    assert attributes_of(model) == attributes

    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)  # the first one first
    model[2][1](x_of().to(model[0].weight.dtype))
    assert bits_of(model) == bits, "the inner one is open"
    two.__exit__(None, None, None)
    assert attributes_of(model) == attributes
    with pytest.raises(RuntimeError, match=r"hold: a block is left once .*; got one more __exit__; use with"):
        two.__exit__(None, None, None)

    switch = next(name for name in ("update_running_stats", "track_running_stats") if hasattr(model[2][1], name))
    if "without statistics" not in kind:
        with one:  # a switch that is assigned inside holds until the end
            setattr(model[2][1], switch, True)
            model(x_of().to(model[0].weight.dtype))
            assert bits_of(model) != bits
    assert attributes_of(model) == attributes
    bits = bits_of(model)

    with pytest.raises((ValueError, RuntimeError)), one, two:
        model(torch.ones(5, 7, 4, 2, dtype=model[0].weight.dtype))  # seven channels, where three are right
    assert attributes_of(model) == attributes
    assert bits_of(model) == bits

    @bnt.hold(model)
    def measured() -> Tensor:
        return model(x_of().to(model[0].weight.dtype))

    measured()
    measured()
    assert bits_of(model) == bits
    assert attributes_of(model) == attributes
    assert repr(one) == "<batchnorm.torch.hold: 2 layers>"


@pytest.mark.parametrize("kind", ["torch.nn", "of its own", "ours", "synchronized"])
def test_hold_in_threads(kind):
    """Blocks of many threads overlap in any order: nothing moves while one is open, and all is as it was afterwards."""
    model = model_of(kind)
    bits, attributes, failures = bits_of(model), attributes_of(model), []

    def work(seed: int) -> None:
        for _ in range(30):
            with bnt.hold(model):
                model(x_of(seed))
                if bits_of(model) != bits:
                    failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert attributes_of(model) == attributes
    assert bits_of(model) == bits


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("kind", ["torch.nn", "of its own", "ours", "ours, ghosts", "synchronized"])
def test_hold_of_a_checkpoint(kind, reentrant):
    """With torch.nn's layers the backward is inside, too; ours know that a checkpoint computes them again."""
    model = model_of(kind)
    expected = outcome_of(copy.deepcopy(model))
    bits = bits_of(model)

    def run() -> tuple[Tensor, Tensor]:
        x = x_of(9).requires_grad_()
        return x, checkpoint(model, x, use_reentrant=reentrant)

    with bnt.hold(model):
        x, y = run()
        y.square().sum().backward()
    assert torch.equal(x.grad, expected[1])
    assert bits_of(model) == bits
    if isinstance(model[1], (bnt.BatchNorm2d, bnt.SyncBatchNorm)):
        with bnt.hold(model):
            x, y = run()
        y.square().sum().backward()
        assert torch.equal(x.grad, expected[1])
        assert bits_of(model) == bits


@pytest.mark.parametrize("kind", ["torch.nn", "ours", "ours, renorm"])
def test_hold_of_a_fused_model(kind):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), KINDS[kind](), nn.LeakyReLU())
    if kind != "torch.nn":
        model[1].activation = None
    fused = bnt.fuse(model, verbose=False)
    assert "fused with" in str(fused)
    expected = outcome_of(copy.deepcopy(fused))
    bits = bits_of(fused)
    with bnt.hold(fused):
        assert same(outcome_of(fused), expected)
        assert bits_of(fused) == bits


@pytest.mark.parametrize("kind", ["torch.nn", "torch.nn, all batches", "of its own, all batches", "ours, all batches"])
def test_a_step_of_sam_ends_with_the_statistics_of_its_first_forward(kind):
    """As well where momentum=0, which everyone sets, moves the count, and where it is set twice and lost for good."""
    model = model_of(kind)
    only_first = copy.deepcopy(model)
    only_first(x_of(7))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(x_of(7)).square().sum().backward()
    with torch.no_grad():
        moved = [(p, 0.05 * p.grad) for p in model.parameters()]
        for p, step in moved:
            p.add_(step)
    optimizer.zero_grad()
    with bnt.hold(model):
        model(x_of(7)).square().sum().backward()
    with torch.no_grad():
        for p, step in moved:
            p.sub_(step)
    optimizer.step()
    buffers, expected = dict(model.named_buffers()), dict(only_first.named_buffers())
    assert buffers.keys() == expected.keys()
    assert all(torch.equal(buffers[name], expected[name]) for name in expected)
    assert next(iter(buffers.values())).numel()


def test_a_layer_that_stands_twice_is_held_and_given_back():
    layer = nn.BatchNorm2d(3)
    model = nn.Sequential(layer, nn.Sequential(layer))
    before = attributes_of(model)
    with bnt.hold(model), bnt.hold(layer):
        model(x_of())
    assert int(layer.num_batches_tracked) == 0
    assert attributes_of(model) == before


def test_hold_of_some_layers():
    model = nn.ModuleDict({"backbone": nn.Sequential(nn.BatchNorm2d(3)), "head": bnt.BatchNorm2d(3)})
    with bnt.hold(model, only="backbone"):
        for layer in (model["backbone"][0], model["head"]):
            layer(x_of())
    assert (int(model["backbone"][0].num_batches_tracked), int(model["head"].num_batches_tracked)) == (0, 1)
    with pytest.raises(ValueError, match="hold: only names no batch normalization"):
        bnt.hold(model, only="neck")


def test_what_cannot_be_held_is_refused():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.LazyBatchNorm2d())
    before = attributes_of(model)
    with pytest.raises(ValueError, match=r"hold: .* in its first forward; got LazyBatchNorm2d .*; call the model once"):
        bnt.hold(model)
    assert attributes_of(model) == before
    model(x_of())
    with bnt.hold(model):
        model(x_of())
    assert int(model[1].num_batches_tracked) == 1
    with pytest.raises(TypeError, match="hold: model must be a torch"):
        bnt.hold([model])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("context", ["hold", "one_update", "adapt"])
def test_layers_of_torchscript_are_refused(context):
    """They do not read what a block sets, so that their statistics would move inside of `hold`."""
    helper, model = (torch.jit.script(nn.Sequential(layer)) for layer in (nn.ReLU(), nn.BatchNorm2d(3)))
    with pytest.raises(ValueError, match=rf"{context}: .* got a scripted or traced BatchNorm2d; use the model"):
        CONTEXTS[context](model)
    with CONTEXTS[context](nn.Sequential(nn.BatchNorm2d(3), helper)) as inside:
        assert inside is None


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_layers_of_torchscript_are_not_passed_over():
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.BatchNorm2d(3))), nn.BatchNorm2d(3))
    for who, *args in (("freeze",), ("frozen",), ("set_eps", 1e-3), ("convert_groups", 2), ("state_names",)):
        with pytest.raises(ValueError, match=rf"{who}: .* got a scripted or traced BatchNorm2d; use the model that"):
            getattr(bnt, who)(model, *args)
    _, report = bnt.convert(model, verbose=False, return_report=True)
    assert report.left == (("0.0", "RecursiveScriptModule", report.left[0][2]),)
    assert report.left[0][2].startswith("TorchScript has compiled it")
