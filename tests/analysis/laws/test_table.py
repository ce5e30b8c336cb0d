"""Run tables: what is read, and the one line each bad table gets."""

import numpy as np
import pytest

from isoflop.analysis.laws.dense import CHINCHILLA, CHINCHILLA_ISOFLOP, FRONTIER
from isoflop.analysis.laws.moe import FINE_GRAINED_MOE
from isoflop.analysis.laws.table import TableError, read_table

GOOD = "N,D,L\n1e8,2e9,3.4\n2e8,2e9,3.2\n1e8,4e9,3.3\n"


@pytest.fixture
def table(tmp_path):
    def write(text):
        path = tmp_path / "runs.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path, law=CHINCHILLA, rename=None, **options):
    with pytest.raises(TableError) as caught:
        read_table(path, law, rename, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "runs.csv")


# ------------------------------------------------------------------------------- columns and names


def test_a_good_table_is_read_by_name(table):
    path = table("seed,L,words,N,note\n0,3.4,2e9,1e8,a\n\n1,3.41,2e9,1e8,b\n0,3.2,4e9,2e8,c\n")
    runs = read_table(path, CHINCHILLA, {"D": "words"})
    assert set(runs.columns) == {"N", "D", "L"}
    np.testing.assert_array_equal(runs.columns["D"], [2e9, 2e9, 4e9])
    np.testing.assert_array_equal(runs.columns["L"], [3.4, 3.41, 3.2])
    assert runs.notes == ("columns: D is words",)


@pytest.mark.parametrize(
    "header",
    [
        "params,tokens,val_loss",
        "Model Size,Training Tokens,Loss",
        "n_params,n_tokens,eval/loss",
        "n,d,l",
        "num_parameters,D,final_loss",
        "loss,x,y",  # and what is not usual is renamed
    ],
)
def test_usual_names_are_recognised(table, header):
    rename = {"N": "x", "D": "y", "L": "loss"} if "x" in header.split(",") else {}
    text = GOOD.replace("N,D,L", header)
    if rename:
        text = "x,y,loss\n" + GOOD.split("\n", 1)[1]
    np.testing.assert_array_equal(
        read_table(table(text), CHINCHILLA, rename).columns["N"], [1e8, 2e8, 1e8]
    )


def test_names_that_could_be_either_are_refused(table):
    text = "params,n_params,D,L\n1e8,2e8,2e9,3.4\n2e8,3e8,3e9,3.2\n"
    assert refusal(table(text)) == (
        "runs.csv: params and n_params could each be N; say which: --column N='params'"
    )
    columns = read_table(table(text), CHINCHILLA, {"N": "n_params"}).columns
    np.testing.assert_array_equal(columns["N"], [2e8, 3e8])
    exact = text.replace("n_params", "N")
    np.testing.assert_array_equal(read_table(table(exact), CHINCHILLA).columns["N"], [2e8, 3e8])


@pytest.mark.parametrize("header", ["N (M)", "params [millions]", "params_m", "Params (in M)"])
def test_a_unit_in_the_header_is_taken_out(table, header):
    text = f"{header},tokens (B),L\n100,2,3.4\n200,3,3.2\n"
    runs = read_table(table(text), CHINCHILLA)
    np.testing.assert_array_equal(runs.columns["N"], [1e8, 2e8])
    np.testing.assert_array_equal(runs.columns["D"], [2e9, 3e9])
    assert f"{header}: multiplied by 1e+06, as its name says" in runs.notes


def test_a_unit_that_is_not_known_is_not_guessed(table):
    assert "no column N, which" in refusal(table("N (cm),D,L\n1e8,2e9,3.4\n2e8,3e9,3.2\n"))


def test_flops_are_read_where_the_table_has_them(table):
    path = table("N,D,L,C\n1e8,2e9,3.4,1.5e18\n2e8,3e9,3.2,4e18\n")
    np.testing.assert_array_equal(read_table(path, CHINCHILLA).columns["C"], [1.5e18, 4e18])


def test_the_third_of_c_n_and_d_follows_where_the_law_counts_six_nd(table):
    runs = read_table(table("N,C,L\n1e8,6e18,3.4\n2e8,6e18,3.2\n"), CHINCHILLA)
    np.testing.assert_allclose(runs.columns["D"], [1e10, 5e9])
    assert runs.notes == ("D is C / 6 N, as the table has none",)
    runs = read_table(table("D,C,L\n1e10,6e18,3.4\n5e9,6e18,3.2\n"), CHINCHILLA)
    np.testing.assert_allclose(runs.columns["N"], [1e8, 2e8])
    runs = read_table(table(GOOD), CHINCHILLA_ISOFLOP)
    np.testing.assert_allclose(runs.columns["C"], [1.2e18, 2.4e18, 2.4e18])
    text = "N,C,G,E,L\n1e8,6e18,1,8,3.4\n2e8,6e18,2,8,3.2\n"
    assert "no column D" in refusal(table(text), FINE_GRAINED_MOE)


