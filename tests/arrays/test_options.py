"""The options: the same rules in constructors, on assignment and in functions, of both front ends.

Each option has a row: values that are right, and values that are refused. The rows are walked through every class and
function that has the option; a refusal names class, option and value, and leaves everything as it was, bit by bit.
"""

from __future__ import annotations

import ast
import copy
import inspect
import math
import pickle
import typing
from pathlib import Path
from typing import Any, NamedTuple

import cases
import numpy as np
import pytest
import torch

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm import _options, _reference
from batchnorm.tools.explain import explain
from batchnorm.torch import _activations

nan, inf = math.nan, math.inf


class Row(NamedTuple):
    right: tuple[Any, ...]
    values: tuple[Any, ...]  # ValueError
    types: tuple[Any, ...]  # TypeError
    misspelt: str


FLAGS = ("no", 1, 0.0, None)
ROWS = {
    "eps": Row((1e-3, 1, np.float32(0.5)), (-0.1, nan, inf), ("1e-5", None, True, 1j), "epss"),
    "momentum": Row((0.2, 0, 1, None, np.float64(0.5)), (nan, inf), ("0.1", True, [0.1]), "momentun"),
    "running_correction": Row((0, 1, np.int64(0)), (2, -1), (True, 0.5, "1", None), "running_corection"),
    "virtual_batch_size": Row((None, 1, 64, np.int32(2)), (0, -3), (True, 2.0, "8"), "virtual_batchsize"),
    "on_nonfinite": Row(("propagate", "skip", "raise"), ("Skip", "ignore", ""), (None, True, 1), "on_non_finite"),
    "on_single_value": Row(("error", "running"), ("skip", "Error"), (None, 1), "on_singlevalue"),
    "normalize_with": Row(("auto", "batch", "running"), ("Batch", "mine"), (None, True, 3), "normalise_with"),
    "update_running_stats": Row((None, True, False, np.True_), (), ("no", 1, 0.0), "update_runing_stats"),
    "train_affine": Row((True, False), (), FLAGS, "train_afine"),
    "keep_count": Row((True, False), (), FLAGS, "keep_counts"),
    "activation": Row(
        (
            None,
            "relu",
            "relu6",
            "leaky_relu",
            ("leaky_relu", 0.2),
            "silu",
            "gelu",
            "gelu_tanh",
            "hardswish",
            ("elu", 0.5),
        ),
        ("ReLU", "Gelu", ("gelu", "tanh"), ("relu", 0.1), ("leaky_relu",), ("leaky_relu", nan), ("leaky_relu", inf)),
        (3, ["leaky_relu", 0.1], ("leaky_relu", "0.1")),
        "activaton",
    ),
    "renorm": Row((None, bn.Renorm()), (), (True, 3.0, {"r_max": 3.0}, bn.Renorm), "renormm"),
}
NUMPY_ONLY = {"eps": (0, -0.0), "momentum": (-0.5, 2.0)}  # refused there, while torch.nn's layers live with them
NUMPY = {"BatchNorm": lambda **o: bn.BatchNorm(2, **o), "BatchNorm1d": lambda **o: bn.BatchNorm1d(2, **o)}
NUMPY |= {"RunningStatistics": lambda **o: bn.RunningStatistics(2, **o)}
MODULES = {cls.__name__: cls for cls in (bnt.BatchNorm1d, bnt.BatchNorm2d, bnt.BatchNorm3d, bnt.SyncBatchNorm)}
TORCH = {f"torch {name}": lambda cls=cls, **o: cls(2, **o) for name, cls in MODULES.items()}
CONVERTED = {
    f"converted {name}": lambda name=name, **o: bnt.convert(getattr(torch.nn, name)(2, **o), verbose=False)
    for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
} | {"converted SyncBatchNorm": lambda **o: bnt.convert_sync(torch.nn.BatchNorm1d(2, **o), verbose=False)}
LAYERS = NUMPY | TORCH | CONVERTED
SETTABLE = {name: make()._settable for name, make in LAYERS.items()}  # which options each has


def _has(layer: str, option: str) -> bool:
    return option in SETTABLE[layer]


def _builds(layer: str, option: str) -> bool:
    """Whether the constructor takes the option."""
    return layer not in CONVERTED and (option, layer) != ("virtual_batch_size", "torch SyncBatchNorm")


