"""Right uses: type checkers find nothing here. Read by test_typing.py, never run."""

import numpy as np
import torch
from typing_extensions import assert_type

import batchnorm as bn
import batchnorm.torch as bnt

x = np.ones((4, 3))
y, moments = bn.batch_norm(
    x, np.ones(3), np.zeros(3), axis=-1, sample_weight=np.ones(4), activation=("leaky_relu", 0.2)
)
assert_type(moments, bn.Moments)
bn.normalize(x, moments=moments + bn.moments(x, (1,)), renorm_factors=bn.Renorm().factors(moments, moments))
by_weight = bn.batch_norm_backward(x, x, moments, weight=np.ones(3), training=False).weight
moments.reduce(axis=None).reduce((0, 1))
layer = bn.BatchNorm((3, 4), axis=(1, 2), eps=1e-3, momentum=None, normalize_with="running", on_nonfinite="skip")
layer.update_running_stats = False
layer.running_variance(correction=1)
bn.BatchNorm1d(3, running_correction=0, on_single_value="running", renorm=bn.Renorm(r_max=2.0))(
    x, mask=np.ones(4, bool)
)
bn.BatchNorm2d(3, activation="relu").eval().train(False)
bn.BatchNorm3d(3, virtual_batch_size=16, train_affine=False, keep_count=True, dtype=np.float64)
bn.RunningStatistics(3, running_correction=0, on_nonfinite="raise").update(moments)
bn.save_moments("moments.json", moments, axis=1, names=["a", "b", "c"], eps=1e-5)
assert_type(bn.load_moments("moments.json"), bn.Moments)
bn.explain(x, axis=1, channel=2).to_text(width=100)

t = torch.ones(4, 3)
bnt.BatchNorm1d(3, 1e-5, None, bias=False, activation="silu", on_single_value="running")(t, sample_weight=torch.ones(4))
bnt.BatchNorm2d(8, eps=1e-3, on_nonfinite="skip", normalize_with="batch", update_running_stats=None)
bnt.BatchNorm3d(8, virtual_batch_size=16, renorm=bn.Renorm(), device="cpu", dtype=torch.float64).running_variance(1)
bnt.SyncBatchNorm(8, process_group=None, reproducible=True, running_correction=0)
running = bnt.functional.RunningStatistics.initial(3)
z, running = bnt.functional.batch_norm(t, running, training=True, momentum=0.1)
assert_type(z, torch.Tensor)
assert_type(running.num_batches_tracked, torch.Tensor)
with bnt.accelerate() as handle:
    handle.remove()
assert_type(bnt.fuse(torch.nn.Sequential()), torch.nn.Sequential)
assert_type(bnt.convert(torch.nn.Sequential(), on_nonfinite="skip", renorm=None), torch.nn.Sequential)
bnt.convert(torch.nn.Sequential(), activation=("elu", 0.5), virtual_batch_size=8, return_report=True)[1].left[0]
assert_type(bnt.fuse(torch.nn.ReLU(), return_report=True), tuple[torch.nn.ReLU, bnt.Report])
assert_type(bnt.revert(torch.nn.ReLU(), return_report=True)[1].layers, tuple[str, ...])
bnt.merge_state_dicts([bnt.BatchNorm1d(3)], [2], running_correction=0)
