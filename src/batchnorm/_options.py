"""Each option once: name, default, allowed values, and the sentence that refuses others.

Both front ends take the same `Option` in constructors, on assignment and in functions. Renorm's parameters and the
slope of an activation are among them; axes, dtypes and arrays are not.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from . import _native

Activation = (
    Literal["relu", "relu6", "leaky_relu", "silu", "gelu", "gelu_tanh", "hardswish", "elu"]
    | tuple[Literal["leaky_relu", "elu"], float]
    | None
)
NormalizeWith = Literal["auto", "batch", "running"]
OnNonfinite = Literal["propagate", "skip", "raise"]
NanPolicy = Literal["propagate", "omit", "raise"]
OnSingleValue = Literal["error", "running"]
Correction = Literal[0, 1]

# Code of each, of the kernels' list (cpp/core/activations.h), and the default of the number that goes with some.
ACTIVATIONS: dict[str | None, tuple[int, float]] = {
    None if name == "none" else name: (code, slope) for code, (name, _, _, slope) in enumerate(_native.activations())
}
TOLD_BY_Y: tuple[bool, ...] = tuple(told for _, told, _, _ in _native.activations())  # by code
_PARAMETERS = {name: parameter for name, _, parameter, _ in _native.activations() if parameter}
NONFINITE_CODES = {"propagate": 0, "skip": 1, "raise": 2}  # codes of the kernels

Take = Callable[[Any], Any]  # the value as it is kept; TypeError or ValueError, without words, for what is refused


@dataclass(frozen=True)
class Option:
    """One option; `rule` follows its name in a sentence, `fix` ends it."""

    name: str
    default: Any
    take: Take
    rule: str
    fix: str = ""
    choices: tuple[str, ...] = ()

    def checked(self, value: object, who: str) -> Any:
        """Return the value as it is kept; TypeError or ValueError for what the option does not take."""
        try:
            return self.take(value)
        except (TypeError, ValueError) as error:
            kind = type(error)
        of_type = f" of type {type(value).__name__}" if kind is TypeError else ""
        said = f"{who}: {self.name} {self.rule}; got {shown(value)}{of_type}"
        near = get_close_matches(str(value).lower(), self.choices, 1) if self.choices else []
        raise kind(said + (f"; did you mean {near[0]!r}?" if near else self.fix and f"; {self.fix}"))

    def called(self, name: str) -> Option:
        """Return the same option under another name."""
        return replace(self, name=name)


class RenormOption:
    """What the option `renorm` takes: `Renorm`, which stands above this file."""


def shown(value: object) -> str:
    """Return a value in one short line."""
    line = " ".join(repr(value).split())
    return line if len(line) <= 80 else line[:77] + "..."


def flag(value: Any) -> bool:
    """True or False, and nothing like them."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError
    return bool(value)


