"""Every option in every rare place: each cell is what the formulas say in float64, or is refused and changes nothing.

A cell (`layer_cells.py`) is a layer with one option or two, a mode, and operands; a place is a way to call it. Each
option goes through each place, and pairs in turn; all pairs with all operands are slow.
"""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import plain_layer
import pytest
import torch
from layer_cells import OPTIONS, SHAPE, C, Cell, Exact, cells, exact, leaves_of, state_of
from plain_layer import Refused
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import batchnorm as bn
import batchnorm.torch as bnt

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")

Tensor = torch.Tensor
Run = Callable[[Any, dict[str, Tensor]], Tensor]


def _close(a: Tensor, b: Tensor, what: str, tolerance: float) -> None:
    a, b = a.detach().double(), b.detach().double()
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda said: f"{what}: {said}")


def _loss(y: Tensor) -> Tensor:
    """A number that has gradients of every kind."""
    slope = torch.linspace(-1, 1.5, max(y.numel(), 1), dtype=torch.float64)[: y.numel()].reshape(y.shape).to(y.dtype)
    return (y * slope).sum() + (y * y).sum() * 0.1


def _gradients(loss: Tensor, leaves: dict[str, Tensor], create_graph: bool = False) -> dict[str, Tensor | None]:
    """By all leaves that want one."""
    wanted = [name for name, t in leaves.items() if t.requires_grad]
    if not (loss.requires_grad and wanted):
        return {}
    by = torch.autograd.grad(loss, [leaves[n] for n in wanted], allow_unused=True, create_graph=create_graph)
    return dict(zip(wanted, by, strict=True))


def _same_gradients(
    ours: dict[str, Tensor | None], right: dict[str, Tensor | None], leaves: dict[str, Tensor], tolerance: float = 1e-9
) -> None:
    """None is as good as zeros."""
    for name, expected in right.items():
        found = ours.get(name)
        if found is None or expected is None:
            assert all(t is None or not t.any() for t in (found, expected)), name
            continue
        assert (found.shape, found.dtype) == (leaves[name].shape, leaves[name].dtype), name
        _close(found, expected, f"gradient by {name}", tolerance)


