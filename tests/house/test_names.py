"""Public names: what is there, where it says it is, and that pickles name nothing else of ours."""

from __future__ import annotations

import copy
import io
import pickle
import pickletools
import pydoc
import re
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import batchnorm as bn
import batchnorm.sklearn as bns
import batchnorm.torch as bnt

API = Path(__file__).parents[2] / "docs/api.md"
PUBLIC = (bn, bnt, bnt.functional, bns)
PLACES = {"batchnorm", "batchnorm.sklearn", "batchnorm.torch", "batchnorm.torch.functional", "batchnorm.torch.fused"}
THINGS = [(module.__name__, name) for module in PUBLIC for name in module.__all__ if name != "functional"]
X = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0]])


def documented(module: str) -> list[str]:
    """The names that docs/api.md documents while `module` is the current one."""
    parts = re.split(r"^\.\. currentmodule:: (\S+)$", API.read_text(encoding="utf-8"), flags=re.MULTILINE)
    of_module = [part for current, part in zip(parts[1::2], parts[2::2], strict=True) if current == module]
    return re.findall(r"^\.\. auto\w+:: (\S+)$", "".join(of_module), flags=re.MULTILINE)


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_what_is_public_is_what_the_docs_list(module):
    listed = documented(module.__name__)
    assert sorted({*module.__all__} - {"functional"}) == sorted(listed)
    assert list(module.__all__) == sorted(module.__all__)


def test_dir_lists_public_names_only():
    assert dir(bn) == sorted([*bn.__all__, "__version__"])
    assert dir(bnt) == sorted(bnt.__all__)
    assert dir(bns) == sorted(bns.__all__)
    with pytest.raises(AttributeError, match="no attribute 'batchnorm'") as caught:
        bn.batchnorm  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("batchnorm", bn)


@pytest.mark.parametrize(("module", "name"), THINGS)
def test_public_things_say_where_they_are(module, name):
    """In help, too: no page of it shows a private module."""
    thing = getattr(sys.modules[module], name)
    assert (thing.__module__, thing.__qualname__) == (module, name)
    assert not re.findall(r"batchnorm(?:\.\w+)*\._\w+\.\w+", pydoc.plain(pydoc.render_doc(thing)))
    if isinstance(thing, type):
        assert repr(thing) == f"<class '{module}.{name}'>"
        assert typing.get_type_hints(thing) is not None


