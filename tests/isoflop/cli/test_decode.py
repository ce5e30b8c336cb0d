"""`isoflop decode` and `isoflop locality`: kept mixtures of experts, token by token."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from isoflop.bench.data import hash_of_windows, prepare
from isoflop.bench.kept_models import model_path
from isoflop.bench.suite import to_toml
from isoflop.bench.train import describe
from isoflop.cli.main import app
from isoflop.models import Decoder
from isoflop.results.errors import IsoflopError
from isoflop.results.record import write_record
from tests.bench.cells import TINY, make_record, tiny_cells, tiny_suite


def moe(granularity: int, layer: str = "moe") -> dict[str, Any]:
    options = {"granularity": granularity, "expansion": 4}
    return {"layer": layer, "learning_rate": 1e-2, "options": options}


CHANGES: dict[str, Any] = {
    "placement": "all",
    "variants": {"dense": TINY["variants"]["dense"], "g1": moe(1), "g2": moe(2), "g4": moe(4)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has kept its models, as they were at first."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "suite.toml").write_text(to_toml(tiny_suite(**CHANGES)))
    cells = tiny_cells(**CHANGES)
    tokens = prepare(cells[0].corpus)
    windows = tokens.validation_windows(512, 16)
    (folder / "models").mkdir()
    for cell in cells:
        torch.manual_seed(0)
        model = Decoder(cell.config)
        torch.nn.init.normal_(model.head.weight, std=0.1)  # it starts at zero
        save_file(model.state_dict(), model_path(folder / "models", cell.id))
        record = describe(
            cell,
            {"status": "finished", "loss": 4.5, "bits_per_byte": 2.5},
            tokens_in_corpus=100_000,
            validation_hash=hash_of_windows(windows),
            curve=[],
            measured=make_record().measured,
        )
        write_record(folder / "records", record)
    return folder


def invoke(*arguments: str) -> Any:
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return done, json.loads(done.stdout)


def test_every_method_over_every_link(folder: Path) -> None:
    done, rows = invoke("decode", str(folder), "--tokens", "64", "--t1", "0.3", "--t2", "0.6")
    assert {row["variant"] for row in rows} == {"g1", "g2", "g4"}
    assert not list(folder.glob(".experts*"))  # the file is gone
    for variant in ("g1", "g2", "g4"):
        by_method = {(r["method"], r["link"]): r for r in rows if r["variant"] == variant}
        memory = by_method.pop(("memory", "none"))
        assert len(by_method) == 9
        assert memory["hit_rate"] == 1
        assert memory["bytes_per_token"] == memory["evictions"] == 0
        for (method, link), row in by_method.items():
            assert row["tokens"] == 64
            assert row["tokens_per_second"] > 0
            assert row["p95_ms"] >= row["p50_ms"] > 0
            assert 0 < row["waiting"] < 1
            same = by_method[method, "warm"]
            for key in ("nats_per_token", "hit_rate", "bytes_per_token", "low_precision"):
                assert row[key] == same[key], link  # a link changes the time alone
            if method != "hobbit" or variant == "g1":
                assert row["nats_per_token"] == memory["nats_per_token"]
            if method == "load-all":
                a_layer = row["experts"] * row["experts_bytes"] / (2 * row["experts"])
                assert row["bytes_per_token"] == 2 * a_layer
            else:
                assert row["cache_bytes"] <= by_method["lru", "warm"]["cache_bytes"]
                assert 0 < row["hit_rate"] < 1
        hobbit = by_method["hobbit", "warm"]
        assert 0 < hobbit["prefetch_recall"][0] <= 1
        assert sum(hobbit["eviction_weights"]) == pytest.approx(1)
        assert (hobbit["low_precision"] > 0) == (variant != "g1")
    assert "note: g1: each token uses one expert" in done.stderr
    assert "mixed precision does nothing" in done.stderr
    assert "note: g2" not in done.stderr
    assert "no speed of reading from a disk is claimed: experts of 0.0" in done.stderr


def test_thresholds_of_1_are_the_source_model(folder: Path) -> None:
    options = ("--variant", "g4", "--tokens", "32", "--t1", "1", "--t2", "1")
    _, rows = invoke("decode", str(folder), "--method", "memory", "--method", "hobbit", *options)
    assert {row["variant"] for row in rows} == {"g4"}
    assert len({row["nats_per_token"] for row in rows}) == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--method", "hobit"], "--method: no method 'hobit' (did you mean 'hobbit'?); known: mem"),
        (["--variant", "dense"], "models: no kept model of such a variant has experts that can be"),
        (["--cache", "0.2"], "g2, size s: 1 slots of high precision are too few"),
        (["--low", "int3"], "g2, size s: no precision 'int3'; known: fp32, fp16, int8, int4, int2"),
        (["--t1", "0.9", "--t2", "0.5"], "g2, size s: thresholds must be 0 <= t1 <= t2 <= 1"),
    ],
)
def test_what_cannot_be_decoded_is_one_line(folder: Path, options: list[str], line: str) -> None:
    only = [] if "dense" in options else ["--variant", "g2"]
    with pytest.raises(IsoflopError) as caught:
        CliRunner().invoke(app, ["decode", str(folder), *only, *options], catch_exceptions=False)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_records_or_models_is_one_line(folder: Path, tmp_path: Path) -> None:
    for verb in ("decode", "locality"):
        with pytest.raises(IsoflopError, match="no records here"):
            CliRunner().invoke(app, [verb, str(tmp_path)], catch_exceptions=False)


def test_locality_writes_a_table_and_a_figure(folder: Path, tmp_path: Path) -> None:
    _, rows = invoke("locality", str(folder), "--tokens", "128", "--out", str(tmp_path / "out"))
    assert [row["experts_per_token"] for row in rows] == [1, 2, 4]
    assert [row["experts"] for row in rows] == [4, 8, 16]
    for row in rows:
        assert row["tokens"] >= 128
        assert row["lru_hits_1x"] <= row["best_hits_1x"] <= row["best_hits_3x"] <= 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"locality.csv", "locality.md", "locality.png", "locality.svg"}
    table = list(csv.DictReader((tmp_path / "out" / "locality.csv").open()))
    assert [float(row["reuse"]) for row in table] == [row["reuse"] for row in rows]
    text = (tmp_path / "out" / "locality.md").read_text()
    assert text.count("\n") == 2 + len(rows)
    assert "| g4 " in text
    figure = (tmp_path / "out" / "locality.svg").read_text()
    for words in ("granularity: experts per token", "cache 2x", "reuse, by chance"):
        assert words in figure
