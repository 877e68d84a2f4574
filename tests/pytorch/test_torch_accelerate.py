"""`accelerate`: PyTorch's own functions and layers on our kernels, and back."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings
import xml.etree.ElementTree as ET

import pytest
import torch
import torch.nn.functional as F

import batchnorm as bn
import batchnorm.torch as bnt

aten = torch.ops.aten
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
EPS = 1e-5


@pytest.fixture
def accelerated():
    with bnt.accelerate():
        yield


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _layouts(x):
    """The same values in other memory: contiguous, channels-last, sliced, permuted, expanded (the first sample)."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), dtype=x.dtype)
    wide[..., ::2] = x
    found = {
        "contiguous": x.contiguous(),
        "sliced": wide[..., ::2],
        "permuted": x.transpose(0, -1).contiguous().transpose(0, -1),
        "expanded": x[:1].expand_as(x),
    }
    if x.dim() in (4, 5):
        memory_format = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        found["channels-last"] = x.contiguous(memory_format=memory_format)
        found["channels-last, sliced"] = torch.cat([x, x], 1).contiguous(memory_format=memory_format)[:, : x.shape[1]]
    return found


def _parameters(C, dtype, which="both"):
    g = _generator(1)
    weight, bias = (torch.randn(C, generator=g).to(dtype) for _ in range(2))
    return (weight if which in ("both", "weight") else None), (bias if which in ("both", "bias") else None)


def _batch_norm(x, parameters, dtype, training, double=False):
    """y, both gradients and running statistics of F.batch_norm; `double`: of the same values in float64."""
    to, data = torch.float64 if double else None, x.dtype
    x = x.detach().to(to or x.dtype).requires_grad_()
    weight, bias = (None if p is None else p.detach().clone().to(to or dtype).requires_grad_() for p in parameters)
    mean, var = torch.linspace(-1, 1, x.shape[1]).to(to or dtype), torch.linspace(1, 2, x.shape[1]).to(to or dtype)
    y = F.batch_norm(x, mean, var, weight, bias, training, 0.1, EPS)
    g = torch.randn(y.shape, generator=_generator(2)).to(data).to(y.dtype)
    by = [t for t in (x, weight, bias) if t is not None]
    return [y.detach(), *torch.autograd.grad(y, by, g), mean, var]


SHAPES = [(6, 5), (4, 5, 7), (3, 5, 4, 6), (2, 5, 3, 2, 4), (1, 3, 2, 2), (5, 1), (40, 17, 8, 8)]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_everything_is_as_pytorch_gives_it_and_as_exact(dtype, shape, training):
    """Every dtype pair, layout and choice of parameters: PyTorch's dtypes and strides, values as near to float64."""
    x = torch.randn(shape, generator=_generator()).to(dtype)
    pairs = {dtype, torch.float32} if dtype in (torch.float16, torch.bfloat16) else {dtype}
    for (layout, v), parameters in itertools.product(_layouts(x).items(), pairs):
        for which in ("both", "none", "weight"):
            given = _parameters(shape[1], parameters, which)
            stock = _batch_norm(v, given, parameters, training)
            exact = _batch_norm(v, given, parameters, training, double=True)
            before = sum(bnt.status().served.values())
            with bnt.accelerate():
                ours = _batch_norm(v, given, parameters, training)
            assert sum(bnt.status().served.values()) == before + 2, "one forward and one backward are ours"
            for name, a, b in zip(("y", "x"), ours, stock, strict=False):
                assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()), (layout, which, name)
            for a, b, c in zip(ours, stock, exact, strict=True):
                assert (a.dtype, a.shape) == (b.dtype, b.shape)
                room = torch.finfo(a.dtype).eps * c.abs().amax()
                if dtype is torch.float64:  # the "exact" one is PyTorch's own float64: N4's bound for both
                    room = 1e-12 * max(1.0, float(c.abs().amax()))
                near = (a.double() - c).abs() <= 2 * (b.double() - c).abs().amax() + room
                assert near.all(), (layout, which, (a.double() - c).abs().max(), (b.double() - c).abs().max())