def test_star_imports_need_numpy_only():
    code = (
        "from batchnorm import *; import sys; print(explain.__module__, 'torch' in sys.modules, 'rich' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.split() == ["batchnorm", "False", "False"]


def _trained(layer: Any, x: Any) -> Any:
    layer(x)
    return layer


def _layers(of: Any, x: Any, *, renorm: bool = True) -> dict[str, Callable[[], Any]]:
    """Layers of every rank."""
    more = {"renorm": bn.Renorm(start=0), "keep_count": True} if renorm else {}
    ranks = {"BatchNorm1d": x, "BatchNorm2d": x[..., None, None], "BatchNorm3d": x[..., None, None, None]}
    return {name: lambda n=name, x=x: _trained(getattr(of, n)(2, **more), x) for name, x in ranks.items()}


T = torch.from_numpy(X).float()
MADE: dict[tuple[str, str], Callable[[], Any]] = {
    ("batchnorm", "BatchNorm"): lambda: _trained(bn.BatchNorm(2, axis=-1), X),
    **{("batchnorm", name): made for name, made in _layers(bn, X).items()},
    ("batchnorm", "Gradients"): lambda: bn.batch_norm_backward(X, X, bn.moments(X)),
    ("batchnorm", "MemoryStats"): bn.memory_stats,
    ("batchnorm", "Moments"): lambda: bn.moments(X * 1e300),
    ("batchnorm", "Plan"): lambda: bn.explain(X).plan,
    ("batchnorm", "Renorm"): bn.Renorm,
    ("batchnorm", "RenormFactors"): lambda: bn.Renorm().factors(bn.moments(X), bn.moments(X)),
    ("batchnorm", "RunningStatistics"): lambda: bn.RunningStatistics(2, keep_count=True),
    **{("batchnorm.torch", name): made for name, made in _layers(bnt, T).items()},
    ("batchnorm.sklearn", "StandardScaler"): lambda: bns.StandardScaler().fit(X, groups=["a", "b", "a"]),
    ("batchnorm.torch", "RecalibratedLayer"): lambda: _recalibration().layers[0],
    ("batchnorm.torch", "Diagnosis"): lambda: _diagnosis(),
    ("batchnorm.torch", "DiagnosedLayer"): lambda: _diagnosis().layers[0],
    ("batchnorm.torch", "Causes"): lambda: _diagnosis().layers[0].mean,
    ("batchnorm.torch", "Finding"): lambda: _diagnosis().findings[0],
    ("batchnorm.torch", "FrozenLayer"): lambda: bnt.frozen(bnt.freeze(torch.nn.BatchNorm1d(2), verbose=False))[0],
    ("batchnorm.torch", "SyncBatchNorm"): lambda: bnt.convert_sync(torch.nn.BatchNorm1d(2), verbose=False),
    **{
        ("batchnorm.torch", f"GroupedBatchNorm{rank}d"): lambda rank=rank: getattr(bnt, f"GroupedBatchNorm{rank}d")(
            2, 2
        )
        for rank in (1, 2, 3)
    },
    ("batchnorm.torch", "Status"): bnt.status,
    ("batchnorm.torch", "Report"): lambda: bnt.convert(torch.nn.SyncBatchNorm(2), verbose=False, return_report=True)[1],
    ("batchnorm.torch.functional", "RunningStatistics"): lambda: bnt.functional.RunningStatistics.initial(2),
}
# Holds on this process's kernels, and on a model of it, which no file can have.
UNPICKLED = {("batchnorm.torch", "Acceleration"), ("batchnorm.torch", "Recalibration")}


def _diagnosis() -> bnt.Diagnosis:
    return bnt.diagnose(torch.nn.Sequential(torch.nn.BatchNorm1d(2)), [T + 1] * 4, verbose=False)


def _recalibration() -> bnt.Recalibration:
    return bnt.recalibrate(bnt.BatchNorm1d(2), [T], verbose=False)


def places_in(data: bytes) -> set[str]:
    """The modules of ours that a pickle names; pickles in it are looked into."""
    found: set[str] = set()
    for _, given, _ in pickletools.genops(data):
        if isinstance(given, str):
            found |= {name for name in given.split(" ") if re.fullmatch(r"batchnorm(\.\w+)*", name)}
        elif isinstance(given, bytes) and given[:1] == b"\x80" and given[-1:] == b".":
            found |= places_in(given)
    return found


def test_every_public_class_is_pickled():
    classes = {(module, name) for module, name in THINGS if isinstance(getattr(sys.modules[module], name), type)}
    assert classes == MADE.keys() | UNPICKLED


@pytest.mark.parametrize("key", MADE, ids=".".join)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickles_name_public_places(key, protocol):
    thing = MADE[key]()
    data = pickle.dumps(thing, protocol)
    assert key[0] in places_in(data)
    assert places_in(data) <= PLACES
    for again in (pickle.loads(data), copy.deepcopy(thing)):
        assert type(again) is type(thing)
        assert repr(again) == repr(thing)
        states = [each.state_dict() for each in (thing, again) if hasattr(each, "state_dict")]
        assert not states or all(map(np.array_equal, states[0].values(), states[1].values()))


@pytest.mark.parametrize(("module", "name"), THINGS)
def test_public_things_are_pickled_by_their_public_name(module, name):
    thing = getattr(sys.modules[module], name)
    assert places_in(pickle.dumps(thing)) == {module}
    assert pickle.loads(pickle.dumps(thing)) is thing


class OfItsOwn(torch.nn.BatchNorm1d):
    """A class that `freeze` keeps in evaluation."""


def test_frozen_models_name_public_places():
    """Those of torch.nn, and those that have an object of ours in the place of `train`."""
    model = bnt.freeze(torch.nn.Sequential(torch.nn.BatchNorm1d(2), OfItsOwn(2)), verbose=False)
    data = pickle.dumps(model)
    assert places_in(data) == {"batchnorm.torch"}
    again = pickle.loads(data).train()
    assert [type(layer) for layer in again] == [bnt.BatchNorm1d, OfItsOwn]
    assert not again[1].training


SCALE = 2.0


class Block(torch.nn.Module):
    """Reads an attribute, one of its class, a global and a module, so that all of these are in the pickle."""

    double = True

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.half = torch.nn.BatchNorm1d(2), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x * SCALE if self.double and not self.half else x * torch.pi
        z += x
        return torch.relu(self.norm(z) + x)


def test_fused_models_name_one_stable_place():
    """Their pickles and the code in them."""
    fused = bnt.fuse(Block(), verbose=False)
    assert type(fused.forward).__module__ == "batchnorm.torch.fused"
    assert "batchnorm_torch_fused_step(" in fused.forward.source
    data = pickle.dumps(fused)
    assert places_in(data) == {"batchnorm.torch", "batchnorm.torch.fused"}
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    for again in (pickle.loads(data), torch.load(file, weights_only=False), copy.deepcopy(fused)):
        assert torch.equal(again.eval()(T), fused.eval()(T))
        assert again.forward.source == fused.forward.source
