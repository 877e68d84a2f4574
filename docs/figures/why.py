"""why_*.svg, and the findings in docs/why.md, from the results of a run: python docs/figures/why.py why.json."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from batchnorm.tools.why.figures import svg
from batchnorm.tools.why.report import VERDICTS, described
from batchnorm.tools.why.study import read

HERE = Path(__file__).parent
PAGE = HERE.parent / "why.md"
PART = re.compile(r"<!-- why: (?P<name>[a-z-]+) -->\n.*?<!-- /why -->", re.DOTALL)


def part(experiment: dict[str, Any]) -> str:
    """The paper, the command, the figure and the finding of one experiment."""
    name, paper = experiment["name"], experiment["paper"]
    alt = " ".join(map(described, experiment["panels"])).replace("[", "(").replace("]", ")")
    return (
        f"*{experiment['question']}* {paper['authors']} ({paper['year']}): {paper['title']}, "
        f"[arXiv:{paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']}).\n\n"
        f"```sh\nbatchnorm why {name}\n```\n\n"
        f"![{alt}](figures/why_{name}.svg)\n\n"
        f"**{VERDICTS[experiment['verdict']].capitalize()}.** {experiment['finding']}.\n\n"
        f"{' '.join(experiment['reading'])}\n"
    )


def table(document: dict[str, Any]) -> str:
    """One row for each experiment: its verdict."""
    rows = [f"| [{e['title']}](#{anchor(e['title'])}) | {VERDICTS[e['verdict']]} |\n" for e in document["experiments"]]
    return "| experiment | what came out |\n| --- | --- |\n" + "".join(rows)


def anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def main() -> None:
    document = read(Path(sys.argv[1] if len(sys.argv) > 1 else "why.json"))
    parts = {e["name"]: part(e) for e in document["experiments"]} | {"all": table(document)}
    for experiment in document["experiments"]:
        (HERE / f"why_{experiment['name']}.svg").write_text(svg(experiment["panels"]), encoding="utf-8")

    def renewed(match: re.Match[str]) -> str:
        return f"<!-- why: {match['name']} -->\n\n{parts[match['name']]}\n<!-- /why -->"

    PAGE.write_text(PART.sub(renewed, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
