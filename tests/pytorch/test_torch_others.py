"""Other packages' models, where those packages are installed: what the how-to pages say of them."""

from __future__ import annotations

import copy

import pytest
import torch
from installed import file_of

import batchnorm as bn
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


WARM_UP = 10
LIMITS = bn.Renorm(r_max=3.0, d_max=5.0, start=WARM_UP, r_end=WARM_UP, d_end=WARM_UP)


def test_the_renormalization_of_torchrl():
    """The same numbers up to twice its warm-up; then its factor is 2, and r leaves the limits."""
    theirs = file_of("torchrl", "modules/models/batchrenorm.py").BatchRenorm1d(4, warmup_steps=WARM_UP)
    ours, rng = bnt.BatchNorm1d(4, momentum=0.01, renorm=LIMITS), torch.Generator().manual_seed(0)
    for _ in range(2 * WARM_UP):
        x = torch.randn(8, 4, generator=rng) * 2 + 1
        torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(theirs.running_var, ours.running_var)
    x = torch.randn(8, 4, generator=rng) * 0.01  # r would be 1/3 at least
    with torch.no_grad():
        xhat = (x - x.mean(0)) / x.std(0, correction=0)
        slopes = [torch.linalg.lstsq(xhat[:, :1], (y - y.mean(0))[:, :1]).solution.item() for y in (theirs(x), ours(x))]
    assert slopes[0] < 0 < 0.3 < slopes[1]
    theirs(torch.randn(1, 4))
    assert not theirs.running_var.isfinite().any()
    fresh = file_of("torchrl", "modules/models/batchrenorm.py").BatchRenorm1d(4, momentum=1.0)
    x = torch.randn(3, 4, 5)
    fresh(x)
    torch.testing.assert_close(fresh.running_var, x.var((0, 2), correction=0) * 3 / 2)


@pytest.mark.filterwarnings("ignore:var")
def test_the_renormalization_of_sb3_contrib():
    """Its limits hold; it normalizes by the unbiased variance, knows two axes only, and does not survive one sample."""
    BatchRenorm1d = file_of("sb3_contrib", "common/torch_layers.py").BatchRenorm1d
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    layer = BatchRenorm1d(4)
    y = layer(x)
    torch.testing.assert_close(y, (x - x.mean(0)) / (x.var(0) + layer.eps).sqrt())
    for length in (4, 5):
        with pytest.raises(RuntimeError):
            BatchRenorm1d(4)(torch.randn(8, 4, length))
    layer(torch.randn(1, 4))
    assert layer.ra_var.isnan().all()


def test_what_the_validator_of_opacus_sees():
    """Trainable layers of torch.nn's exact classes in training mode, and nothing else."""
    ModuleValidator = pytest.importorskip("opacus.validators").ModuleValidator
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    assert not ModuleValidator.is_valid(model)
    model[1].requires_grad_(False)
    assert ModuleValidator.is_valid(model)
    assert not ModuleValidator.is_valid(model.eval()), "it asks for training mode"
    model.train()[1].requires_grad_(True)
    assert ModuleValidator.is_valid(bnt.convert(model, verbose=False)), "ours is not of its classes"
