"""index.html: the whole report as one file that asks nothing of the network.

Tables are HTML, written here, so that they can be read, printed and searched without JavaScript;
charts are data (see `spec`) drawn by Chart.js, which is inlined with its licence.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from string import Template

import numpy as np

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.post_training import Row as MethodRow
from isoflop.analysis.post_training import sentence
from isoflop.analysis.report import (
    equal_total_table,
    layer_figures,
    leaderboard,
    post_training,
    sections,
)
from isoflop.analysis.report.charts import charts
from isoflop.analysis.report.leaderboard import Row
from isoflop.analysis.report.method_charts import method_charts, method_looks, method_names
from isoflop.analysis.report.multiples import MOST, left_out
from isoflop.analysis.report.spec import Chart, plain
from isoflop.analysis.report.style import NEUTRAL, Look, families, looks
from isoflop.analysis.report.verdict import result
from isoflop.results.errors import printable
from isoflop.results.scored import Scored

BARS = ("multiplier", "parabola_multiplier", "time_multiplier")  # columns drawn on one scale
WEB = files("isoflop.analysis.report") / "web"


def page(
    analysis: Analysis,
    suite: str = "",
    command: str | None = None,
    failed: dict[str, str] | None = None,
    methods: Sequence[MethodRow] = (),
    scored: Sequence[Scored] = (),
) -> str:
    """The page.

    Args:
        suite: text of the suite file, or files.
        command: that made a comparison.
        failed: takes the charts that cannot be described, and why; if None, they raise.
        methods: what methods after training made of the suite's models.
        scored: losses on other text.
    """
    after = method_charts(methods, analysis.records, failed)
    shown = {chart.id: chart for chart in (*charts(analysis, failed), *after)}
    look = looks(analysis)
    ranking, costs = leaderboard.parts(analysis)
    name, headline = sections.suites(analysis), leaderboard.headline(analysis)
    commands = command or f"isoflop run {name}\nisoflop report results/{name}"
    if analysis.highlight:
        name, headline = sections.versus(analysis), str(result(analysis)["sentence"])
    data = {
        "looks": {
            variant: asdict(style) for variant, style in (look | method_looks(methods)).items()
        },
        "neutral": asdict(NEUTRAL),
        "baseline": analysis.baseline,
        "hidden": left_out(analysis),
        "charts": [plain(chart) for chart in shown.values()],
    }
    library = _web("chart.umd.min.js")
    return Template(_web("page.html")).substitute(
        css=_web("page.css"),
        name=escape(name),
        headline=escape(headline),
        leaderboard=_leaderboard(analysis, look, ranking),
        costs=_leaderboard(analysis, look, costs),
        legend=escape(leaderboard.legend(analysis)),
        toggles=_toggles(analysis, look),
        scale=_figures(
            analysis, shown, "isoflop", "frontier", "multiplier_scale", "wall_clock", "resources"
        )
        + _table(sections.SCALE, sections.scale_header(analysis), sections.scale_rows(analysis))
        + _list(sections.crossings(analysis))
        + _table(
            equal_total_table.text(analysis),
            equal_total_table.header(analysis),
            equal_total_table.rows(analysis),
        ),
        checks=_checks(analysis, shown),
        scored=_scored(analysis, scored),
        methods=_methods(analysis, methods, shown, [chart.id for chart in after]),
        settings=_verbatim(suite) if suite else "<p>There is no suite file.</p>",
        reproduce=_reproduce(analysis, commands),
        notes=_list(sections.notes(analysis)),
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        # without its last line, which points debuggers at a file that is not there
        library=library[: library.index("//# sourceMappingURL")],
        js=_web("page.js"),
    )


def escape(text: str) -> str:
    """Foreign text on one line, as text of HTML or as the value of an attribute in quotes."""
    return html.escape(printable(text))


def _verbatim(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def _web(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def _leaderboard(analysis: Analysis, look: Mapping[str, Look], keys: Sequence[str]) -> str:
    """A table of some columns of the leaderboard."""
    rows, titles = leaderboard.rows(analysis), leaderboard.columns(analysis)
    shown = {key: titles[key] for key in keys}
    names = [f"{bar}{end}" for bar in BARS for end in ("", "_low", "_high")]
    ends = np.log([1.0, *(row[name] for row in rows for name in names if row[name])])
    margin = 0.05 * (ends.max() - ends.min()) or 0.1
    span = ends.max() - ends.min() + 2 * margin

    def place(multiplier: float) -> float:
        """Per cent along the column's logarithmic scale."""
        return 100 * float(np.log(multiplier) - ends.min() + margin) / span

    head = "".join(
        f'<th scope="col"{_words(key)}><button type="button">{escape(title)}</button></th>'
        for key, title in shown.items()
        if key != "flags"
    )
    # a body per variant, so that flags have a line of their own and move with it
    bodies = ""
    for row in rows:
        cells = "".join(_cell(row, key, look, place) for key in shown if key != "flags")
        mark = ' class="compared"' if row["variant"] == analysis.highlight else ""
        bodies += f"<tbody{mark}><tr>{cells}</tr>"
        if row["flags"] and "flags" in shown:
            bodies += f'<tr><td></td><td colspan="{len(shown) - 2}">{_list(row["flags"])}</td></tr>'
        bodies += "</tbody>\n"
    return f'<table class="sortable"><thead><tr>{head}</tr></thead>\n{bodies}</table>'


