"""An explanation as numbers: everything a terminal, a page or a program needs, and nothing that prints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..._plan import Plan
from .channels import ChannelTable
from .comparing import Between, Inside
from .distribution import Distribution
from .drawing import Grid, Stack
from .excerpt import Excerpt
from .formulas import Formulas
from .labels import Labels
from .outliers import Outlier
from .suspicions import Suspicion

#: The worked example: five samples of one row and five columns. Row k begins at k + 1.
EXAMPLE = np.arange(1.0, 6.0)[:, None, None, None] + np.arange(5.0)[:, None]


@dataclass(frozen=True, eq=False)
class Facts:
    """The numbers of an explanation, which `Explanation` adds its renderings to."""

    source: str | None
    dtype: str
    working_dtype: str
    eps: float
    plan: Plan
    labels: Labels
    drawing: Grid | Stack
    formulas: Formulas
    channels: ChannelTable
    suspicions: tuple[Suspicion, ...]
    inside: Inside
    between: Between
    distribution: Distribution | None
    outliers: tuple[Outlier, ...]
    excerpt: Excerpt
    remarks: tuple[str, ...] = ()
    nan_policy: str = "propagate"
    lang: str | None = None  # None: that of the locale, and of the browser
