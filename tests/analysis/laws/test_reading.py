"""One run table in the forms in which exports come: each gives the same law, or its true cause."""

import bz2
import gzip
import json
import lzma
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoflop.analysis.laws.dense import CHINCHILLA, CHINCHILLA_ISOFLOP
from isoflop.analysis.laws.fit import fit
from isoflop.analysis.laws.numbers import decimal_comma, read_number
from isoflop.analysis.laws.table import TableError, read_table
from tests.analysis.laws.test_table import refusal

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.34, "beta": 0.37}
HEAD = ["C", "N", "D", "L"]


def numbers() -> list[list[float]]:
    C = np.repeat([1e18, 1e19, 1e20], 6)
    N = np.sqrt(C / 6 / 20) * np.tile(2.0 ** np.linspace(-2, 2, 6), 3)
    D = C / 6 / N
    return np.stack([C, N, D, CHINCHILLA.predict(TRUTH, {"N": N, "D": D})], axis=1).tolist()


PLAIN = [[f"{value:.9g}" for value in row] for row in numbers()]


def join(separator: str, rows: list[list[str]], head: list[str] = HEAD) -> str:
    return "\n".join(separator.join(row) for row in [head, *rows]) + "\n"


def suffixed(text: str) -> str:
    value = float(text)
    scale, letter = next((s, c) for s, c in ((1e12, "T"), (1e9, "B"), (1e6, "M")) if value >= s)
    return f"{value / scale:.9g}{letter}"


def changed(column: int, text: str, row: int = 3) -> list[list[str]]:
    rows = [list(row) for row in PLAIN]
    rows[row][column] = text
    return rows


