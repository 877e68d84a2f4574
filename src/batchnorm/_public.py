"""Where public classes and functions say they are: the module that users import, not the file that they stand in.

Pickles, help, reprs and tracebacks name that module, so a file may move and old pickles load.
"""

from __future__ import annotations

import inspect
import typing
from typing import Any


def publish(module: str, *things: Any) -> None:
    """Let classes, their private bases and functions name `module` as the place they are in."""
    for thing in things:
        own = [base for base in thing.__mro__ if _is_private(base.__module__)] if isinstance(thing, type) else [thing]
        for each in own:
            if isinstance(each, type):
                _resolve_annotations(each)
            each.__module__ = module


def _is_private(module: str) -> bool:
    names = module.split(".")
    return names[0] == "batchnorm" and any(name.startswith("_") for name in names)


def _resolve_annotations(cls: Any) -> None:
    """Put types in place of their names: `typing.get_type_hints` would look these up in the module that is named."""
    if own := inspect.get_annotations(cls):
        known = typing.get_type_hints(cls, include_extras=True)
        cls.__annotations__ = {name: known[name] for name in own}
