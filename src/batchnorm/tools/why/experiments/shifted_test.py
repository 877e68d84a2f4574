"""Other data than in training: contrast, brightness, noise, a negative; and statistics gathered anew without labels."""

from __future__ import annotations

import copy

import torch

from .. import statistics as st
from ..data import Data
from ..experiment import Numbers, Panel, Plan, Runs, Series, Setting, Summary
from ..networks import SHIFT, batch_norm_2d, convolutional, generator, group_norm, nothing
from ..sentences import Sentence, label, say
from ..training import Tensors, accuracy, recalibrate, train

NETS = {"batch norm": batch_norm_2d, "group norm": group_norm, "none": nothing}
NO_SHIFT = "none"
SHIFTS = (NO_SHIFT, "contrast × 0.3", "brightness + 0.5", "noise 0.3", "negative")
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
    finding = []
    for shift in verdicts:
        before, after = of["batch norm"][shift], of[RECALIBRATED][shift]
        finding.append(
            say("shifted-test.right", shift=label(shift), before=st.percent(before), after=st.percent(after))
        )
        guessing = max(st.spread(before).mean, st.spread(after).mean) <= st.GUESSING
        finding += [say("shifted-test.guessing")] if guessing else st.unclear(verdicts[shift])
    finding.append(say("shifted-test.count", all=len(verdicts), better=len(repaired), worse=len(harmed)))
    finding += st.warned("with", of["batch norm"][NO_SHIFT])
    verdict = st.together(list(verdicts.values()))
    return Summary(verdict, finding, _reading(of, repaired, harmed, kept), _panels(of))


def _accuracies(runs: Runs, name: str, shift: str) -> list[float]:
    net = name if name in NETS else "batch norm"
    return [of[shift][name] for of in runs.each("accuracy", net=net)]


def _reading(
    of: dict[str, dict[str, list[float]]], repaired: list[str], harmed: list[str], kept: str
) -> list[Sentence]:
    names = [label(shift) for shift in repaired]
    seen = say("shifted-test.repaired", names=names) if repaired else say("shifted-test.unrepaired")
    harm = [say("shifted-test.harmed", names=[label(shift) for shift in harmed])] if harmed else []
    lopsided = [s for s in SHIFTS if st.verdict(of[RECALIBRATED][s], of[LOPSIDED][s]) == st.CONFIRMS]
    mix = say("shifted-test.lopsided", n=len(lopsided), all=len(SHIFTS)) if lopsided else say("shifted-test.mixed")
    price = st.judged(kept, "shifted-test.cost", "shifted-test.gain", "shifted-test.free")
    return [seen, *harm, *price, mix, say("shifted-test.but")]


def _panels(of: dict[str, dict[str, list[float]]]) -> list[Panel]:
    places = [label("no shift" if shift == NO_SHIFT else shift) for shift in SHIFTS]
    curves = [
        Series.over_seeds(label("no normalization" if n == "none" else n), s, places, list(of[n].values()))
        for n, s in STYLES.items()
    ]
    where = label("what was done to the test images")
    return [Panel(label("Test images right"), where, label("%"), curves, "category", y_range=(0, 100))]
