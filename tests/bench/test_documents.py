"""Where the text of a corpus is, and how each kind of file is read."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoflop.bench.data import prepare
from isoflop.bench.documents import documents, files_of
from isoflop.bench.readers import DataError
from isoflop.bench.suite import Corpus

TEXTS = ["one, «two»\nthree", "東京", 'it\'s "four"', "5"]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def jsonl(texts: list[str], column: str = "text") -> bytes:
    return "".join(json.dumps({"id": 1, column: text}) + "\n" for text in texts).encode()


def as_csv(texts: list[str]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows([["id", "text"], *([1, text] for text in texts)])
    return file.getvalue().encode("utf-8-sig")


def parquet(texts: list, kind: pa.DataType | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": [1] * len(texts), "text": pa.array(texts, kind)}), sink)
    return sink.getvalue()


KINDS = {
    ".txt": "<|endoftext|>\n".join(f"{text}\n" for text in TEXTS).encode(),
    ".jsonl": jsonl(TEXTS),
    ".ndjson": jsonl(TEXTS),
    ".json": json.dumps([{"text": text} for text in TEXTS], indent=1).encode(),
    ".csv": as_csv(TEXTS),
    ".parquet": parquet(TEXTS),
}


def refusal(source: Path | str, **changes: str) -> str:
    with pytest.raises(DataError) as caught:
        list(documents(Corpus(source=str(source), **changes)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_read_compressed_or_not(
    kind: str, packed: str, tmp_path: Path
) -> None:
    path = tmp_path / f"docs{kind}{packed}"
    path.write_bytes(PACK[packed](KINDS[kind]))
    texts = [text.removesuffix("\n") for text in documents(Corpus(source=str(path)))]
    assert texts == TEXTS


def test_content_decides_whether_a_file_is_compressed(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(gzip.compress(jsonl(TEXTS)))
    assert list(documents(Corpus(source=str(path)))) == TEXTS


def test_a_damaged_compressed_file_is_one_line(tmp_path: Path) -> None:
    for packed, pack in PACK.items():
        if packed:
            path = tmp_path / f"docs.jsonl{packed}"
            path.write_bytes(pack(jsonl([f"{i} {i * i}" for i in range(9999)]))[:-40])
            assert f"cannot read {path}: " in refusal(path)


def test_lines_end_as_python_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "docs.txt"
    path.write_bytes("\ufeffa\r\nb\rc\n<|endoftext|>\r\nd\n<|endoftext|>\r".encode())
    assert list(documents(Corpus(source=str(path)))) == ["a\nb\nc\n", "d\n"]


def test_a_folder_and_a_pattern_are_their_files_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shards = tmp_path / "shards"
    shards.mkdir()
    for part, text in (("b", "2"), ("a", "1"), ("c", "3")):
        (shards / f"{part}.jsonl").write_bytes(jsonl([text]))
    (shards / "README.md").write_text("about")
    (shards / ".hidden.jsonl").write_text("no JSON")
    for source in ("shards", "shards/", "shards/*.jsonl", "./sh*/[a-c].jsonl", "**/*.jsonl"):
        assert list(documents(Corpus(source=source))) == ["1", "2", "3"]
    assert list(documents(Corpus(source="shards", documents=2))) == ["1", "2"]
    assert "shards/README.md: its name must end in one of .txt" in refusal("shards/*")
    assert "no file is named like shards/*.csv" in refusal("shards/*.csv")
    (tmp_path / "empty").mkdir()
    assert "the folder empty holds no .txt" in refusal("empty")


def test_the_cache_knows_the_files_of_a_folder_by_content_and_name(tmp_path: Path) -> None:
    from isoflop.bench.data import _folder

    folder = tmp_path / "shards"
    folder.mkdir()
    corpus = Corpus(source=str(folder))
    seen = set()
    for change in (
        lambda: (folder / "a.jsonl").write_bytes(jsonl(["1"])),
        lambda: (folder / "b.jsonl").write_bytes(jsonl(["2"])),
        lambda: (folder / "b.jsonl").write_bytes(jsonl(["3"])),
        lambda: (folder / "b.jsonl").rename(folder / "0.jsonl"),
    ):
        change()
        seen.add(_folder(corpus).name)
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("dosc.jsonl", "no such file dosc.jsonl (did you mean 'docs.jsonl'?), looked for from /"),
        ("./docs", "no such file ./docs (did you mean 'docs.jsonl'?)"),
        ("nowhere/at/all", "no such file nowhere/at/all: there is no folder nowhere/at"),
        ("data/dosc", "no such file data/dosc (did you mean 'docs'?)"),
        ("docs.json.gz", "no such file docs.json.gz"),
        ("docs.parqet", "no such file docs.parqet"),
        ("~/docs.jsonl", "no such file ~/docs.jsonl: there is no folder ~"),
        ("a b", "no such file a b"),
        ("", "is empty; give sotu, recall, a file"),
        ("a\0.jsonl", "no such file"),
        ("*\0", "no such file"),
        ("a" * 5000 + ".txt", "no such file"),
        ("/dev/null", "/dev/null: not a regular file"),
        ("pipe.jsonl", "pipe.jsonl: not a regular file"),
        ("notes.md", "notes.md: its name must end in one of .txt, .jsonl"),
    ],
)
def test_what_cannot_be_a_hub_dataset_is_no_such_file(
    source: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs.jsonl").write_bytes(jsonl(TEXTS))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "docs").mkdir()
    (tmp_path / "notes.md").write_text("text")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert f"corpus.source: {line}" in refusal(source)


@pytest.mark.parametrize("source", ["allenai/c4", "wikitext", "HuggingFaceFW/fineweb-2.1"])
def test_a_name_of_the_hub_is_not_looked_for_here(source: str) -> None:
    assert files_of(source) is None


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "int.jsonl",
            b'{"text": 5, "body": "a"}\n' * 40,
            "corpus.text: int.jsonl: line 1: column 'text' holds an integer, not text; columns of "
            "text: body",
        ),
        ("list.json", b'[{"text": ["a"]}]', "list.json: entry 1: column 'text' holds a list"),
        ("int.parquet", parquet([1, 2]), "corpus.text: int.parquet: column 'text' holds int64"),
        ("int.csv", b"text\n" + b"5\n" * 9, "int.csv: column 'text' holds numbers, not text"),
        ("long.csv", b"text\n" + b"5\n" * 99, "long.csv: column 'text' holds numbers, not text"),
        ("body.jsonl", jsonl(["a"], "test"), "no column 'text' (did you mean 'test'?); it has id"),
        ("late.jsonl", jsonl(["a"]) + b'{"id": 2}\n', "late.jsonl: line 2: no column 'text'"),
        ("cut.jsonl", jsonl(["a"]) + b'{"text": "b', "cut.jsonl: line 2: not JSON (Unterminated"),
        ("one.json", b'{\n "text": "a"\n}', "one.json: line 1: not JSON (Expecting property"),
        ("5.jsonl", b"5\n", "5.jsonl: line 1: not a table with columns but an integer"),
        ("deep.json", b"[" * 99999, "deep.json: not JSON ("),
        ("half.jsonl", b'{"text": "\\ud800"}', "line 1: character 1 is half a surrogate pair"),
        ("byte.txt", b"a\nb\xff\n", "byte.txt: line 2: byte 2 is not UTF-8: save the file as"),
        ("byte.jsonl", jsonl(["a"]) + b"\xe9\n", "byte.jsonl: line 2: byte 1 is not UTF-8"),
        ("byte.csv", b"text\na\n\xe9\n", "byte.csv: line 3: byte 1 is not UTF-8"),
        ("wide.txt", "a".encode("utf-16"), "wide.txt: line 1: UTF-16, not UTF-8: save the file"),
        ("cut.csv", b'text\n"a', "cut.csv: line 2: unexpected end of data"),
        ("more.csv", b"id,text\n1,a,b\n", "more.csv: line 2: 3 entries, where the header has 2"),
        ("no.parquet", b"PAR1", "cannot read no.parquet"),
        ("column.parquet", parquet(["a"])[:-9], "cannot read column.parquet"),
    ],
)
def test_a_file_that_holds_no_text_is_one_line(
    name: str, content: bytes, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    assert line in refusal(name)


def test_null_and_empty_texts_are_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"text": null}\n\n{"text": ""}\n{"text": "a"}\n')
    assert list(documents(Corpus(source=str(path)))) == ["a"]


def test_a_hub_dataset_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, config: str | None, split: str, streaming: bool) -> list[dict]:
        if name == "a/rows":
            return [{"text": 5, "body": "a"}]
        raise KeyError("of the library's own")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert refusal("a/b").startswith("corpus.source: cannot read a/b: ")
    assert "a/rows: row 1: column 'text' holds an integer" in refusal("a/rows")
    assert "corpus.text: a/rows: row 1: no column 'boddy'" in refusal("a/rows", text="boddy")


def test_a_vocabulary_that_the_text_cannot_fill_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "docs.jsonl"
    path.write_bytes(jsonl([f"the model {i}" for i in range(99)]))
    with pytest.raises(DataError, match=r"vocabulary: 50257 tokens are asked .* gives only 3\d\d"):
        prepare(Corpus(source=str(path), vocabulary=50257))
    assert prepare(Corpus(source=str(path), vocabulary=258)).train.size
