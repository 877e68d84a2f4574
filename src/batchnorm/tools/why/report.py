"""The report: one HTML page without anything from outside, drawn from the document and from nothing else."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from . import figures
from . import statistics as st
from .page import FRAME

Document = dict[str, Any]
Experiment = dict[str, Any]
Panel = dict[str, Any]

CLASSES = {st.CONFIRMS: "yes", st.PARTLY: "partly", st.CONTRADICTS: "no"}
VERDICTS = {
    st.CONFIRMS: "confirms the paper",
    st.PARTLY: "confirms it in part",
    st.CONTRADICTS: "contradicts the paper",
    st.TIE: "no clear difference",
    st.ONE_SEED: "one seed: no judgement",
}


def html(document: Document) -> str:
    """Return the page; the same document gives the same text."""
    sections = "\n".join(_section(experiment, document) for experiment in document["experiments"])
    return FRAME.format(facts=_facts(document), contents=_contents(document), sections=sections)


def _facts(document: Document) -> str:
    data, versions, seeds = document["data"], document["versions"], document["seeds"]
    height, width = data["image"]
    quick = (
        '<p class="quick"><strong>A quick run:</strong> fewer steps, settings and seeds than the default. Good for '
        "trying it out, too little to conclude from.</p>"
        if document["quick"]
        else ""
    )
    said = ", ".join(f"{escape(name)} {escape(version)}" for name, version in versions.items())
    return (
        f"<p>{escape(data['name'])}: {data['train']} training and {data['test']} test images of {height}×{width} "
        f"pixels · {st.count(seeds)} · {said}</p>{quick}"
    )


def _contents(document: Document) -> str:
    rows = "".join(
        f'<li><a href="#{escape(e["name"])}">{escape(e["title"])}</a> {_badge(e["verdict"])}</li>'
        for e in document["experiments"]
    )
    return f"<ul>{rows}</ul>"


def _badge(verdict: str) -> str:
    return f'<span class="badge {CLASSES.get(verdict, "tie")}">{escape(VERDICTS[verdict])}</span>'


def _section(e: Experiment, document: Document) -> str:
    paper = e["paper"]
    link = f"https://arxiv.org/abs/{escape(paper['arxiv'])}"
    pictures = "".join(_picture(panel) for panel in e["panels"])
    tables = "".join(_table(panel, len(document["seeds"])) for panel in e["panels"])
    return f"""<section id="{escape(e["name"])}">
<h2>{escape(e["title"])} {_badge(e["verdict"])}</h2>
<p class="question">{escape(e["question"])}</p>
<p class="paper">{escape(paper["authors"])} ({paper["year"]}): {escape(paper["title"])},
<a href="{link}">arXiv:{escape(paper["arxiv"])}</a></p>
<p class="finding">{escape(e["finding"])}.</p>
<div class="pictures">{pictures}</div>
<p>{escape(e["reading"][0])} {escape(e["reading"][1])}</p>
<details><summary>Numbers and settings</summary>
{tables}
{_settings(e)}
<p>This one alone: <code>batchnorm why {escape(e["name"])}{_options(document)}</code></p>
</details>
</section>"""


def _options(document: Document) -> str:
    quick = " --quick" if document["quick"] else ""
    return f"{quick} --seeds {len(document['seeds'])}"


def _picture(panel: Panel) -> str:
    picture = base64.b64encode(figures.svg([panel]).encode()).decode()
    return f'<img src="data:image/svg+xml;base64,{picture}" alt="{escape(described(panel))}">'


def described(panel: Panel) -> str:
    """Return a panel in words, for those who do not see it: where each curve begins and ends."""
    curves = []
    for series in panel["series"]:
        seen = [(x, m) for x, m in zip(series["x"], series["mean"], strict=True) if m is not None]
        if panel["x_scale"] == "category":
            told = ", ".join(f"{x}: {st.number(m, panel['decimals'])}" for x, m in seen)
        elif seen:
            (first, begins), (last, ends) = seen[0], seen[-1]
            begins, ends = (st.number(v, panel["decimals"]) for v in (begins, ends))
            told = f"from {begins} at {first:g} to {ends} at {last:g}"
        else:
            told = "no numbers"
        curves.append(f"{series['name']}: {told}")
    unit = f" ({panel['y_label']})" if panel["y_label"] else ""
    return f"{panel['title']}{unit} against {panel['x_label']}. {'; '.join(curves)}."


def _table(panel: Panel, seeds: int) -> str:
    """The numbers of a panel: the mean, and the range over seeds. Curves need not have the same places."""
    series = panel["series"]
    places = list(dict.fromkeys(x for s in series for x in s["x"]))
    heads = "".join(f'<th scope="col">{escape(s["name"])}</th>' for s in series)
    rows = "".join(
        f'<tr><th scope="row">{escape(_place(x))}</th>'
        + "".join(f"<td>{escape(_cell(s, x, panel['decimals']))}</td>" for s in series)
        + "</tr>"
        for x in places
    )
    unit = f", {panel['y_label']}" if panel["y_label"] else ""
    return (
        f'<div class="wide"><table><caption>{escape(panel["title"] + unit)}</caption><thead><tr>'
        f'<th scope="col">{escape(panel["x_label"])}</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>\n'
    )


def _place(x: Any) -> str:
    return x if isinstance(x, str) else f"{x:g}"


def _cell(series: dict[str, Any], x: Any, decimals: int) -> str:
    if x not in series["x"]:
        return ""
    i = series["x"].index(x)
    mean, low, high = (series[part][i] for part in ("mean", "low", "high"))
    return "–" if mean is None else st.Spread(mean, low, high).text(decimals)


def _settings(e: Experiment) -> str:
    varied: dict[str, list[Any]] = {}
    for run in e["runs"]:
        for name, value in run["setting"].items():
            values = varied.setdefault(name, [])
            if value not in values:
                values.append(value)
    rows = [(name, _value(value)) for name, value in e["settings"].items()]
    rows += [(name, " · ".join(map(_value, values))) for name, values in varied.items()]
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows)
    return f"<dl>{listed}</dl><p>{len(e['runs'])} runs.</p>"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_value(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