def _wrong(layer: str, option: str) -> list[tuple[Any, type[Exception]]]:
    row = ROWS[option]
    values = row.values + (NUMPY_ONLY.get(option, ()) if layer in NUMPY else ())
    return [(v, ValueError) for v in values] + [(v, TypeError) for v in row.types]


def _state(layer: Any) -> Any:
    """All that a layer holds, by bits."""
    arrays = layer._state() if isinstance(layer, bn.RunningStatistics) else layer.state_dict()
    bits = {name: (v.numpy(force=True) if isinstance(v, torch.Tensor) else v).tobytes() for name, v in arrays.items()}
    inner = _state(layer.running) if isinstance(layer, bn.BatchNorm) and layer.running else None
    plain = {name: repr(v) for name, v in vars(layer).items() if not name.startswith("_")}
    return bits, plain, inner, [getattr(layer, name) for name in type(layer)._settable if hasattr(layer, name)]


def _refused(cell: str, error: type[Exception], said: tuple[str, ...], call: Any, *args: Any, **given: Any) -> None:
    caught: Exception | None = None
    try:
        call(*args, **given)
    except Exception as raised:
        caught = raised
    assert type(caught) is error, f"{cell}: {caught!r}"
    missing = [words for words in (*said, "; got ") if words not in str(caught)]
    assert not missing, f"{cell}: {missing} is not in: {caught}"
    assert "\n" not in str(caught)


CELLS = [(layer, option) for layer in LAYERS for option in ROWS if _has(layer, option)]


def test_the_rows_are_the_options():
    shared = {"eps", "momentum", *(option.name for option in _options.EXTRA)}
    assert set(ROWS) == shared
    for layer, settable in SETTABLE.items():
        own = {"training", "reproducible"}
        assert settable.keys() - own <= shared, layer
    assert all(len(TORCH_SETTABLE) >= len(shared) for TORCH_SETTABLE in map(SETTABLE.__getitem__, TORCH | CONVERTED))


def test_wrong_values_are_refused_by_constructors_and_on_assignment():
    for layer, name in CELLS:
        own = layer.split()[-1]
        for value, error in _wrong(layer, name):
            cell = f"{layer}({name}={value!r})"
            rule = SETTABLE[layer][name].rule
            one = LAYERS[layer]()
            before = _state(one)
            said = (f"{own}: {name} {rule}; got ", repr(value)[:9])
            _refused(f"{cell}, set", error, said, setattr, one, name, value)
            assert _state(one) == before, cell
            if _builds(layer, name):
                _refused(cell, error, said, LAYERS[layer], **{name: value})


def test_right_values_are_kept():
    for layer, name in CELLS:
        for value in ROWS[name].right:
            if name == "virtual_batch_size" and layer.endswith("SyncBatchNorm") and value is not None:
                continue
            cell = f"{layer}({name}={value!r})"
            one = LAYERS[layer]()
            setattr(one, name, value)
            assert getattr(one, name) == value, cell
            if _builds(layer, name):
                built = LAYERS[layer](**{name: value})
                assert getattr(built, name) == value, cell
                assert repr(built) == repr(one), cell
            for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
                assert repr(other) == repr(one), cell
                assert getattr(other, name) == value, cell


def test_misspelt_names_are_refused():
    for layer, name in CELLS:
        misspelt = ROWS[name].misspelt
        if name == "virtual_batch_size" and layer.endswith("SyncBatchNorm"):
            continue
        one = LAYERS[layer]()
        before = _state(one)
        value = next(v for v in ROWS[name].right if v is not None)
        _refused(f"{layer}.{misspelt}", AttributeError, (misspelt, repr(name)), setattr, one, misspelt, value)
        assert _state(one) == before
        with pytest.raises(TypeError, match=misspelt):
            LAYERS[layer](**{misspelt: value})


