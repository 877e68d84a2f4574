"""Generated modules through `fuse`, beside the same modules unfused: ``python tests/fuzz/fuzz_fuse.py --seconds 600``.

A program is a seed. It becomes the source of one to three classes whose forwards compute, write in place, branch, draw
and count; a few steps of training and evaluation follow, with changes in between that users make. Outputs, gradients,
buffers and random streams must agree after each, and the fused model may raise only where the other one does.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import random
import sys
import time
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import batchnorm.torch as bnt

C = 3

ACTIVATIONS = (
    "F.relu({v})",
    "F.relu({v}, inplace=True)",
    "F.relu(input={v})",
    "{v}.relu()",
    "{v}.relu_()",
    "torch.relu({v})",
    "self.relu({v})",
    "self.relu_in({v})",
    "F.relu6({v})",
    "self.relu6({v})",
    "F.leaky_relu({v}, {number})",
    "F.leaky_relu({v}, self.slope)",
    "self.leaky({v})",
    "F.silu({v})",
    "self.silu_in({v})",
    "torch.tanh({v})",
    "{v}.sigmoid()",
    "F.gelu({v})",
    "F.hardtanh_({v})",
)
NORMS = ("self.bn{i}({v})",) * 4 + ("self.bn{i}(self.conv{i}({v}))", "self.block{i}({v})", "self.pair{i}({v})")
SUMS = (
    "{v} + {w}",
    "{w} + {v}",
    "torch.add({v}, {w})",
    "{v}.add({w})",
    "{v}.add_({w})",
    "torch.add({v}, {w}, alpha=2)",
)
PLAIN = (
    "self.conv{i}({v})",
    "{v} * {number}",
    "{v} * {w}",
    "-{v}",
    "{v} - {w}",
    "{v} + {number}",
    "{v}.clone()",
    "{v} * self.scale",
    "{v} * self.seen",
    "{v} * self.factor",
    "{v} * FACTORS[0]",
    "{v} * self.factors[-1]",
    "F.dropout({v}, 0.3, self.training)",
    "F.dropout({v}, 0.3, training=self.training, inplace=True)",
    "self.dropout({v})",
    "{v} + torch.rand_like({v})",
    "{v}.detach()",
    "torch.where({v} > 0, {v}, {w})",
    "torch.maximum({v}, {w})",
    "{v} if self.factor > 1 else {w}",
    "{v} if self.bias is None else {v} + self.bias",
)
VIEWS = (
    "{v}[:]",
    "{v}.view_as({v})",
    "{v}.flatten(1).view_as({w})",
    "{v}.transpose(0, 1).transpose(0, 1)",
    "{v}.contiguous()",
)
STATEMENTS = (
    "{v} += {w}",
    "{v} += {number}",
    "{v} *= {number}",
    "{v} -= {w}",
    "{v}.mul_({number})",
    "{v}.add_({w}, alpha=0.5)",
    "{v}[:1].mul_({number})",
    "{v}.select(1, 0).zero_()",
    "self.seen.add_(1)",
    "self.calls += 1",
    "self.counts.append(1)",
    "assert {v}.dim() > 1",
)
CONDITIONS = (
    "self.training",
    "not self.training",
    "random.random() < 0.5",
    "np.random.rand() < 0.5",
    "torch.rand(()) < 0.5",
    "{v}.shape[0] > 3",
    "{v}.sum() > 0",
    "self.factor > 1",
    "torch.is_grad_enabled()",
    "len(self.counts) % 2 == 0",
    "isinstance({v}, Tensor)",
)
CONTEXTS = ("torch.no_grad()", "torch.enable_grad()", 'torch.autocast("cpu", enabled=False)')


class Writer:
    """Draws the lines of a forward; every value has the shape of the input."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.names = rng, itertools.count(1)
        self.lines: list[str] = []
        self.values = ["x"]

    def value(self) -> str:
        """Mostly one of the last: chains, as networks have."""
        return self.rng.choice(self.values[-2:] if self.rng.random() < 0.75 else self.values)

    def filled(self, template: str, v: str | None = None) -> str:
        number = self.rng.choice(("0.5", "1.5", "2", "-0.5"))
        slope = number if "leaky" not in template else self.rng.choice(("0.1", "0.3"))
        return template.format(v=v or self.value(), w=self.value(), i=self.rng.randrange(2), number=slope)

    def assign(self, template: str, indent: str, v: str | None = None) -> str:
        fresh = self.rng.random() < 0.6 or v is None
        right = self.filled(template, v)
        name = f"v{next(self.names)}" if fresh else str(v)
        self.lines.append(f"{indent}{name} = {right}")
        if fresh:
            self.values.append(name)
        return name

    def pattern(self, indent: str) -> None:
        """What is fused: a norm, perhaps a sum, perhaps an activation, perhaps something between."""
        v = self.assign(self.rng.choice(NORMS), indent)
        if self.rng.random() < 0.2:
            self.lines.append(indent + self.filled(self.rng.choice(STATEMENTS)))
        if self.rng.random() < 0.5:
            if self.rng.random() < 0.3:
                self.lines.append(f"{indent}{v} += {self.value()}")
            else:
                v = self.assign(self.rng.choice(SUMS), indent, v)
        if self.rng.random() < 0.8:
            self.assign(self.rng.choice(ACTIVATIONS), indent, v)

    def statement(self, indent: str, depth: int) -> None:
        draw = self.rng.random()
        if draw < 0.45:
            self.pattern(indent)
        elif draw < 0.65:
            self.assign(self.rng.choice(PLAIN), indent, self.value())
        elif draw < 0.72:
            self.assign(self.rng.choice(VIEWS), indent, self.value())
        elif draw < 0.86 or depth > 1:
            self.lines.append(indent + self.filled(self.rng.choice(STATEMENTS)))
        else:
            self.block(indent, depth)

    def block(self, indent: str, depth: int) -> None:
        rare = self.rng.random()
        known = list(self.values)
        if rare < 0.6:
            self.lines.append(f"{indent}if {self.filled(self.rng.choice(CONDITIONS))}:")
        else:
            self.lines.append(f"{indent}with {self.rng.choice(CONTEXTS)}:")
        inside = len(self.lines)
        for _ in range(self.rng.randrange(1, 3)):
            self.statement(indent + "    ", depth + 1)
        name = self.value()
        self.lines.append(f"{indent}    {known[-1]} = {name}")
        assert len(self.lines) > inside
        self.values = known


