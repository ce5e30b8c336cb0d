"""LaTeX: a table for a paper (booktabs)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    }
)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[str] = ()) -> str:
    """A tabular environment; it needs the package booktabs.

    Args:
        header: the titles of the columns.
        rows: the cells as text; they are escaped here.
        left: titles of the columns to align left; the others are aligned right.
    """
    columns = "".join("l" if title in left else "r" for title in header)
    lines = [" & ".join(cell.translate(SPECIAL) for cell in line) for line in (header, *rows)]
    body = "".join(f"{line} \\\\\n" for line in lines[1:])
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{lines[0]} \\\\\n\\midrule\n{body}"
        "\\bottomrule\n\\end{tabular}\n"
    )
