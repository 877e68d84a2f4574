"""What tests of `recalibrate` share."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["stacks", "threads"])
def waiting(request, monkeypatch):
    """How forwards wait for each other: with and without greenlet."""
    from batchnorm.torch import _lockstep

    if request.param == "threads":
        monkeypatch.setattr(_lockstep, "is_light", lambda: False)
    return request.param
