"""why_*.svg, and the findings in docs/why.md, from the results of a run.

batchnorm why --json docs/figures/why.json   # the run
python docs/figures/why.py                   # what the documents show of it
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from batchnorm.tools.text.language import ENGLISH
from batchnorm.tools.why.figures import svg
from batchnorm.tools.why.report import described, found, read, verdict
from batchnorm.tools.why.sentences import told
from batchnorm.tools.why.study import read as read_results

HERE = Path(__file__).parent
PAGE, RESULTS = HERE.parent / "why.md", HERE / "why.json"
PART = re.compile(r"<!-- why: (?P<name>[a-z-]+) -->\n.*?<!-- /why -->", re.DOTALL)


def part(experiment: dict[str, Any], document: dict[str, Any]) -> str:
    """The paper, the command, the figure and the finding of one experiment."""
    name, paper = experiment["name"], experiment["paper"]
    alt = " ".join(described(panel, ENGLISH) for panel in experiment["panels"]).replace("[", "(").replace("]", ")")
    return (
        f"*{experiment['question']}* {paper['authors']} ({paper['year']}): {paper['title']}, "
        f"[arXiv:{paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']}).\n\n"
        f"```sh\nbatchnorm why {name}\n```\n\n"
        f"![{alt}](figures/why_{name}.svg)\n\n"
        f"{found(experiment, document, ENGLISH)}\n\n"
        f"{read(experiment, document, ENGLISH)}\n"
    )


def table(document: dict[str, Any]) -> str:
    """One row for each experiment: its verdict."""
    rows = [
        f"| [{e['title']}](#{anchor(e['title'])}) | {verdict(e['verdict'], document, ENGLISH)} |\n"
        for e in document["experiments"]
    ]
    return "| experiment | what came out |\n| --- | --- |\n" + "".join(rows)


def anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def page(document: dict[str, Any], text: str) -> str:
    """The page as the results have it."""
    parts = {e["name"]: part(e, document) for e in document["experiments"]} | {"all": table(document)}

    def renewed(match: re.Match[str]) -> str:
        return f"<!-- why: {match['name']} -->\n\n{parts[match['name']]}\n<!-- /why -->"

    return PART.sub(renewed, text)


def main() -> None:
    document = told(read_results(RESULTS), ENGLISH)
    for experiment in document["experiments"]:
        (HERE / f"why_{experiment['name']}.svg").write_text(svg(experiment["panels"]), encoding="utf-8")
    PAGE.write_text(page(document, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