def test_results_have_pytorchs_strides_in_every_small_shape_and_layout():
    """Also where strides fit contiguous and channels-last alike, as with one channel or one pixel."""

    def strides():
        found = {}
        for shape in itertools.product((1, 2, 3), repeat=4):
            mean, var, wanted = torch.zeros(shape[1]), torch.ones(shape[1]), [True, False, False]
            for order, more in itertools.product(itertools.permutations(range(4)), (0, 1)):
                base = torch.zeros([shape[p] + more for p in order]).permute([order.index(i) for i in range(4)])
                x = base[tuple(slice(n) for n in shape)]
                y = torch.native_batch_norm(x, None, None, mean, var, False, 0.1, EPS)[0]
                by_x = aten.native_batch_norm_backward(x, x, None, mean, var, None, None, False, EPS, wanted)[0]
                found[shape, x.stride()] = y.stride(), by_x.stride()
        return found

    with bnt.accelerate():
        ours = strides()
    theirs = strides()
    assert not {layout: (ours[layout], theirs[layout]) for layout in theirs if ours[layout] != theirs[layout]}


def _entries():
    """Every way into ATen's batch norm that has a CPU kernel, with what it must reach."""
    x = torch.randn(4, 3, 5, generator=_generator())
    weight, bias = _parameters(3, torch.float32)

    def stats():
        return torch.zeros(3), torch.ones(3)

    def saved():
        return torch.native_batch_norm(x, weight, bias, *stats(), True, 0.1, EPS)[1:]

    m = [True, True, True]
    return {
        "F.batch_norm": (lambda: F.batch_norm(x, *stats(), weight, bias, True), "native_batch_norm"),
        "F.instance_norm": (lambda: F.instance_norm(x), "native_batch_norm"),
        "native": (lambda: torch.native_batch_norm(x, weight, bias, *stats(), True, 0.1, EPS), "native_batch_norm"),
        "legit": (
            lambda: aten._native_batch_norm_legit(x, weight, bias, *stats(), True, 0.1, EPS),
            "_native_batch_norm_legit",
        ),
        "legit, no stats": (
            lambda: aten._native_batch_norm_legit.no_stats(x, weight, bias, True, 0.1, EPS),
            "_native_batch_norm_legit.no_stats",
        ),
        "legit, evaluation": (
            lambda: aten._native_batch_norm_legit_no_training(x, weight, bias, *stats(), 0.1, EPS),
            "_native_batch_norm_legit",
        ),
        "legit, functional": (
            lambda: aten._native_batch_norm_legit_functional(x, weight, bias, *stats(), True, 0.1, EPS),
            "_native_batch_norm_legit",
        ),
        "with update": (
            lambda: aten._batch_norm_with_update(x, weight, bias, *stats(), 0.1, EPS),
            "_batch_norm_with_update",
        ),
        "with update, functional": (
            lambda: aten._batch_norm_with_update_functional(x, weight, bias, *stats(), 0.1, EPS),
            "_batch_norm_with_update",
        ),
        "no update": (
            lambda: aten._batch_norm_no_update(x, weight, bias, *stats(), 0.1, EPS),
            "_batch_norm_no_update",
        ),
        "native backward": (
            lambda: aten.native_batch_norm_backward(x, x, weight, *stats(), *saved(), True, EPS, m),
            "native_batch_norm_backward",
        ),
        "backward": (
            lambda: aten.batch_norm_backward(
                x, x, weight, *stats(), *saved(), True, EPS, m, torch.empty(0, dtype=torch.uint8)
            ),
            "batch_norm_backward",
        ),
        "backward, part": (
            lambda: aten.native_batch_norm_backward(x, x, None, *stats(), *saved(), True, EPS, [True, False, False]),
            "native_batch_norm_backward",
        ),
        "backward, parameters": (
            lambda: aten.native_batch_norm_backward(x, x, weight, *stats(), *saved(), True, EPS, [False, True, True]),
            "native_batch_norm_backward",
        ),
    }


@pytest.mark.parametrize("name", _entries())
def test_every_entry_of_aten_is_served(name):
    call, reached = _entries()[name]
    stock = call()
    before = bnt.status()
    with bnt.accelerate():
        ours = call()
    assert bnt.status().served[reached] > before.served[reached]
    assert bnt.status().passed_on == before.passed_on
    for a, b in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (ours, stock)), strict=True):
        if b is None:
            assert a is None
        else:
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