def source(rng: random.Random) -> str:
    """Classes M0 (the model), and blocks inside it."""
    text = []
    for i in range(3):
        writer = Writer(rng)
        for _ in range(rng.randrange(2, 7) if i == 0 else rng.randrange(1, 3)):
            writer.statement("        ", 0)
        result = writer.values[-1] if rng.random() < 0.8 else writer.value()
        body = "\n".join([*writer.lines, f"        return {result}"])
        text.append(f"class M{i}(Base):\n    def forward(self, x):\n{body}\n")
    return "\n".join(text)


class Base(nn.Module):
    """What generated forwards find: two of each part."""

    def __init__(self, rank: int, inner: list[Any]) -> None:
        super().__init__()
        norm = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[rank]
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}.get(rank)
        for i in range(2):
            setattr(self, f"bn{i}", norm(C))
            setattr(self, f"conv{i}", conv(C, C, 3, padding=1) if conv else nn.Linear(C, C))
            setattr(self, f"block{i}", inner[i](rank, []) if inner else nn.Sequential(norm(C), nn.ReLU()))
            setattr(self, f"pair{i}", nn.Sequential(norm(C), (nn.ReLU6, nn.SiLU)[i]()))
        self.relu, self.relu_in, self.relu6 = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()
        self.leaky, self.silu_in, self.dropout = nn.LeakyReLU(0.2), nn.SiLU(inplace=True), nn.Dropout(0.3)
        self.scale, self.bias = nn.Parameter(torch.tensor(1.5)), None
        self.register_buffer("seen", torch.ones(()))
        self.factor, self.slope, self.factors, self.calls = 1.0, 0.1, [1.0], 0
        self.counts: list[int] = []


class Case(NamedTuple):
    seed: int
    text: str
    rank: int
    dtype: torch.dtype
    fused: nn.Module
    plain: nn.Module
    shared: dict[str, Any]  # the globals of the source


def build(seed: int) -> Case:
    rng = random.Random(seed)
    text, rank = source(rng), rng.randrange(4)
    dtype = torch.float64 if rng.random() < 0.8 else torch.float32
    shared = {"torch": torch, "F": F, "nn": nn, "np": np, "random": random, "Tensor": Tensor, "Base": Base}
    shared |= {"FACTORS": [1.0], "__name__": "fuzzed"}
    exec(compile(text, f"<program {seed}>", "exec"), shared)
    torch.manual_seed(seed)
    model = shared["M0"](rank, [shared["M1"], shared["M2"]]).to(dtype)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    plain = bnt.convert(copy.deepcopy(model), verbose=False)
    return Case(seed, text, rank, dtype, bnt.fuse(model, verbose=False), plain, shared)


