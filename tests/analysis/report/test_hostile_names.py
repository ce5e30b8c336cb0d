"""Names are foreign text: whatever shows them shows them as they are, and obeys nothing in them."""

import csv
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from isoflop.analysis.analyse import Analysis, analyse
from isoflop.analysis.report import figures, leaderboard, sections
from isoflop.analysis.report.page import page
from isoflop.analysis.simulate import simulate
from isoflop.bench.gate.baseline import Check
from isoflop.cli.summary import markdown
from isoflop.results.errors import printable
from tests.analysis.report.browser import Browser, needs_browser

NAMES = (
    "</script><script>window.hit=1</script>",
    "<!--<script>",
    "<img src=x onerror=window.hit=1>",
    "\"'><svg onload=window.hit=1>",
    "a|b",
    "`c`|",
    "[x](javascript:window.hit=1)",
    r"$\frac{x$",
    "_^{",
    "::error::x",
    "__proto__",
    "&lt;b&gt;",
)
CONTROLS = "e\x1b[2J\n::error::f\x9b\u202e"  # refused in records; the renderers do without trust
BUDGETS = (1e14, 4e14, 1.6e15)


def analysed(names: Sequence[str]) -> Analysis:
    truth = {"dense": 1.0} | {name: 1.05 + 0.02 * at for at, name in enumerate(names)}
    records = simulate({f"v{at}": truth[name] for at, name in enumerate(truth)}, BUDGETS)
    of = {f"v{at}": name for at, name in enumerate(truth)}
    # Unchecked copies: what the schema refuses must do no harm either.
    named = [r.model_copy(update={"variant": of[r.variant]}) for r in records]
    return analyse(
        [r.model_copy(update={"layer": "dense"}) if r.variant == "dense" else r for r in named],
        samples=10,
    )


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analysed([*NAMES, CONTROLS])


@pytest.fixture(scope="module")
def html(analysis: Analysis) -> str:
    return page(analysis, "# </pre><script>window.hit=1</script>", "isoflop compare '<b>'")


class Tags(HTMLParser):
    """The tags of a page with their attributes, and the text of its headers of rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.rows: list[str] = []
        self._in_row = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "th" and ("scope", "row") in attrs:
            self._in_row = True
            self.rows.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_row &= tag != "th"

    def handle_data(self, data: str) -> None:
        if self._in_row:
            self.rows[-1] += data


def test_html_has_no_tag_or_attribute_of_theirs(html: str) -> None:
    tags, plain = Tags(html), Tags(page(analysed(["moe"])))
    assert set(tags.tags) == set(plain.tags)
    assert tags.tags.count("script") == plain.tags.count("script")
    # what a page of more than six variants has besides
    assert tags.attributes == plain.attributes | {"hidden", "data-hide"}
    assert {*NAMES, printable(CONTROLS)} <= set(tags.rows)


def test_json_in_html_cannot_end_its_script(html: str) -> None:
    data = re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', html, re.DOTALL)
    assert data
    assert "<" not in data[1]
    assert {*NAMES, CONTROLS} <= set(json.loads(data[1])["looks"])


def test_markdown_keeps_its_tables(analysis: Analysis) -> None:
    text = leaderboard.table(analysis)
    tables = [sections.markdown(analysis), text]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    rows = len(NAMES) + 2 + 2  # with dense, the controls, and the header
    ranking, costs = bars[:rows], bars[rows:]
    assert len(costs) == rows
    assert set(ranking) == {ranking[0]}
    assert set(costs) == {costs[0]}
    for part in tables:
        code = re.sub(r"`[^`]*`", "", part)
        assert not re.search(r"(?<!\\)<|(?<!\\)\$|^::", code, re.MULTILINE)
        assert not {"\x1b", "\x9b", "\u202e"} & set(part)
    assert r"a\|b" in text


def test_figures_show_them_as_text_and_are_xml(analysis: Analysis) -> None:
    failed: dict[str, str] = {}
    files = figures.draw(analysis, "about", failed)
    assert failed == {}
    for name, content in files.items():
        if name.endswith(".svg"):
            kinds = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(content)}
            assert "script" not in kinds
    figure = figures.FIGURES["multiplier"](analysis)
    assert figure
    shown = {label.get_text().partition(". ")[2] for label in figure.axes[0].get_yticklabels()}
    assert {*NAMES, printable(CONTROLS)} >= shown - {"dense"}
    assert len(shown) > len(NAMES) / 2


def test_csv_comes_back(analysis: Analysis) -> None:
    rows = list(csv.DictReader(io.StringIO(leaderboard.as_csv(leaderboard.rows(analysis)))))
    assert {*NAMES, CONTROLS} <= {row["variant"] for row in rows}


def test_a_comment_on_a_pull_request_stays_a_table() -> None:
    checks = [Check("submissions", False, "<b>|`x`\n", [f"{name}: wrong" for name in NAMES])]
    text = markdown(checks)
    assert text.splitlines()[4].count("|") - text.splitlines()[4].count(r"\|") == 4
    code = re.sub(r"`[^`]*`", "", text)
    assert not re.search(r"(?<!\\)<|^::", code, re.MULTILINE)


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_runs_nothing_and_keeps_the_layout(
    browser: Browser, html: str, tmp_path: Path, width: int
) -> None:
    path = tmp_path / "index.html"
    path.write_text(html, encoding="utf-8")
    browser.open(path, width)
    assert browser.problems == []
    assert browser.requests == [path.as_uri()]
    assert browser.evaluate("typeof window.hit") == "undefined"
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate("charts.length") > 0
    sections_ = browser.evaluate("document.querySelectorAll('main > section').length")
    assert sections_ == page(analysed(["moe"])).count("<section")
    # every button hides its own variant, and a sorted table keeps its rows
    browser.evaluate("document.querySelector('[data-hide]').click()")  # shows all
    buttons = browser.evaluate(
        "[...document.querySelectorAll('[data-variant]')].map((b) => (b.click(), "
        "[b.dataset.variant, hidden.has(b.dataset.variant)]))"
    )
    assert len(buttons) == len(NAMES) + 2
    assert all(hides for _, hides in buttons)
    rows = "document.querySelectorAll('.sortable tbody').length"
    before = browser.evaluate(rows)
    browser.evaluate("document.querySelectorAll('.sortable button').forEach((b) => b.click())")
    assert browser.evaluate(rows) == before
    assert browser.problems == []
    assert browser.evaluate("typeof window.hit") == "undefined"
