"""Write what the results say into the documents: tables between their marks, single figures, and the chart.

A table stands between `<!-- name -->` and `<!-- /name -->`; a figure as `<!-- figure name -->1.2<!-- / -->`.
It measures nothing. `python benchmarks/run.py --render` calls it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from batchnorm.tools.bench.functions import ACCELERATED, ONEDNN, OURS, PYTORCH
from batchnorm.tools.bench.problem import LAYOUTS, OPERATIONS, TABLE
from batchnorm.tools.bench.results import Document, Row, read
from batchnorm.tools.bench.table import (
    Table,
    copy_seconds,
    digits,
    least,
    markdown,
    mean,
    ratio,
    seconds,
    shape,
    spread,
    times,
    where,
)  # fmt: skip
from batchnorm.tools.bench.timing import MODES, WARM
from rows import DTYPES, KINDS, LOSSES, PARTS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PERFORMANCE, PYTORCH_PAGE, TRUST = "docs/performance.md", "docs/pytorch.md", "docs/trust.md"
READMES = {"README.md": "en", "README.zh-CN.md": "zh"}
MODULE, FUSED, LIMIT, STEP = "module", "fused", "limit", "forward + backward"
LOST = 0.95  # below it a ratio is a loss, and not noise
MIB = 2**20

ZH = {
    "network": "网络", "layout": "布局", "PyTorch, ms": "PyTorch，毫秒", "share of the gain": "占可得收益的份额",
    "shapes": "形状数", "forward": "前向", "backward": "反向", "evaluation": "评估", "worst": "最差",
}  # fmt: skip
NOTES = {
    "networks": {
        "en": "{where}. Bold figures are slower than PyTorch. bfloat16 rows run under autocast. No batch norm can "
        "beat the limit, where the share is 1.",
        "zh": "{where}。加粗表示比 PyTorch 慢。bfloat16 各行在 autocast 下运行。任何批归一化都不会超过 limit，"
        "那里的份额是 1。",
    },
    "functions": {
        "en": "{where}. Each figure is a geometric mean over the shapes; the last column shows the worst case. Bold "
        "figures are slower than PyTorch.",
        "zh": "{where}。每个数是各形状的几何平均，最后一列是最差的情况。加粗表示比 PyTorch 慢。",
    },
}


def translated(table: Table, part: str, language: str, document: Document) -> Table:
    head = [ZH.get(h, h) for h in table.head] if language == "zh" else table.head
    return table._replace(head=head, note=NOTES[part][language].format(where=where(document)))


# --- tables


def ms(row: Row, who: str, step: str, unit: float = 1e3) -> str:
    took = seconds(row, who, step)
    return digits(None if took is None else took * unit)


def multiple(row: Row, who: str, step: str, of: float) -> str:
    took = seconds(row, who, step)
    return "–" if took is None else f"{took / of:.2f}"


def mib(row: Row, what: str, who: str) -> str:
    size = row.get(what, {}).get(who)
    return digits(None if size is None else size / MIB)


def groups(rows: list[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Dtype, layout, and the rows of both."""
    for dtype in DTYPES:
        for layout in (*LAYOUTS, TABLE):
            if group := [row for row in rows if (row["dtype"], row["layout"]) == (dtype, layout)]:
                yield dtype, layout, group


def summary(document: Document, modes: tuple[str, ...] = MODES[::-1]) -> Table:
    """Geometric means of the accelerated calls, by dtype and layout, and the worst row."""
    head = ["dtype", "layout", "shapes", *(o if len(modes) == 1 else f"{o}, {m}" for m in modes for o in OPERATIONS)]
    lines = []
    for dtype, layout, rows in groups(document["rows"]):
        cells = [times(mean(ratio(r, ACCELERATED, o, m) for r in rows)) for m in modes for o in OPERATIONS]
        ratios = [(ratio(r, ACCELERATED, o), f"{shape(r)} {o}") for r in rows for o in OPERATIONS]
        worst, name = min((one for one in ratios if one[0] is not None), default=(None, "not measured"))
        text = times(worst)
        lines.append([dtype, layout, str(len(rows)), *cells, type(text)(f"{text} ({name})")])
    return Table([*head, "worst"], lines, 2, f"{where(document)}; geometric means.")


