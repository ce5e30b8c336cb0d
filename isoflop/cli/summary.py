"""The outcome of `isoflop check` as Markdown, for a comment on a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.analysis.report.markdown import escape, table
from isoflop.bench.gate.baseline import Check, shown


def markdown(checks: Sequence[Check]) -> str:
    """All checks in a table, then what failed, then the details of each check, folded."""
    verdict = "passed" if all(check.ok for check in checks) else "**failed**"
    rows = [(check.name, "ok" if check.ok else "FAIL", check.text) for check in checks]
    header = ("check", "result", "details")
    parts = [f"### isoflop check: {verdict}\n", table(header, rows, left=header)]
    for check in checks:
        if not check.ok:
            lines = "".join(f"- {escape(line)}\n" for line in shown(check))
            parts.append(f"**{check.name}**\n\n{lines}")
    for check in checks:
        if check.table:
            columns = list(check.table[0])
            cells = table(columns, [list(row.values()) for row in check.table], left=columns[:1])
            parts.append(f"<details><summary>{check.name}</summary>\n\n{cells}\n</details>\n")
    return "\n".join(parts)
