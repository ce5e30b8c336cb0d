import json
from typing import Any

import pytest
from typer.testing import CliRunner

from isoflop.bench.suite import SHIPPED, Suite
from isoflop.cli.main import app


def rows(*arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_every_shipped_suite_is_listed_with_its_price() -> None:
    table = {row["suite"]: row for row in rows("suites", "--device", "h100")}
    assert set(table) == {path.stem for path in SHIPPED.glob("*.toml")}
    for row in table.values():
        # Every variant is trained at every budget without a list of variants.
        assert row["cells"] >= len(row["variants"])
        assert row["description"]
    quick = table["quick"]
    layers = ["dense", "swiglu", "moe-g1", "moe-g4", "moe-ec", "moe-shared", "pkm", "peer"]
    assert quick["variants"] == layers
    assert quick["budgets"] == [1.5e11, 3.3e11, 7.5e11, 1.2e12, 2e12]
    assert quick["cells"] == 8 * 3 * 4 + 4 + 2 * 4
    # 32 cells at each of the three budgets of all variants, and four at each larger one of dense's
    # two and SwiGLU's one.
    assert quick["flops"] == pytest.approx(32 * 1.23e12 + 4 * 5.2e12, rel=0.01)
    planned = rows("plan", "quick", "--device", "h100")
    alone = sum(row["seconds"] for row in planned) / 60
    assert alone / 8 < quick["minutes"] < alone / 2  # several at a time
    compiled = sum(row["compiled"] for row in planned)
    assert compiled < len(planned) / 4  # training in seconds does not repay it
    text = CliRunner().invoke(app, ["plan", "quick", "--device", "h100"]).stdout
    assert "min on h100 with 8 at a time" in text
    assert f"{compiled} of 108 cells compiled" in text


def test_fields_are_listed_with_type_default_and_meaning() -> None:
    table = {row["key"]: row for row in rows("suites", "--fields")}
    assert table["training.schedule"]["type"] == '"cosine" or "wsd"'
    assert table["training.batch"]["default"] == "required"
    assert table["corpus.documents"] == {
        "key": "corpus.documents",
        "type": "integer > 0, <= 1099511627776",
        "default": None,
        "meaning": "Take only this many documents, from the first on.",
    }
    assert table["corpus.validation"]["type"] == "number > 0, < 0.5"
    assert table["placement"]["type"] == '"middle" or "all" or list of integer >= 0'
    assert table["tune.factors"]["default"] == "[0.25, 0.5, 1.0, 2.0, 4.0]"
    assert table["name"]["default"] == "the name of the file"
    assert {"sizes.NAME.heads", "budgets.N.flops", "variants.NAME.options"} <= set(table)
    assert {key for key in table if "." not in key} == set(Suite.model_fields)
    assert all(row["meaning"] for row in table.values())


def test_a_table_prints_what_looks_like_markup() -> None:
    done = CliRunner().invoke(app, ["suites", "--fields"], catch_exceptions=False)
    assert "Names from [sizes]; empty for all." in done.stdout
