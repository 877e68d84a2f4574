"""The tables of the documents: where each stands, what its columns are, and what a line of it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

from batchnorm.tools.bench.functions import ACCELERATED, ONEDNN, OURS, PYTORCH
from batchnorm.tools.bench.problem import LAYOUTS, OPERATIONS, TABLE
from batchnorm.tools.bench.results import Document, Row
from batchnorm.tools.bench.table import (
    Table,
    copy_seconds,
    digits,
    least,
    mean,
    number,
    ratio,
    seconds,
    shape,
    spread,
    times,
    where,
)  # fmt: skip
from batchnorm.tools.bench.timing import IN_TURN, WARM
from rows import BESIDE, DATA, DTYPES, KINDS, NET, NETWORKS, WRONG

README, CHINESE = "README.md", "README.zh-CN.md"
PERFORMANCE, PYTORCH_PAGE, TRUST = "docs/performance.md", "docs/pytorch.md", "docs/trust.md"
MODULE, FUSED, LIMIT, SKLEARN, SCALER = "module", "fused", "limit", "scikit-learn", "batchnorm"
FLAX, TWO_PASSES = "flax", "flax, use_fast_variance=False"
LOST = 0.95  # below it a ratio is a loss, and not noise
MIB = 2**20

Cell = Callable[[Row], str]

# --- what cells say of a line


def said(*path: str, write: Callable[[Any], str] = str) -> Cell:
    """What a line has under a name, and under names in it."""
    return lambda line: write(reduce(lambda found, name: found[name], path, line))


def ms(who: str, step: str = "", unit: float = 1e3) -> Cell:
    return lambda line: digits(unit * seconds(line, who, step or line["step"]))


def spread_of(who: str) -> Cell:
    return lambda line: spread(line, who, line["step"])


def faster(who: str, step: str = "", other: str = PYTORCH) -> Cell:
    """How many times."""
    return lambda line: times(ratio(line, who, step or line["step"], other=other))


def multiple(who: str, of: str) -> Cell:
    """Of another's time."""
    return lambda line: number(ratio(line, of, line["step"], other=who))


def mib(size: int | None, write: Callable[[float], str] = digits) -> str:
    """None is what could not be counted."""
    return write(math.nan if size is None else size / MIB)


def whole_mib(size: int | None) -> str:
    return mib(size, partial(number, form=".0f"))


def own(make: Callable[[str], Cell]) -> Cell:
    """Of the contestant whose line it is."""
    return lambda line: make(line["who"])(line)


def share(who: str) -> Cell:
    """Of what any batch norm could gain: 0 is PyTorch's own step, 1 is the one without batch norm and activations."""

    def cell(line: Row) -> str:
        stock, took, limit = (seconds(line, each, line["step"]) for each in (PYTORCH, who, LIMIT))
        return number((stock - took) / (stock - limit) if stock > limit else math.nan)

    return cell


