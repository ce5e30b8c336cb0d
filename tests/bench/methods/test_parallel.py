"""Methods on several models at a time: the same records, and a process that dies is one line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from isoflop.bench.data import prepare
from isoflop.bench.methods import parallel
from isoflop.bench.methods.compress import Kept, Request, Source, compress
from isoflop.bench.methods.parallel import Unfit, compress_all
from isoflop.bench.plan import plan
from isoflop.results.compressed import Compressed
from isoflop.results.errors import IsoflopError
from isoflop.results.record import load_records
from tests.bench.cells import TINY, keep_run, tiny_suite

SUITE: dict[str, Any] = {
    "placement": "all",
    "variants": {
        "dense": TINY["variants"]["dense"],
        "moe": {
            "layer": "moe",
            "learning_rate": 1e-2,
            "options": {"granularity": 2, "expansion": 2},
        },
    },
}
DEADLY = """
import os
import signal

from isoflop.bench.methods import Method


class Deadly(Method):
    def apply(self, model, calibration):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> list[Kept]:
    folder = keep_run(tmp_path_factory.mktemp("run"), **SUITE)
    suite = tiny_suite(**SUITE)
    cells = {cell.id: cell for cell in plan(suite, "")}
    corpus = prepare(suite.corpus).folder
    return [
        Kept(cells[record.cell], record, folder / "models", corpus, [], None)
        for record in load_records(folder / "records")
    ]


def request(method: str = "prune-random", **options: Any) -> Request:
    return Request(method, [options], seeds=2, tokens=256, shares=[0.0, 0.1])


def plain(items: list[Compressed]) -> list[dict[str, Any]]:
    """What does not depend on the day, in the order of ids."""
    of_the_day = {"measured", "decode_ms", "source_decode_ms"}
    return [item.model_dump(exclude=of_the_day) for item in sorted(items, key=lambda i: i.id)]


def test_the_records_are_those_of_one_process_and_one_thread(
    kept: list[Kept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [type("Place", (), {"device": torch.device("cpu")})()] * 2
    monkeypatch.setattr(parallel, "places", lambda: two)
    items = list(compress_all(kept, request(drop=0.5), tmp_path / "two"))
    made = [item for item in items if isinstance(item, Compressed)]
    assert {item.variant for item in items if isinstance(item, Unfit)} == {"dense"}
    assert {item.measured.threads for item in made} == {1}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = []
        for source in (source for source in kept if source.cell.variant == "moe"):
            one = Source(source, torch.device("cpu"))
            alone += list(compress(one, request(drop=0.5), tmp_path / "one"))
    finally:
        torch.set_num_threads(threads)
    assert plain(made) == plain(alone)
    assert len(made) == 4 * sum(source.cell.variant == "moe" for source in kept)


def test_a_process_that_dies_is_one_line(kept: list[Kept], tmp_path: Path) -> None:
    path = tmp_path / "deadly.py"
    path.write_text(DEADLY)
    with pytest.raises(IsoflopError, match=r"seed 0: its process was ended by SIGKILL, perhaps"):
        list(compress_all(kept, request(f"{path}:Deadly"), tmp_path))


def test_what_is_asked_wrongly_is_refused_before_a_process_starts(
    kept: list[Kept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "workers", None)
    for wrong in (request("prune-rnd"), request(drop=1.5)):
        with pytest.raises(IsoflopError, match="--method: "):
            list(compress_all(kept, wrong, tmp_path))