OBJECTS = [dict(zip(HEAD, row, strict=True)) for row in numbers()]
TEXT = join(",", PLAIN)
FORMS: dict[str, str | bytes] = {
    "plain.csv": TEXT,
    "semicolon.csv": join(";", PLAIN),
    "decimal_comma.csv": join(";", [[x.replace(".", ",") for x in row] for row in PLAIN]),
    "decimal_comma_tab.csv": join("\t", [[x.replace(".", ",") for x in row] for row in PLAIN]),
    "tab.tsv": join("\t", PLAIN),
    "pipe.csv": join("|", PLAIN),
    "spaces.txt": join("   ", PLAIN),
    "space_after_comma.csv": join(", ", PLAIN),
    "comments.csv": "# a sweep\n\n# losses in nats\n" + TEXT,
    "blank_rows.csv": TEXT.replace("\n", "\n\n", 3) + ",,,\n ; \n".replace(" ; \n", ",,,\n\n"),
    "separator_at_the_end.csv": "\n".join(f"{line}," for line in TEXT.splitlines()),
    "suffixes.csv": join(",", [[r[0], suffixed(r[1]), suffixed(r[2]), r[3]] for r in PLAIN]),
    "groups.csv": join(
        ",", [[r[0], f'"{float(r[1]):,.0f}"', f"{float(r[2]):_.0f}", r[3]] for r in PLAIN]
    ),
    "groups_of_spaces.csv": join(
        ",", [[r[0], f"{float(r[1]):,.0f}".replace(",", "\u202f"), r[2], r[3]] for r in PLAIN]
    ),
    "lower_case.csv": join(",", PLAIN, [name.lower() for name in HEAD]),
    "usual_names.csv": join(",", PLAIN, ["train_flops", "n_params", "Tokens", "val_loss"]),
    "other_names.csv": join(",", PLAIN, ["Training FLOP", "Model Size", "tokens", "loss"]),
    "more_columns.csv": join(",", [[*row, "x", ""] for row in PLAIN], [*HEAD, "note", "tags"]),
    "tensors.csv": join(",", [[*r[:3], f'"tensor({r[3]}, device=0)"'] for r in PLAIN]),
    "crlf.csv": TEXT.replace("\n", "\r\n"),
    "lines.jsonl": "".join(json.dumps(row) + "\n" for row in OBJECTS),
    "array.json": json.dumps(OBJECTS, indent=1),
    "columns.json": json.dumps({name: [row[name] for row in OBJECTS] for name in HEAD}),
    "utf16.csv": TEXT.encode("utf-16"),
    "bom.csv": TEXT.encode("utf-8-sig"),
    "plain.csv.gz": gzip.compress(TEXT.encode()),
    "plain.csv.bz2": bz2.compress(TEXT.encode()),
    "plain.csv.xz": lzma.compress(TEXT.encode()),
    "no_ending": gzip.compress(TEXT.encode()),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_law(name: str, tmp_path: Path) -> None:
    path, content = tmp_path / name, FORMS[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    columns = read_table(path, CHINCHILLA).columns
    assert len(columns["L"]) == len(PLAIN)
    params = fit(CHINCHILLA, columns).params
    for parameter, value in TRUTH.items():
        assert params[parameter] == pytest.approx(value, rel=1e-3), parameter


def test_parquet_and_zstandard(tmp_path: Path) -> None:
    pd.DataFrame(OBJECTS).to_parquet(tmp_path / "runs.parquet")
    assert read_table(tmp_path / "runs.parquet", CHINCHILLA).columns["N"][0] == OBJECTS[0]["N"]
    import pyarrow

    with pyarrow.CompressedOutputStream(str(tmp_path / "runs.zst"), "zstd") as stream:
        stream.write(TEXT.encode())
    assert len(read_table(tmp_path / "runs.zst", CHINCHILLA).lines) == len(PLAIN)


def test_a_run_without_a_loss_is_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    for text in ("", "nan", "NA", "null", "-", "inf"):
        path.write_text(join(",", changed(3, text)))
        table = read_table(path, CHINCHILLA)
        assert len(table.lines) == len(PLAIN) - 1
        assert table.notes == ["1 row without a loss left out (line 5)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT + TEXT, "line 20: the header stands again: two tables in one file?"),
        (join(",", PLAIN[1:], PLAIN[0]), "line 1: the first row is numbers: put the names of"),
        (join(",", changed(1, "1_0")), "line 5: N is '1_0', not a number"),
        (join(",", changed(1, "٣٤٥٦٧٨٩٠")), "the character ARABIC-INDIC DIGIT THREE"),
        (join(",", changed(1, "5%")), "line 5: N is '5%', a percentage, not a number"),
        (join(",", changed(1, "0x10")), "line 5: N is '0x10', not a number"),
        (join(",", changed(1, "")), "line 5: N is empty; fill it or leave out the row"),
        (join(",", changed(1, "1e-308")), "line 5: N is 1e-308: no such run exists"),
        (join(",", changed(1, "9" * 5000)), "line 5: N is "),
        (join(",", changed(3, '"3.1')), "is a quote left open?"),
        (join(",", [[*row, "1"] for row in PLAIN]), "line 2: more fields than the header's 4"),
        (join(",", PLAIN, ["C", "N", "N", "L"]), "the header has 'N' twice"),
        (join(",", [[*r, r[3]] for r in PLAIN], ["C", "N", "D", "loss", "val_loss"]),
         "'loss' and 'val_loss' may each be L: say which, --column L=loss"),
        (join(",", [[*r[:3], f"{np.exp(float(r[3])):.6g}"] for r in PLAIN]),
         "it looks like perplexity; take its natural logarithm"),
        (join(",", [[r[0], f"{float(r[1]) / 1e6:.6g}", r[3]] for r in PLAIN], ["C", "N", "L"]),
         "N looks like millions"),
        (join(",", [[f"{float(r[1]) / 1e9:.6g}", r[2], r[3]] for r in PLAIN], ["N", "D", "L"]),
         "N looks like billions"),
        (join(";", [[r[0], r[1], r[2], "2,345"] for r in PLAIN]),
         "L: '2,345' may be 2345 or 2.345: write it without the comma"),
        ("[[1, 2], [3, 4]]", "row 1: not an object of column names and values"),
        ('{"N": 1, "N": 2}\n', "'N' stands twice in one object"),
        ('{"N": 1}\n{"N": \n', "line 2: not JSON"),
        ("[" * 100_000, "nested too deep"),
        ("N,D,L\n\0,1,2\n", "line 2: a zero byte: not a text file"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_names_its_true_cause(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text, encoding="utf-8")
    assert message in refusal(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"N,D,L\n1e8,2e9,\xff\n", "runs.csv line 2: not UTF-8 text: save it as UTF-8"),
        (gzip.compress(TEXT.encode())[:40], "its compression is damaged"),
        (b"PAR1 and no more", "a damaged parquet file"),
        (b"PK\x03\x04....", "a zip archive or a spreadsheet: export it as CSV"),
    ],
)
def test_bytes_that_are_no_table(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    assert message in refusal(path)


def test_a_folder_and_a_pipe_are_no_tables(tmp_path: Path) -> None:
    assert "not a file" in refusal(tmp_path)
    subprocess.run(["mkfifo", str(tmp_path / "pipe")], check=True)
    assert "not a file" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("fields", "comma"),
    [
        (["3,14", "2,7"], True),
        (["3,1415e8"], True),
        (["1,000,000"], False),
        (["1,234.5"], False),
        (["1,234"], None),
        (["1.5", "2"], False),
    ],
)
def test_what_a_comma_means_is_a_matter_of_the_column(
    fields: list[str], comma: bool | None
) -> None:
    assert decimal_comma(fields) is comma


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5B", 1.5e9), ("300M", 3e8), ("2 k", 2e3), ("1e9", 1e9), (" 7 ", 7.0), ("1_000", 1e3),
        ("1 000 000", 1e6), ("1'000", 1e3), ("tensor(2.5)", 2.5), (".5", 0.5), ("+3", 3.0),
    ],
)  # fmt: skip
def test_numbers(text: str, value: float) -> None:
    assert read_number(text) == value