def power(value: float) -> str:
    """Two digits of an error."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2g}" if value >= 0.1 or not value else f"{value:.1e}".replace("e-0", "e-")


# --- lines


def rows(document: Document) -> list[Row]:
    return document["rows"]


def by_step(document: Document) -> list[Row]:
    """A line for each step of each row that was measured."""
    return [{**row, "step": step} for row in document["rows"] for step in next(iter(row["times"].values()), {})]


def by_way(document: Document) -> list[Row]:
    """A line for each step and contestant."""
    return [{**line, "who": who} for line in by_step(document) for who in line["times"]]


def having(key: str, what: str) -> Callable[[Document], list[Row]]:
    """The rows that have it there."""
    return lambda document: [row for row in rows(document) if what in row.get(key, ())]


def groups(document: Document) -> list[Row]:
    """Of each dtype and layout: both, and the rows that have them."""
    kinds = [{"dtype": dtype, "layout": layout} for dtype in DTYPES for layout in (*LAYOUTS, TABLE)]
    found = [{**kind, "rows": [row for row in document["rows"] if kind.items() <= row.items()]} for kind in kinds]
    return [group for group in found if group["rows"]]


# --- columns

Columns = Sequence[tuple[str, Any]]  # the heading, and a cell's function
KIND: Columns = [("dtype", said("dtype")), ("layout", said("layout"))]
PLACE: Columns = [("shape", shape), ("layout", said("layout"))]
CALL: Columns = [("", said("step"))]
NETWORK: Columns = [("network", said("what"))]
OTHERS = "others"  # stands for a column for each contestant but the first, by its name


def averages(*modes: str) -> Columns:
    """Geometric means of the accelerated calls, and the worst row."""

    def average(operation: str, mode: str) -> Cell:
        return lambda line: times(mean(ratio(row, ACCELERATED, operation, mode) for row in line["rows"]))

    def worst(line: Row) -> str:
        cases = [(ratio(row, ACCELERATED, o), f"{shape(row)} {o}") for row in line["rows"] for o in OPERATIONS]
        value, name = min((case for case in cases if not math.isnan(case[0])), default=(math.nan, "not measured"))
        text = times(value)
        return type(text)(f"{text} ({name})")

    named = [(o if len(modes) == 1 else f"{o}, {m}", average(o, m)) for m in modes for o in OPERATIONS]
    return [*KIND, ("shapes", lambda line: str(len(line["rows"]))), *named, ("worst", worst)]


def beside_pytorch(operation: str) -> Columns:
    """Accelerated: milliseconds and spread, times faster than PyTorch, and above the least that memory takes."""
    took = ms(ACCELERATED, operation)
    return [
        (f"{operation}, ms", lambda line: f"{took(line)} {spread(line, ACCELERATED, operation)}"),
        (f"{operation}, faster", faster(ACCELERATED, operation)),
        (f"{operation}, least", lambda line: number(seconds(line, ACCELERATED, operation) / least(line, operation))),
    ]


def on_arrays(operation: str) -> Columns:
    """Ours, in copies of the tensor, and how many times faster than PyTorch and oneDNN."""
    others = [(f"{operation}, {who}", faster(OURS, operation, who)) for who in (PYTORCH, ONEDNN)]
    return [(f"{operation}, copies", lambda line: number(seconds(line, OURS, operation) / copy_seconds(line))), *others]


def errors(*names: str) -> Columns:
    return [(who, said("errors", who, write="{:.1e}".format)) for who in names]


def off_by(who: str) -> Columns:
    """Of a tool: how far the mean is off, and the variance as a part of the exact one; where it is installed."""

    def cell(key: str, write: Callable[[Any], str]) -> Cell:
        return lambda line: said("off", who, key, write=write)(line) if who in line["off"] else "–"

    span = cell("var", lambda ends: "–".join(f"{end:.4g}" for end in ends))
    return [(f"{who}, mean off by, std", cell("mean", power)), (f"{who}, variance ×", span)]


# --- the tables


class Shown(NamedTuple):
    """A table of a part: how many columns are words, all columns, its note, its lines, and where it stands."""

    part: str
    words: int
    columns: Columns
    note: str = "{where}; medians, warm."
    lines: Callable[[Document], list[Row]] = by_step
    mark: str = ""  # the part's name
    page: str = PERFORMANCE


def multiples(part: str, first: str, labels: Columns, more: Columns = (), note: str = "; medians, warm.") -> Shown:
    """The first contestant in milliseconds, the others as multiples of it."""
    columns = [*labels, (f"{first}, ms", ms(first)), (OTHERS, lambda who: multiple(who, first)), *more]
    return Shown(part, len(labels), columns, "{where}" + note)


def wrong(mark: str, who: str) -> Shown:
    """What PyTorch gets wrong, where it is off the most, and what this library gives there."""
    seven = "{:.7g}".format
    columns: Columns = [
        ("", lambda line: WRONG[line["what"]].format(**line)),
        ("the truth", said("truth", write=seven)),
        ("PyTorch", said("found", PYTORCH, write=seven)),
        ("this library", said("found", who, write=seven)),
        ("PyTorch is off by", said("off", PYTORCH, write=power)),
        ("this library", said("off", who, write=power)),
    ]
    return Shown("trust", 1, columns, "{where}.", having("found", who), mark, TRUST)


TRAINED = [*NETWORK, *KIND, ("PyTorch, ms", ms(PYTORCH)), *((who, faster(who)) for who in (ACCELERATED, FUSED, LIMIT))]
TRAINED += [("share of the gain", share(FUSED))]

TABLES = [
    Shown(
        "functions", 2, averages(WARM),
        "{where}. Each figure is a geometric mean over the shapes; the last column shows the worst case. Bold figures "
        "are slower than PyTorch.",
        groups,
        mark="speed-table", page=README,
    ),
    Shown(
        "functions", 2, averages(WARM),
        "{where}。每个数是各形状的几何平均，最后一列是最差的情况。加粗表示比 PyTorch 慢。",
        groups,
        mark="speed-table", page=CHINESE,
    ),
    Shown("functions", 2, averages(WARM, IN_TURN), "{where}; geometric means.", groups, mark="groups"),
    Shown(
        "functions", 3,
        [*KIND, ("shape", shape), *(column for o in OPERATIONS for column in beside_pytorch(o))],
        lines=rows, mark="groups-rows",
    ),
    Shown(
        "functions", 2,
        [*PLACE[::-1], *(column for o in OPERATIONS for column in on_arrays(o))],
        lines=having("dtype", "float32"), mark="arrays",
    ),
    Shown(
        "layers", 3,
        [
            *PLACE, ("layer", said("what")), ("PyTorch, ms", ms(PYTORCH)), ("spread", spread_of(PYTORCH)),
            (ACCELERATED, faster(ACCELERATED)), ("our module, in one pass", faster(MODULE)),
        ],
        page=PYTORCH_PAGE,
    ),
    Shown(
        "layers", 2,
        [
            ("", said("what")), ("input", shape), ("PyTorch, MiB", said("saved", PYTORCH, write=mib)),
            ("accelerated, MiB", said("saved", ACCELERATED, write=mib)),
            ("module in one pass, MiB", said("saved", MODULE, write=mib)),
        ],
        "{where}; the same on every machine.",
        lambda document: rows(document)[: len(KINDS)], mark="saved",
    ),
    Shown(
        "networks", 3, TRAINED,
        "{where}. Bold figures are slower than PyTorch. bfloat16 rows run under autocast. No batch norm can beat the "
        "limit, where the share is 1.",
        mark="torch-speed-table", page=README,
    ),
    Shown(
        "networks", 3, TRAINED,
        "{where}。加粗表示比 PyTorch 慢。bfloat16 各行在 autocast 下运行。任何批归一化都不会超过 limit，"
        "那里的份额是 1。",
        mark="torch-speed-table", page=CHINESE,
    ),
    Shown(
        "networks", 4,
        [
            *NETWORK, *KIND, ("step", said("who")), ("ms", own(ms)), ("spread", own(spread_of)),
            ("times faster", own(faster)), ("share of the gain", own(share)),
            ("kept for the backward, MiB", own(partial(said, "saved", write=mib))),
            ("peak, MiB", own(partial(said, "peak", write=mib))),
        ],
        "{where}; medians of interleaved steps. 128×128 pixels, batches: "
        + ", ".join(f"{name}: {batch}" for name, batch in sorted(NETWORKS.items())) + ".{absent}",
        by_way, mark="steps",
    ),
    Shown(
        "tiny", 2,
        [("shape", shape), ("call", said("step")), ("PyTorch, µs", ms(PYTORCH, unit=1e6)), (OTHERS, faster)],
        "{where}, one of them used; medians.",
    ),
    Shown(
        "scaler", 4,
        [
            ("table", shape), KIND[0], ("", said("what")), *CALL,
            *((f"{who}, ms", ms(who)) for who in (SKLEARN, SCALER)),
            ("times faster", faster(SCALER, other=SKLEARN)),
            ("one thread, times faster", faster(f"{SCALER}, one thread", other=SKLEARN)),
            ("scikit-learn, MiB", lambda line: whole_mib(line["peak"][SKLEARN][line["step"]])),
            ("batchnorm, MiB", lambda line: whole_mib(line["peak"][SCALER][line["step"]])),
        ],
        "{where}, scikit-learn {machine[scikit-learn]}; medians, warm.{absent}",
    ),
    Shown(
        "offsets", 1,
        [KIND[0], ("mean", said("what")), *errors(SKLEARN, SCALER)],
        "scikit-learn {machine[scikit-learn]}; the same on every machine, but for rounding.{absent}",
        having("errors", SKLEARN),
    ),
    multiples("variants", "plain", [*PLACE, *CALL]),
    multiples("missing", "propagate", [*PLACE, *CALL]),
    Shown(
        "contexts", 3,
        [
            ("shape", shape), ("layers", said("what")), ("", said("who")),
            ("forward, µs a layer", own(partial(ms, step="forward", unit=1e6 / NET))),
            ("× without it", lambda line: number(ratio(line, BESIDE[line["who"]], "forward", other=line["who"]))),
            ("enter and leave, µs a layer", own(partial(ms, step="enter and leave", unit=1e6 / NET))),
        ],
        "{where}, one of them used; medians, warm.",
        lambda document: [line for line in by_way(document) if line["who"] in BESIDE],
    ),
    multiples("sync", "PyTorch", [*PLACE, *CALL]),
    Shown(
        "recalibrated", 1,
        [
            ("", lambda line: DATA[line["what"]]),
            *(column for who in ("update_bn", "fvcore", "recalibrate") for column in off_by(who)),
        ],
        "{where}; float32, the least and the largest of four channels; a mean of 1e4 standard deviations is stored to "
        "5e-4 of one at best.{absent}",
        rows,
    ),
    multiples(
        "recalibration", "evaluation", NETWORK,
        [
            ("evaluation, MiB", said("memory", "evaluation", write=whole_mib)),
            ("recalibrate, MiB", said("memory", "taken", write=whole_mib)),
            ("predicted, MiB", said("memory", "predicted", write=whole_mib)),
        ],
        "; medians; eight batches: " + ", ".join(f"{name} {n}×3×128×128" for name, n in NETWORKS.items()) + ".{absent}",
    ),
    Shown(
        "jax", 3, [*PLACE, *CALL, ("PyTorch, ms", ms(PYTORCH)), (OTHERS, faster)],
        "{where}, JAX {machine[jax]}, flax {machine[flax]}; medians, warm.{absent}",
    ),
    Shown(
        "jax", 1,
        [("mean", said("what")), *errors(PYTORCH, MODULE, FLAX, TWO_PASSES)],
        "float32; JAX {machine[jax]}, flax {machine[flax]}; the same on every machine, but for rounding.{absent}",
        having("errors", MODULE), mark="jax-errors",
    ),
    Shown(
        "gpu", 4,
        [*PLACE, KIND[0], ("layer", said("what")), ("PyTorch, ms", ms(PYTORCH)), (OTHERS, faster)],
        "{rows[0][gpu]}, PyTorch {machine[torch]}, commit {machine[commit]}, {date}; medians, forward + backward.",
    ),
    wrong("wrong-table", ACCELERATED),
    wrong("wrong-layers-table", MODULE),
]  # fmt: skip

ZH = {
    "network": "网络", "layout": "布局", "PyTorch, ms": "PyTorch，毫秒", "share of the gain": "占可得收益的份额",
    "shapes": "形状数", "forward": "前向", "backward": "反向", "evaluation": "评估", "worst": "最差",
}  # fmt: skip


def table(shown: Shown, document: Document) -> Table:
    """Of what was measured."""
    others = list(dict.fromkeys(who for row in rows(document) for who in row["times"]))[1:]
    pairs = [[(who, cell(who)) for who in others] if head == OTHERS else [(head, cell)] for head, cell in shown.columns]
    columns = [column for pair in pairs for column in pair]
    heads = [ZH.get(head, head) if shown.page == CHINESE else head for head, _ in columns]
    lines = [[cell(line) for _, cell in columns] for line in shown.lines(document)]
    absent = {f" {who}: {why}." for row in rows(document) for who, why in row.get("unable", {}).items()}
    note = shown.note.format(where=where(document), absent="".join(sorted(absent)), **document)
    return Table(heads, lines, shown.words, note)


def losses(documents: dict[str, Document]) -> Table:
    """Every measured case that is slower than PyTorch's by more than noise."""
    lines = []
    for part, ways in (
        ("functions", (ACCELERATED, OURS)),
        ("layers", (ACCELERATED, MODULE)),
        ("tiny", (ACCELERATED, MODULE, OURS)),
        ("networks", (ACCELERATED, FUSED)),
    ):
        found: dict[str, list[str]] = {}
        measured = [row for row in rows(documents.get(part, {"rows": []})) if PYTORCH in row["times"]]
        cases = [(row, who, step) for row in measured for who in ways for step in row["times"][PYTORCH]]
        cases = [case for case in cases if not math.isnan(ratio(*case))]
        for row, who, step in sorted(cases, key=lambda case: ratio(*case)):
            if ratio(row, who, step) < LOST:
                what = ", ".join(filter(None, (who, row["dtype"], row["what"], step)))
                found.setdefault(what, []).append(f"{shape(row)} {row['layout']}: {ratio(row, who, step):.2f}")
        lines += [[part, what, "; ".join(slower)] for what, slower in sorted(found.items())]
        lines += [[part, f"in all {sum(map(len, found.values()))} of {len(cases)}", ""]] if cases else []
    return Table(["part", "what", "slower"], lines, 3)