FUNCTIONS = {
    "moments": (("virtual_batch_size",), lambda **o: bn.moments(X, **o)),
    "batch_norm": (("eps", "activation", "virtual_batch_size"), lambda **o: bn.batch_norm(X, out=OUT, **o)),
    "normalize": (("eps", "activation", "virtual_batch_size"), lambda **o: bn.normalize(X, M, out=OUT, **o)),
    "batch_norm_backward": (
        ("eps", "activation", "virtual_batch_size"), lambda **o: bn.batch_norm_backward(X, X, M, out=OUT, **o),
    ),
    "torch batch_norm": (
        ("eps", "momentum", "running_correction", "activation"),
        lambda **o: bnt.functional.batch_norm(
            torch.from_numpy(X), bnt.functional.RunningStatistics.initial(2), training=True, **o
        ),
    ),
    "torch batch_norm in evaluation": (
        ("eps", "momentum", "running_correction", "activation"),
        lambda **o: bnt.functional.batch_norm(
            torch.from_numpy(X), bnt.functional.RunningStatistics.initial(2), training=False, **o
        ),
    ),
    "torch convert": (
        tuple(ROWS), lambda **o: bnt.convert(torch.nn.BatchNorm1d(2), verbose=False, **o)
    ),
    "merge_state_dicts": (
        ("running_correction",), lambda **o: bnt.merge_state_dicts([torch.nn.BatchNorm1d(2)], [3], **o)
    ),
}  # fmt: skip
X, OUT = np.arange(8, dtype=np.float32).reshape(4, 2), np.full((4, 2), 7, np.float32)
M = bn.moments(X)


def test_functions_refuse_what_layers_refuse():
    for function, (options, call) in FUNCTIONS.items():
        who = function.removeprefix("torch ").partition(" ")[0]
        for option in options:
            for value, error in _wrong("" if "torch" in function else "BatchNorm", option):
                cell = f"{function}({option}={value!r})"
                _refused(cell, error, (f"{who}: {option} ", repr(value)[:9]), call, **{option: value})
            assert (OUT == 7).all(), function
            for value in ROWS[option].right:
                if option == "virtual_batch_size" and "torch" not in function:
                    continue  # its moments have a row for each ghost
                call(**{option: value})
                OUT[...] = 7