def _integer(least: int, most: float = math.inf) -> Take:
    def take(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError
        if not least <= int(value) <= most:
            raise ValueError
        return int(value)

    return take


def number(accepts: Callable[[float], bool]) -> Take:
    """A real number, not a bool, within limits; kept as a float."""

    def take(value: Any) -> float:
        if type(value) is not float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
            raise TypeError
        if not accepts(float(value)):
            raise ValueError
        return float(value)

    return take


def _one_of(choices: Container[Any]) -> Take:
    def take(value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError
        if value not in choices:
            raise ValueError
        return str(value)

    return take


def or_none(take: Take) -> Take:
    """The same, or None."""
    return lambda value: None if value is None else take(value)


def _renorm(value: Any) -> Any:
    if not isinstance(value, RenormOption):
        raise TypeError
    return value


def _activation(value: Any) -> Any:
    if not isinstance(value, tuple):
        return str(_one_of(ACTIVATIONS)(value))
    if len(value) != 2 or not isinstance(value[0], str) or value[0] not in _PARAMETERS:
        raise ValueError
    return str(value[0]), number(math.isfinite)(value[1])


def _activation_rule() -> str:
    said = [repr(name) for name in ACTIVATIONS]
    said += [f"({name!r}, {parameter}) with a finite {parameter}" for name, parameter in _PARAMETERS.items()]
    return f"must be {', '.join(said[:-1])}, or {said[-1]}"


EPS = Option(
    "eps", 1e-5, number(lambda v: 0 < v < math.inf),
    "must be positive and finite, so that constant channels have a scale", "try 1e-5",
)  # fmt: skip
MOMENTUM = Option(
    "momentum", 0.1, or_none(number(lambda v: 0 <= v <= 1)),
    "is the weight of the new batch, from 0 to 1, or None for the mean over all batches",
    "(Keras, Flax and ONNX name the weight of the old value: use 1 minus it)",
)  # fmt: skip
RUNNING_CORRECTION = Option(
    "running_correction", 1, _integer(0, 1),
    "must be 1 (unbiased running_var, as PyTorch) or 0 (biased, as Keras, Flax and ONNX)",
)  # fmt: skip
ACTIVATION = Option(
    "activation", None, or_none(_activation), _activation_rule(),
    choices=tuple(name for name in ACTIVATIONS if name),
)  # fmt: skip
ON_SINGLE_VALUE = Option(
    "on_single_value", "error", _one_of(("error", "running")),
    "says what one value per channel in training does: 'error', or 'running' (normalize with the running statistics)",
    choices=("error", "running"),
)  # fmt: skip
ON_NONFINITE = Option(
    "on_nonfinite", "propagate", _one_of(NONFINITE_CODES),
    "says what NaN or infinity in a batch does to the running statistics: 'propagate' (as PyTorch), 'skip' or 'raise'",
    choices=tuple(NONFINITE_CODES),
)  # fmt: skip
NAN_POLICY = Option(
    "nan_policy", "propagate", _one_of(("propagate", "omit", "raise")),
    "says what NaN in x does: 'propagate' (to its whole channel), 'omit' (it is missing, and not counted) or 'raise'",
    choices=("propagate", "omit", "raise"),
)  # fmt: skip


def nan_policy_of(asked: str | None, is_table: bool) -> str:
    """Return the policy that holds: the one asked for; else a missing cell of a table, which is NaN, is left out."""
    return asked or ("omit" if is_table else NAN_POLICY.default)


VIRTUAL_BATCH_SIZE = Option(
    "virtual_batch_size", None, or_none(_integer(1)),
    "must be an int of at least 1, the samples of a ghost batch, or None for the whole batch",
)  # fmt: skip
RENORM = Option("renorm", None, or_none(_renorm), "must be bn.Renorm(r_max=3.0, d_max=5.0, ...) or None")
NORMALIZE_WITH = Option(
    "normalize_with", "auto", _one_of(("auto", "batch", "running")),
    "says what normalizes: 'auto' (the batch's in training, the running ones in evaluation), 'batch' or 'running'",
    choices=("auto", "batch", "running"),
)  # fmt: skip
UPDATE_RUNNING_STATS = Option(
    "update_running_stats", None, or_none(flag),
    "says whether a forward moves the running statistics, and must be True, False or None (in training)",
)  # fmt: skip
TRAIN_AFFINE = Option("train_affine", True, flag, "must be True, or False: weight and bias get no gradient")
KEEP_COUNT = Option("keep_count", False, flag, "must be True, to keep a running_count, or False")
TRAINING = Option("training", True, flag, "must be True or False, as train() and eval() set it")

RENORM_PARAMETERS = (
    *(
        Option(
            name, default, number(lambda v, least=least: least <= v < math.inf),  # type: ignore[misc]
            f"must be finite and at least {least} ({least}: no change)",
        )
        for name, default, least in (("r_max", 3.0, 1), ("d_max", 5.0, 0))
    ),
    *(
        Option(name, default, _integer(0), "is a number of batches, an int of at least 0")
        for name, default in (("start", 5_000), ("r_end", 40_000), ("d_end", 25_000))
    ),
)  # fmt: skip

EXTRA = (  # what our modules have and torch.nn's have not, in the order of their signatures and reprs
    ACTIVATION, ON_SINGLE_VALUE, ON_NONFINITE, RUNNING_CORRECTION, VIRTUAL_BATCH_SIZE, RENORM, NORMALIZE_WITH,
    UPDATE_RUNNING_STATS, TRAIN_AFFINE, KEEP_COUNT,
)  # fmt: skip


def by_name(*options: Option) -> dict[str, Option]:
    """Return options under their names."""
    return {option.name: option for option in options}


def activation_code(value: Activation) -> tuple[int, float]:
    """Code and slope of an activation that was checked, as the kernels take them."""
    if isinstance(value, tuple):
        return ACTIVATIONS[value[0]][0], float(value[1])
    return ACTIVATIONS[value]


def checked_activation(value: Any, who: str) -> tuple[int, float]:
    """Check an activation; return its code and slope."""
    if not (value is None or (type(value) is str and value in ACTIVATIONS)):
        value = ACTIVATION.checked(value, who)
    return activation_code(value)


_NEEDS_RUNNING: dict[str, Callable[[Any], bool]] = {
    "renorm": lambda value: value is not None,
    "normalize_with": lambda value: value == "running",
    "update_running_stats": lambda value: value is True,
    "keep_count": lambda value: value is True,
}


def check_without_running(name: str, value: object, who: str) -> None:
    """Refuse an option of a layer without running statistics that needs them."""
    if name in _NEEDS_RUNNING and _NEEDS_RUNNING[name](value):
        raise needs_running(who, f"{name}={value!r}")


def needs_running(who: str, what: str) -> ValueError:
    """The refusal of what a layer without running statistics does not have, or cannot do."""
    return ValueError(
        f"{who}: {what} needs running statistics, and the layer has none; build it with track_running_stats=True"
    )


def check_all_without_running(layer: Any, who: str) -> None:
    """Refuse the first option of a layer without running statistics that needs them."""
    for name in _NEEDS_RUNNING:
        check_without_running(name, getattr(layer, name), who)


class Checked:
    """What is set on an object is checked; a public attribute that its class does not declare is refused."""

    _settable: ClassVar[Mapping[str, Option]] = {}

    def _called(self) -> str:
        return type(self).__name__

    def _checked(self, name: str, value: Any) -> Any:
        """Return the value as it is kept; an error, before anything is changed, where it is refused."""
        option = self._settable.get(name)
        return value if option is None else option.checked(value, self._called())

    if not TYPE_CHECKING:  # type checkers would accept any name

        def __setattr__(self, name: str, value: Any) -> None:
            cls: Any = type(self)
            if name[:1] != "_":
                if not _declares(cls, name):
                    raise AttributeError(_unknown(self._called(), name, value, _public(cls)))
                value = self._checked(name, value)
            object.__setattr__(self, name, value)


@lru_cache(maxsize=4096)
def _declares(cls: Any, name: str) -> bool:
    return hasattr(cls, name) or name in _public(cls)


@lru_cache(maxsize=256)
def _public(cls: Any) -> tuple[str, ...]:
    """The public attributes that may be set: annotated ones, and descriptors."""
    names: dict[str, None] = {}
    for base in cls.__mro__[:-1]:
        names |= dict.fromkeys(inspect.get_annotations(base))
        names |= dict.fromkeys(name for name, held in vars(base).items() if hasattr(held, "__set__"))
    return tuple(name for name in names if not name.startswith("_"))


def _unknown(who: str, name: str, value: object, names: Iterable[str]) -> str:
    near = get_close_matches(name, names, 1)
    return f"{who}: there is no option or attribute {name!r}; got {name}={shown(value)}; " + (
        f"did you mean {near[0]!r}?" if near else "an attribute of a subclass's own is declared in its class"
    )


def check_spelling(name: str, value: object, options: Mapping[str, Option], who: str) -> None:
    """Refuse a new attribute that is an option misspelt, set to what the option takes: it would do nothing, in silence.

    Anything else is an attribute of the user's own, and so is None, but for momentum.
    """
    near = _near(name, tuple(options))
    if not near or (value is None and near != MOMENTUM.name):
        return
    try:
        options[near].take(value)
    except TypeError:
        return
    except ValueError:
        pass  # a string where others are expected, say: the value is wrong, too
    raise AttributeError(_unknown(who, name, value, [near]))


@lru_cache(maxsize=4096)
def _near(name: str, names: tuple[str, ...]) -> str:
    return "".join(get_close_matches(name.lower(), names, 1, cutoff=0.85))