def test_missing_columns_are_named_with_those_there_are(table):
    assert refusal(table("N,words,loss\n1,2,3\n")) == (
        "runs.csv: no column D, which chinchilla needs; name yours (--column D=NAME), of N, words, "
        "loss"
    )
    assert refusal(table("N,D,ppl\n1e8,2e9,30\n")) == (
        "runs.csv: no column L; a loss is the logarithm of perplexity, in nats"
    )


def test_a_renamed_column_must_exist_and_be_one_thing(table):
    path = table(GOOD)
    assert refusal(path, rename={"N": "params"}) == (
        "runs.csv: no column 'params' for N; it has N, D, L"
    )
    assert refusal(path, rename={"G": "N"}).startswith("G=N: chinchilla reads N, D, L, C, seed")
    assert refusal(path, rename={"L": "N"}) == "L=N: N is the law's own N; rename that too"
    assert refusal(path, rename={"L": "L", "N": "L"}) == (
        "N=L: L is L already; a column is one thing"
    )
    swapped = read_table(path, CHINCHILLA, {"N": "D", "D": "N"}).columns
    np.testing.assert_array_equal(swapped["N"], [2e9, 2e9, 4e9])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("seed", "0,1,0"),
        ("run", "a,b,a"),
        ("budget", "x,x,y"),
        ("validation_hash", "f,f,f"),
        ("flop_convention", "f,f,f"),
    ],
)
def test_every_optional_column_can_be_renamed(table, name, values):
    lines = GOOD.splitlines()
    text = "\n".join(f"{a},{b}" for a, b in zip(lines, ["other", *values.split(",")], strict=True))
    columns = read_table(table(text), CHINCHILLA, {name: "other"}).columns
    if name in ("run", "budget"):
        expected = [0, 1, 0] if name == "run" else [0, 0, 1]
        np.testing.assert_array_equal(columns[name], expected)


def test_a_budget_column_of_flops_is_both(table):
    path = table("budget,N,L\n1e18,1e8,3.4\n1e18,2e8,3.3\n4e18,2e8,3.2\n")
    columns = read_table(path, CHINCHILLA_ISOFLOP).columns
    np.testing.assert_array_equal(columns["C"], [1e18, 1e18, 4e18])
    np.testing.assert_array_equal(columns["budget"], [0, 0, 1])


# -------------------------------------------------------------------------------- values and units


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("abc", "is 'abc', not a number"),
        ("nan", "is nan; leave out runs without a finite value"),
        ("inf", "is inf; leave out runs without a finite value"),
        ("1e999", "is inf; leave out runs without a finite value"),
        ("-3.2", "is -3.2, where only positive values make sense"),
        ("0", "is 0, where only positive values make sense"),
        ("1e-320", "is 9.99989e-321, under 1e-06 nats per token, which no model reaches"),
        ("3.2M", "is '3.2M', not a number"),
        (
            "33.1",
            "is 33.1, over 15 nats per token: it looks like perplexity (take its logarithm), or a "
            "run that diverged (leave it out)",
        ),
    ],
)
def test_a_value_that_is_no_loss(table, value, reason):
    text = GOOD.replace("3.2", value)
    assert refusal(table(text)) == f"runs.csv line 3: L {reason}"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "is empty"),
        ("1e-308", "is 1e-308, outside 1 to 1e+18 parameters"),
        ("1e30", "is 1e+30, outside 1 to 1e+18 parameters"),
        ("2\u0668", "is '2\u0668' with U+0668 ARABIC-INDIC DIGIT EIGHT; write plain digits"),
        ("2_000", "is '2_000', digits in groups by '_', where other rows have none"),
    ],
)
def test_a_value_that_is_no_size(table, value, reason):
    text = GOOD.replace("2e8", value).replace("1e8", "100000000")
    assert refusal(table(text)) == f"runs.csv line 3: N {reason}"


@pytest.mark.parametrize("nothing", ["", "NA", "null", "-"])
def test_a_run_without_a_loss_is_left_out_and_told(table, nothing):
    runs = read_table(table(GOOD + f"3e8,5e9,{nothing}\n"), CHINCHILLA)
    assert len(runs.columns["L"]) == 3
    assert runs.notes == ("left out: line 5, without a loss",)
    assert refusal(table("N,D,L\n1e8,2e9,\n")) == "runs.csv: no row has a loss in 'L'"


def test_digit_groups_are_read_and_told(table):
    runs = read_table(table(GOOD.replace("1e8", "100_000_000").replace("2e8", "2e8")), CHINCHILLA)
    np.testing.assert_array_equal(runs.columns["N"], [1e8, 2e8, 1e8])
    assert runs.notes == ("N: digits in groups by '_' (100_000_000)",)


