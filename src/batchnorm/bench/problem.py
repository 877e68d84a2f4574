"""What is timed: an operation on a named shape, in a layout, a dtype and with a number of threads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..files import Refused

LAYOUTS = ("contiguous", "channels_last")
BYTES_A_VALUE = 110  # measured; nearly all of it are float64 arrays of the specification
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


class Operation(NamedTuple):
    """One call: what it computes, and whether ReLU and the addition of a residual are part of it."""

    kind: str  # forward (training), evaluation, or backward (of training)
    adds: bool = False
    activates: bool = False


OPERATIONS = {
    "forward": Operation("forward"),
    "evaluation": Operation("evaluation"),
    "backward": Operation("backward"),
    "forward + relu": Operation("forward", activates=True),
    "backward + relu": Operation("backward", activates=True),
    "forward + add + relu": Operation("forward", adds=True, activates=True),
    "backward + add + relu": Operation("backward", adds=True, activates=True),
}


class Shape(NamedTuple):
    """A line of a list: a name, sizes (N, C, …), and how many layers of its network have it."""

    name: str
    sizes: tuple[int, ...]
    layers: int = 1

    @property
    def bytes_needed(self) -> int:
        """What measuring takes at least: inputs, outputs, and the exact results with what they are computed from."""
        return math.prod(self.sizes) * BYTES_A_VALUE

    @property
    def layouts(self) -> tuple[str, ...]:
        """Both, or one where positions have no axes of their own and both are the same memory."""
        return LAYOUTS if math.prod(self.sizes[2:]) > 1 else LAYOUTS[:1]


class Problem(NamedTuple):
    """One row of the results."""

    name: str
    sizes: tuple[int, ...]
    layout: str
    dtype: str
    operation: str
    threads: int

    @property
    def does(self) -> Operation:
        """The operation behind its name."""
        return OPERATIONS[self.operation]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of one tensor of this shape."""
        return math.prod(self.sizes) * ITEM_BYTES[self.dtype]


LINE = re.compile(r"(?P<name>[^,]+),\s*(?P<sizes>\d{1,18}(x\d{1,18})+)(,\s*(?P<layers>\d{1,18}) layers?)?")


def read_shapes(path: Path) -> list[Shape]:
    """Read a list: ``name, 32x64x56x56`` or ``name, 32x64x56x56, 4 layers`` a line; ``#`` begins a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path} cannot be read as text ({error}). Name a file with a shape on each line.") from error
    found = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = LINE.fullmatch(text)
        sizes = tuple(map(int, match["sizes"].split("x"))) if match else ()
        if match is None or 0 in sizes or sizes[0] * math.prod(sizes[2:]) < 2:
            raise Refused(
                f"{path}, line {number}: a shape is written as name, 32x64x56x56 (N, C and the other axes, at least "
                f"two positions a channel); got {text!r}. Correct the line, or put # before it."
            )
        found.append(Shape(match["name"].strip(), sizes, int(match["layers"] or 1)))
    if not found:
        raise Refused(f"{path} names no shape. Write one on each line, as name, 32x64x56x56.")
    return found


def check_memory(shapes: Sequence[Shape], path: Path, available: int | None) -> None:
    """Refuse a list with a shape that the memory cannot hold."""
    largest = max(shapes, key=lambda shape: shape.bytes_needed)
    if available is not None and largest.bytes_needed > available:
        sizes = "x".join(map(str, largest.sizes))
        raise Refused(
            f"{path}: shapes must fit into memory; {largest.name}, {sizes} takes {largest.bytes_needed // 2**30} GiB "
            f"({BYTES_A_VALUE} bytes a value), and there are {available // 2**30}. Make it smaller, or put # before "
            "its line."
        )


def problems(
    shapes: Sequence[Shape], dtypes: Sequence[str], operations: Sequence[str], threads: Sequence[int]
) -> Iterator[Problem]:
    """All combinations; those that share their data follow one another."""
    for shape in shapes:
        for layout in shape.layouts:
            for dtype in dtypes:
                for count in threads:
                    for operation in operations:
                        yield Problem(shape.name, shape.sizes, layout, dtype, operation, count)