def _refused():
    x = torch.randn(4, 3, 5, generator=_generator())
    one = torch.ones(3)
    native = torch.native_batch_norm
    back = aten.native_batch_norm_backward
    return {
        "integers": lambda: F.batch_norm(x.long(), None, None, training=True),
        "complex": lambda: F.batch_norm(x.to(torch.complex64), None, None, training=True),
        "float8": lambda: F.batch_norm(x.to(torch.float8_e5m2), None, None, training=True),
        "dtypes that do not go together": lambda: F.batch_norm(x, None, None, one.double(), None, True),
        "16-bit parameters of float32 data": lambda: F.batch_norm(x, one.half(), one.half(), training=True),
        "one axis": lambda: native(x[0, 0], None, None, None, None, True, 0.1, EPS),
        "too many channels": lambda: F.batch_norm(x, torch.zeros(4), torch.ones(4)),
        "no running statistics": lambda: F.batch_norm(x, None, None, training=False),
        "sparse": lambda: native(x.to_sparse(), None, None, None, None, True, 0.1, EPS),
        "one value": lambda: F.batch_norm(x[:1, :, :1], None, None, training=True),
        "gradient of another dtype": lambda: back(
            x.double(), x, one, None, None, one, one, True, EPS, [True, True, True]
        ),
    }


@pytest.mark.parametrize("name", _refused())
@pytest.mark.parametrize(
    "mode", [contextlib.nullcontext, torch.overrides.BaseTorchFunctionMode], ids=["plain", "function mode"]
)
def test_errors_stay_pytorchs(name, mode):
    """The same type and the same words, also under a mode of torch.overrides."""
    call = _refused()[name]
    with pytest.raises(Exception) as stock:  # noqa: PT011  # whatever PyTorch raises
        call()
    with bnt.accelerate(), mode(), pytest.raises(type(stock.value)) as ours:
        call()
    assert type(ours.value) is type(stock.value)
    assert str(ours.value).splitlines()[0] == str(stock.value).splitlines()[0]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.native_batch_norm(x, None, None, torch.zeros(3), torch.ones(3), False, 0.1, 0.0),
        lambda x: torch.native_batch_norm(x[:0], torch.ones(3), None, torch.zeros(3), torch.ones(3), False, 0.1, EPS),
        lambda x: aten.native_batch_norm_backward(
            x, x, None, torch.zeros(3), torch.ones(3), None, None, False, 0.0, [True, False, False]
        ),
    ],
    ids=["eps of 0", "empty batch", "backward, eps of 0"],
)
def test_what_ours_does_not_take_is_computed_by_pytorch(call):
    x = torch.randn(4, 3, 5, generator=_generator())
    stock, before, holders = call(x), sum(bnt.status().passed_on.values()), x._use_count()
    with bnt.accelerate():
        ours = call(x)
    assert x._use_count() == holders, "what was passed on is never freed"
    assert sum(bnt.status().passed_on.values()) == before + 1
    for a, b in zip(ours, stock, strict=True):
        assert a is None if b is None else torch.equal(a, b)