def each(document: Document) -> Table:
    """Accelerated: milliseconds and spread, times faster than PyTorch, and above the least that memory takes."""
    head = ["dtype", "layout", "shape", *(f"{o}, {what}" for o in OPERATIONS for what in ("ms", "faster", "least"))]
    lines = []
    for row in document["rows"]:
        cells: list[str] = []
        for o in OPERATIONS:
            cells += [f"{ms(row, ACCELERATED, o)} {spread(row, ACCELERATED, o)}", times(ratio(row, ACCELERATED, o))]
            cells += [multiple(row, ACCELERATED, o, least(row, o))]
        lines.append([row["dtype"], row["layout"], shape(row), *cells])
    return Table(head, lines, 3, f"{where(document)}; medians, warm.")


def arrays(document: Document) -> Table:
    """Our functions on arrays, float32: in copies of the tensor, and how many times faster than PyTorch and oneDNN."""
    head = ["layout", "shape", *(f"{o}, {what}" for o in OPERATIONS for what in ("copies", PYTORCH, ONEDNN))]
    lines = []
    for row in (row for row in document["rows"] if row["dtype"] == "float32"):
        cells: list[str] = []
        for o in OPERATIONS:
            cells += [multiple(row, OURS, o, copy_seconds(row))]
            cells += [times(ratio(row, OURS, o, other=who)) for who in (PYTORCH, ONEDNN)]
        lines.append([row["layout"], shape(row), *cells])
    return Table(head, lines, 2, f"{where(document)}; medians, warm.")


def layers(document: Document) -> Table:
    """PyTorch's layer with what follows it, and how many times faster accelerated, and our module in one pass."""
    head = ["shape", "layout", "layer", "PyTorch, ms", "spread", ACCELERATED, "our module, in one pass"]
    lines = []
    for row in document["rows"]:
        cells = [ms(row, PYTORCH, STEP), spread(row, PYTORCH, STEP)]
        cells += [times(ratio(row, who, STEP)) for who in (ACCELERATED, MODULE)]
        lines.append([shape(row), row["layout"], row["what"], *cells])
    return Table(head, lines, 3, f"{where(document)}; medians, warm.")


def saved(document: Document) -> Table:
    """Bytes that a layer keeps for the backward."""
    lines = []
    for row in document["rows"][: len(KINDS)]:
        cells = [mib(row, "saved", who) for who in (PYTORCH, ACCELERATED, MODULE)]
        lines.append([row["what"], shape(row), *cells])
    head = ["", "input", "PyTorch, MiB", "accelerated, MiB", "module in one pass, MiB"]
    return Table(head, lines, 2, f"{where(document)}; the same on every machine.")


def share(row: Row, way: str) -> float | None:
    """Of what any batch norm could gain: 0 is PyTorch's own step, 1 is the one without batch norm and activations."""
    stock, took, limit = (seconds(row, who, "step") for who in (PYTORCH, way, LIMIT))
    possible = None not in (stock, took, limit) and stock > limit
    return (stock - took) / (stock - limit) if possible else None


def networks(document: Document) -> Table:
    """In short: a line for each network, dtype and layout."""
    head = ["network", "dtype", "layout", "PyTorch, ms", ACCELERATED, FUSED, LIMIT, "share of the gain"]
    lines = []
    for row in (row for row in document["rows"] if row["times"]):
        cells = [ms(row, PYTORCH, "step")]
        cells += [times(ratio(row, way, "step")) for way in (ACCELERATED, FUSED, LIMIT)]
        part = share(row, FUSED)
        lines.append([row["what"], row["dtype"], row["layout"], *cells, "–" if part is None else f"{part:.2f}"])
    return Table(head, lines, 3)


def steps(document: Document) -> Table:
    """In full: a line for each way."""
    head = ["network", "dtype", "layout", "step", "ms", "spread", "times faster", "share of the gain"]
    head += ["kept for the backward, MiB", "peak, MiB"]
    lines = []
    for row in document["rows"]:
        for way in row["times"]:
            part = share(row, way)
            cells = [ms(row, way, "step"), spread(row, way, "step"), times(ratio(row, way, "step"))]
            cells += ["–" if part is None else f"{part:.2f}", mib(row, "saved", way), mib(row, "peak", way)]
            lines.append([row["what"], row["dtype"], row["layout"], way, *cells])
    sizes = {f"{row['what']}: {row['shape'][0]}" for row in document["rows"]}
    note = f"{where(document)}; medians of interleaved steps. 128×128 pixels, batches: {', '.join(sorted(sizes))}."
    return Table(head, lines, 4, note + absent(document))