def _cell(row: Row, key: str, look: Mapping[str, Look], place: Callable[[float], float]) -> str:
    text = escape(leaderboard.cell(row, key))
    if key == "variant":
        swatch = _swatch(look[row[key]], row["baseline"])
        return f'<th scope="row" data-value="{text}">{swatch}{text}</th>'
    bar = ""
    if key in BARS and row[key] is not None and not (row["baseline"] and key != BARS[0]):
        low, high = (row[f"{key}_{end}"] or row[key] for end in ("low", "high"))
        bar = (
            '<span class="bar" aria-hidden="true" style="'
            f"--equal:{place(1):.1f}%;--at:{place(row[key]):.1f}%;"
            f'--low:{place(low):.1f}%;--high:{place(high):.1f}%"></span>'
        )
    value = "" if row[key] is None else row[key]
    return f'<td data-value="{value}"{_words(key)}>{text}{bar}</td>'


def _words(key: str) -> str:
    """The class of a column that holds words, which are aligned left."""
    return ' class="words"' if key == "verdict" else ""


def _swatch(look: Look, baseline: bool) -> str:
    colour = "var(--ink)" if baseline else look.colour
    faint = f";opacity:{look.strength}" if look.strength < 1 else ""
    return f'<span class="swatch" style="background:{colour}{faint}"></span>'


def _toggles(analysis: Analysis, look: Mapping[str, Look]) -> str:
    """A button per variant, by family; and two for all variants and those shown at first."""
    hidden = left_out(analysis)
    groups = ""
    for family, members in families(analysis).items():
        buttons = "".join(
            f'<button type="button" aria-pressed="{str(variant not in hidden).lower()}" '
            f'data-variant="{escape(variant)}">'
            f"{_swatch(look[variant], variant == analysis.baseline)}{escape(variant)}</button>"
            for variant in members
        )
        groups += f'<span class="family"><span>{family}</span>{buttons}</span>'
    if hidden:
        groups += (
            f'<span class="family"><button type="button" data-hide="">all {len(look)}</button>'
            f'<button type="button" data-hide="most">best {MOST}</button></span>'
        )
    return groups


def _figures(analysis: Analysis, shown: Mapping[str, Chart], *names: str) -> str:
    """Places for charts, those that have something to show."""
    return "".join(
        f"<figure><figcaption><h3>{escape(chart.title)}</h3><p>{escape(chart.caption)}</p>"
        f"{_axes(chart)}</figcaption>"
        f'<div class="panels{" small" * _by_variant(chart)}">{_canvases(chart, left_out(analysis))}'
        "</div></figure>"
        for name in names
        if (chart := shown.get(name))
    )


