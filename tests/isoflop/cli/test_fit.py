"""`isoflop fit` on the tables people have: the right value, or one line and exit code 2."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from isoflop.analysis.laws.dense import CHINCHILLA
from isoflop.cli.main import main

TRUTH = {"E": 1.9, "A": 520.0, "B": 1900.0, "alpha": 0.345, "beta": 0.36}
BUDGETS = (1e18, 3e18, 1e19, 3e19, 1e20)


def optimum(C, truth=TRUTH):
    return {name: float(value) for name, value in CHINCHILLA.optimum(truth, C, {}).items()}


def loss(N, D, truth=TRUTH):
    return float(CHINCHILLA.predict(truth, {"N": [N], "D": [D]})[0])


def grid(budgets=BUDGETS, steps=range(-3, 4), truth=TRUTH, width=7.0):
    """Rows of C, N, D, L: sizes around each budget's optimum, the losses without noise."""
    rows = []
    for C in budgets:
        for step in steps:
            N = optimum(C, truth)["N_opt"] * width ** (step / 3)
            rows.append({"C": C, "N": N, "D": C / 6 / N, "L": loss(N, C / 6 / N, truth)})
    return rows


def text(rows):
    def shown(value):
        return f"{value:.8g}" if isinstance(value, float) else str(value)

    lines = [",".join(rows[0])] + [",".join(map(shown, row.values())) for row in rows]
    return "\n".join(lines) + "\n"


