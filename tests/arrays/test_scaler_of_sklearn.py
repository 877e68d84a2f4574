"""scikit-learn's own tests of StandardScaler, and its checks of any estimator, run against ours.

They are not copied: the installed modules of tests are loaded with our class in the place of theirs.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import sklearn.preprocessing
from sklearn.utils.estimator_checks import parametrize_with_checks

from batchnorm.sklearn import StandardScaler

pytestmark = pytest.mark.filterwarnings("default")  # theirs, which they look at where they care
DISPATCHES = "SCIPY_ARRAY_API" in os.environ  # before SciPy is imported; else scikit-learn takes no other arrays


def _loaded(name: str) -> ModuleType:
    """A module of their tests in which StandardScaler is ours, in decorators, too."""
    spec = importlib.util.find_spec(f"sklearn.preprocessing.tests.{name}")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sklearn.preprocessing, "StandardScaler", StandardScaler):
        spec.loader.exec_module(module)
    return module


def _is_about_ours(value: Any) -> bool:
    values = value if isinstance(value, (tuple, list)) else [value]
    return any(v is StandardScaler or isinstance(v, StandardScaler) for v in values)


def _only_ours(mark: pytest.Mark) -> pytest.Mark:
    """Leave out the cases of other scalers."""
    if mark.name != "parametrize":
        return mark
    values = list(mark.args[1])
    values = [value for value in values if _is_about_ours(value)] or values
    if "omit_kwargs" in mark.args[0]:  # parameters that the function `scale` does not have
        values = [(*value[:-1], [*value[-1], "unseen_groups"]) for value in values]
    return pytest.mark.parametrize(mark.args[0], values, *mark.args[2:], **mark.kwargs).mark


def _tests() -> Iterator[tuple[str, Callable[..., None]]]:
    for name in ("test_data", "test_common"):
        for key, test in vars(_loaded(name)).items():
            if not key.startswith("test_") or ("array_api" in key and not DISPATCHES):
                continue
            if "StandardScaler" in inspect.getsource(test):
                test.pytestmark = [_only_ours(mark) for mark in getattr(test, "pytestmark", [])]
                yield f"{key}_of_{name.removeprefix('test_')}", test


globals().update(_tests())


@pytest.fixture
def global_random_seed() -> int:
    """A fixture of their conftest."""
    return 42


def test_their_tests_were_found():
    found = [name for name in globals() if name.endswith(("_of_data", "_of_common"))]
    assert len(found) >= 25, found


@pytest.mark.slow
def test_arrays_of_pytorch_are_left_to_them():
    """Their tests of the array API, in a process that dispatches."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-k", "array_api and torch-cpu", __file__]
    run = subprocess.run(
        command, env=os.environ | {"SCIPY_ARRAY_API": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout
    assert "skipped" not in run.stdout, run.stdout


CHECKS = parametrize_with_checks(
    [StandardScaler(), StandardScaler(with_mean=False), StandardScaler(with_std=False)]
).mark


def _applies(case: Any) -> bool:
    estimator, check = getattr(case, "values", case)
    if "sparse_data" in str(check) and estimator.with_mean:
        return False  # which 1.6 asks of scalers that refuse sparse data, its own among them
    return DISPATCHES or "array_api" not in str(check)


@pytest.mark.parametrize(CHECKS.args[0], [case for case in CHECKS.args[1] if _applies(case)], **CHECKS.kwargs)
def test_estimator_checks(estimator: StandardScaler, check: Callable[[StandardScaler], None]):
    check(estimator)