def test_one_value_in_training_gives_what_pytorch_gives():
    """Raw native_batch_norm of a single value: y is the bias, running_var becomes NaN."""
    stats = [(torch.zeros(2), torch.ones(2)) for _ in range(2)]
    x, (weight, bias) = torch.randn(1, 2, generator=_generator()), _parameters(2, torch.float32)
    stock = torch.native_batch_norm(x, weight, bias, *stats[0], True, 0.1, EPS)
    with bnt.accelerate():
        ours = torch.native_batch_norm(x, weight, bias, *stats[1], True, 0.1, EPS)
    for a, b in zip((*ours, *stats[1]), (*stock, *stats[0]), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


# --- taking and giving back ---


def _dump():
    names = ("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update", "batch_norm_backward")
    return [torch._C._dispatch_dump(f"aten::{name}") for name in names]


def test_pytorch_has_its_own_kernels_back_afterwards():
    """The dispatcher's tables are as they were; results have PyTorch's bits again."""
    x = torch.randn(4, 3, 50, generator=_generator()) + 1e5  # far enough for the two to differ
    before, stock = _dump(), F.batch_norm(x, None, None, training=True)
    handle = bnt.accelerate()
    assert _dump() != before
    assert not torch.equal(F.batch_norm(x, None, None, training=True), stock)
    handle.remove()
    assert _dump() == before
    assert torch.equal(F.batch_norm(x, None, None, training=True), stock)


def test_handles_nest_and_repeat():
    outer = bnt.accelerate()
    with bnt.accelerate() as inner:
        assert inner.active
        assert bnt.status().active
        outer.remove()
        outer.remove()  # a second time: nothing
        assert not outer.active
        assert bnt.status().active, "the inner one still asks for ours"
    assert not bnt.status().active
    for _ in range(50):
        with bnt.accelerate():
            pass
    assert not bnt.status().active
    with pytest.raises(KeyError), bnt.accelerate():
        raise KeyError
    assert not bnt.status().active, "an error leaves the block, too"
    assert repr(outer).endswith("removed>")


def test_a_lost_handle_is_found_again():
    """As of a notebook's cell that ran twice: what the variable held first is still in force."""
    cell = compile("import batchnorm.torch as bnt; handle = bnt.accelerate()", "<cell 3>", "exec")
    variables = {}
    exec(cell, variables)
    exec(cell, variables)
    with bnt.accelerate() as own:
        status = bnt.status()
        assert [handle.where for handle in status.handles[:2]] == ["<cell 3>:1"] * 2
        lines = str(status).splitlines()
        assert lines[0] == "batchnorm.torch: active: 3 handles are in force (bnt.decelerate() removes them)"
        assert lines[1] == "  2 were taken at <cell 3>:1"
        assert lines[2].startswith(f"  1 was taken at {__file__}:")
        assert status.handles[1:] == (variables["handle"], own)
        assert bnt.status().handles == status.handles, "a handle that stands for a lost one is the same in each status"
        assert repr(own).startswith(f"<batchnorm.torch.accelerate: active, taken at {own.where}; remove() it, or ")
    assert repr(own) == "<batchnorm.torch.accelerate: removed; 2 other handles in force, see bnt.status()>"
    variables["handle"].remove()
    assert bnt.status().active, "the first is lost, and in force"
    before = _dump()
    for handle in bnt.status().handles:
        handle.remove()
    assert not bnt.status().active
    assert bnt.status().handles == ()
    assert _dump() != before
    assert [handle.active for handle in status.handles] == [False] * 3
    status.handles[0].remove()  # again: nothing


def test_decelerate_switches_off_whatever_was_lost():
    """Lost handles, held ones and open blocks: all are removed, and everything works again afterwards."""
    stock = _dump()
    bnt.accelerate()  # dropped
    held = bnt.accelerate()
    with bnt.accelerate() as block:
        bnt.decelerate()
        assert (held.active, block.active, bnt.status().active, bnt.status().handles) == (False, False, False, ())
        assert _dump() == stock
        bnt.decelerate()  # a second time: nothing
        held.remove()
        with bnt.accelerate() as later:
            assert bnt.status().handles == (later,)
        later = bnt.accelerate()
    assert bnt.status().handles == (later,), "the end of a block that was removed takes nothing else away"
    bnt.decelerate()
    assert _dump() == stock


def test_remove_says_when_only_a_dropped_handle_keeps_our_kernels():
    bnt.accelerate()  # dropped
    handle, other = bnt.accelerate(), bnt.accelerate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with bnt.accelerate():
            pass
        handle.remove()  # another one is held, whose owner knows
    with pytest.warns(UserWarning, match=r"removed, but 1 other handle that nobody has .*:\d+\)\. bnt\.decelerate\(\)"):
        other.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.remove()  # again: nothing, and nothing to say
    assert bnt.status().active
    bnt.decelerate()
    assert not bnt.status().active


def test_a_handle_may_be_used_again_and_a_copy_holds_nothing():
    with bnt.accelerate() as handle, handle:
        assert len(bnt.status().handles) == 1
    assert not handle.active
    with handle:
        assert handle.active
        with handle:
            pass
        assert handle.active, "the inner block of the same handle does not end the outer one"
        for copied in (copy.deepcopy(handle), pickle.loads(pickle.dumps(handle))):
            assert not copied.active
            copied.remove()
        assert bnt.status().handles == (handle,)
    assert not bnt.status().active


def test_blocks_in_many_threads():
    """Each thread takes handles and computes; afterwards PyTorch's kernels are back."""
    x, (weight, bias) = torch.randn(8, 4, 6, generator=_generator()), _parameters(4, torch.float32)
    expected = F.batch_norm(x.double(), None, None, weight.double(), bias.double(), True)
    keep, failures = bnt.accelerate(), []  # so that no kernel changes under another thread's call

    def work():
        for _ in range(40):
            with bnt.accelerate():
                y = F.batch_norm(x, None, None, weight, bias, True)
                if not torch.allclose(y.double(), expected, atol=1e-6):
                    failures.append(y)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    keep.remove()
    assert not failures
    assert not bnt.status().active


def _run(code, **environment):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)


