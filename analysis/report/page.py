"""index.html: the whole report as one file that asks nothing of the network.

Tables are HTML, written here, so that they can be read, printed and searched without JavaScript;
charts are data (see `charts`) drawn by Chart.js, which is inlined with its licence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.report import leaderboard, sections
from isoflop.analysis.report.charts import Chart, charts
from isoflop.analysis.report.leaderboard import Row
from isoflop.analysis.report.style import MUTED, WEIGHT, colours
from isoflop.analysis.report.verdict import result

WEB = files("isoflop.analysis.report") / "web"


def page(analysis: Analysis, suite: str | None, command: str | None = None) -> str:
    """The page.

    Args:
        suite: text of the suite file, if the results have a copy.
        command: that made a comparison.
    """
    drawn = {chart["id"]: chart for chart in charts(analysis)}
    name, headline = sections.suites(analysis), leaderboard.headline(analysis)
    commands = command or f"isoflop run {name}\nisoflop report results/{name}"
    data: dict[str, Any] = {
        "colours": colours(analysis),
        "baseline": analysis.baseline,
        "charts": drawn,
    }
    if analysis.highlight:
        name, headline = sections.versus(analysis), str(result(analysis)["sentence"])
        data |= {"highlight": analysis.highlight, "muted": MUTED, "weight": WEIGHT}
    library = _web("chart.umd.min.js")
    return Template(_web("page.html")).substitute(
        css=_web("page.css"),
        name=escape(name),
        headline=escape(headline),
        leaderboard=_leaderboard(analysis),
        legend=escape(leaderboard.legend(analysis)),
        toggles=_toggles(analysis),
        scale=_figures(drawn, "isoflop", "frontier", "multiplier", "wall_clock")
        + _table(sections.SCALE, sections.scale_header(analysis), sections.scale_rows(analysis))
        + _list(sections.crossings(analysis)),
        checks=_checks(analysis, drawn),
        settings=f"<pre>{escape(suite)}</pre>" if suite else "<p>No copy of the suite file.</p>",
        reproduce=_reproduce(analysis, commands),
        notes=_list(sections.notes(analysis)),
        data=json.dumps(data, separators=(",", ":")).replace("</", "<\\/"),
        # without its last line, which points debuggers at a file that is not there
        library=library[: library.index("//# sourceMappingURL")],
        js=_web("page.js"),
    )


def _web(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def _leaderboard(analysis: Analysis) -> str:
    rows, shown = leaderboard.rows(analysis), leaderboard.columns(analysis)
    names = ("multiplier", "multiplier_low", "multiplier_high")
    ends = np.log([1.0, *(row[name] for row in rows for name in names if row[name])])
    margin = 0.05 * (ends.max() - ends.min()) or 0.1
    span = ends.max() - ends.min() + 2 * margin

    def place(multiplier: float) -> float:
        """Per cent along the column's logarithmic scale."""
        return 100 * float(np.log(multiplier) - ends.min() + margin) / span

    head = "".join(
        f'<th scope="col"><button type="button">{escape(title)}</button></th>'
        for key, title in shown.items()
        if key != "flags"
    )
    # a body per variant, so that flags have a line of their own and move with it
    bodies = ""
    for row in rows:
        cells = "".join(_cell(analysis, row, key, place) for key in shown if key != "flags")
        mark = ' class="compared"' if row["variant"] == analysis.highlight else ""
        bodies += f"<tbody{mark}><tr>{cells}</tr>"
        if row["flags"]:
            bodies += f'<tr><td></td><td colspan="{len(shown) - 2}">{_list(row["flags"])}</td></tr>'
        bodies += "</tbody>\n"
    return f'<table class="sortable"><thead><tr>{head}</tr></thead>\n{bodies}</table>'


def _cell(analysis: Analysis, row: Row, key: str, place: Callable[[float], float]) -> str:
    text = escape(leaderboard.cell(row, key))
    if key == "variant":
        return f'<th scope="row" data-value="{text}">{_swatch(analysis, row[key])}{text}</th>'
    bar = ""
    if key == "multiplier" and row[key] is not None:
        low, high = (row[f"{key}_{end}"] or row[key] for end in ("low", "high"))
        bar = (
            '<span class="bar" aria-hidden="true" style="'
            f"--one:{place(1):.1f}%;--at:{place(row[key]):.1f}%;"
            f'--low:{place(low):.1f}%;--high:{place(high):.1f}%"></span>'
        )
    value = "" if row[key] is None else row[key]
    return f'<td data-value="{value}">{text}{bar}</td>'


def _swatch(analysis: Analysis, variant: str) -> str:
    own = "var(--ink)" if variant == analysis.baseline else colours(analysis)[variant]
    recedes = analysis.highlight and variant not in (analysis.highlight, analysis.baseline)
    faint = f";opacity:{MUTED}" if recedes else ""
    return f'<span class="swatch" style="background:{own}{faint}"></span>'


def _toggles(analysis: Analysis) -> str:
    return "".join(
        f'<button type="button" aria-pressed="true" data-variant="{escape(variant)}">'
        f"{_swatch(analysis, variant)}{escape(variant)}</button>"
        for variant in analysis.variants
    )


def _figures(drawn: dict[str, Chart], *names: str) -> str:
    """Places for charts, those that have something to show."""
    return "".join(
        f"<figure><figcaption><h3>{escape(chart['title'])}</h3><p>{escape(chart['text'])}</p>"
        f'</figcaption><div class="chart"><canvas id="{chart["id"]}" tabindex="0" role="img" '
        f'aria-label="{escape(chart["title"])}. Arrow keys step through the points."></canvas>'
        "</div></figure>"
        for name in names
        if (chart := drawn.get(name))
    )


def _checks(analysis: Analysis, drawn: dict[str, Chart]) -> str:
    """HoldOut, granularity and learning rates."""
    parts = [
        _figures(drawn, "holdout"),
        _table(sections.HELD_OUT, sections.HELD_OUT_HEADER, sections.holdout_rows(analysis)),
        _figures(drawn, "granularity"),
        _list([sections.granularity(sweep) for sweep in analysis.granularity_sweeps]),
        _figures(drawn, "learning_rate"),
        _table(sections.RATES, sections.RATES_HEADER, sections.rate_rows(analysis)),
    ]
    return "".join(parts) or "<p>No holdout (three budgets or more), sweep or sweep yet.</p>"


def _reproduce(analysis: Analysis, commands: str) -> str:
    """The commands, and what the records were made with."""
    made = {
        "device": {one.measured.device for one in analysis.finished},
        "git revision": {one.measured.git_revision or "unknown" for one in analysis.finished},
        "FLOP convention": {one.flop_convention for one in analysis.finished},
        "corpus": {one.corpus for one in analysis.finished},
        "validation set": {one.validation_hash or "unknown" for one in analysis.finished},
    }
    for one in analysis.finished:
        for package, version in one.measured.versions.items():
            made.setdefault(package, set()).add(version)
    rows = [[key, ", ".join(sorted(values))] for key, values in made.items()]
    return f"<pre>{escape(commands)}</pre>" + _table("", ("what", "which"), rows)


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _table(text: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in rows
    )
    caption = f"<p>{escape(text)}</p>" if text else ""
    label = f"Table of {escape(header[0])} and {len(header) - 1} columns"
    return (
        f'{caption}<div class="scroll" role="region" aria-label="{label}" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )
