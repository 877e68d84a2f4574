"""`masked`: a mask for layers whose forward is not passed one, and what speech models do with it."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from context_models import KINDS, bits_of, x_of
from installed import file_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import batchnorm.torch as bnt

OURS = [kind for kind in KINDS if not kind.startswith(("torch.nn", "of its own"))]
MASK = (
    torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1], [1, 1, 0, 1]])
    .bool()[:, :, None]
    .expand(5, 4, 2)
)


def _results(layer: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    upon = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y, wanted, upon)]


@pytest.mark.parametrize("zero", [False, True], ids=["", "zero"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", OURS)
def test_it_is_the_mask_passed_by_hand(kind, training, zero):
    layer = KINDS[kind]()
    layer(x_of(1))
    by_hand = copy.deepcopy(layer.train(training))
    x = x_of(2).requires_grad_()
    y = by_hand(x, mask=MASK)
    expected = _results(by_hand, x, torch.where(MASK[:, None], y, 0.0) if zero else y)
    with bnt.masked(layer, MASK, zero=zero):
        found = _results(layer, x, layer(x))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert bits_of(layer) == bits_of(by_hand)
    assert bool((found[0].movedim(1, -1)[~MASK] == 0).all()) == zero or "relu" in str(layer)
    assert torch.equal(layer(x), by_hand(x)), "no mask outside"


def test_another_residual_is_added_before_zeros_are_written():
    layer = bnt.BatchNorm2d(3, activation="relu")
    residual = torch.ones(1, 3, 1, 1)
    expected = torch.where(MASK[:, None], copy.deepcopy(layer)(x_of(), MASK, None, residual), 0.0)
    with bnt.masked(layer, MASK, zero=True):
        assert torch.equal(layer(x_of(), residual=residual), expected)


def test_a_mask_that_a_layer_is_passed_goes_first():
    layer, other = bnt.BatchNorm2d(3), MASK.flip(0)
    expected = copy.deepcopy(layer)(x_of(), mask=other)
    with bnt.masked(layer, MASK, zero=True):
        assert torch.equal(layer(x_of(), mask=other), torch.where(other[:, None], expected, 0.0))


def test_padding_may_hold_anything():
    """NaN in the padding reaches no statistics, and zeros stand in its place."""
    model = nn.Sequential(bnt.BatchNorm1d(2), nn.Conv1d(2, 2, 3, padding=1))
    mask = bnt.mask_from_lengths(torch.tensor([4, 2]))
    x = torch.where(mask[:, None], torch.randn(2, 2, 4), torch.nan)
    for mode in (True, False):
        with bnt.masked(model.train(mode), mask, zero=True):
            assert bool(model(x).isfinite().all())
    assert bool(model[0].running_mean.isfinite().all())


def test_other_lengths():
    model = nn.Sequential(nn.Conv1d(2, 2, 3, stride=2, padding=1), bnt.BatchNorm1d(2))
    x, mask = torch.randn(3, 2, 9), bnt.mask_from_lengths(torch.tensor([9, 5, 2]))
    bits = bits_of(model)
    words = r"masked: layer 1 normalizes samples and positions \(3, 5\).*got a mask of shape \(3, 9\); pass resize="
    with bnt.masked(model, mask), pytest.raises(ValueError, match=words):
        model(x)
    assert bits_of(model) == bits

    for resize in ("nearest", lambda mask, shape: mask[:, [0, 1, 3, 5, 7]]):  # i * 9 / 5, rounded down
        expected = copy.deepcopy(model)
        expected[1](expected[0](x), mask=mask[:, [0, 1, 3, 5, 7]])
        found = copy.deepcopy(model)
        with bnt.masked(found, mask, resize=resize):
            found(x)
        assert bits_of(found) == bits_of(expected)

    asked = []
    with (
        bnt.masked(model, mask, resize=lambda *args: asked.append(args)),
        pytest.raises(ValueError, match=r"shape that it was asked for, \(3, 5\) for layer 1; got None"),
    ):
        model(x)
    assert torch.equal(asked[0][0], mask)
    with bnt.masked(model, mask, resize="nearest"), pytest.raises(ValueError, match=r"positions \(2, 5\)"):
        model(x[:2])


def test_nearest_is_that_of_interpolate():
    for lengths in ((7,), (3, 8)):
        for wanted in ((4,), (9, 3), (7,), (1, 1)):
            if len(wanted) == len(lengths):
                mask = torch.rand(2, *lengths) > 0.4
                x = torch.randn(2, 3, *wanted)
                near = nn.functional.interpolate(mask[:, None].float(), wanted, mode="nearest")[:, 0] > 0
                layer = bnt.BatchNorm1d(3) if x.dim() == 3 else bnt.BatchNorm2d(3)
                expected = copy.deepcopy(layer)(x, mask=near) if int(near.sum()) > 1 else None
                if expected is not None:
                    with bnt.masked(layer, mask, resize="nearest"):
                        assert torch.equal(layer(x), expected)


def test_a_mask_of_samples_serves_all_shapes():
    model = nn.Sequential(bnt.BatchNorm2d(3), nn.Flatten(), bnt.BatchNorm1d(24))
    expected = copy.deepcopy(model)(x_of()[:3])
    with bnt.masked(model, torch.tensor([True] * 3 + [False] * 2)):
        torch.testing.assert_close(model(x_of())[:3], expected)


def test_a_fused_model_is_masked():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), bnt.BatchNorm2d(3), nn.ReLU())
    fused = bnt.fuse(copy.deepcopy(model), verbose=False)
    assert "fused with" in str(fused)
    for each in (model, fused):
        with bnt.masked(each, MASK, zero=True):
            each.y = each(x_of())
    torch.testing.assert_close(fused.y, model.y)
    torch.testing.assert_close(fused.state_dict(), model.state_dict())


def test_what_is_refused():
    model = nn.ModuleDict({"a": nn.Sequential(nn.BatchNorm2d(3)), "b": bnt.BatchNorm2d(3)})
    with pytest.raises(TypeError, match=r"got layer a\.0, a BatchNorm2d; use bnt.convert"):
        bnt.masked(model, MASK)
    with bnt.masked(model, MASK, only="b"):
        pass
    with pytest.raises(TypeError, match="mask must be bool"):
        bnt.masked(model["b"], MASK.float())
    with pytest.raises(TypeError, match=r"mask must be a tensor; got ndarray; use torch\.as_tensor\(mask\)"):
        bnt.masked(model["b"], MASK.numpy())
    with pytest.raises(ValueError, match="without axes"):
        bnt.masked(model["b"], torch.tensor(True))
    with pytest.raises(ValueError, match="resize must be None, 'nearest' or a function"):
        bnt.masked(model["b"], MASK, resize="linear")
    with bnt.masked(model["b"], MASK), pytest.raises(ValueError, match=r"torch\.jit\.trace would record"):
        torch.jit.trace(model["b"], x_of())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["ours", "reproducible"])
def test_a_checkpoint_whose_mask_is_gone_is_refused(kind, reentrant):
    layer = bnt.BatchNorm2d(3)
    if kind == "reproducible":
        layer = bnt.convert_sync(layer, reproducible=True, verbose=False)
    x = x_of().requires_grad_()
    with bnt.masked(layer, MASK):
        checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
        y = checkpoint(layer, x, use_reentrant=reentrant)
    with pytest.raises(ValueError, match="with the mask of the block of masked that it was in; got a backward after"):
        y.sum().backward()
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()  # one without a mask


# --- speech models ---


class Convolution(nn.Module):
    """The convolution module of a Conformer, as torchaudio's: it reads padding, and is not told of it."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.sequential = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1),
            nn.GLU(dim=1),
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width),
            nn.BatchNorm1d(width),
            nn.SiLU(),
            nn.Conv1d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.sequential(self.norm(x).transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("whose", ["as torchaudio's", "torchaudio's"])
def test_a_conformer_counts_no_padding_but_still_reads_it(whose):
    """The convolution before the layer reads half a kernel of padding at the end of a sequence, mask or not."""
    torch.manual_seed(0)
    kind = Convolution
    if whose == "torchaudio's":
        kind = partial(file_of("torchaudio", "models/conformer.py")._ConvolutionModule, 6)
    model = bnt.convert(kind(6, 5), verbose=False)
    lengths = torch.tensor([9, 6, 3])
    mask, frames = bnt.mask_from_lengths(lengths), torch.randn(3, 9, 6)
    seen: list[Tensor] = []
    model.sequential[3].register_forward_pre_hook(lambda layer, args: seen.append(args[0].detach()))
    with bnt.masked(model, mask):
        model(torch.where(mask[:, :, None], frames, torch.arange(6.0)))
    packed = seen[0].movedim(1, -1)[mask].double()
    layer = model.sequential[3]
    np.testing.assert_allclose(layer.running_mean, 0.1 * packed.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(layer.running_var, 0.9 + 0.1 * packed.var(0), rtol=1e-5)
    for n, length in enumerate((9, 6, 3)):
        model(frames[n : n + 1, :length])
        difference = (seen[0][n, :, :length] - seen[-1][0]).abs().amax(0)
        half = 0 if length == 9 else 2
        assert bool((difference[: length - half] < 1e-5).all())
        assert bool((difference[length - half :] > 1e-3).all())


def test_hubert_of_transformers():
    """conv_pos_batch_norm: a padded batch counts as the packed one, and no sample depends on its padding."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8),
        conv_kernel=(4, 2), conv_stride=(4, 2), num_conv_pos_embeddings=6, num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer", do_stable_layer_norm=False, conv_pos_batch_norm=True, num_feat_extract_layers=2,
        hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0,
        mask_time_prob=0.0,
    )  # fmt: skip
    model = bnt.convert(transformers.HubertModel(config), verbose=False)
    layer = model.encoder.pos_conv_embed.batch_norm
    assert type(layer) is bnt.BatchNorm1d
    samples = torch.tensor([160, 96, 64])
    sound = torch.randn(3, 160)
    attention = bnt.mask_from_lengths(samples)
    frames = model._get_feat_extract_output_lengths(samples)
    mask = bnt.mask_from_lengths(frames)
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda layer, args: seen.append(args[0].detach()))

    with bnt.masked(model.train(), mask, zero=True):
        model(sound * attention, attention_mask=attention)
    packed = seen[0].movedim(1, -1)[mask].double()
    np.testing.assert_allclose(layer.running_mean, 0.1 * packed.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(layer.running_var, 0.9 + 0.1 * packed.var(0), rtol=1e-5)

    model.eval()
    for _ in range(2):
        with bnt.masked(model, mask, zero=True):
            batch = model(sound * attention, attention_mask=attention).last_hidden_state
    without = model(sound * attention, attention_mask=attention).last_hidden_state
    for n in range(3):
        alone = model(sound[n : n + 1, : samples[n]]).last_hidden_state[0]
        torch.testing.assert_close(batch[n, : frames[n]], alone, atol=1e-5, rtol=1e-5)
    assert (without[2, : frames[2]] - batch[2, : frames[2]]).abs().max() > 1e-3, "without it, it does depend"