def _same_state(layer: Any, right: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    found = state_of(layer)
    assert found.keys() == right.keys()
    for name, value in right.items():
        _close(found[name], value, name, tolerance)


def _bits(layer: Any) -> dict[str, Any]:
    return {name: (t.dtype, None if t.is_meta else t.tolist()) for name, t in layer.state_dict().items()}


def _refuses(layer: Any, call: Callable[[], object], words: str = "") -> None:
    """A refusal in the form of the house, which changes nothing."""
    before = _bits(layer)
    with pytest.raises((ValueError, TypeError), match=rf"^\w+: (?s:.*)({words})"):
        call()
    assert _bits(layer) == before


def _prepared(cell: Cell, shape: tuple[int, ...] = SHAPE) -> tuple[Any, dict[str, Tensor], Exact | None]:
    """A layer, operands, and what is right; None: a refusal."""
    layer, operands = cell.layer(shape[1]), cell.operands(shape)
    for name in {"input", "residual"} & operands.keys():
        operands[name].requires_grad_()
    try:
        return layer, operands, exact(layer, operands)
    except Refused:
        return layer, operands, None


def _plainly(layer: Any, operands: dict[str, Tensor]) -> Tensor:
    return layer(**operands)  # type: ignore[no-any-return]


def _checked(
    cell: Cell,
    shape: tuple[int, ...] = SHAPE,
    run: Run = _plainly,
    tolerance: float = 1e-9,
    differentiates: bool = True,
) -> None:
    """y, state and gradients of one call, or its refusal."""
    layer, operands, right = _prepared(cell, shape)
    if right is None:
        _refuses(layer, lambda: run(layer, operands))
        return
    y = run(layer, operands)
    assert y.shape == operands["input"].shape
    _close(y, right.y, "y", tolerance)
    _same_state(layer, right.state, tolerance)
    if differentiates:
        leaves = leaves_of(layer, operands)
        _same_gradients(_gradients(_loss(y), leaves), _gradients(_loss(right.y), right.leaves), leaves, tolerance)
        _same_state(layer, right.state, tolerance)


# --- places: shapes, dtypes, ways to compute ---


def shapes(cell: Cell) -> None:
    """Empty batches, one sample, one value, one channel."""
    for shape in [(0, C, 2), (3, C, 0), (0, C), (1, C, 4), (1, C), (1, C, 1), (2, C), (4, 1, 2), (5, 1)]:
        _checked(cell, shape)


def float32(cell: Cell) -> None:
    _checked(cell._replace(dtype=torch.float32), tolerance=2e-5)


class Plain(torch.Tensor):
    """A tensor that our kernels do not take: PyTorch's own operations compute, as on other devices."""


def plain_path(cell: Cell) -> None:
    for shape in (SHAPE, (1, C), (0, C)):
        _checked(cell, shape, lambda layer, given: layer(**{k: v.as_subclass(Plain) for k, v in given.items()}))


def synchronized(cell: Cell) -> None:
    """One process, with moments as they are exchanged, or not."""
    if "ghosts" in cell.names:
        return
    for reproducible, shape in itertools.product((False, True), (SHAPE, (1, C), (0, C), (1, C, 4))):

        def kind(*args: Any, reproducible: bool = reproducible, **options: Any) -> Any:
            return bnt.SyncBatchNorm(*args, reproducible=reproducible, **options)

        _checked(cell._replace(kind=kind), shape)


def one_dnn(cell: Cell) -> None:
    def run(layer: Any, operands: dict[str, Tensor]) -> Tensor:
        there = {name: t.to_mkldnn() for name, t in operands.items() if name in ("input", "residual")}
        y = layer(**(operands | there))
        assert y.layout == torch._mkldnn
        return y.to_dense()  # type: ignore[no-any-return]

    cell = cell._replace(dtype=torch.float32, kind=bnt.BatchNorm2d)
    for shape in ((4, C, 2, 2), (1, C, 2, 2), (0, C, 2, 2), (1, C, 1, 1)):
        _checked(cell, shape, run, 1e-4)


def autocast(cell: Cell) -> None:
    for dtype in (torch.bfloat16, torch.float16):

        def run(layer: Any, operands: dict[str, Tensor], dtype: torch.dtype = dtype) -> Tensor:
            with torch.autocast("cpu", dtype=dtype):
                return _plainly(layer, operands)

        _checked(cell._replace(dtype=torch.float32), run=run, tolerance=2e-5)


def without_gradients(cell: Cell) -> None:
    def no_grad(layer: Any, operands: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return _plainly(layer, operands)

    def inference(layer: Any, operands: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            return _plainly(layer, {name: t.detach().clone() for name, t in operands.items()})

    for run in (no_grad, inference):
        _checked(cell, run=run, differentiates=False)


def copies(cell: Cell) -> None:
    """A layer that has been differentiated, copied: the copy goes on as it would have."""

    def saved(layer: Any) -> Any:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    for copied in (copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), saved):
        layer, operands, right = _prepared(cell)
        if right is not None:
            _loss(layer(**operands)).backward()
        again = copied(layer)
        assert (repr(again), _bits(again)) == (repr(layer), _bits(layer))
        _checked(cell._replace(kind=lambda *_, layer=again, **__: layer))


# --- places: derivatives ---


def wanted(cell: Cell) -> None:
    """Each set of leaves that want gradients gets them."""
    names = list(leaves_of(*_prepared(cell)[:2]))
    for chosen in itertools.product((False, True), repeat=len(names)):
        layer, operands, right = _prepared(cell)
        if right is None:
            return
        leaves = leaves_of(layer, operands)
        for name, wants in zip(names, chosen, strict=True):
            leaves[name].requires_grad_(wants)
        y = layer(**operands)
        by = {n: g for n, g in _gradients(_loss(right.y), right.leaves).items() if leaves[n].requires_grad}
        assert y.requires_grad == any(g is not None for g in by.values()), chosen
        _same_gradients(_gradients(_loss(y), leaves), by, leaves)


def second_derivatives(cell: Cell) -> None:
    layer, operands, right = _prepared(cell)
    if right is None:
        return

    def penalty(y: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor | None]:
        first = [g for g in _gradients(_loss(y), leaves, create_graph=True).values() if g is not None]
        return _gradients(torch.stack([(g * (1 + g)).sum() for g in first]).sum(), leaves)

    leaves = leaves_of(layer, operands)
    _same_gradients(penalty(layer(**operands), leaves), penalty(right.y, right.leaves), leaves, 1e-8)


def _with_leaves(layer: Any, operands: dict[str, Tensor], leaves: dict[str, Tensor]) -> Tensor:
    """A call with these as operands and parameters."""
    own = {name: t for name, t in leaves.items() if name in ("weight", "bias")}
    given = {name: t for name, t in leaves.items() if name in ("input", "residual")}
    return functional_call(layer, own, (), operands | given)  # type: ignore[no-any-return]


def forward_mode(cell: Cell) -> None:
    layer, operands, right = _prepared(cell)
    if right is None:
        return
    made = leaves_of(layer, operands)
    known = plain_layer.known(layer)
    with forward_ad.dual_level():
        duals = {
            name: forward_ad.make_dual(t.detach(), torch.linspace(-1, 2, t.numel()).reshape(t.shape).to(t))
            for name, t in made.items()
        }
        ours = forward_ad.unpack_dual(_with_leaves(layer, operands, duals))
        rest = {name: t for name, t in operands.items() if name in ("mask", "sample_weight")}
        formulas = plain_layer.call(
            known, duals["input"], duals.get("weight"), duals.get("bias"), residual=duals.get("residual"), **rest
        )
        expected = forward_ad.unpack_dual(formulas.y)
        _close(ours.primal, expected.primal, "y", 1e-9)
        _close(ours.tangent, expected.tangent, "tangent", 1e-9)
    _same_state(layer, right.state)


def _moves(layer: Any, right: Exact) -> bool:
    before = state_of(layer)
    return any(not torch.equal(before[name].double(), right.state[name].double()) for name in before)


def transforms(cell: Cell) -> None:
    """torch.func: gradients and vmap of what moves nothing; a layer's own statistics are refused."""
    layer, operands, right = _prepared(cell)
    operands = {name: t.detach() for name, t in operands.items()}
    leaves = {name: t.detach() for name, t in leaves_of(layer, operands).items()}

    def differentiated(leaves: dict[str, Tensor]) -> Tensor:
        return _loss(_with_leaves(layer, operands, leaves))

    names, twice = list(operands), [torch.stack([t, t]) for t in operands.values()]

    def mapped() -> Tensor:
        return vmap(lambda *given: layer(**dict(zip(names, given, strict=True))))(*twice)  # type: ignore[no-any-return]

    if right is None or _moves(layer, right):
        moves = "torch.func|torch.vmap" if right is not None else ""
        _refuses(layer, lambda: grad(differentiated)(leaves), moves)
        _refuses(layer, mapped, moves)
        return
    _same_gradients(grad(differentiated)(leaves), _gradients(_loss(right.y), right.leaves), leaves)
    if "single" in cell.names and cell.selection != "all" and (cell.training or "by batch" in cell.names):
        _refuses(layer, mapped, "counts values, which torch.vmap")
        return
    for y in mapped():
        _close(y, right.y, "y", 1e-9)
    _same_state(layer, right.state)


def stacked(cell: Cell) -> None:
    """An ensemble under vmap, each with statistics of its own."""
    layer, operands, right = _prepared(cell)
    operands = {name: t.detach() for name, t in operands.items()}
    if right is None or {"raise", "single", "no affine"} & set(cell.names):
        return  # as `transforms`
    layers = [layer, copy.deepcopy(layer)]
    own, buffers = stack_module_state(layers)
    y = vmap(lambda own, buffers: functional_call(layer, (own, buffers), (), operands))(own, buffers)
    for i in range(2):
        _close(y[i], right.y, "y", 1e-9)
        for name, t in buffers.items():
            _close(t[i], right.state[name], name, 1e-9)


def checkpoints(cell: Cell) -> None:
    for reentrant in (False, True):
        layer, operands, right = _prepared(cell)
        names = list(operands)

        def run(layer: Any, operands: dict[str, Tensor], reentrant: bool = reentrant, names: Any = names) -> Tensor:
            found: Tensor = checkpoint(
                lambda *given: layer(**dict(zip(names, given, strict=True))),
                *operands.values(),
                use_reentrant=reentrant,
            )
            return found

        if right is None:
            _refuses(layer, lambda run=run, layer=layer, operands=operands: run(layer, operands))
            continue
        by_running = (not cell.training and "by batch" not in cell.names) or "by running" in cell.names
        again = _moves(layer, right) and (
            (by_running and "untracked" not in cell.names) or (layer.renorm is not None and cell.training)
        )
        leaves = leaves_of(layer, operands)
        y = run(layer, operands)
        _close(y, right.y, "y", 1e-9)
        _same_state(layer, right.state)
        if again and y.requires_grad:
            _refuses(layer, lambda y=y: _loss(y).backward(), "second forward")
            continue
        if y.requires_grad:
            _loss(y).backward()
        by = _gradients(_loss(right.y), right.leaves)
        _same_gradients({name: t.grad for name, t in leaves.items()}, by, leaves)
        _same_state(layer, right.state)


WRITES: dict[str, Callable[[Tensor], object]] = {
    "add_": lambda y: y.add_(1.5),
    "mul_": lambda y: y.mul_(2.0),
    "relu_": lambda y: y.relu_(),
    "set": lambda y: y.__setitem__((0, 0), 3.0),
    "detach": lambda y: y.detach().add_(1),
}


def writing(cell: Cell) -> None:
    """A result is written to: the backward is right wherever that of PyTorch's operations in turn is."""
    for name, write in WRITES.items():
        found = []
        for fused in (True, False):
            layer, operands, right = _prepared(cell)
            if right is None:
                return
            leaves = leaves_of(layer, operands)
            if fused:
                y = layer(**operands)
            else:
                activation, layer.activation, residual = layer.activation, None, operands.pop("residual", None)
                y = layer(**operands)
                y = plain_layer.activate(y if residual is None else y + residual, activation)
            try:
                write(y)
                found.append(_gradients(_loss(y), leaves))
            except RuntimeError as error:
                if "modified by an inplace operation" not in str(error):
                    raise
                found.append(None)
        ours, stock = found
        assert ours is not None or stock is None, name
        if ours is not None and stock is not None:
            _same_gradients(ours, stock, leaves)


# --- places: records, and tensors without values ---


class Wrapped(torch.nn.Module):
    """A layer whose operands have names."""

    def __init__(self, layer: Any, names: list[str]) -> None:
        super().__init__()
        self.layer, self.names = layer, names

    def forward(self, *given: Tensor) -> Tensor:
        return self.layer(**dict(zip(self.names, given, strict=True)))  # type: ignore[no-any-return]


def _frozen_refusal(cell: Cell, right: Exact, layer: Any) -> str:
    """Words with which a record of this is refused, if it is: what decides by values."""
    of_mode = cell.training and "by running" not in cell.names
    by_batch = of_mode or "by batch" in cell.names or "untracked" in cell.names
    if "ghosts" in cell.names and by_batch and cell.training:
        return "as many ghost batches"
    if "single" in cell.names and (by_batch or _moves(layer, right)):
        return "counts values"
    return "looks at the batch" if "raise" in cell.names and _moves(layer, right) else ""


def traced(cell: Cell) -> None:
    """torch.jit.trace, run with batches of other sizes."""
    layer, operands, right = _prepared(cell)

    def trace() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            return torch.jit.trace(Wrapped(layer, list(operands)), tuple(operands.values()), check_trace=False)

    words = "" if right is None else _frozen_refusal(cell, right, layer)
    if right is None or words:
        _refuses(layer, trace, words)
        return
    module = trace()
    for shape in (SHAPE, (6, C, 2), (3, C, 5)):
        layer.load_state_dict(cell.layer().state_dict())
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.add_(1)  # no decision of the trace is by the count

        def run(_: Any, operands: dict[str, Tensor]) -> Tensor:
            return module(*operands.values())  # type: ignore[no-any-return]

        # TorchScript rounds slopes to float32.
        _checked(cell._replace(kind=lambda *_, **__: layer), shape, run, 1e-7)


def exported(cell: Cell) -> None:
    """torch.export with a dynamic batch."""
    layer, operands, right = _prepared(cell)
    dynamic = torch.export.Dim("n", min=2)
    given = tuple(t.detach() for t in operands.values())

    def export() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter itself
            sizes = {"given": tuple({0: dynamic} for _ in given)}
            return torch.export.export(Wrapped(layer, list(operands)), given, dynamic_shapes=sizes)

    words = "" if right is None else _frozen_refusal(cell, right, layer)
    if words == "counts values" and cell.selection == "all":
        words = ""  # sizes are looked at, and the graph says so
    if right is None or words:
        _refuses(layer, export, words)
        return
    before = _bits(layer)
    module = export().module()
    assert _bits(layer) == before
    for shape in (SHAPE, (6, C, 2)):
        other, operands, right = _prepared(cell, shape)
        module.load_state_dict({f"layer.{name}": t for name, t in other.state_dict().items()})
        assert right is not None
        _close(module(*operands.values()), right.y, "y", 1e-9)
        for name, value in right.state.items():
            _close(module.state_dict()[f"layer.{name}"], value, name, 1e-9)


def shapes_alone(cell: Cell) -> None:
    """Meta tensors and fake ones: shapes of y and of gradients."""
    for shape in (SHAPE, (0, C), (1, C, 4)):
        layer, operands, right = _prepared(cell, shape)
        meta = {name: t.detach().to("meta") for name, t in operands.items()}
        meta["input"].requires_grad_()
        cumulative = "cumulative" in cell.names and right is not None and _moves(layer, right)
        layer = layer.to("meta")
        if right is None:
            _refuses(layer, lambda layer=layer, meta=meta: layer(**meta))
        else:
            try:
                _has_shapes(layer, meta)
            except ValueError as error:
                if not (cumulative and "averages by num_batches_tracked; got a meta tensor" in str(error)):
                    raise
        with FakeTensorMode():
            layer, operands = cell.layer(), cell.operands(shape)
            operands["input"].requires_grad_()
            if right is not None:
                _has_shapes(layer, operands)


def _has_shapes(layer: Any, operands: dict[str, Tensor]) -> None:
    y = layer(**operands)
    assert (y.shape, y.dtype, y.device) == (operands["input"].shape, operands["input"].dtype, operands["input"].device)
    leaves = leaves_of(layer, operands)
    for name, g in _gradients((y * y).sum(), leaves).items():
        assert g is None or g.shape == leaves[name].shape, name


# --- the walk ---

PLACES = (
    shapes, float32, plain_path, synchronized, one_dnn, autocast, without_gradients, copies, wanted, second_derivatives,
    forward_mode, transforms, stacked, checkpoints, writing, traced, shapes_alone,
)  # fmt: skip
STEP = {traced: 97, shapes_alone: 149, shapes: 59, plain_path: 59, synchronized: 59, wanted: 59}  # what takes long
SINGLE = [cell for cell in cells() if len(cell.names) == 1]
PAIRS = [cell for cell in cells() if len(cell.names) == 2]
EXPORTED = [cell for i, cell in enumerate(SINGLE) if i % 8 == i // 16 % 8]


def _walk(place: Callable[[Cell], None], walked: list[Cell]) -> None:
    for cell in walked:
        try:
            place(cell)
        except BaseException as error:
            error.add_note(f"{place.__name__}: {cell}")
            raise


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_each_option_and_some_pairs(place):
    step = STEP.get(place, 37)
    first = PLACES.index(place) % step
    _walk(place, SINGLE[first % 11 :: 11] + PAIRS[first::step])


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_all_pairs(place):
    _walk(place, list(cells(everything=place in (float32, second_derivatives, without_gradients))))


@pytest.mark.slow
def test_each_option_exported():
    assert {name for cell in EXPORTED for name in cell.names} == set(OPTIONS)
    _walk(exported, EXPORTED)


def test_one_value_is_refused_in_a_trace_as_in_torch_nn():
    for layer in (bnt.BatchNorm1d(C), bnt.BatchNorm1d(C, keep_count=True)):
        _refuses(layer, lambda layer=layer: torch.jit.trace(layer, (torch.randn(1, C),)), "one value per channel")


def test_nothing_selected_is_not_one_value():
    """It is refused whatever one value does; and an empty batch is no batch."""
    nothing = torch.zeros(4, dtype=torch.bool)
    for options in ({}, {"on_single_value": "running"}, {"on_single_value": "running", "track_running_stats": False}):
        layer = bnt.BatchNorm1d(C, **options)
        for x in (torch.randn(4, C), torch.randn(4, C).as_subclass(Plain)):
            _refuses(layer, lambda layer=layer, x=x: layer(x, mask=nothing), "select nothing")
        assert layer(torch.randn(0, C), mask=nothing[:0]).shape == (0, C)
        if "on_single_value" in options:
            _refuses(layer, lambda layer=layer: layer(torch.randn(1, C), mask=nothing[:1]), "select nothing")


def test_an_exchange_between_processes_is_refused_where_it_cannot_be():
    layer, x = bnt.SyncBatchNorm(C, reproducible=True), torch.randn(4, C)

    def dual() -> None:
        with forward_ad.dual_level():
            layer(forward_ad.make_dual(x, x))

    def fake() -> None:
        with FakeTensorMode():
            bnt.SyncBatchNorm(C, reproducible=True)(torch.empty(4, C))

    calls: dict[str, Callable[[], object]] = {
        "torch.jit.trace": lambda: torch.jit.trace(layer, (x,), check_trace=False),
        "torch.vmap": lambda: vmap(layer)(x[None]),
        "torch.func": lambda: grad(lambda x: layer(x).sum())(x),
        "forward-mode": dual,
        "a meta tensor or a fake one": fake,
        "a meta tensor": lambda: copy.deepcopy(layer).to("meta")(x.to("meta")),
    }
    for words, call in calls.items():
        _refuses(layer, call, words)


def test_a_large_result_lies_in_the_pool_which_cannot_be_resized():
    """PyTorch refuses that; without the pool it is PyTorch's own memory. Nothing is changed by a refusal."""
    layer, x = bnt.BatchNorm1d(C), torch.randn(4, C, 100_000)
    y = layer(x)
    expected = y.detach().clone()
    if not y.untyped_storage().resizable():
        with pytest.raises(RuntimeError, match="not resizable"):
            y.untyped_storage().resize_(0)
        assert torch.equal(y, expected)
    before = bn.memory_stats().limit
    bn.set_memory_limit(0)
    try:
        storage = bnt.BatchNorm1d(C)(x).untyped_storage()
    finally:
        bn.set_memory_limit(before)
    storage.resize_(0)
    assert storage.nbytes() == 0
