"""The report of ``batchnorm why``: drawn from the JSON alone, complete, and pleasant in any window."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from chromium import Watched
from playwright.sync_api import Browser

from batchnorm.tools.cli import main
from batchnorm.tools.text.language import ENGLISH
from batchnorm.tools.why import figures, report, study
from batchnorm.tools.why.catalogue import ENTRIES, NAMES
from batchnorm.tools.why.sentences import told

pytestmark = pytest.mark.slow

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Strict(HTMLParser):
    """Every element is closed in order, every id is there once, and nothing comes from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "a":
            self.links.append(str(given["href"]))
        if tag == "img":
            self.images.append(given)
        assert tag not in ("script", "link", "iframe"), tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick run of everything."""
    folder = tmp_path_factory.mktemp("why")
    files = ["--json", str(folder / "why.json"), "--html", str(folder / "why.html")]
    assert main(["why", "--quick", *files]) == 0
    return folder


@pytest.fixture(scope="module")
def document(results: Path) -> dict[str, Any]:
    text = (results / "why.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert study.written(loaded) == text
    return loaded


@pytest.fixture(scope="module")
def page(results: Path) -> Strict:
    parser = Strict()
    parser.feed((results / "why.html").read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


def test_the_report_is_drawn_from_the_json(results: Path, document: dict[str, Any], tmp_path: Path) -> None:
    page = (results / "why.html").read_text(encoding="utf-8")
    assert report.html(document, ENGLISH) == page
    assert main(["why", "--from", str(results / "why.json"), "--html", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_the_json_has_all_experiments_and_nothing_of_the_machine(document: dict[str, Any]) -> None:
    assert [e["name"] for e in document["experiments"]] == list(NAMES)
    assert set(document) == {"format", "version", "versions", "data", "seeds", "quick", "experiments"}
    for e in document["experiments"]:
        assert {run["seed"] for run in e["runs"]} == set(document["seeds"])
        assert len({json.dumps(run["setting"]) for run in e["runs"]}) * len(document["seeds"]) == len(e["runs"])


def test_findings_are_printed_one_a_paragraph(
    results: Path, document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["why", "--from", str(results / "why.json"), "--html", str(tmp_path / "x.html")]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    said = " ".join(out.split())
    assert said.startswith("Each experiment ran with 2 seeds on the data set digits.")
    for e in document["experiments"]:
        assert f"{e['name']} {report.found(e, document, ENGLISH)}" in said


def test_every_figure_shows_the_numbers_of_the_json(document: dict[str, Any], page: Strict) -> None:
    panels = [panel for e in document["experiments"] for panel in e["panels"]]
    assert len(page.images) == len(panels)
    for image, panel in zip(page.images, panels, strict=True):
        text = base64.b64decode(str(image["src"]).removeprefix("data:image/svg+xml;base64,")).decode()
        assert text == figures.svg([told(panel, ENGLISH)])
        ElementTree.fromstring(text)
        for series in panel["series"]:
            assert len(series["x"]) == len(series["mean"]) == len(series["low"]) == len(series["high"])
            for mean, low, high in zip(series["mean"], series["low"], series["high"], strict=True):
                assert (mean is None) == (low is None) == (high is None)
                assert mean is None or low <= mean + 1e-12
                assert mean is None or mean <= high + 1e-12
            assert f">{told(series['name'], ENGLISH)}</text>" in text  # the legend
        assert told(panel["title"], ENGLISH) in str(image["alt"])


def test_curves_are_means_and_ranges_of_the_runs(document: dict[str, Any]) -> None:
    """Computed here once more, from the runs, for one experiment of each kind."""
    rates = next(e for e in document["experiments"] if e["name"] == "learning-rates")
    for series in rates["panels"][0]["series"]:
        for i, rate in enumerate(series["x"]):
            setting = {"net": series["style"], "rate": rate}
            each = [run["numbers"]["accuracy"] for run in rates["runs"] if run["setting"] == setting]
            assert len(each) == len(document["seeds"])
            assert series["mean"][i] == pytest.approx(sum(each) / len(each))
            assert (series["low"][i], series["high"][i]) == (min(each), max(each))


def test_drawn_points_stand_where_the_numbers_are() -> None:
    """The vertical places in the picture are proportional to the values."""
    values = [0.0, 25.0, 100.0]
    series = {"name": "one", "style": "with", "x": [0, 1, 2], "mean": values, "low": values, "high": values}
    panel = {"title": "t", "x_label": "x", "y_label": "y", "series": [series], "x_scale": "linear",
             "y_scale": "linear", "decimals": 1, "band": False, "y_range": [0, 100]}  # fmt: skip
    paths = re.findall(r'<path d="M ([\d. L\n-]+?)" clip-path=[^>]*stroke: #0072b2', figures.svg([panel]))
    points = [tuple(map(float, point.split())) for path in paths for point in path.split("L")]
    heights = [y for _, y in points[-3:]]
    assert (heights[0] - heights[1]) / (heights[0] - heights[2]) == pytest.approx(0.25, abs=1e-4)


def test_the_page_says_everything(document: dict[str, Any], page: Strict) -> None:
    text = " ".join("".join(page.text).split())
    assert page.ids == list(NAMES)
    assert "This was a quick run" in text
    for entry, e in zip(ENTRIES, document["experiments"], strict=True):
        told_ones = told([entry.title, entry.question, *e["finding"], *e["reading"]], ENGLISH)
        for said in (*told_ones, entry.paper.title):
            assert " ".join(said.split()) in text
        assert f"https://arxiv.org/abs/{entry.paper.arxiv}" in page.links
    assert set(page.links) == {f"#{name}" for name in NAMES} | {
        f"https://arxiv.org/abs/{e.paper.arxiv}" for e in ENTRIES
    }


def test_text_is_escaped(document: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(document))
    changed["experiments"][0]["finding"] = ["<script>alert(1)</script> & more"]
    changed["experiments"][0]["panels"][0]["series"][0]["name"] = '"><b>'
    page = report.html(changed, ENGLISH)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    assert '"><b>' not in page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(results: Path, browser: Browser, width: int, scheme: Any) -> None:
    """No complaint, no request, nothing wider than the window, and every picture there."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = context.new_page()
    watched = Watched(tab)
    tab.goto((results / "why.html").as_uri())
    assert watched.complaints == []
    assert {url.partition(":")[0] for url in watched.requests} <= {"file", "data"}
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    for details in tab.locator("summary").all():
        details.click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.width > 200)")
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 25, 30)")
    context.close()
