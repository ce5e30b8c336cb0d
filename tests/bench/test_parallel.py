"""A cell trained by 2 and by 4 processes is that of one process."""

import multiprocessing
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from isoflop.bench import parallel
from tests.bench import ranks

WORLDS = (2, 4)
EXACT = torch.float64


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """By the number of processes, which are started once."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver" if hasattr(socket, "AF_UNIX") else "spawn")
    started = [
        context.Process(target=ranks.body, args=(rank, port, folder), daemon=True)
        for rank in range(4)
    ]
    for process in started:
        process.start()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = ranks.train_all()
    path = folder / "alone.pt"
    resumed = ranks.steps(ranks.cells()["ungrouped"], False, path, 0, 6)
    torch.set_num_threads(threads)
    for process in started:
        process.join(400)
        assert process.exitcode == 0
    return {
        world: torch.load(folder / f"{world}.results", weights_only=False) for world in (1, *WORLDS)
    } | {0: alone | {"resumed": resumed}}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("name", "split"), ranks.KINDS)
def test_losses_are_those_of_one_process(
    name: str, split: bool, world: int, results: dict[int, Any]
) -> None:
    for dtype in ranks.types(name):
        tolerance = 1e-12 if dtype == EXACT else 1e-6
        alone, shared = results[0][name, False, dtype], results[world][name, split, dtype]
        assert alone["losses"][0] - alone["losses"][-1] > 0.1  # the steps matter
        numbers = slice(None) if dtype != torch.bfloat16 else slice(1)
        expected = pytest.approx(alone["losses"][numbers], rel=0, abs=tolerance)
        assert shared["losses"][numbers] == expected
        assert shared["flops"] == alone["flops"]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("name", "split"), ranks.KINDS)
def test_gradients_parameters_and_statistics_are_those_of_one_process(
    name: str, split: bool, world: int, results: dict[int, Any]
) -> None:
    """The clipped norm is that of all parameters: it decides how far the first step goes."""
    alone, shared = results[0][name, False, EXACT], results[world][name, split, EXACT]
    norm = torch.cat([g.flatten() for g in alone["gradients"].values()]).norm()
    assert norm > 2 * ranks.cells()[name].training.clip
    for kind in ("gradients", "state"):
        assert alone[kind].keys() == shared[kind].keys()
        for key, value in alone[kind].items():
            torch.testing.assert_close(shared[kind][key], value, rtol=0, atol=1e-12, msg=key)
    if name in ranks.ROUNDED:
        rounded = results[world][name, split, torch.bfloat16]["gradients"]
        for key, value in results[0][name, False, torch.bfloat16]["gradients"].items():
            torch.testing.assert_close(rounded[key], value, rtol=0, atol=1e-6, msg=key)
    assert shared["output_rms"] == pytest.approx(alone["output_rms"], rel=1e-9)
    for expected, gradient in zip(
        alone["routing_gradients"], shared["routing_gradients"], strict=True
    ):
        assert gradient == (expected and pytest.approx(expected, rel=1e-9))


def test_blocks_are_compiled_for_several_processes_as_for_one(results: dict[int, Any]) -> None:
    """DistributedDataParallel makes the compiler cut graphs of its own, if it compiles then."""
    plain, compiled = results[2]["compiled",]["losses"]
    assert compiled == plain
    before, after = results[2]["compiled",]["graphs"]
    assert before == after > 0


@pytest.mark.parametrize("split", [True, False])
def test_a_checkpoint_is_resumed_by_fewer_processes(split: bool, results: dict[int, Any]) -> None:
    """Two steps by four, two by two, and two by one, which has the tables whole."""
    losses = [loss for world in (4, 2, 1) for loss in results[world]["resumed", split]["losses"]]
    expected = results[0]["resumed"]
    assert len(expected) == 6
    # AdamW makes more of rounding than SGD does.
    assert losses == pytest.approx(expected, rel=0, abs=1e-8)


@pytest.mark.parametrize(("memory", "split"), [(1e12, False), (1e5, True)])
def test_tables_are_split_where_the_memory_is_predicted_not_to_suffice(
    memory: float, split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    cell = ranks.cells()["peer"]
    assert parallel.must_split(cell, torch.device("cuda")) is split
    assert not parallel.must_split(cell, torch.device("cpu"))