def test_normal_use_prints_nothing():
    """No warning, from Python or from C++, by import, use, removal and use again."""
    code = """
        import torch
        import batchnorm.torch as bnt
        for _ in range(2):
            with bnt.accelerate():
                layer = torch.nn.BatchNorm2d(3)
                layer(torch.randn(2, 3, 4, 4)).sum().backward()
        bnt.convert(layer, verbose=False)(torch.randn(2, 3, 4, 4, requires_grad=True)).sum().backward()
        bnt.status()
    """
    run = _run(code)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_status_says_what_runs():
    assert str(bnt.status()).startswith("batchnorm.torch: not active: no handle is in force\n")
    with bnt.accelerate():
        F.batch_norm(torch.randn(3, 2), None, None, training=True)
        status = bnt.status()
        assert status.active
        assert str(status).startswith("batchnorm.torch: active: 1 handle is in force")
        assert f"native_batch_norm: {status.served['native_batch_norm']} served, " in str(status)
        assert repr(status) == str(status)
    assert status.torch == torch.__version__
    assert status.isa == bn._native.isa()
    assert status.threads == torch.get_num_threads()


def test_status_is_a_table_in_a_notebook():
    cell = compile("import batchnorm.torch as bnt; handle = bnt.accelerate()", "<cell & 3>", "exec")
    exec(cell, variables := {})
    F.batch_norm(torch.randn(3, 2), None, None, training=True)
    page = bnt.status()._repr_html_()
    variables["handle"].remove()
    shown = ET.fromstring(f"<div>{page.replace('<br>', '<br/>')}</div>")
    assert "1 was taken at <cell & 3>:1" in "".join(shown.itertext())
    rows = [[cell.text for cell in row] for row in shown.iter("tr")]
    assert rows[0] == ["function of ATen", "calls served", "passed on to PyTorch"]
    status = bnt.status()
    assert {row[0].findtext("code"): int(row[1].text.replace(",", "")) for row in list(shown.iter("tr"))[1:]} == {
        name: served for name, served in status.served.items() if served or status.passed_on[name]
    }


# --- numerics: N1, N2, N3 of docs/numerics.md, through PyTorch ---


@pytest.mark.usefixtures("accelerated")
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "sliced", "permuted"])
@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_accuracy_holds_through_pytorch(offset, scale, layout):
    """|y - y*| <= 2.5e-7 max(1, |y*|) for float32 data up to 1e6 standard deviations away, at any scale."""
    x = (torch.randn(8, 4, 16, 16, generator=_generator(), dtype=torch.float64) + offset) * scale
    x = _layouts(x.float())[layout]
    eps = 1e-5 if scale == 1 else 1e-38 if scale > 1 else 1e-70
    v = x.double().transpose(0, 1).reshape(4, -1)
    by_hand = ((v - v.mean(1, keepdim=True)) / (v.var(1, keepdim=True, correction=0) + eps).sqrt()).reshape(
        4, 8, 16, 16
    )
    by_hand = by_hand.transpose(0, 1)
    layer = torch.nn.BatchNorm2d(4, eps=eps, affine=False, track_running_stats=False)
    for y in (layer(x), bnt.BatchNorm2d(4, eps=eps, affine=False, track_running_stats=False)(x)):
        assert ((y.double() - by_hand).abs() <= 2.5e-7 * by_hand.abs().clamp(min=1)).all()