def test_seeds_of_any_name_and_the_lowest_loss_of_a_setting(tmp_path: Path) -> None:
    rows = [[*row, str(s), f"{lr}"] for row in PLAIN for s, lr in ((0, 0.1), (1, 0.2))]
    for index, row in enumerate(rows):
        row[3] = f"{float(row[3]) + 0.01 * (index % 2):.9g}"
    path = tmp_path / "runs.csv"
    path.write_text(join(",", rows, [*HEAD, "torch_seed", "lr"]))
    message = refusal(path)
    assert "line 3 repeats line 2" in message
    assert "yet 'torch_seed', 'lr' differ: --best keeps the lowest loss" in message
    assert len(read_table(path, CHINCHILLA, {"seed": "torch_seed"}).lines) == len(rows)
    table = read_table(path, CHINCHILLA, best=True)
    assert table.notes == [
        f"{len(PLAIN)} rows with a higher loss than another of the same setting left out"
    ]
    assert fit(CHINCHILLA, table.columns).params["alpha"] == pytest.approx(0.34, rel=1e-3)


def test_parameters_follow_from_flops_and_tokens(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(join(",", [[r[0], r[2], r[3]] for r in PLAIN], ["C", "D", "L"]))
    for law in (CHINCHILLA,):
        table = read_table(path, law)
        np.testing.assert_allclose(table.columns["N"], np.array(numbers())[:, 1], rtol=1e-7)
        assert table.notes == ["N = C / (6 D), as chinchilla counts FLOPs"]
    with pytest.raises(TableError, match="no column N"):
        read_table(path, CHINCHILLA_ISOFLOP)


def test_a_large_table_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    lines = [f"{1e8 + i:.0f},{2e9 + 7 * i:.0f},{3 + i / 1e6:.6f}" for i in range(100_000)]
    path.write_text("N,D,L\n" + "\n".join(lines) + "\n")
    assert len(read_table(path, CHINCHILLA).lines) == 100_000
