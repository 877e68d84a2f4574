"""Batch normalization for PyTorch: one line makes existing models faster, and modules do what torch.nn's cannot.

>>> import torch
>>> import batchnorm.torch as bnt
>>> handle = bnt.accelerate()  # every torch.nn.BatchNorm on the CPU now runs our kernels
>>> handle.remove()
"""

from __future__ import annotations

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"batchnorm.torch needs PyTorch, which cannot be imported ({error}). Install it with: "
        'pip install "torch>=2.10"; for the CPU alone see https://pytorch.org/get-started/locally'
    ) from error

from .._findings import Finding
from .._public import publish
from . import functional, fused  # noqa: F401
from ._accelerate import Acceleration, Status, accelerate, decelerate, status
from ._adapt import adapt
from ._causes import Causes, DiagnosedLayer
from ._contexts import hold
from ._convert import convert, convert_sync, revert
from ._diagnose import diagnose
from ._diagnosis import Diagnosis
from ._eps import set_eps
from ._freeze import FrozenLayer, _EvaluationOnly, freeze, frozen, unfreeze
from ._fuse.fuse import fuse
from ._grouped import GroupedBatchNorm1d, GroupedBatchNorm2d, GroupedBatchNorm3d
from ._groups import convert_groups, groups
from ._layers import BatchNorm1d, BatchNorm2d, BatchNorm3d
from ._masked import masked
from ._merge import merge_state_dicts, state_names
from ._one_update import one_update
from ._positions import mask_from_lengths
from ._recalibrate import recalibrate
from ._recalibration import RecalibratedLayer, Recalibration
from ._report import Report
from ._sync import SyncBatchNorm

__all__ = [
    "Acceleration",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Causes",
    "DiagnosedLayer",
    "Diagnosis",
    "Finding",
    "FrozenLayer",
    "GroupedBatchNorm1d",
    "GroupedBatchNorm2d",
    "GroupedBatchNorm3d",
    "RecalibratedLayer",
    "Recalibration",
    "Report",
    "Status",
    "SyncBatchNorm",
    "accelerate",
    "adapt",
    "convert",
    "convert_groups",
    "convert_sync",
    "decelerate",
    "diagnose",
    "freeze",
    "frozen",
    "functional",
    "fuse",
    "groups",
    "hold",
    "mask_from_lengths",
    "masked",
    "merge_state_dicts",
    "one_update",
    "recalibrate",
    "revert",
    "set_eps",
    "state_names",
    "status",
    "unfreeze",
]

publish(__name__, _EvaluationOnly, *(globals()[name] for name in __all__ if name != "functional"))


def __dir__() -> list[str]:
    return list(__all__)