def absent(document: Document) -> str:
    reasons = {f" {who}: {why}." for row in document["rows"] for who, why in row.get("unable", {}).items()}
    return "".join(sorted(reasons))


def tiny(document: Document) -> Table:
    """PyTorch's microseconds, and how many times faster everybody else is."""
    others = [who for who in document["rows"][0]["times"] if who != PYTORCH]
    lines = []
    for row in document["rows"]:
        for step in row["times"][PYTORCH]:
            cells = [ms(row, PYTORCH, step, 1e6), *(times(ratio(row, who, step)) for who in others)]
            lines.append([shape(row), step, *cells])
    return Table(["shape", "call", "PyTorch, µs", *others], lines, 2, f"{where(document)}, one of them used; medians.")


def scaler(document: Document) -> Table:
    """Time, and the most memory needed beyond the table."""
    head = ["table", "dtype", "", "", "scikit-learn, ms", "batchnorm, ms", "times faster", "one thread, times faster"]
    lines = []
    for row in (row for row in document["rows"] if row["times"]):
        sklearn, ours, alone = row["times"]
        for step in row["times"][ours]:
            cells = [ms(row, who, step) for who in (sklearn, ours)]
            cells += [times(ratio(row, who, step, other=sklearn)) for who in (ours, alone)]
            peaks = [row["peak"][who][step] for who in (sklearn, ours)]
            cells += ["–" if p is None else f"{p / MIB:.0f}" for p in peaks]
            lines.append([shape(row), row["dtype"], row["what"], step, *cells])
    head += ["scikit-learn, MiB", "batchnorm, MiB"]
    note = f"{where(document)}, scikit-learn {document['machine']['scikit-learn']}; medians, warm."
    return Table(head, lines, 4, note + absent(document))


def offsets(document: Document) -> Table:
    """Errors of both scalers, in standard deviations."""
    rows = [row for row in document["rows"] if row["errors"]]
    lines = [[row["dtype"], row["what"], *(f"{e:.1e}" for e in row["errors"].values())] for row in rows]
    note = f"scikit-learn {document['machine']['scikit-learn']}; the same on every machine, but for rounding."
    return Table(["dtype", "mean", "scikit-learn", "batchnorm"], lines, 1, note + absent(document))


DATA = {
    "uneven": "batches of 9998 and 2 samples",
    "sorted": "sorted by the first channel, batches of 500",
    "mean 1e4": "a mean of 1e4 standard deviations",
    "dropout": "dropout before the layer",
}


def recalibrated(document: Document) -> Table:
    """Of each tool, how far the mean is off, and the variance as a part of the exact one."""
    names = list(dict.fromkeys(who for row in document["rows"] for who in row["off"]))
    lines = []
    for row in document["rows"]:
        cells = []
        for who in names:
            off = row["off"].get(who)
            cells += ["–", "–"] if off is None else [power(off["mean"]), "–".join(f"{r:.4g}" for r in off["var"])]
        lines.append([DATA[row["what"]], *cells])
    head = ["", *(f"{who}, {what}" for who in names for what in ("mean off by, std", "variance ×"))]
    note = f"{where(document)}; float32, the least and the largest of four channels; "
    note += "a mean of 1e4 standard deviations is stored to 5e-4 of one at best."
    return Table(head, lines, 1, note + absent(document))


def recalibration(document: Document) -> Table:
    """A forward of all batches in evaluation, what the tools take beside it, and memory."""
    lines = []
    rows = [row for row in document["rows"] if row["times"]]
    first, *others = rows[0]["times"]
    for row in rows:
        base = seconds(row, first, "all batches")
        cells = [ms(row, first, "all batches"), *(multiple(row, who, "all batches", base) for who in others)]
        memory = [row["memory"][what] for what in ("evaluation", "taken", "predicted")]
        cells += ["–" if size is None else f"{size / MIB:.0f}" for size in memory]
        lines.append([row["what"], *cells])
    head = ["network", f"{first}, ms", *others, "evaluation, MiB", "recalibrate, MiB", "predicted, MiB"]
    shapes = ", ".join(f"{row['what']} {shape(row)}" for row in rows)
    return Table(head, lines, 1, f"{where(document)}; medians; eight batches: {shapes}." + absent(document))


def multiples(document: Document) -> Table:
    """The first contestant in milliseconds, the others as multiples of it."""
    first, *others = document["rows"][0]["times"]
    lines = []
    for row in document["rows"]:
        for step in row["times"][first]:
            base = seconds(row, first, step)
            cells = [ms(row, first, step), *(multiple(row, who, step, base) for who in others)]
            lines.append([shape(row), row["layout"], step, *cells])
    return Table(["shape", "layout", "", f"{first}, ms", *others], lines, 3, f"{where(document)}; medians, warm.")


