"""Other packages' models, where those packages are installed: what the how-to pages say of them."""

from __future__ import annotations

import copy

import pytest
import torch

import batchnorm.torch as bnt


def test_tabnet_with_a_ghost_of_one():
    """TabNet cuts 101 samples into ten ghosts of 10 and one of 1; one layer with ghosts gives the same y."""
    GBN = pytest.importorskip("pytorch_tabnet.tab_network").GBN
    norm, x = GBN(4, virtual_batch_size=10), torch.randn(101, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        copy.deepcopy(norm)(x)
    bnt.convert(norm, on_single_value="running", verbose=False)
    first = copy.deepcopy(norm)
    ghosts = bnt.BatchNorm1d(4, virtual_batch_size=10, on_single_value="running")
    y = norm(x)
    assert torch.equal(y[:100], first(x[:100]))
    assert torch.equal(y[:100], ghosts(x)[:100])
    assert torch.equal(norm.bn.running_var, first.bn.running_var)
    assert norm.bn.num_batches_tracked == 10


def test_pytorch_geometric_with_a_graph_of_one_node():
    """As its own option does it."""
    BatchNorm = pytest.importorskip("torch_geometric.nn.norm.batch_norm").BatchNorm
    norms = [BatchNorm(4, allow_single_element=allow) for allow in (True, False)]
    bnt.convert(norms[1], on_single_value="running", verbose=False)
    for x in torch.randn(51, 4, generator=torch.Generator().manual_seed(0)).split(50):
        a, b = (norm(x) for norm in norms)
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(norms[0].module.running_var, norms[1].module.running_var)
    assert norms[0].module.num_batches_tracked == norms[1].module.num_batches_tracked == 1
