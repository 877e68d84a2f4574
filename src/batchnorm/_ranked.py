"""The layers that take certain ranks only, with PyTorch's names."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike

from ._layers import BatchNorm
from ._plan import Axis, channel_axes


class _Ranked(BatchNorm):
    """A layer with channels on axis 1 that takes certain ranks only."""

    _shapes: dict[int, str] = {}  # noqa: RUF012  # a constant of each subclass
    _also: tuple[str, ...] = ()  # what else is taken, in words

    def _checked_axis(self, axis: Axis) -> Axis:
        if channel_axes(axis, type(self).__name__) != 1:
            raise ValueError(
                f"{type(self).__name__}: the channels are on axis 1; got axis={axis!r}. Use BatchNorm(C, axis=...)"
            )
        return 1

    def _channel_axis(self, x: ArrayLike) -> Axis:
        shape = np.shape(x)
        if len(shape) in self._shapes:
            return 1
        self._refuse(shape)

    def _refuse(self, shape: tuple[int, ...]) -> NoReturn:
        accepted = " or ".join([*self._shapes.values(), *self._also])
        others = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}
        other = others.get(len(shape), "BatchNorm")
        raise ValueError(
            f"{type(self).__name__}: expected an input of shape {accepted}; got {len(shape)} axes, shape {shape}. "
            f"Use {other if other != type(self).__name__ else 'BatchNorm'}, or BatchNorm(C, axis=...) for any shape"
        )


class BatchNorm1d(_Ranked):
    """`BatchNorm` for (N, C) and (N, C, L), channels on axis 1.

    Of four axes or more, those of length one after the first axis are ignored. Where one is left, it has the channels,
    as in the worked example below; where none is, axis 1 has them. Where two are left, axis 1 must be one of them
    and has the channels. Any other shape is refused: which axis has the channels would be a guess.

    Examples
    --------
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> B = np.array([[i + j for j in range(5)] for i in range(1, 6)], dtype=np.float32).reshape(5, 1, 5, 1)
    >>> bn.BatchNorm1d(5)(B)[:, 0, 0, 0].round(4)
    array([-1.4142, -0.7071,  0.    ,  0.7071,  1.4142], dtype=float32)
    """

    _shapes = {2: "(N, C)", 3: "(N, C, L)"}  # noqa: RUF012
    _also = ("of more axes, where only one of them after the first is longer than 1, or two with axis 1 among them",)

    def _channel_axis(self, x: ArrayLike) -> Axis:
        shape = np.shape(x)
        if len(shape) in self._shapes:
            return 1
        long = [i for i in range(1, len(shape)) if shape[i] != 1]
        if len(shape) < 2 or len(long) > 2 or (len(long) == 2 and long[0] != 1):
            self._refuse(shape)
        return long[0] if long else 1


class BatchNorm2d(_Ranked):
    """`BatchNorm` for (N, C, H, W), channels on axis 1.

    >>> import numpy as np
    >>> import batchnorm as bn
    >>> bn.BatchNorm2d(3)(np.zeros((2, 3, 4, 4), np.float32)).shape
    (2, 3, 4, 4)
    """

    _shapes = {4: "(N, C, H, W)"}  # noqa: RUF012


class BatchNorm3d(_Ranked):
    """`BatchNorm` for (N, C, D, H, W), channels on axis 1.

    >>> import numpy as np
    >>> import batchnorm as bn
    >>> bn.BatchNorm3d(3)(np.zeros((2, 3, 4, 4, 4), np.float32)).shape
    (2, 3, 4, 4, 4)
    """

    _shapes = {5: "(N, C, D, H, W)"}  # noqa: RUF012
