"""Files of runs: every form of one table is the same table, and a file that is none says why."""

import bz2
import gzip
import json
import lzma
import os
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from isoflop.analysis.laws import tablefile
from isoflop.analysis.laws.delimited import TableError
from isoflop.analysis.laws.tablefile import read_frame

HEAD = ["C", "N", "D", "L"]
ROWS = [[6e18, 1e8, 1e10, 3.4375], [6e18, 2.5e8, 4e9, 3.28125], [6e19, 5e8, 2e10, 2.96875]]
TEXT = "\n".join(",".join(map(str, row)) for row in [HEAD, *ROWS]) + "\n"
OBJECTS = [dict(zip(HEAD, row, strict=True)) for row in ROWS]


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def parquet(frame):
    sink = pa.BufferOutputStream()
    frame.to_parquet(sink)
    return sink.getvalue().to_pybytes()


FORMS = {
    "plain": TEXT.encode(),
    "semicolons": TEXT.replace(",", ";").encode(),
    "tabs": TEXT.replace(",", "\t").encode(),
    "bars": TEXT.replace(",", "|").encode(),
    "spaces": TEXT.replace(",", "  ").encode(),
    "aligned": TEXT.replace(",", "   ").replace("\n", "\n ").encode(),
    "spaces after commas": TEXT.replace(",", ", ").encode(),
    "markdown": "".join(
        f"| {line.replace(',', ' | ')} |\n" + ("|---|:-:|---:|---|\n" if i == 0 else "")
        for i, line in enumerate(TEXT.splitlines())
    ).encode(),
    "carriage returns": TEXT.replace("\n", "\r\n").encode(),
    "old carriage returns": TEXT.replace("\n", "\r").encode(),
    "quotes": re.sub(r"([^,\n]+)", r'"\1"', TEXT).encode(),
    "comments": b"# a sweep\n# in nats, of 2 seeds; done\n" + TEXT.encode(),
    "comment in the middle": TEXT.replace("\n2", "\n# half\n2").encode(),
    "header in a comment": b"# " + TEXT.replace(",", " ").encode(),
    "blank rows": TEXT.replace("\n", "\n\n").encode() + b",,,\n  \n",
    "trailing separators": TEXT.replace("\n", ",\n").encode(),
    "Excel's hint": b"sep=;\n" + TEXT.replace(",", ";").encode(),
    "BOM": TEXT.encode("utf-8-sig"),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16 without a mark": TEXT.encode("utf-16-le"),
    "UTF-32": TEXT.encode("utf-32"),
    "gzip": gzip.compress(TEXT.encode()),
    "bz2": bz2.compress(TEXT.encode()),
    "xz": lzma.compress(TEXT.encode()),
    "zstd": zstd(TEXT.encode()),
    "JSON lines": "\n".join(map(json.dumps, OBJECTS)).encode(),
    "JSON": json.dumps(OBJECTS, indent=1).encode(),
    "JSON by column": pd.DataFrame(ROWS, columns=HEAD).to_json(orient="columns").encode(),
    "JSON lists": json.dumps(dict(zip(HEAD, zip(*ROWS, strict=True), strict=True))).encode(),
    "parquet": parquet(pd.DataFrame(ROWS, columns=HEAD)),
    "parquet of text": parquet(pd.DataFrame(ROWS, columns=HEAD).astype(str)),
    "parquet, packed": gzip.compress(parquet(pd.DataFrame(ROWS, columns=HEAD).astype("category"))),
}


@pytest.fixture
def file(tmp_path):
    def write(data):
        path = tmp_path / "runs"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_table(file, form):
    cells = read_frame(file(FORMS[form])).cells
    assert list(cells.columns) == HEAD
    np.testing.assert_array_equal(cells.astype(float).to_numpy(), ROWS)


