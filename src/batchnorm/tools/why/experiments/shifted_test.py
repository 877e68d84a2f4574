"""Other data than in training: contrast, brightness, noise, a negative; and statistics gathered anew without labels."""

from __future__ import annotations

import copy

import torch

from .. import statistics as st
from ..data import Data
from ..experiment import Numbers, Panel, Plan, Runs, Series, Setting, Summary
from ..networks import SHIFT, batch_norm_2d, convolutional, generator, group_norm, nothing
from ..training import Tensors, accuracy, recalibrate, train

NETS = {"batch norm": batch_norm_2d, "group norm": group_norm, "none": nothing}
SHIFTS = ("none", "contrast × 0.3", "brightness + 0.5", "noise 0.3", "negative")
RECALIBRATED, LOPSIDED = "batch norm, recalibrated", "recalibrated on two classes"
STYLES = {"batch norm": "without", RECALIBRATED: "with", LOPSIDED: "other", "group norm": "fourth", "none": "fifth"}


def plan(quick: bool) -> Plan:
    """Trained on the images as they are; half of the test images are for recalibrating, the other half for testing."""
    common = {"channels": [8, 16, 32], "batch": 32, "rate": 0.1, "steps": 60 if quick else 240}
    return Plan(common, [{"net": net} for net in NETS])


def run(setting: Setting, seed: int, data: Data) -> Numbers:
    """Train once, then test on every shift."""
    d = Tensors(data)
    model = convolutional(NETS[setting["net"]], seed, data.size, channels=setting["channels"])
    whole = train(
        model, d.train_x, d.train_y, rate=setting["rate"], steps=setting["steps"], batch=setting["batch"], seed=seed
    )
    half = len(d.test_x) // 2
    seen: dict[str, dict[str, float]] = {}
    for shift in SHIFTS:
        x = shifted(d.test_x, shift, seed)
        seen[shift] = {setting["net"]: accuracy(model, x[half:], d.test_y[half:])}
        if setting["net"] == "batch norm":
            two = x[:half][d.test_y[:half] < 2]
            for name, unlabelled in ((RECALIBRATED, x[:half]), (LOPSIDED, two)):
                there = copy.deepcopy(model)
                recalibrate(there, unlabelled)
                seen[shift][name] = accuracy(there, x[half:], d.test_y[half:])
    return {"diverged": not whole, "accuracy": seen}


def shifted(x: torch.Tensor, shift: str, seed: int) -> torch.Tensor:
    """Return images that differ from those of training; values may leave the range from 0 to 1."""
    if shift == "contrast × 0.3":
        return 0.5 + 0.3 * (x - 0.5)
    if shift == "brightness + 0.5":
        return x + 0.5
    if shift == "noise 0.3":
        return x + 0.3 * torch.randn(x.shape, generator=generator(seed, SHIFT))
    return 1 - x if shift == "negative" else x


def summarize(runs: Runs) -> Summary:
    """The claim is that recalibrating raises the accuracy on shifted images."""
    of = {name: {shift: _accuracies(runs, name, shift) for shift in SHIFTS} for name in STYLES}
    verdicts = {shift: st.verdict(of[RECALIBRATED][shift], of["batch norm"][shift]) for shift in SHIFTS[1:]}
    kept = st.verdict(of["batch norm"][SHIFTS[0]], of[RECALIBRATED][SHIFTS[0]])
    repaired = [shift for shift, verdict in verdicts.items() if verdict == st.CONFIRMS]
    harmed = [shift for shift, verdict in verdicts.items() if verdict == st.CONTRADICTS]
    parts = "; ".join(
        f"{shift}: {st.percent(of['batch norm'][shift])} → {st.percent(of[RECALIBRATED][shift])}" for shift in verdicts
    )
    finding = (
        f"right before → after recalibrating, {parts}: clearly better for {len(repaired)} of {len(verdicts)}, worse "
        f"for {len(harmed)} ({st.count(runs.seeds)})"
    )
    verdict = st.together(list(verdicts.values()))
    return Summary(verdict, finding[0].upper() + finding[1:], _reading(of, repaired, harmed, kept), _panels(of))


def _accuracies(runs: Runs, name: str, shift: str) -> list[float]:
    net = name if name in NETS else "batch norm"
    return [of[shift][name] for of in runs.each("accuracy", net=net)]


def _reading(
    of: dict[str, dict[str, list[float]]], repaired: list[str], harmed: list[str], kept: str
) -> tuple[str, str]:
    seen = f"New statistics from {_names(repaired)} images, without a label, repaired part of what the shift had broken"
    if not repaired:
        seen = "New statistics from shifted images repaired nothing clearly"
    if harmed:
        seen += f", and did harm for {_names(harmed)}"
    price = st.judged(kept, "at a cost", "even with a gain", "at no clear cost")
    lopsided = [s for s in SHIFTS if st.verdict(of[RECALIBRATED][s], of[LOPSIDED][s]) == st.CONFIRMS]
    warning = (
        f"Images of two classes alone gave clearly worse statistics on {len(lopsided)} of {len(SHIFTS)} test sets, so "
        "the mix of classes must be that of the test"
        if lopsided
        else "Images of two classes alone did as well, which cannot be counted on"
    )
    return (
        f"{seen}; on images as in training they came {price}.",
        f"{warning}; these shifts move whole images, which is what means and variances can undo, and nothing here "
        "says anything of shifts that move what the classes look like.",
    )


def _names(shifts: list[str]) -> str:
    return " and ".join([", ".join(shifts[:-1]), shifts[-1]]) if len(shifts) > 1 else "".join(shifts)


def _panels(of: dict[str, dict[str, list[float]]]) -> list[Panel]:
    curves = [
        Series.over_seeds("no normalization" if n == "none" else n, s, SHIFTS, [of[n][shift] for shift in SHIFTS])
        for n, s in STYLES.items()
    ]
    return [Panel("Test images right", "what was done to the test images", "%", curves, "category", y_range=(0, 100))]
