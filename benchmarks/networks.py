"""Training steps of MobileNetV2, ResNet-50 and timm's EfficientNet-B0: stock, accelerated, fused, and their limit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mobile
import torch
from mobile import conv_bn
from torch import Tensor, nn

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm.tools.bench.functions import ACCELERATED, PYTORCH
from batchnorm.tools.bench.problem import CHANNELS_LAST, Problem, check
from batchnorm.tools.bench.timing import Settings, measure
from layers import FUSED, contestant, saved_bytes

LIMIT = "limit"
STEP, CLASSES = "step", 1000
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

# --- networks, in their published sizes


class Bottleneck(nn.Module):
    """1×1, 3×3 with the stride, 1×1 to four times the width; added to the input or its projection, then ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        branch = [*conv_bn(inputs, width, 1), nn.ReLU(inplace=True), *conv_bn(width, width, 3, stride)]
        self.branch = nn.Sequential(*branch, nn.ReLU(inplace=True), *conv_bn(width, 4 * width, 1))
        same = stride == 1 and inputs == 4 * width
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, 4 * width, 1, stride))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """He et al. 2015, arXiv:1512.03385, table 1."""
    layers: list[nn.Module] = [*conv_bn(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)]
    channels = 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        for position in range(depth):
            layers.append(Bottleneck(channels, 64 << stage, 2 if stage > 0 and position == 0 else 1))
            channels = 4 * (64 << stage)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


def mobilenet_v2() -> nn.Module:
    """Sandler et al. 2018, table 2."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, CLASSES)]
    return mobile.mobilenet_v2(32, STAGES, 1280, head)


def efficientnet_b0() -> nn.Module:
    """timm's, whose layers are batch norm and SiLU in one class."""
    import timm

    return timm.create_model("efficientnet_b0")


NETWORKS = {"MobileNetV2": mobilenet_v2, "ResNet-50": resnet50, "EfficientNet-B0": efficientnet_b0}

# --- ways to run them


def bare(model: nn.Module) -> nn.Module:
    """Without batch norm and activations: what a step takes at least, however fast these are."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU)):
                setattr(module, name, nn.Identity())
    return model


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    PYTORCH: lambda model: model,
    ACCELERATED: lambda model: model,
    FUSED: lambda model: bnt.fuse(bnt.convert(model, verbose=False), verbose=False),
    LIMIT: bare,
}


class Step:
    """Forward, backward and an update by SGD with momentum; bfloat16 is autocast."""

    def __init__(self, problem: Problem, way: str) -> None:
        torch.manual_seed(0)
        layout = torch.channels_last if problem.layout == CHANNELS_LAST else torch.contiguous_format
        model = NETWORKS[problem.what]().to(memory_format=layout).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # so that the ways can be compared
        self.model, self.mixed = CHANGES[way](model), problem.dtype == "bfloat16"
        self.x = torch.randn(problem.shape, generator=torch.Generator().manual_seed(1)).to(memory_format=layout)
        self.classes = torch.arange(problem.shape[0]) % CLASSES
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def loss(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            return nn.functional.cross_entropy(self.model(self.x), self.classes)

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def steps(problem: Problem, settings: Settings) -> dict[str, Any]:
    """Verify the first step of each way, count what it keeps and needs, and let all take turns."""
    contestants, first, saved, peak = {}, {}, {}, {}
    for way in CHANGES:
        step = Step(problem, way)
        contestants[way] = contestant(way, {STEP: step})
        with contestants[way].within():
            first[way] = [float(step()), gradient_norm(step.model)]
            saved[way] = saved_bytes(step.model, step.loss)
            peak[way] = peak_bytes(step)
    verify(problem, first)
    return {"times": measure(contestants, settings), "saved": saved, "peak": peak}


def gradient_norm(model: nn.Module) -> float:
    return float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())


def verify(problem: Problem, first: dict[str, list[float]]) -> None:
    """Loss and length of the gradient of the first step agree, in 16 bits less so."""
    loose = 1 if problem.dtype == "float32" else 10
    for way in first.keys() - {LIMIT}:
        for name, got, want, off in zip(("loss", "gradient"), first[way], first[PYTORCH], (1e-3, 2e-2), strict=True):
            check(f"{problem.title}, {way}: {name} of the first step", got, want, loose * off)


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Bytes that a call needs at most, beyond what the process holds before it; on Linux only."""
    if not CLEAR.exists():
        return None
    bn.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)
    trim(0)
    before = _status("VmRSS")
    CLEAR.write_text("5")  # sets the peak to what is there now
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