def change(case: Case, rng: random.Random) -> None:
    """Something that a user does between two calls, to both."""
    draw = rng.randrange(9)
    if draw == 0:
        case.shared["FACTORS"][0] = rng.choice((1.0, 2.0))
    name = rng.choice([name for name, _ in case.plain.named_modules()])
    factor = rng.choice((1.0, 2.0))
    for model in (case.fused, case.plain):
        module = model.get_submodule(name)
        if draw == 1:
            for part in model.modules():
                part.factor = factor
        elif draw == 2 and isinstance(module, Base):
            module.relu, module.factors = nn.Tanh(), [1.0, factor]
        elif draw == 3:
            module.register_forward_hook(lambda m, args, y: None)
        elif draw == 4 and isinstance(module, Base):
            module.bias = nn.Parameter(torch.full((), 0.5, dtype=case.dtype))
        elif draw == 5:
            for parameter in module.parameters():
                parameter.requires_grad_(False)
        elif draw == 6 and isinstance(module, nn.Sequential):
            module.append(nn.Softplus())
        elif draw == 7:
            module.train(not module.training)


def seeded(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the generator that is not the program's own


def streams() -> tuple[float, float, float]:
    """What the three generators give next."""
    of_numpy = float(np.random.rand())  # noqa: NPY002 - as above
    return random.random(), of_numpy, float(torch.rand(()))


class Step(NamedTuple):
    """What a call left behind: the error, or what was computed."""

    error: str
    y: Tensor | None = None
    gradients: list[Tensor | None] = []  # noqa: RUF012 - a tuple's default is not written to
    random: tuple[float, ...] = ()


def step(model: nn.Module, x: Tensor, seed: int, after: str, grad: bool) -> Step:
    seeded(seed)
    x = x.clone().requires_grad_(grad)
    model.zero_grad()
    given = x * 1
    try:
        with torch.set_grad_enabled(grad):
            y = model(given)
    except Exception as error:
        return Step(f"forward: {type(error).__name__}: {error}")
    drawn = streams()
    try:
        if after:
            with torch.set_grad_enabled(grad):
                exec(after, {"y": y, "x": given})
        if y.requires_grad:
            (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    except Exception as error:
        return Step(f"backward: {type(error).__name__}: {error}", y.detach(), [], drawn)
    return Step("", y.detach(), [x.grad, *(p.grad for p in model.parameters())], drawn)


def differs(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        present = a if b is None else b
        return present is not None and bool((present != 0).any())
    if a.dtype != b.dtype or a.shape != b.shape:
        return True
    if not b.is_floating_point():
        return not torch.equal(a, b)
    tolerance = 1e-8 if a.dtype == torch.float64 else 2e-3
    size = float(b.nan_to_num(0).abs().mean()) if b.numel() else 0.0
    return not torch.allclose(a, b, tolerance, tolerance * max(1.0, size), equal_nan=True)


def is_fused(case: Case) -> bool:
    return any("forward" in module.__dict__ for module in case.fused.modules())


def check(case: Case) -> str:
    """What is wrong with a program, or nothing."""
    seed = case.seed
    rng = random.Random(~seed)
    for number in range(5):
        training, grad = rng.random() < 0.6, rng.random() < 0.85
        for model in (case.fused, case.plain):
            model.train(training)
        if number > 1 and rng.random() < 0.6:
            change(case, rng)
        shape = (rng.choice((2, 4, 5)), C, *[(3, 2, 2)[i] for i in range(case.rank)])
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed + number), dtype=case.dtype)
        after = rng.choice(("", "", "", "y.mul_(2)", "y.add_(1)", "x.add_(1)", "y[:1].zero_()"))
        found, expected = (step(m, x, seed + number, after, grad) for m in (case.fused, case.plain))
        where = f"seed {seed}, call {number} ({'training' if training else 'evaluation'}, then {after or 'nothing'})"
        if found.error and not expected.error:
            return f"{where}: raises {found.error}"
        if expected.error.startswith("forward"):
            return "" if found.error.startswith("forward") else f"{where}: does not raise {expected.error}"
        if found.random != expected.random:
            return f"{where}: other random numbers were drawn"
        if differs(found.y, expected.y):
            return f"{where}: another output"
        state, state_expected = case.fused.state_dict(), case.plain.state_dict()
        for name in state_expected:
            if differs(state[name], state_expected[name]):
                return f"{where}: another {name}"
        if expected.error:
            continue
        for g, g_expected in zip(found.gradients, expected.gradients, strict=True):
            if differs(g, g_expected):
                return f"{where}: another gradient"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--all", action="store_true", help="go on after a failure")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    end, fused = time.monotonic() + options.seconds, 0
    for seed in itertools.count(options.start):
        if time.monotonic() > end:
            print(f"{seed - options.start} programs, {fused} of them fused somewhere")
            return
        case = build(seed)
        fused += is_fused(case)
        wrong = check(case)
        if wrong:
            print(case.text, wrong, sep="\n", flush=True)
            if not options.all:
                sys.exit(1)


if __name__ == "__main__":
    main()
