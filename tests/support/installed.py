"""Packages of others, where they are installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def file_of(package: str, path: str) -> ModuleType:
    """A file of an installed package, run by itself: the package may ask for simulators that nobody needs here."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    file = Path(spec.submodule_search_locations[0], path)
    found = importlib.util.spec_from_file_location("a_file", file)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