def refusal(path):
    with pytest.raises(TableError) as caught:
        read_frame(path)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "runs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "runs: no rows; a table needs a header and one run per row"),
        ("|", "runs: no rows; a table needs a header and one run per row"),
        (",,,\n,,,", "runs: no rows; a table needs a header and one run per row"),
        ("# nothing\n\n", "runs: no rows; a table needs a header and one run per row"),
        ("N,D,L\n", "runs: no rows; a table needs a header and one run per row"),
        ("N,L,L\n1,2,3\n", "runs: column 'L' stands twice in the header; rename one"),
        (
            "N,L\n1,2\nN,L\n3,4\n",
            "runs line 3: the header again; two tables joined? remove that line",
        ),
        ("N,L\n1,2\n1\n", "runs line 3: 1 field where the header has 2; cut short?"),
        ("N;L\n1;2\n1;2;3\n", "runs line 3: 3 fields where the header has 2"),
        (
            "N,L\n1,000,3.5\n",
            "runs line 2: 3 fields where the header has 2; digit groups and decimal commas need "
            "quotes, or semicolons between columns",
        ),
        ("1e8,3.5\n2e8,3.4\n", "runs line 1: numbers where the header should be; name the columns"),
        ('N,L\n1,"2\n', "runs line 2: unexpected end of data; a quotation mark is open?"),
        ("N,L\n1,2\x003\n", "runs line 2: a zero byte; the file is damaged or not a table"),
        ('[{"N": 1}', "runs line 1: not JSON at column 10"),
        ('{"N": 1}\n{"N": }\n', "runs line 2: not JSON at column 7"),
        ('{"N": 1}\n{"N": 1, "N": 2}', "runs line 2: an object has the key 'N' twice"),
        ("[1, 2]", "runs row 1: not an object with a run's columns"),
        ("[]", "runs: no rows; a table has one run per row"),
        ('{"runs": [[1], [2]],\n "n": 2}', "runs: an object, not a list of runs"),
        ("[" * 100_000, "runs: nested too deep"),
        ("PK\x03\x04...", "runs: a spreadsheet or a zip archive: save the sheet as CSV"),
        ("PAR1 and nothing", "runs: a damaged parquet file"),
    ],
)
def test_a_file_that_is_no_table_says_why(file, text, message):
    assert refusal(file(text)).startswith(message)


@pytest.mark.parametrize("form", ["gzip", "bz2", "xz", "zstd", "UTF-16"])
def test_a_file_that_is_cut_short(file, form):
    assert "cut short" in refusal(file(FORMS[form][: -len(FORMS[form]) // 3]))


def test_what_is_not_a_file(tmp_path):
    assert refusal(tmp_path / "none") == "runs: no such file; give a table with one run per row"
    assert "a folder; give a table" in refusal(tmp_path)
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "not a file on disk" in refusal(pipe)  # and does not wait for a writer


def test_a_file_that_unpacks_to_more_than_fits(file, monkeypatch):
    monkeypatch.setattr(tablefile, "LARGEST", 2**20)
    assert "more than 1 MiB" in refusal(file(gzip.compress(b"N" * 2**21)))
    assert "more than 1 MiB" in refusal(file(b"N" * (2**20 + 1)))


def test_lines_are_those_of_the_file(file):
    text = '# note\nN,note,L\n\n1,"two\nlines",3\n# more\n4,,5\n'
    assert list(read_frame(file(text)).cells.index) == [5, 7]
    lines = "\n".join(map(json.dumps, OBJECTS)).replace("\n", "\n\n")
    frame = read_frame(file(lines))
    assert (frame.place, list(frame.cells.index)) == ("line", [1, 3, 5])


def test_other_encodings_are_read_with_a_note(file):
    frame = read_frame(file("N,L,wo\n1,2,M\u00fcnchen\n".encode("cp1252")))
    assert frame.cells["wo"].tolist() == ["M\u00fcnchen"]
    assert frame.notes == ("line 2 is not UTF-8: read as Windows-1252",)


def test_nothing_is_kept_apart_from_not_a_number():
    table = pa.table({"L": pa.array([1.5, None, float("nan")])})
    assert tablefile._texts(table.column("L")) == ["1.5", "", "nan"]
