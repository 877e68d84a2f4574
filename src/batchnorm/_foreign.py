"""What an array holds whose dtype cannot be computed in, and how its owner makes numbers of it."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The largest integer up to which float64 holds every one.
MOST_EXACT = 2**53


class Rounded(ValueError):
    """Integers that float64, in which they are computed, does not hold exactly."""


def beyond_exact(values: NDArray[Any]) -> NDArray[Any]:
    """Return the flat indices of the integers beyond 2**53, which float64 rounds."""
    if values.dtype.kind not in "iu" or values.itemsize < 8 or values.size == 0:
        return np.empty(0, np.intp)
    if values.max() <= MOST_EXACT and values.min() >= -MOST_EXACT:
        return np.empty(0, np.intp)
    flat = values.ravel()
    return np.flatnonzero((flat > MOST_EXACT) | (flat < -MOST_EXACT))


def rounding(got: str) -> str:
    """Return the rule that an integer beyond 2**53 breaks."""
    return (
        f"integers are computed as float64, which holds each one up to 2**53; got {got}; subtract a whole number from "
        "all of them first, such as the smallest"
    )


def content(x: NDArray[Any], name: str) -> tuple[str, str]:
    """Return what ``x`` holds, in words, and the fix; ``name`` is what the caller knows the array as."""
    describe = {"i": _integers, "u": _integers, "O": _objects, "V": _raw}.get(x.dtype.kind)
    if describe is not None:
        return describe(x, name)
    return {
        "b": ("bool data", f"convert it with {name}.astype(np.float64)"),
        "c": ("complex data", f"normalize {name}.real and {name}.imag as channels of their own"),
        "f": (f"{x.dtype} data", f"convert it with {name}.astype(np.float64)"),
        "M": ("dates", f"count the seconds from the first: ({name} - {name}.min()) / np.timedelta64(1, 's')"),
        "m": ("spans of time", f"count them in seconds: {name} / np.timedelta64(1, 's')"),
    }.get(x.dtype.kind, ("text", f"convert numbers that were read as text with {name}.astype(np.float64)"))


def _integers(x: NDArray[Any], name: str) -> tuple[str, str]:
    largest = max(abs(int(x.max())), abs(int(x.min()))) if x.size else 0
    if largest <= MOST_EXACT:
        return "integer data", f"convert it with {name}.astype(np.float64)"
    fix = f"count from the smallest, as float64 would round {largest}: ({name} - {name}.min()).astype(np.float64)"
    return "integer data", fix


def _raw(x: NDArray[Any], name: str) -> tuple[str, str]:
    if x.dtype.names:
        return "records", f"pass one field, such as {name}[{x.dtype.names[0]!r}]"
    if x.dtype.type is np.void:
        return "raw bytes", f"say what they are with {name}.view(dtype)"
    return f"{x.dtype} data", f"convert it with {name}.astype(np.float32)"  # a small float of another package


def _objects(x: NDArray[Any], name: str) -> tuple[str, str]:
    odd = [v for v in x.flat if not isinstance(v, numbers.Number)][:1]
    if not odd:
        return "Python numbers (object data)", f"convert them with {name}.astype(np.float64)"
    kind = type(odd[0]).__name__
    if hasattr(odd[0], "toarray"):
        which = name if x.ndim == 0 else f"each {name}[i]"
        return f"a sparse matrix ({kind})", f"fill in its zeros with {which}.toarray()"
    if hasattr(odd[0], "collect"):
        return f"a table that is not computed yet ({kind})", f"compute it with {name}.collect()"
    if hasattr(odd[0], "__next__"):
        return f"an iterator ({kind})", f"make an array of what it gives, np.array(list({name}))"
    if x.ndim and (odd[0] is None or kind in ("NAType", "NaTType")):
        fix = f"fill them in; pandas does with {name}.to_numpy(dtype=np.float64, na_value=np.nan)"
        return f"missing values ({odd[0]!r} among object data)", fix
    if isinstance(odd[0], (list, tuple, np.ndarray)):
        return f"rows as object data ({kind})", "build one array with a numeric dtype, from rows of equal length"
    if isinstance(odd[0], str):
        return f"text (such as {odd[0][:20]!r} among object data)", "leave out what is not a number, then convert it"
    return f"object data ({kind})", f"pass numbers, such as np.array({name}, dtype=np.float64)"