def _by_variant(chart: Chart) -> bool:
    """Whether it has a panel per variant."""
    return any(panel.variant for panel in chart.panels)


def _axes(chart: Chart) -> str:
    """The titles of the axes, for which small panels have no room."""
    if not _by_variant(chart):
        return ""
    return f"<p>Across: {escape(chart.x.title)}. Up: {escape(chart.panels[0].y.title)}.</p>"


def _canvases(chart: Chart, hidden: Sequence[str]) -> str:
    """A canvas per panel, named by chart and number."""
    result = ""
    for number, panel in enumerate(chart.panels):
        kind = "chart wide" if _by_variant(chart) and not panel.variant else "chart"
        label = escape(f"{chart.title}: {panel.title or panel.y.title}")
        result += (
            f'<div class="{kind}"{" hidden" * (panel.variant in hidden)}>'
            f'<canvas id="{chart.id}-{number}" tabindex="0" role="img" aria-label="{label}. '
            'Arrow keys step through the points."></canvas></div>'
        )
    return result


def _checks(analysis: Analysis, shown: Mapping[str, Chart]) -> str:
    """Held-out budget, granularity and learning rates."""
    parts = [
        _figures(analysis, shown, "holdout"),
        _table(sections.HELD_OUT, sections.HELD_OUT_HEADER, sections.holdout_rows(analysis)),
        _figures(analysis, shown, "granularity"),
        _list([sections.granularity(sweep) for sweep in analysis.granularity_sweeps]),
        _figures(analysis, shown, "learning_rate"),
        _table(sections.RATES, sections.RATES_HEADER, sections.rate_rows(analysis)),
        _table(layer_figures.TEXT, layer_figures.HEADER, layer_figures.rows(analysis.standings)),
    ]
    return "".join(parts) or (
        "<p>No extrapolation test (it takes three budgets), granularity sweep or learning-rate "
        "sweep yet.</p>"
    )


def _scored(analysis: Analysis, scored: Sequence[Scored]) -> str:
    """The section of losses on other text; nothing if there are none."""
    tables = "".join(_table(*parts[1:]) for parts in sections.other_texts(analysis, scored))
    if not tables:
        return ""
    title = '<h2 id="h-scored">Other text</h2>'
    return f'<section aria-labelledby="h-scored">{title}{tables}</section>'


def _methods(
    analysis: Analysis, rows: Sequence[MethodRow], shown: Mapping[str, Chart], names: Sequence[str]
) -> str:
    """The section of methods after training; nothing if there are none."""
    if not rows:
        return ""
    table = _table(post_training.TEXT, post_training.HEADER, [post_training.cells(r) for r in rows])
    keys = zip(method_names(rows), method_looks(rows).values(), strict=True)
    legend = ", ".join(f"{_swatch(look, False)}{escape(name)}" for name, look in keys)
    return (
        '<section aria-labelledby="h-methods"><h2 id="h-methods">After training</h2>'
        f'<p>{escape(sentence(rows))}</p><p class="legend">{legend}</p>'
        f"{_figures(analysis, shown, *names)}"
        f"<details><summary>All {len(rows)} comparisons</summary>{table}</details>"
        f"{_list(post_training.notes(rows, analysis.records))}</section>"
    )


def _reproduce(analysis: Analysis, commands: str) -> str:
    """The commands, and what the records were made with."""
    finished = analysis.finished
    made = {
        "device": {record.measured.device for record in finished},
        "git revision": {record.measured.git_revision or "unknown" for record in finished},
        "FLOP convention": {record.flop_convention for record in finished},
        "corpus": {record.corpus for record in finished},
        "validation set": {record.validation_hash or "unknown" for record in finished},
    }
    for record in finished:
        for package, version in record.measured.versions.items():
            made.setdefault(package, set()).add(version)
    rows = [[key, ", ".join(sorted(values))] for key, values in made.items()]
    return _verbatim(commands) + _table("", ("what", "which"), rows)


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
