"""Dataclasses and NumPy's numbers as what JSON has."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Return ``value`` made of dicts, lists, texts, numbers, booleans and None; NaN and infinity become texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def dumps(value: Any, *, ascii_only: bool = False, indent: str = "", most: int = 110) -> str:
    """Return ``value``, made by :func:`plain`, as strict JSON; what fits on a line of ``most`` characters is one."""
    short = json.dumps(value, ensure_ascii=ascii_only, allow_nan=False)
    if len(indent) + len(short) <= most or not isinstance(value, dict | list):
        return short
    inner = indent + "  "

    def deeper(part: Any) -> str:
        return dumps(part, ascii_only=ascii_only, indent=inner, most=most)

    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(k)}: {deeper(v)}" for k, v in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + deeper(v) for v in value) + f"\n{indent}]"