@pytest.mark.parametrize("offset", [0, 1e3, 1e6])
def test_gradients_do_not_suffer_from_an_offset(offset):
    """ATen saves a float32 mean, up to 0.06 standard deviations wrong here; ours finds the exact one behind it."""
    x = torch.randn(8, 4, 16, 16, generator=_generator()) + offset
    g = torch.randn(x.shape, generator=_generator(1))

    def grad(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(F.batch_norm(x, None, None, training=True), x, g.to(x.dtype))[0].double()

    exact = grad(x.double())
    with bnt.accelerate():
        assert (grad(x) - exact).abs().max() <= 2e-6 * exact.abs().max()


@pytest.mark.usefixtures("accelerated")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_copied_or_foreign_saved_mean_is_taken_as_it_is(dtype):
    """The exact statistics travel in the saved mean's storage; a copy, or another mean in that storage, has none."""
    x = (torch.randn(8, 4, 6, generator=_generator()) + 10).to(dtype)
    g = torch.randn(x.shape, generator=_generator(1)).to(dtype)
    _, mean, invstd = torch.native_batch_norm(x, None, None, None, None, True, 0.1, EPS)

    def grad(mean, invstd):
        wanted = [True, False, False]
        return aten.native_batch_norm_backward(g, x, None, None, None, mean, invstd, True, EPS, wanted)[0].double()

    exact = grad(mean, invstd)
    assert (grad(mean.clone(), invstd) - exact).abs().max() < 0.1, "nearly the same: rounded statistics"
    mean += 1
    moved = grad(mean, invstd)
    assert (moved - exact).abs().max() > 0.01, "what the caller says counts"
    assert torch.equal(moved, grad(mean.clone(), invstd))


@pytest.mark.usefixtures("accelerated")
def test_a_channel_that_is_nan_leaves_the_others_exact():
    x, g = torch.randn(8, 3, 6, generator=_generator()) + 1e5, torch.randn(8, 3, 6, generator=_generator(1))

    def grad(x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(torch.nn.functional.batch_norm(x, None, None, training=True), x, g)[0]

    spoilt = x.clone()
    spoilt[2, 1] = torch.nan
    assert torch.equal(grad(spoilt)[:, ::2], grad(x)[:, ::2])
    assert grad(spoilt)[:, 1].isnan().all()


@pytest.mark.usefixtures("accelerated")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7, 5, 9, 3), (4, 16, 31, 33), (64, 70, 7, 7)], ids=str)
def test_the_same_bits_in_every_layout_and_for_any_number_of_threads(shape, dtype):
    x = torch.randn(shape, generator=_generator()).to(dtype) + 3
    x[1:] = x[:1]  # so that the expanded layout holds the same values
    threads, results = torch.get_num_threads(), []
    parameters = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    for n, (layout, v) in itertools.product((1, 2, 3), _layouts(x).items()):
        torch.set_num_threads(n)
        try:
            again = _batch_norm(v, _parameters(shape[1], parameters), parameters, True)
            assert bnt.status().threads == n
        finally:
            torch.set_num_threads(threads)
        results.append((n, layout, again))
    for n, layout, again in results[1:]:
        for a, b in zip(again, results[0][2], strict=True):
            assert torch.equal(a, b), (n, layout)


@pytest.mark.usefixtures("accelerated")
def test_deterministic_algorithms_and_inference_mode():
    layer, x = torch.nn.BatchNorm1d(3), torch.randn(4, 3, 5, generator=_generator())
    torch.use_deterministic_algorithms(True)
    try:
        y = layer(x)
        y.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(layer)(x), y)
        assert layer.eval()(x).is_inference()


@pytest.mark.usefixtures("accelerated")
def test_a_forked_child_computes():
    """libgomp does not survive a fork (PyTorch's own large operations hang there): ours has threads of its own then."""
    x = torch.randn(32, 64, 28, 28, generator=_generator())
    expected = F.batch_norm(x, None, None, training=True)
    pid = os.fork()
    if pid == 0:
        same = F.batch_norm(x, None, None, training=True).numpy().tobytes() == expected.numpy().tobytes()
        os._exit(0 if same else 1)
    assert os.waitpid(pid, 0)[1] == 0
