"""One run table in the forms that exports come in gives one law."""

import gzip
import io
import json
from pathlib import Path

import pandas as pd
import pytest

from tests.isoflop.cli.test_fit import TRUTH, grid
from tests.robustness.program import run

HEAD = ["C", "N", "D", "L"]
ROWS = [[f"{row[name]:.8g}" for name in HEAD] for row in grid()]


def joined(separator: str, rows: list[list[str]] = ROWS, head: list[str] = HEAD) -> str:
    return "\n".join(separator.join(row) for row in [head, *rows]) + "\n"


def suffixed(text: str) -> str:
    value = float(text)
    unit, letter = next(
        (u, s) for u, s in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1, "")) if value >= u
    )
    return f"{value / unit:.4g}{letter}"


def grouped(text: str) -> str:
    return f'"{float(text):,.0f}"'


def objects() -> list[dict[str, float]]:
    return [dict(zip(HEAD, map(float, row), strict=True)) for row in ROWS]


def parquet() -> bytes:
    sink = io.BytesIO()
    pd.DataFrame(objects()).to_parquet(sink)
    return sink.getvalue()


COMMENTS = "# sweep 3, FLOPs counted with attention\n# losses in nats\n"
FORMS: dict[str, str | bytes] = {
    "plain.csv": joined(","),
    "semicolons.csv": joined(";"),
    "decimal_commas.csv": joined(";", [[cell.replace(".", ",") for cell in r] for r in ROWS]),
    "tabs.tsv": joined("\t"),
    "spaces_after_commas.csv": joined(", "),
    "comments.csv": COMMENTS + joined(","),
    "blank_last_rows.csv": joined(",") + ",,,\n\n",
    "suffixes.csv": joined(",", [[C, suffixed(N), suffixed(D), L] for C, N, D, L in ROWS]),
    "thousands.csv": joined(",", [[C, grouped(N), grouped(D), L] for C, N, D, L in ROWS]),
    "lower_case.csv": joined(",", head=[name.lower() for name in HEAD]),
    "usual_names.csv": joined(",", head=["flops", "params", "tokens", "val_loss"]),
    "no_loss.csv": joined(",", [*ROWS[:4], [*ROWS[4][:3], ""], *ROWS[5:]]),
    "tensors.csv": joined(",", [[C, N, D, f'"tensor({L})"'] for C, N, D, L in ROWS]),
    "lines.jsonl": "".join(json.dumps(row) + "\n" for row in objects()),
    "array.json": json.dumps(objects(), indent=1),
    "utf16.csv": joined(",").encode("utf-16"),
    "bom.csv": joined(",").encode("utf-8-sig"),
    "packed.csv.gz": gzip.compress(joined(",").encode()),
    "table.parquet": parquet(),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_true_law(name: str, tmp_path: Path) -> None:
    content = FORMS[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = run(tmp_path, "fit", name, "--json")
    assert (outcome.fault, outcome.code, outcome.err) == ("", 0, "")
    fitted = json.loads(outcome.out)
    assert fitted["n_points"] == len(ROWS) - (name == "no_loss.csv")
    near = 2e-2 if name == "suffixes.csv" else 1e-4  # four digits of N and D
    assert fitted["params"] == pytest.approx(TRUTH, rel=near)
