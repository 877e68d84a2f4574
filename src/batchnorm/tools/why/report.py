"""The report: one HTML page without anything from outside, drawn from the document and from nothing else."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from ..text.language import Words
from . import figures
from . import statistics as st
from .page import FRAME
from .sentences import told

Document = dict[str, Any]
Experiment = dict[str, Any]
Panel = dict[str, Any]

CLASSES = {st.CONFIRMS: "yes", st.PARTLY: "partly", st.CONTRADICTS: "no"}


def html(document: Document, words: Words) -> str:
    """Return the page in one language; the same document gives the same text."""
    document = told(document, words)
    sections = "\n".join(_section(experiment, document, words) for experiment in document["experiments"])
    return FRAME.format(
        lang="zh-CN" if words.language == "zh" else "en",
        title=escape(words("why.title")),
        facts=_facts(document, words),
        intro=escape(words.sentences(words(f"why.{key}") for key in INTRODUCTION)),
        label=escape(words("why.contents")),
        contents=_contents(document, words),
        sections=sections,
    )


INTRODUCTION = ("intro", "numbers", "drawn", "clear", "chosen")


def verdict(of: str, document: Document, words: Words) -> str:
    """Return a verdict in a few words; a quick run only suggests one."""
    return words(f"why.quick {of}" if document["quick"] else f"why.{of}")


def found(experiment: Experiment, document: Document, words: Words) -> str:
    """Return what came out of an experiment and what that says of the paper's claim."""
    of = experiment["verdict"]
    concluded = words(f"why.says quick {of}" if document["quick"] else f"why.says {of}")
    return words.sentences([*told(experiment["finding"], words), concluded])


def read(experiment: Experiment, document: Document, words: Words) -> str:
    """Return how to read it; a quick run leaves that to a whole one."""
    caution = [words("why.quick_reading")] if document["quick"] else []
    return words.sentences([*caution, *told(experiment["reading"], words)])


def _facts(document: Document, words: Words) -> str:
    data, seeds = document["data"], document["seeds"]
    height, width = data["image"]
    said = words(
        "why.facts",
        name=data["name"],
        train=data["train"],
        test=data["test"],
        height=height,
        width=width,
        seeds=told(st.count(seeds), words),
        versions=tuple(f"{name} {version}" for name, version in document["versions"].items()),
    )
    quick = f'<p class="quick">{escape(words("why.quick"))}</p>' if document["quick"] else ""
    return f"<p>{escape(said)}</p>{quick}"


def _contents(document: Document, words: Words) -> str:
    rows = "".join(
        f'<li><a href="#{escape(e["name"])}">{escape(e["title"])}</a> {_badge(e, document, words)}</li>'
        for e in document["experiments"]
    )
    return f"<ul>{rows}</ul>"


def _badge(e: Experiment, document: Document, words: Words) -> str:
    of = e["verdict"]
    return f'<span class="badge {CLASSES.get(of, "tie")}">{escape(verdict(of, document, words))}</span>'


def _section(e: Experiment, document: Document, words: Words) -> str:
    paper = e["paper"]
    link = f"https://arxiv.org/abs/{escape(paper['arxiv'])}"
    pictures = "".join(_picture(panel, words) for panel in e["panels"])
    tables = "".join(_table(panel) for panel in e["panels"])
    return f"""<section id="{escape(e["name"])}">
<h2>{escape(e["title"])} {_badge(e, document, words)}</h2>
<p class="question">{escape(e["question"])}</p>
<p class="paper">{escape(paper["authors"])} ({paper["year"]}): {escape(paper["title"])},
<a href="{link}">arXiv:{escape(paper["arxiv"])}</a></p>
<p class="finding">{escape(found(e, document, words))}</p>
<div class="pictures">{pictures}</div>
<p>{escape(read(e, document, words))}</p>
<details><summary>{escape(words("why.details"))}</summary>
{tables}
{_settings(e, words)}
<p>{escape(words("why.alone"))} <code>batchnorm why {escape(e["name"])}{_options(document)}</code></p>
</details>
</section>"""


def _options(document: Document) -> str:
    quick = " --quick" if document["quick"] else ""
    return f"{quick} --seeds {len(document['seeds'])}"


def _picture(panel: Panel, words: Words) -> str:
    picture = base64.b64encode(figures.svg([panel]).encode()).decode()
    return f'<img src="data:image/svg+xml;base64,{picture}" alt="{escape(described(panel, words))}">'


def described(panel: Panel, words: Words) -> str:
    """Return a panel in words, for those who do not see it: where each curve begins and ends."""
    panel, curves = told(panel, words), []
    for series in panel["series"]:
        seen = [(x, m) for x, m in zip(series["x"], series["mean"], strict=True) if m is not None]
        if panel["x_scale"] == "category":
            said = ", ".join(f"{x}: {st.number(m, panel['decimals'])}" for x, m in seen)
        elif seen:
            (first, begins), (last, ends) = seen[0], seen[-1]
            begins, ends = (st.number(v, panel["decimals"]) for v in (begins, ends))
            said = words("why.from_to", begins=begins, first=f"{first:g}", ends=ends, last=f"{last:g}")
        else:
            said = words("why.no_numbers")
        curves.append(f"{series['name']}: {said}")
    unit = f" ({panel['y_label']})" if panel["y_label"] else ""
    return words("why.against", title=panel["title"] + unit, place=panel["x_label"], curves="; ".join(curves))


def _table(panel: Panel) -> str:
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


def _settings(e: Experiment, words: Words) -> str:
    varied: dict[str, list[Any]] = {}
    for run in e["runs"]:
        for name, value in run["setting"].items():
            values = varied.setdefault(name, [])
            if value not in values:
                values.append(value)
    rows = [(name, _value(value)) for name, value in e["settings"].items()]
    rows += [(name, " · ".join(map(_value, values))) for name, values in varied.items()]
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows)
    return f"<dl>{listed}</dl><p>{escape(words('why.runs', n=len(e['runs'])))}</p>"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_value(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
