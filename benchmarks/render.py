"""Write what the results say into the documents: tables between their marks, single figures, and the charts.

A table stands between `<!-- name -->` and `<!-- /name -->`; a figure as `<!-- figure name -->1.2<!-- / -->`.
It measures nothing. `python benchmarks/run.py --render` calls it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from batchnorm.tools.bench.functions import ACCELERATED, PYTORCH
from batchnorm.tools.bench.problem import OPERATIONS
from batchnorm.tools.bench.results import Document, read
from batchnorm.tools.bench.table import markdown, mean, ratio, times
from rows import LOSSES, PARTS
from tables import FUSED, PERFORMANCE, TABLES, groups, losses, power, table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NOTHING: Document = {"rows": []}


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


def parts(documents: dict[str, Document]) -> Iterator[tuple[str, str, str]]:
    """Page, mark and text of all that can be written."""
    for shown in TABLES:
        if document := documents.get(shown.part):
            yield shown.page, shown.mark or shown.part, markdown(table(shown, document))
    yield PERFORMANCE, "losses", markdown(losses(documents))


def figures(documents: dict[str, Document]) -> dict[str, str]:
    """What sentences may quote."""
    found = {}
    for group in groups(documents.get("functions", NOTHING)):
        for o in OPERATIONS:
            ratios = [ratio(row, ACCELERATED, o) for row in group["rows"]]
            found[f"{group['dtype']} {group['layout']} {o}"] = times(mean(ratios))
    for row in documents.get("networks", NOTHING)["rows"]:
        for way in row["times"]:
            found[f"{row['what']} {row['dtype']} {row['layout']} {way}"] = times(ratio(row, way, "step"))
    return found | dict(trusted(documents.get("trust", NOTHING)))


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
    import chart  # which imports this

    chart.draw(documents["functions"])
    chart.draw_losses(documents["trust"])


if __name__ == "__main__":
    main()
