"""Wrong uses: each line is refused by type checkers, for the reason at its end (mypy's, pyright's)."""

import numpy as np
import torch

import batchnorm as bn
import batchnorm.torch as bnt

x, t = np.ones((4, 3)), torch.ones(4, 3)
moments = bn.moments(x)
bn.batch_norm(x, weights=np.ones(4))  # call-arg, reportCallIssue
bn.batch_norm(x, activation="gleu")  # arg-type, reportArgumentType
bn.normalize(x)  # call-arg, reportCallIssue
bn.normalize(x, m=moments)  # call-arg, reportCallIssue
bn.batch_norm(x, np.ones(3), np.zeros(3), 1)  # call-arg, reportCallIssue
moments.merged()  # attr-defined, reportAttributeAccessIssue
bn.batchnorm(x)  # attr-defined, reportAttributeAccessIssue
bn.BatchNorm("eight")  # arg-type, reportArgumentType
bn.BatchNorm1d(3, epss=1e-3)  # call-arg, reportCallIssue
bn.BatchNorm2d(3, normalize_with="mine")  # arg-type, reportArgumentType
bn.BatchNorm3d(3, on_nonfinite="skp")  # arg-type, reportArgumentType
bn.BatchNorm1d(3, renorm=True)  # arg-type, reportArgumentType
bn.RunningStatistics(3, correction=1)  # call-arg, reportCallIssue
bn.RunningStatistics(3, running_correction=2)  # arg-type, reportArgumentType
bn.BatchNorm1d(3).normalize_with = "Batch"  # assignment, reportAttributeAccessIssue
bn.BatchNorm1d(3).momentun = 0.2  # attr-defined, reportAttributeAccessIssue
bn.BatchNorm1d(3).running_variance(2)  # arg-type, reportArgumentType
bnt.BatchNorm2d("eight")  # arg-type, reportArgumentType
bnt.BatchNorm2d(8, epss=3)  # call-arg, reportCallIssue
bnt.BatchNorm2d(8, on_nonfinite="skp")  # arg-type, reportArgumentType
bnt.BatchNorm1d(8, on_single_value="skip")  # arg-type, reportArgumentType
bnt.BatchNorm3d(8, virtual_batch_size="all")  # arg-type, reportArgumentType
bnt.SyncBatchNorm(8, virtual_batch_size=4)  # call-arg, reportCallIssue
bnt.SyncBatchNorm(8, activation=("relu", 0.1))  # arg-type, reportArgumentType
bnt.BatchNorm1d(8).on_nonfinite = "skp"  # assignment, reportAttributeAccessIssue
bnt.BatchNorm1d(8).momentun = 0.2  # assignment, reportArgumentType
bnt.functional.batch_norm(t, None)  # call-overload, reportCallIssue
bnt.merge_statistics([], [])  # attr-defined, reportAttributeAccessIssue