def test_each_sentence_stands_once_in_the_source():
    texts = []
    for path in sorted(Path(bn.__file__).parent.rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts += [" ".join(n.value.split()) for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    rules = {o.rule for settable in SETTABLE.values() for o in settable.values()}
    made = {_options.ACTIVATION.rule, bnt.BatchNorm1d._settable["momentum"].rule}  # of a list, and of another rule
    for rule in sorted(rules - made, key=len):
        if len(rule) > 30:
            assert sum(rule in text for text in texts) == 1, rule


def test_each_activation_of_the_list_is_named_where_users_look_and_is_tested():
    """A new line of cpp/core/activations.h is missed where it is not: PyTorch's names, docstrings, cases of tests."""
    names = {name for name in _options.ACTIVATIONS if name}
    assert {of.of_module(of.module()) for of in _activations._TORCH.values()} <= {
        *names,
        ("leaky_relu", 0.01),
        ("elu", 1.0),
    }
    assert set(_activations._TORCH) == names
    assert {a[0] if isinstance(a, tuple) else a for a in cases.ACTIVATIONS + cases.BENT} == {None, *names}
    for documented in (bn.batch_norm, bn.normalize, bn.BatchNorm, bnt.BatchNorm1d):
        missing = [name for name in names if f'"{name}"' not in documented.__doc__]
        assert not missing, f"{documented.__name__}: the docstring does not name {missing}"
    for name, (code, slope) in _options.ACTIVATIONS.items():
        z = np.linspace(-8, 8, 33)
        expected = _reference.activate(z, name, slope)
        found = _activations.activate(torch.from_numpy(z), code, slope).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-15, err_msg=str(name))


# --- torch.nn's rules: what it trains with is taken ---


@pytest.mark.parametrize("name", MODULES)
def test_a_signature_is_torch_nns_and_the_options(name):
    theirs = inspect.signature(getattr(torch.nn, name)).parameters.values()
    ours = list(inspect.signature(MODULES[name]).parameters.values())
    options = [o.name for o in _options.EXTRA if (o.name, name) != ("virtual_batch_size", "SyncBatchNorm")]
    options += ["reproducible"] * (name == "SyncBatchNorm")
    bias = [] if any(p.name == "bias" for p in theirs) else ["bias"]  # a keyword of newer versions
    own = {p.name: p for p in ours if p.name in options}
    assert list(own) == options
    assert all(
        p.kind is p.KEYWORD_ONLY and p.default == SETTABLE[f"torch {name}"][p.name].default for p in own.values()
    )
    rest = [p for p in ours if p.name not in options + bias]
    assert [(p.name, p.kind, p.default) for p in rest] == [(p.name, p.kind, p.default) for p in theirs]
    assert all(p.annotation is not p.empty for p in ours)


def test_the_signature_of_convert_has_every_option_and_changes_none_by_default():
    options = SETTABLE["converted BatchNorm1d"]
    signature = inspect.signature(bnt.convert).parameters
    own = [p for p in signature.values() if p.name not in ("model", "verbose", "return_report")]
    assert [p.name for p in own] == list(options)
    assert all(p.kind is p.KEYWORD_ONLY and p.default is ... for p in own)
    for overload in typing.get_overloads(bnt.convert) if hasattr(typing, "get_overloads") else ():
        assert list(inspect.signature(overload).parameters) == list(signature)
        annotated = [(p.name, p.annotation) for p in inspect.signature(overload).parameters.values()]
        assert annotated[:-1] == [(p.name, p.annotation) for p in signature.values()][:-1]


def test_defaults_of_signatures_are_those_of_the_options():
    """All that differ at once: whoever changes a default has a list. That of nan_policy, None, follows from x."""
    functions = (
        bn.BatchNorm, bn.RunningStatistics, bn.moments, bn.batch_norm, bn.normalize, bn.batch_norm_backward, bn.Renorm,
        bn.Renorm.factors, bnt.functional.batch_norm,
    )  # fmt: skip
    known = _options.by_name(
        _options.EPS, _options.MOMENTUM, _options.NAN_POLICY, *_options.EXTRA, *_options.RENORM_PARAMETERS
    )
    said = {(f, p.name): p.default for f in functions for p in inspect.signature(f).parameters.values()}
    said[explain, "eps"] = inspect.signature(explain).parameters["eps"].default
    compared = {place: value for place, value in said.items() if place[1] in known}
    by_kind = {f for (f, name), value in compared.items() if name == "nan_policy" and value is None}
    assert by_kind == {bn.moments, bn.batch_norm}
    assert (_options.nan_policy_of(None, False), _options.nan_policy_of(None, True)) == ("propagate", "omit")
    assert len(compared) > 30
    differ = [
        f"{f.__qualname__}({name}={value!r})"
        for (f, name), value in compared.items()
        if value is not inspect.Parameter.empty
        and value != known[name].default
        and (name, f in by_kind) != ("nan_policy", True)
    ]
    assert not differ, ", ".join(differ)


@pytest.mark.parametrize("name", MODULES)
def test_skip_init_and_bias(name):
    layer = torch.nn.utils.skip_init(MODULES[name], 4, dtype=torch.float64)
    assert layer.running_var.dtype == torch.float64
    assert layer.weight.device.type == "cpu"
    if "bias" in inspect.signature(torch.nn.BatchNorm1d).parameters:
        ours, theirs = MODULES[name](4, bias=False), getattr(torch.nn, name)(4, bias=False)
        assert ours.bias is None
        assert repr(ours) == repr(theirs)
        assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("momentum", [0.3, 0, 1, 2.0, -0.5, None, torch.tensor(0.3)])
def test_momentum_may_be_what_torch_nn_trains_with(momentum):
    ours, theirs = bnt.BatchNorm1d(2, momentum=momentum), torch.nn.BatchNorm1d(2, momentum=momentum)
    assert ours.momentum is momentum
    for layer in (ours, theirs):
        layer(torch.from_numpy(X))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


def _rank(name):
    return {"BatchNorm2d": (4, 2, 1, 1), "BatchNorm3d": (4, 2, 1, 1, 1)}.get(name, (4, 2))


@pytest.mark.parametrize("name", MODULES)
def test_eps_of_zero_evaluates_and_does_not_train(name):
    """As in torch.nn since 2.13; older versions train with it, or refuse both."""
    x = torch.from_numpy(X).reshape(_rank(name))
    torch.testing.assert_close(MODULES[name](2, eps=0).eval()(x), x)  # mean 0, variance 1
    for mode, options in ((True, {}), (False, {"normalize_with": "batch"}), (True, {"update_running_stats": False})):
        layer = MODULES[name](2, eps=0, **options).train(mode)
        before = _state(layer)
        words = f"{name}: eps must be positive"
        _refused(name, ValueError, (words, "got 0"), layer, x)
        assert _state(layer) == before


def test_a_tensor_of_one_value_is_a_number():
    layer = bnt.BatchNorm1d(2)
    layer.eps = eps = torch.tensor(0.5)
    assert layer.eps is eps
    torch.testing.assert_close(layer(torch.from_numpy(X)), bnt.BatchNorm1d(2, eps=0.5)(torch.from_numpy(X)))
    for wrong in (torch.tensor([0.5]), torch.tensor(True)):
        _refused(repr(wrong), TypeError, ("eps",), setattr, layer, "eps", wrong)


def test_layers_that_cannot_be_ours_are_left_with_the_reason(capsys):
    makers = {
        "eps must be finite and at least 0": lambda cls: cls(2, eps=-0.1),
        "momentum is the weight": lambda cls: cls(2, momentum=nan),
        "its own attribute activation": lambda cls: cls(2),
    }
    for said, make in makers.items():
        for cls in (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm):
            model = torch.nn.Sequential(make(cls), torch.nn.BatchNorm1d(3))
            if "activation" in said:
                model[0].activation = torch.nn.ReLU()
            for convert in (bnt.convert, bnt.convert_sync):
                converted = convert(copy.deepcopy(model))
                assert type(converted[0]) is cls
                assert type(converted[1]) in MODULES.values()
                assert f"layer 0 ({cls.__name__}) is left: " in (out := capsys.readouterr().out)
                assert said in out


# --- attributes that are no options ---


def test_modules_take_attributes_of_the_users_own():
    """A name near an option's is refused only with a value that the option would take."""
    layer = bnt.BatchNorm1d(2)
    for name, value in {
        "activations": torch.ones(2),
        "gain": 2,
        "normalize_withs": None,
        "update_running_stats_": 3,
        "drop": "x",
    }.items():
        setattr(layer, name, value)
        assert getattr(layer, name) is value
    layer.register_buffer("activation_mean", torch.zeros(2))
    layer.activaton_fn = torch.nn.ReLU()
    assert isinstance(layer.get_submodule("activaton_fn"), torch.nn.ReLU)

    class Mine(bnt.BatchNorm1d):
        update_running_stat = False

    mine = Mine(2)
    mine.update_running_stat = True
    assert mine.update_running_stat


def test_numpy_layers_of_the_users_own_declare_their_attributes():
    class Mine(bn.BatchNorm1d):
        gain: float

    layer = Mine(2)
    layer.gain = 2.0
    _refused("gian", AttributeError, ("Mine: there is no option", "'gain'"), setattr, layer, "gian", 2.0)
    layer._hidden = 1


def test_numpy_arrays_that_are_replaced_must_fit():
    layer = bn.BatchNorm1d(2, keep_count=True)
    before = _state(layer)
    wrong = {
        "num_batches_tracked": (5, np.zeros((1,), np.int64), np.zeros(())),
        "running_mean": ([0.0, 1.0], None, np.zeros(3), np.zeros(2, int)),
        "running_var": (1.0, np.ones((2, 1))),
        "running_count": (np.ones(2, np.float32), 3),
        "running": (3, bn.RunningStatistics(3)),
        "num_features": (3,),
        "affine": (False,),
        "track_running_stats": (False,),
        "dtype": (np.float64,),
        "axis": (np.array([1]), 2, 1.0, None),
        "training": ("no", 1),
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(
                (TypeError, ValueError, AttributeError), match=f"BatchNorm1d: .*({name}|channels).*; got"
            ):
                setattr(layer, name, value)
            assert _state(layer) == before, (name, value)
    layer.num_batches_tracked = np.array(5)
    assert layer.running.num_batches_tracked == 5
    bare = bn.BatchNorm1d(2, track_running_stats=False)
    for name in ("running_mean", "num_batches_tracked"):
        with pytest.raises(ValueError, match="the layer has none; build it"):
            setattr(bare, name, np.zeros(2))


def test_what_needs_running_statistics_is_refused_without_them():
    needs = {"normalize_with": "running", "update_running_stats": True, "renorm": bn.Renorm(), "keep_count": True}
    for name, make in LAYERS.items():
        if name == "RunningStatistics":
            continue
        for option, value in needs.items():
            own, cell = name.split()[-1], f"{name} {option}"
            layer = make(track_running_stats=False)
            before = _state(layer)
            words = f"{own}: {option}={value!r} needs running statistics"
            with pytest.raises(ValueError, match=r"build it with track_running_stats=True") as caught:
                setattr(layer, option, value)
            assert words in str(caught.value), cell
            assert _state(layer) == before, cell
            if name not in CONVERTED:
                with pytest.raises(ValueError, match=r"build it with track_running_stats=True"):
                    make(track_running_stats=False, **{option: value})


# --- what is no option, and no tensor ---


def test_scripts_are_refused_with_what_works_instead():
    for name, cls in MODULES.items():
        for model in (cls(2), torch.nn.Sequential(torch.nn.ReLU(), cls(2))):
            with pytest.raises(
                TypeError, match=rf"torch\.jit\.script: .*; got {name}; use .*revert\(model\) first, or"
            ):
                torch.jit.script(model)
    x = torch.from_numpy(X)
    torch.jit.script(bnt.revert(bnt.BatchNorm1d(2), verbose=False))(x)


def test_operands_that_are_no_tensors():
    x, mask = torch.from_numpy(X), np.array([True, True, False, True])
    wrong = {"mask": (mask, mask.tolist()), "sample_weight": ([1.0] * 4, np.ones(4)), "residual": (1.0, 1, X)}
    for name, values in wrong.items():
        for value in values:
            said = f"{name} must be a tensor"
            for layer in (bnt.BatchNorm1d(2), bnt.SyncBatchNorm(2), bnt.BatchNorm1d(2, renorm=bn.Renorm()).eval()):
                before, cell = _state(layer), f"{layer}, {name}={value!r}"
                _refused(cell, TypeError, (said, f"got {type(value).__name__}"), layer, x, **{name: value})
                assert _state(layer) == before, cell
            _refused(
                f"function, {name}",
                TypeError,
                (said,),
                bnt.functional.batch_norm,
                x,
                None,
                training=True,
                **{name: value},
            )
            many = {name: [None, value]}
            _refused(
                f"function, {name}", TypeError, (said,), bnt.functional.batch_norm, [x, x], None, training=True, **many
            )


# --- renorm: parameters and schedule ---


def test_parameters_of_renorm():
    batches = {ValueError: (-1,), TypeError: (True, 0.5, "1", None)}
    limits = {ValueError: (-0.1, nan, inf), TypeError: ("3", True, None)}
    for name in ("start", "r_end", "d_end", "r_max", "d_max"):
        for error, values in (limits if "max" in name else batches).items():
            for value in values:
                said = (f"Renorm: {name} ", repr(value))
                _refused(f"{name}={value!r}", error, said, bn.Renorm, **{name: value})
    with pytest.raises(ValueError, match=r"start=5.*got 4 and 25000"):
        bn.Renorm(start=5, r_end=4)
    with pytest.raises(AttributeError):
        bn.Renorm().r_max = 2.0  # type: ignore[misc]


SCHEDULES = [(0, 0, 0), (7, 7, 7), (5, 5, 9), (5, 9, 5), (5, 9, 13), (0, 3, 3)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_renorm_follows_one_schedule_in_both_front_ends(schedule):
    start, r_end, d_end = schedule
    renorm = bn.Renorm(2.5, 1.5, *schedule)
    for step in range(15):
        r, d = (
            1.0 if step >= end else (step - start) / (end - start) if step > start else 0.0 for end in (r_end, d_end)
        )
        assert renorm.limits(step) == (1 + 1.5 * r, 1.5 * d), step
    ours, theirs = bn.BatchNorm1d(2, renorm=renorm), bnt.BatchNorm1d(2, renorm=renorm)
    for step in range(15):
        x = X + 3 * step
        assert np.array_equal(ours(x), theirs(torch.from_numpy(x)).detach().numpy()), step
    for name, value in ours.state_dict().items():
        assert np.array_equal(value, theirs.state_dict()[name].numpy()), name