@pytest.fixture
def table(tmp_path: Path):
    def write(rows):
        path = tmp_path / "runs.csv"
        path.write_text(rows if isinstance(rows, str) else text(rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def isoflop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["isoflop", "fit", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def result(isoflop):
    def of(*arguments):
        code, out, err = isoflop(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return of


@pytest.fixture
def refusal(isoflop):
    def of(*arguments):
        code, out, err = isoflop(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err.removeprefix("isoflop: ").strip()

    return of


# ------------------------------------------------------------------- optima, holdout, fixed, tied


def test_optima_at_larger_budgets(table, result):
    truth = {"E": 2.1, "A": 900.0, "B": 2500.0, "alpha": 0.33, "beta": 0.37}
    rows = grid((1e19, 3e19, 1e20, 3e20, 1e21), truth=truth)
    renamed = [{"parameters": r["N"], "compute_budget": r["C"], "final_loss": r["L"]} for r in rows]
    fitted = result(table(renamed), "--at", "1e23", "--at", "1e24", "--holdout", "1e21")
    expected = {1e23: (1.0990e11, 1.5165e11, 2.48691), 1e24: (3.7117e11, 4.4903e11, 2.35893)}
    for at in fitted["at"]:
        for name, value in zip(("N_opt", "D_opt", "L_opt"), expected[at["C"]], strict=True):
            middle, low, high = at[name]
            assert middle == pytest.approx(value, rel=1e-4)
            assert low <= middle <= high
    assert [at["C"] for at in fitted["at"]] == [1e23, 1e24]
    assert (fitted["holdout"]["below"], fitted["holdout"]["above"]) == (28, 7)
    assert abs(fitted["holdout"]["mean_error"]) < 1e-5


def test_the_page_has_every_part(table, isoflop):
    path = table(grid())
    code, out, err = isoflop(
        path, "--law", "chinchilla-isoflop", "--at", "1e21,1e22", "--holdout", "1e20"
    )
    assert (code, err) == (0, "")
    assert "Budgets by gaps in C" in out
    assert "Scaling law: chinchilla-isoflop" in out
    assert out.count("compute-optimal at C = ") == 3
    assert "holdout: fitted to 4 rows below 1e+20 FLOPs (converged), 1 predicted" in out
    assert "nan" not in out


def test_known_parameters_are_fixed_and_equal_ones_tied(table, result):
    C = (2.5e17, 1e18, 3e18, 1e19, 3e19)
    L = (3.7086744, 3.4482915, 3.2663308, 3.0833771, 2.9387017)
    path = table([{"C": c, "L": one} for c, one in zip(C, L, strict=True)])
    free = result(path, "--law", "frontier")
    assert free["derived"]["L_opt"] == pytest.approx(2.938, abs=1e-3)
    low, high = free["derived_intervals"]["L_opt"]
    assert 2.918 < low < high < 2.958
    fixed = result(path, "--law", "frontier", "--fix", "E=1.6", "--fix", "alpha=0.095")
    assert fixed["params"]["A"] == pytest.approx(94.795, abs=0.032)
    assert fixed["fixed"] == {"E": 1.6, "alpha": 0.095}
    tied = result(table(grid(truth=TRUTH | {"beta": 0.345})), "--tie", "alpha=beta")
    assert tied["params"]["alpha"] == tied["params"]["beta"] == pytest.approx(0.345, abs=1e-5)


# --------------------------------------------------------------------------------- budgets


def test_one_size_per_budget_has_no_parabola(table, refusal, isoflop):
    rows = grid(np.geomspace(1e18, 1e20, 8), steps=[0])
    assert refusal(table(rows), "--law", "chinchilla-isoflop").endswith(
        "runs.csv: no budget has three sizes, which a parabola needs (8 budgets by gaps in C); "
        "--law chinchilla needs no budgets"
    )
    code, out, _ = isoflop(table(rows))  # along the optimum N and D say the same
    assert code == 0
    assert "Not identified" in out


@pytest.mark.parametrize("truth", [TRUTH, CHINCHILLA.example])
def test_budgets_without_a_minimum_are_listed_with_the_reason(table, result, truth):
    rows = grid((1e18, 3e19, 1e20), truth=truth) + grid((3e18, 1e19), [2, 3, 4], truth)
    fitted = result(table(rows), "--law", "chinchilla-isoflop")
    assert fitted["status"] == "converged"
    a = truth["beta"] / (truth["alpha"] + truth["beta"])
    assert fitted["params"]["a"] == pytest.approx(a, abs=2e-3)
    by_C = {f"{budget['C']:.0e}": budget for budget in fitted["budgets"]}
    assert [by_C[C]["used"] for C in ("1e+18", "3e+18", "1e+19", "3e+19", "1e+20")] == [
        *(True, False, False, True, True)
    ]
    assert by_C["3e+18"]["why"] == "minimum below the smallest size"
    assert by_C["3e+18"]["sizes"] == 3
    assert by_C["1e+20"]["N"] == pytest.approx(optimum(1e20, truth)["N_opt"], rel=0.02)


def test_a_law_of_too_few_budgets_is_refused_with_what_there_is(table, refusal):
    rows = grid((1e18,)) + grid((3e18, 1e19), [2, 3, 4])
    assert refusal(table(rows), "--law", "chinchilla-isoflop").endswith(
        "1 of 3 budgets have a minimum among their sizes, chinchilla-isoflop needs 2 (minimum "
        "below the smallest size); --law chinchilla uses all rows"
    )


def test_a_grid_given_to_the_frontier(table, result):
    path = table(grid(steps=(-3, -1.5, 0, 1.5, 3)))
    minima = result(path, "--law", "frontier", "--at", "1e18", "--at", "1e20")
    best = result(path, "--law", "frontier", "--best", "--at", "1e18", "--at", "1e20")
    for fitted, error in ((minima, 3e-3), (best, 1e-5)):
        assert fitted["n_points"] == 5
        assert fitted["at"][0]["L_opt"][0] == pytest.approx(3.71279, abs=error)
        assert fitted["at"][1]["L_opt"][0] == pytest.approx(2.70539, abs=error)
    assert len(minima["budgets"]) == 5
    assert best["budgets"] == []


def test_a_budget_column_groups(table, result):
    # Larger models are charged more FLOPs than the budget's name says.
    rows = []
    for name, C in enumerate(BUDGETS):
        for step in range(-3, 4):
            N, flops = optimum(C)["N_opt"] * 7 ** (step / 3), C * 1.35**step
            rows.append({"budget": f"b{name}", "C": flops, "N": N, "L": loss(N, flops / 6 / N)})
    fitted = result(table(rows), "--law", "chinchilla-isoflop")
    assert len(fitted["budgets"]) == 5
    assert all(budget["used"] for budget in fitted["budgets"])
    assert fitted["params"]["a"] == pytest.approx(0.51064, abs=0.01)


# ------------------------------------------------------------------------ what is in the rows


def test_a_learning_rate_sweep_in_the_table(table, result, refusal):
    rows = [
        {"model": "m", "N": row["N"], "D": row["D"], "C": row["C"], "peak_lr": rate, "L": L}
        for row in grid()
        for rate, L in ((1e-3, row["L"] + 0.03), (2e-3, row["L"]), (4e-3, row["L"] + 0.03))
    ]
    message = refusal(table(rows))
    assert "they differ in peak_lr: --best keeps the lowest loss" in message
    fitted = result(table(rows), "--best")
    assert fitted["params"] == pytest.approx(TRUTH, rel=1e-4)
    assert fitted["n_points"] == 35


def test_seeds_under_another_name(table, result):
    rng = np.random.default_rng(0)
    rows = [
        row | {"L": row["L"] + 0.01 * rng.standard_normal(), "my_seed": seed}
        for row in grid()
        for seed in range(3)
    ]
    fitted = result(table(rows), "--column", "seed=my_seed")
    assert fitted["n_points"] == 105
    assert fitted["params"]["alpha"] == pytest.approx(0.345, abs=0.03)


def test_checkpoints_of_runs(table, result):
    rng = np.random.default_rng(5)
    rows = []
    for run, N in enumerate((5e7, 8e7, 1.4e8, 2.3e8, 3.8e8, 6e8)):
        off = 0.02 * rng.standard_normal()
        for D in np.geomspace(4e8, 1.2e10, 20):
            L = loss(N, D) + off + 0.007 * rng.standard_normal()
            rows.append({"run": f"r{run}", "N": N, "D": float(D), "L": L})
    by_run = result(table(rows))
    assert by_run["n_runs"] == 6
    assert by_run["notes"] == []
    alone = result(table([{k: v for k, v in row.items() if k != "run"} for row in rows]))
    assert alone["n_runs"] is None
    assert alone["notes"][0].startswith("6 values of N have 20 rows each")
    widths = [high - low for low, high in (r["intervals"]["alpha"] for r in (by_run, alone))]
    assert widths[0] > 2 * widths[1]
    named = [{"trial": row["run"]} | row for row in rows]
    for row in named:
        del row["run"]
    assert result(table(named), "--column", "run=trial")["n_runs"] == 6
    refits = result(table(rows), "--bootstrap", "100")
    assert 80 <= refits["bootstrap"] <= 100


def test_flops_and_tokens_give_the_size(table, result):
    fitted = result(table([{k: r[k] for k in ("C", "D", "L")} for r in grid()]))
    assert fitted["params"] == pytest.approx(TRUTH, rel=1e-4)
    assert fitted["notes"] == ["N is C / 6 D, as the table has none"]


def test_perplexity_and_millions_are_told(table, refusal):
    perplexity = [row | {"L": float(np.exp(row["L"]))} for row in grid()]
    assert "line 2: L is 63.5427, over 15 nats per token: it looks like perplexity (take its" in (
        refusal(table(perplexity))
    )
    millions = [{"C": row["C"], "N": row["N"] / 1e6, "L": row["L"]} for row in grid()]
    assert "N from 13.32 to 6856 looks like millions" in refusal(table(millions))


def test_a_size_that_is_no_size(table, refusal):
    rows = grid()
    rows[2] = rows[2] | {"N": 1e-308}
    assert refusal(table(rows)).endswith("line 4: N is 1e-308, outside 1 to 1e+18 parameters")


# ------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--law", "kaplan"], "--law: no law 'kaplan'; known: chinchilla"),
        (["--column", "N"], "--column: 'N' is not NAME=HEADER, such as N=params"),
        (["--column", "N=D", "--column", "N=L"], "--column: N is given twice"),
        (["--column", "L=N"], "L=N: N is the law's own N; rename that too"),
        (["--column", "Q=N"], "Q=N: chinchilla reads N, D, L, C, seed, run, budget"),
        (["--delta", "0"], "--delta: 0 is not between 1e-06 and 100"),
        (["--delta", "nan"], "--delta: nan; leave out runs without a finite value"),
        (["--delta", "much"], "--delta: 'much', not a number"),
        (["--bootstrap", "-3"], "--bootstrap: '-3' is not a whole number from 0 to 100000"),
        (["--bootstrap", "1000000000"], "--bootstrap: '1000000000' is not a whole number"),
        (["--at", "-1"], "--at: -1, where only positive values make sense"),
        (["--at", "1e23,"], "--at: a number is missing"),
        (["--at", "1e23", "--law", "routed"], "runs.csv: no column E, which routed needs"),
        (["--holdout", "1e30"], "--holdout: no run has 1e+30 FLOPs; the largest has 1e+20"),
        (["--holdout", "1e17"], "--holdout: 0 runs have less than 1e+17 FLOPs"),
        (["--fix", "E"], "--fix: 'E' is not NAME=VALUE, such as E=1.69"),
        (["--fix", "E=a"], "--fix E: 'a', not a number"),
        (["--fix", "gamma=1"], "gamma: chinchilla has no such parameter"),
        (["--fix", "alpha=2"], "alpha=2: alpha lies between 0 and 1.5"),
        (["--tie", "alpha"], "--tie: 'alpha' is not NAME=NAME, such as alpha=beta"),
        (["--tie", "A=alpha"], "A=alpha: a coefficient cannot be tied to an exponent"),
    ],
)
def test_a_wrong_option_is_one_line(table, refusal, options, message):
    path = table(grid())
    shown = refusal(path, *options).replace(path, "runs.csv")
    assert shown.startswith(message)


def test_too_few_rows(table, refusal):
    assert refusal(table(grid((1e18,), steps=(0, 1, 2, 3)))).endswith(
        "4 rows to fit chinchilla, which has 5 parameters: more runs, or --fix some"
    )


def test_nothing_is_optimal_by_a_law_of_one_budget(table, refusal):
    rows = [
        {"N": N, "E": E, "L": 1 + 20 * N**-0.13 * E**-0.1}
        for N in (1e7, 1e8, 1e9)
        for E in (1, 2, 4, 8, 16)
    ]
    assert refusal(table(rows), "--law", "routed", "--at", "1e20") == (
        "--at: routed does not say what is compute-optimal"
    )


def test_a_number_that_is_not_known_breaks_nothing(table, isoflop):
    rows = grid((1e18, 1e19), steps=(-1, 0, 1))[:5]
    for options in ([], ["--at", "1e22"], ["--bootstrap", "10"]):
        code, out, err = isoflop(table(rows), *options)
        assert (code, err) == (0, "")
        assert "Too few points" in out
        code, out, _ = isoflop(table(rows), *options, "--json")
        assert json.loads(out)["intervals"]["alpha"] == [None, None]