def on_gpu(document: Document) -> Table:
    """PyTorch's times, and how many times faster the others are."""
    others = list(dict.fromkeys(who for row in document["rows"] for who in row["times"] if who != PYTORCH))
    lines = []
    for row in document["rows"]:
        cells = [ms(row, PYTORCH, STEP), *(times(ratio(row, who, STEP)) for who in others)]
        lines.append([shape(row), row["layout"], row["dtype"], row["what"], *cells])
    machine = "{gpu}, PyTorch {torch}, commit {commit}".format(gpu=document["rows"][0]["gpu"], **document["machine"])
    note = f"{machine}, {document['date']}; medians, forward + backward."
    return Table(["shape", "layout", "dtype", "layer", "PyTorch, ms", *others], lines, 4, note)


WRONG = {
    "mean 1e4": "an output, {layout}, where the mean of the data is 1e4 standard deviations",
    "mean 1e6": "an output, {layout}, where the mean is 1e6 of them",
    "evaluation": "an output in evaluation, where the mean is 1e6 of them",
    "running_var": "`running_var`, {layout}, where the mean is 1e6 of them",
    "values 1e20": "an output, where the standard deviation of the data is 1e20",
    "bias gradient": "the gradient of `bias`, {layout}: the sum of 1048576 values of 0.1",
    "weight gradient": "the gradient of `weight` for `x.unsqueeze(-1).transpose(1, 2)`, where the upstream gradient is "
    "contiguous",
    "shared memory": "an output, where `running_var` and `weight` are the same tensor",
    "layout": "the share of the outputs that have other bits if the same data lies in memory channels-last",
    "third derivative": "a third derivative, float64",
    "checkpoint": "`running_mean` after one step under `torch.utils.checkpoint`",
    "refused batch": "`num_batches_tracked` after the layer refused a batch of one",
}


def wrong(document: Document, way: str) -> Table:
    """What PyTorch gets wrong, where it is off the most, and what this library gives there."""
    rows = [row for row in document["rows"] if way in row.get("found", {})]
    lines = []
    for row in rows:
        cells = [f"{value:.7g}" for value in (row["truth"], row["found"][PYTORCH], row["found"][way])]
        lines.append([WRONG[row["what"]].format(**row), *cells, *(power(row["off"][who]) for who in (PYTORCH, way))])
    head = ["", "the truth", "PyTorch", "this library", "PyTorch is off by", "this library"]
    return Table(head, lines, 1, f"{where(document)}.")


def power(value: float) -> str:
    """Two digits of an error."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.2g}" if value >= 0.1 or not value else f"{value:.1e}".replace("e-0", "e-")


def differences(losses: dict[str, list[float]], who: str) -> list[float]:
    """How far each loss is from PyTorch's, as a part of it."""
    return [abs(a - b) / b for a, b in zip(losses[who], losses[PYTORCH], strict=True)]


AGREE = 2.4e-7  # two units of the last digit of a float32
WAYS = (ACCELERATED, "converted", FUSED)


def trusted(document: Document) -> Iterator[tuple[str, str]]:
    """What the sentences of docs/trust.md quote of the trainings."""
    for row in document["rows"]:
        if row["what"] == LOSSES:
            yield "training steps", str(len(row["losses"][PYTORCH]))
            off = {who: differences(row["losses"], who) for who in row["losses"] if who != PYTORCH}
            off["ours"] = [max(each) for each in zip(*(off[who] for who in WAYS), strict=True)]
            for who, each in off.items():
                name = f"training {row['dtype']} {who}"
                yield name, power(max(each)) if max(each) < 1e-3 else f"{100 * max(each):.0f} %"
                yield f"{name} agrees", str(next((i for i, d in enumerate(each) if d > AGREE), len(each)))


