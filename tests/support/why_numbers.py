"""Numbers of runs of `why` that were made up, and the summary of an experiment that found them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchnorm.tools.text.language import Words
from batchnorm.tools.why.catalogue import experiment
from batchnorm.tools.why.experiment import Run, Runs, Summary
from batchnorm.tools.why.sentences import Sentence, told

Maker = Callable[[dict[str, Any], float], dict[str, Any]]


def curve(*values: float) -> dict[str, Any]:
    return {"steps": [0, 10, 20], "accuracy": list(values)}


def faster(with_: list[float], without: list[float]) -> Maker:
    percentiles = {f"p{p}": [0.0, 0.0, 0.0] for p in (15, 50, 85)}

    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        values = with_ if s["net"] == "with" else without
        return {"diverged": False, "train_loss": 0.1 + jitter, **percentiles, **curve(*(v + jitter for v in values))}

    return numbers


def by_net(of: dict[str, dict[str, Any]]) -> Maker:
    """Numbers that depend on the net alone; numbers and lists of numbers get the seed's jitter."""

    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        def moved(value: Any) -> Any:
            return [v + jitter for v in value] if isinstance(value, list) else value + jitter

        return {"diverged": False, "train_loss": 0.1, "steps": [10, 20]} | {
            k: moved(v) for k, v in of[s["net"]].items()
        }

    return numbers


def rates(with_: float, without: float) -> Maker:
    """Up to a largest rate, which differs by side, all is well."""

    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        well = s["rate"] <= (with_ if s["net"] == "with" else without)
        return {"diverged": not well, "train_loss": 0.1 if well else None, "accuracy": 95 + jitter if well else 0.0}

    return numbers


def scale(with_: float, without: float, error: float = 1e-9) -> Maker:
    """Every scale but the usual one costs a side so many points."""

    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        if s["part"] == "exact":
            return {"output_change": error, "gradient_ratio": 1 / s["factor"], "gradient_error": error}
        usual = s.get("factor") == 1.0 or s.get("inputs") == "as they are"
        value = 95.0 if usual else 95.0 + jitter - (with_ if s["net"] == "with" else without)
        return {"diverged": False, "accuracy": value, "accuracy_recalibrated": value}

    return numbers


def running(recalibrated: float) -> Maker:
    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        two = [80 + 5 * jitter] * 2
        return {"images": [32, 64], "running": two, "recalibrated": [v + recalibrated for v in two],
                "test batch": two, "whole test set": two}  # fmt: skip

    return numbers


def shifted(gain: float) -> Maker:
    shifts = ("none", "contrast × 0.3", "brightness + 0.5", "noise 0.3", "negative")

    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        one = {s["net"]: 50 + jitter}
        if s["net"] == "batch norm":
            one |= {"batch norm, recalibrated": 50 + jitter + gain, "recalibrated on two classes": 50.0}
        return {"accuracy": {shift: one for shift in shifts}}

    return numbers


def padding(mask: float, none: float, moved: float = 1.0) -> Maker:
    def numbers(s: dict[str, Any], jitter: float) -> dict[str, Any]:
        masked = s["net"] == "mask"
        change = [0.0] * 4 if masked else [moved * (1 + jitter / 10)] * 4
        return {"train_loss": 0.1, "accuracy": (mask if masked else none) + jitter, "output_change": change}

    return numbers


def smooth(value: float) -> dict[str, Any]:
    return {name: [value, value] for name in ("loss_range", "gradient_change", "relative_change")}


def small(batch: float, group: float, variants: float = 70.0) -> Maker:
    nets = {"batch norm": batch, "group norm": group, "frozen batch norm": 80.0}
    nets |= {"batch renorm": variants, "ghosts of 4": variants}
    return by_net({net: {"accuracy": accuracy} for net, accuracy in nets.items()})


def smoother(with_: float, without: float) -> Maker:
    return by_net({"with": smooth(with_) | {"accuracy": 90}, "without": smooth(without) | {"accuracy": 90}})


def after_noise(accuracy: float, shift: float) -> Maker:
    """What noise does, where the network without batch normalization has an accuracy of 90 and a shift of 4."""
    nets = {"with": (97.0, 0.1), "with, then noise": (accuracy, shift), "without": (90.0, 4.0)}
    return by_net({net: {"accuracy": [a, a], "shift": [s, s]} for net, (a, s) in nets.items()})


def summary_of(name: str, numbers: Maker, seeds: int = 3) -> Summary:
    settings = experiment(name).plan(True).settings()
    runs = [Run(s, seed, numbers(s, 0.1 * seed)) for seed in range(seeds) for s in settings]
    return experiment(name).summarize(Runs(runs))


def text_of(sentences: list[Sentence], language: str = "en") -> str:
    """What a report says."""
    words = Words(language)
    return words.sentences(told(sentences, words))
