"""Write the tables of the READMEs and the docs from results/, between their marks, and draw the figures.

    python benchmarks/render.py

It measures nothing. What has not been measured stays as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import tables
import tables_layers
import tables_targets
from batchnorm.bench.problem import read_shapes
from record import RESULTS, ROOT, Document
from run import HERE, NETWORKS, OTHERS

PERFORMANCE = "docs/performance.md"
FIGURES = "docs/figures/performance.py"


def result(name: str) -> Document | None:
    """A part's document, or None where it has not been measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def parts() -> Iterator[tuple[str, str, str]]:
    """Page, mark and text of all that can be written."""
    core, layers = result("core"), result("torch_layers")
    if core:
        yield "README.md", "speed-table", tables.readme(core, "en")
        yield "README.zh-CN.md", "speed-table", tables.readme(core, "zh")
        yield PERFORMANCE, "functions-summary", tables.summary(core)
        yield PERFORMANCE, "functions-table", tables.functions(core)
    if core and (roofline := result("roofline")):
        yield PERFORMANCE, "targets", tables_targets.targets(core, roofline)
    if layers:
        yield "README.md", "torch-speed-table", tables_layers.ways(layers, "en", short=True)
        yield "README.zh-CN.md", "torch-speed-table", tables_layers.ways(layers, "zh", short=True)
        yield "docs/pytorch.md", "torch-speed-table", tables_layers.ways(layers, "en", short=False)
    if core and layers:
        yield PERFORMANCE, "losses", tables.losses(core, layers)
    if another := result("another_machine"):
        yield PERFORMANCE, "another-machine-summary", tables.summary(another)
        yield PERFORMANCE, "another-machine-functions", tables.functions(another)
    if networks := result("networks"):
        lists = {name: read_shapes(HERE / "shapes" / f"{name}.txt") for name in NETWORKS}
        yield PERFORMANCE, "networks", tables.networks(networks, lists)
    if dtypes := result("dtypes"):
        yield PERFORMANCE, "dtypes", tables.dtypes(dtypes)
    if sizes := result("sizes"):
        yield PERFORMANCE, "sizes", tables.sizes(sizes)
    for name, other in OTHERS.items():
        if document := result(name):
            for mark, text in other.call(other.tables, document).items():
                yield PERFORMANCE, mark, text


def fill(text: str, mark: str, part: str) -> str:
    """The page with this between its marks."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{part}\n\n{end}{rest.split(end)[1]}"


def main() -> None:
    for page, mark, text in parts():
        path = ROOT / page
        path.write_text(fill(path.read_text(encoding="utf-8"), mark, text), encoding="utf-8")
    subprocess.run([sys.executable, str(ROOT / FIGURES)], check=True)


if __name__ == "__main__":
    main()