def losses(documents: dict[str, Document]) -> Table:
    """Every measured case that is slower than PyTorch's by more than noise."""
    lines = []
    for part, ways in (
        ("functions", (ACCELERATED, OURS)),
        ("layers", (ACCELERATED, MODULE)),
        ("tiny", (ACCELERATED, MODULE, OURS)),
        ("networks", (ACCELERATED, FUSED)),
    ):
        found: dict[str, list[tuple[float, str]]] = {}
        total = 0
        for row in documents.get(part, {"rows": []})["rows"]:
            for step in row["times"].get(PYTORCH, {}):
                for way in ways:
                    value = ratio(row, way, step)
                    total += value is not None
                    if value is not None and value < LOST:
                        what = ", ".join(filter(None, (way, row["dtype"], row["what"], step)))
                        found.setdefault(what, []).append((value, f"{shape(row)} {row['layout']}"))
        lost = sum(map(len, found.values()))
        for what, cases in sorted(found.items()):
            lines.append([part, what, "; ".join(f"{name}: {value:.2f}" for value, name in sorted(cases))])
        lines += [[part, f"in all {lost} of {total}", ""]] if total else []
    return Table(["part", "what", "slower"], lines, 3)


# --- where they go


def parts(documents: dict[str, Document]) -> Iterator[tuple[str, str, str]]:
    """Page, mark and text of all that can be written."""
    of = documents.get
    if functions := of("functions"):
        table = summary(functions, (WARM,))
        for page, language in READMES.items():
            yield page, "speed-table", markdown(translated(table, "functions", language, functions))
    if trained := of("networks"):
        for page, language in READMES.items():
            yield page, "torch-speed-table", markdown(translated(networks(trained), "networks", language, trained))
    for part, page, mark, table in (
        ("functions", PERFORMANCE, "groups", summary),
        ("functions", PERFORMANCE, "groups-rows", each),
        ("functions", PERFORMANCE, "arrays", arrays),
        ("layers", PYTORCH_PAGE, "layers", layers),
        ("layers", PERFORMANCE, "saved", saved),
        ("networks", PERFORMANCE, "steps", steps),
        ("tiny", PERFORMANCE, "tiny", tiny),
        ("scaler", PERFORMANCE, "scaler", scaler),
        ("offsets", PERFORMANCE, "offsets", offsets),
        ("variants", PERFORMANCE, "variants", multiples),
        ("sync", PERFORMANCE, "sync", multiples),
        ("recalibrated", PERFORMANCE, "recalibrated", recalibrated),
        ("recalibration", PERFORMANCE, "recalibration", recalibration),
        ("gpu", PERFORMANCE, "gpu", on_gpu),
        ("trust", TRUST, "wrong-table", lambda document: wrong(document, ACCELERATED)),
        ("trust", TRUST, "wrong-layers-table", lambda document: wrong(document, MODULE)),
    ):
        if document := of(part):
            yield page, mark, markdown(table(document))
    yield PERFORMANCE, "losses", markdown(losses(documents))


def figures(documents: dict[str, Document]) -> dict[str, str]:
    """What sentences may quote."""
    found = {}
    if functions := documents.get("functions"):
        for dtype, layout, rows in groups(functions["rows"]):
            for o in OPERATIONS:
                found[f"{dtype} {layout} {o}"] = times(mean(ratio(r, ACCELERATED, o) for r in rows))
    for row in documents.get("networks", {"rows": []})["rows"]:
        for way in row["times"]:
            found[f"{row['what']} {row['dtype']} {row['layout']} {way}"] = times(ratio(row, way, "step"))
    return found | dict(trusted(documents.get("trust", {"rows": []})))


def fill(text: str, mark: str, part: str) -> str:
    """The page with this between its marks."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{part}\n\n{end}{rest.split(end)[1]}"


FIGURE = re.compile(r"(<!-- figure (?P<name>[^>]+) -->)[^<]*(<!-- / -->)")


def filled(text: str, known: dict[str, str]) -> str:
    """The page with its single figures."""
    return FIGURE.sub(lambda m: m[1] + known[m["name"]] + m[3], text)


def rendered(documents: dict[str, Document]) -> dict[Path, str]:
    """Every page as the results have it."""
    pages = {path: path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))}
    for page, mark, text in parts(documents):
        path = ROOT / page
        pages[path] = fill(pages[path], mark, text)
    known = figures(documents)
    return {path: filled(text, known) for path, text in pages.items()}


def results() -> dict[str, Document]:
    """Of each part that was measured."""
    return {name: read(path) for name in PARTS if (path := RESULTS / f"{name}.json").exists()}


def main() -> None:
    documents = results()
    for path, text in rendered(documents).items():
        path.write_text(text, encoding="utf-8")
    if "functions" in documents:
        import chart

        chart.draw(documents["functions"])
    if "trust" in documents:
        import chart

        chart.draw_losses(documents["trust"])


if __name__ == "__main__":
    main()