def test_a_decimal_comma_speaks_for_the_file(table):
    text = "N;D;L\n1,5e8;2,000e9;3,400\n2e8;3e9;3,2\n"
    columns = read_table(table(text), CHINCHILLA).columns
    np.testing.assert_array_equal(columns["L"], [3.4, 3.2])
    only = "N;D;L\n1,500;2e9;3.4\n2e8;3e9;3.2\n"
    assert "line 2: N is '1,500'" in refusal(table(only))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "C,N,L\n1e18,13.3,4\n1e18,93.2,3.7\n3e18,598,3.5\n",
            "N from 13.3 to 598 looks like millions: write 1.5M, name the column parameters (M), "
            "or give parameters",
        ),
        (
            "C,N,L\n6e21,1.1,2.9\n6e21,7.2,2.5\n6e22,13,2.1\n",
            "N from 1.1 to 13 looks like billions",
        ),
        (
            "N,D,L\n70,300000000000,3\n160,300000000000,2.8\n410,150000000000,2.6\n",
            "N from 70 to 410 looks like millions",
        ),
        (
            "N,D,L\n7e7,12.5,3\n1.6e8,12.5,2.8\n4.1e8,300,2.6\n",
            "D from 12.5 to 300 looks like billions",
        ),
        (
            "C,L\n1,3\n3,2.9\n10,2.8\n",
            "C from 1 to 10 is not FLOPs: write all of them, such as 1e18",
        ),
    ],
)
def test_numbers_in_another_unit(table, text, message):
    law = FRONTIER if text.startswith("C,L") else CHINCHILLA
    assert refusal(table(text), law).startswith(f"runs.csv: {message}")


def test_small_models_are_not_taken_for_millions(table):
    text = "N,D,C,L\n2000,100000,1.2e9,5\n4000,150000,3.6e9,4.5\n"
    assert len(read_table(table(text), CHINCHILLA).columns["N"]) == 2


def test_one_row_in_another_unit(table):
    rows = "".join(
        f"{n}e8,{d}e9,{6 * n * d}e17,3.{n}\n" for n, d in ((1, 2), (2, 3), (3, 4), (4, 5))
    )
    slip = rows.replace("3e8,4e9", "3e8,4e6")
    assert refusal(table("N,D,C,L\n" + slip)) == (
        "runs.csv line 4: C is 1e+03 times 6 N D, elsewhere about 1: one of C, N and D is wrong, "
        "or in another unit"
    )


def test_flops_per_token_that_vary_are_told(table):
    # N without the embedding: C counts it.
    sizes = [(1e7, 3e7), (1e8, 6.5e7), (1e9, 1.4e8), (1e10, 3e8)]
    rows = "".join(
        f"{N:g},{D:g},{6 * (N + more) * D:g},3.{i}\n"
        for i, (N, more) in enumerate(sizes)
        for D in (2e9, 8e9)
    )
    (note,) = read_table(table("N,D,C,L\n" + rows), CHINCHILLA).notes
    assert note == "C / (6 N D) runs from 1.03 to 4 as a function of N: optima use that cost"


# ------------------------------------------------------------------------------------- rows of runs


def test_one_size_only(table):
    text = "N,D,L\n1e8,2e9,3.4\n1e8,4e9,3.3\n"
    assert refusal(table(text)) == (
        "runs.csv: every row has N = 1e+08; chinchilla needs at least two values of it"
    )
    text = "N,C,L\n1e8,1e18,3.4\n1e8,1e19,3.3\n"
    assert "every row has N = 1e+08" in refusal(table(text), CHINCHILLA_ISOFLOP)
    assert "every row has C = 1e+18" in refusal(table("C,L\n1e18,3.4\n"), FRONTIER)


def test_duplicated_cells(table):
    assert refusal(table(GOOD + "2e8,2e9,3.21\n")) == (
        "runs.csv line 5 repeats line 3: N = 2e+08, D = 2e+09, and no column seed tells them "
        "apart; --best keeps the lowest loss"
    )
    seeded = "seed,N,D,L\n0,1e8,2e9,3.4\n1,1e8,2e9,3.41\n1,1e8,2e9,3.42\n0,2e8,3e9,3.2\n"
    assert refusal(table(seeded)) == (
        "runs.csv line 4 repeats line 3: N = 1e+08, D = 2e+09, and the same seed; --best keeps the "
        "lowest loss"
    )


SWEEP = (
    "model,N,D,peak_lr,L\na,1e8,2e9,1e-3,3.5\na,1e8,2e9,2e-3,3.4\na,1e8,2e9,4e-3,3.6\n"
    "b,2e8,3e9,1e-3,3.2\nb,2e8,3e9,2e-3,3.3\n"
)


