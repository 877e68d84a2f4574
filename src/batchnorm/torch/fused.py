"""What fused models are made of: pickles and generated code of theirs name this module, wherever the code stands."""

from __future__ import annotations

from .._public import publish
from ._fuse.forward import FusedForward
from ._fuse.reads import Held, Reads, _imported, _Is, _loaded, _Read, _Shared, attribute, global_value, of_class
from ._fuse.step import in_place, step

__all__ = ["FusedForward", "in_place", "step"]

publish(
    __name__, FusedForward, Held, Reads, _imported, _Is, _loaded, _Read, _Shared, attribute, global_value, of_class,
    in_place, step,
)  # fmt: skip