def test_a_sweep_in_the_table_is_named_and_its_best_kept(table):
    assert refusal(table(SWEEP)) == (
        "runs.csv line 3 repeats line 2: N = 1e+08, D = 2e+09; they differ in peak_lr: --best "
        "keeps the lowest loss, or if it tells seeds apart, --column seed=peak_lr"
    )
    runs = read_table(table(SWEEP), CHINCHILLA, best=True)
    np.testing.assert_array_equal(runs.columns["L"], [3.4, 3.2])
    assert runs.notes == ("--best: 2 of 5 rows, the lowest losses",)


def test_a_sweep_of_several_seeds_keeps_the_best_of_each(table):
    text = (
        "N,D,seed,lr,L\n1e8,2e9,0,1e-3,3.5\n1e8,2e9,0,2e-3,3.4\n1e8,2e9,1,1e-3,3.45\n"
        "1e8,2e9,1,2e-3,3.5\n2e8,3e9,0,1e-3,3.2\n2e8,3e9,1,1e-3,3.3\n"
    )
    columns = read_table(table(text), CHINCHILLA, best=True).columns
    np.testing.assert_array_equal(columns["L"], [3.4, 3.45, 3.2, 3.3])
    # Seeds that are all different tell nothing apart from the rate: one row a place.
    alone = text.replace("9,1,1e-3", "9,2,1e-3").replace("9,0,2e-3", "9,3,2e-3")
    columns = read_table(table(alone), CHINCHILLA, best=True).columns
    np.testing.assert_array_equal(columns["L"], [3.4, 3.2])
    noted = read_table(table(alone), CHINCHILLA)
    assert len(noted.columns["L"]) == 6
    assert any("differ in lr as well as in seed" in note for note in noted.notes)


def test_the_best_of_a_budget_is_the_frontiers(table):
    text = (
        "C,N,L\n1e18,1e8,3.5\n1.001e18,2e8,3.4\n0.999e18,4e8,3.6\n4e18,2e8,3.2\n4e18,4e8,3.1\n"
        "1.6e19,4e8,2.9\n"
    )
    columns = read_table(table(text), FRONTIER, best=True).columns
    np.testing.assert_array_equal(columns["L"], [3.4, 3.1, 2.9])
    assert set(columns) == {"C", "L"}
    assert len(read_table(table(text), FRONTIER).columns["N"]) == 6  # a grid: its minima are fitted
    assert "repeats line 5" in refusal(table(text.replace("N", "width")), FRONTIER)


@pytest.mark.parametrize("column", ["validation_hash", "flop_convention"])
def test_rows_that_cannot_be_compared(table, column):
    text = f"N,D,L,{column}\n1e8,2e9,3.4,one\n2e8,2e9,3.2,one\n1e8,4e9,3.3,two\n"
    assert refusal(table(text)) == (
        f"runs.csv line 4: {column} is 'two' but 'one' before; "
        "such rows cannot be compared: fit them apart"
    )
    assert read_table(table(text.replace("two", "one")), CHINCHILLA)


def test_a_law_at_one_number_of_experts(table):
    text = "N,D,G,E,L\n1e8,2e9,1,8,3.4\n2e8,3e9,2,16,3.2\n"
    assert refusal(table(text), FINE_GRAINED_MOE) == (
        "runs.csv: E takes 2 values; fine-grained-moe is a law at one: fit them apart"
    )


def test_many_rows_of_few_sizes_get_a_warning_without_runs(table):
    rows = [
        (run, N, 1e9 * (step + 1)) for run, N in enumerate((1e8, 3e8, 9e8)) for step in range(12)
    ]
    text = "run,N,D,L\n" + "".join(f"r{r},{N},{D},{3 + 1e8 / N + 1e9 / D}\n" for r, N, D in rows)
    runs = read_table(table(text), CHINCHILLA)
    assert runs.notes == ()
    np.testing.assert_array_equal(runs.columns["run"], np.repeat([0, 1, 2], 12))
    (_, unused) = read_table(table(text), CHINCHILLA_ISOFLOP).notes
    assert unused == "column run is not used: the law is fitted to minima of several runs each"
    (note,) = read_table(table(text.replace("run,", "x,")), CHINCHILLA).notes
    assert note.startswith("3 values of N have 12 rows each: if these are checkpoints of few runs")


def test_foreign_text_is_shown_not_sent(table):
    odd = GOOD.replace("N,D,L", '"a\nb\x1b[31m",D,L')
    assert refusal(table(odd)).endswith("of a\\nb\\x1b[31m, D, L")
    long = GOOD.replace("3.2", "3" + "2" * 5000 + "x")
    assert len(refusal(table(long))) < 200
    runs = read_table(table(odd), CHINCHILLA, {"N": "a\nb\x1b[31m"})
    assert runs.notes == ("columns: N is a\\nb\\x1b[31m",)
