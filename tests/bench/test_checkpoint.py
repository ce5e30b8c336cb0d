"""A checkpoint is whole or as it was, whoever else writes it."""

from pathlib import Path

import pytest
import torch

from isoflop.bench.checkpoint import load, read_state, save, save_whole, write_state

CPU = torch.device("cpu")


def test_two_that_save_at_a_time_do_not_meet(tmp_path: Path) -> None:
    """The second begins and ends while the first is half written."""
    path = tmp_path / "cell.pt"

    def second(file: Path) -> None:
        file.write_text("second")

    def first(file: Path) -> None:
        file.write_text("fir")
        save_whole(path, second)
        assert path.read_text() == "second"
        file.write_text(file.read_text() + "st")

    save_whole(path, first)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("no space"), RuntimeError("no space\nin torch")])
def test_a_failed_save_leaves_the_one_before(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "cell.pt"
    save(path, {"step": 3}, CPU)

    def fail(file: Path) -> None:
        file.write_text("half")
        raise error

    with pytest.raises(OSError, match=r"no space$"):
        save_whole(path, fail)
    state = load(path, CPU)
    assert state is not None
    assert state["step"] == 3
    assert list(tmp_path.iterdir()) == [path]


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(1)
    save(tmp_path / "cell.pt", {}, CPU)
    expected = torch.rand(3)
    torch.manual_seed(2)
    assert load(tmp_path / "none.pt", CPU) is None
    load(tmp_path / "cell.pt", CPU)
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_of_several_processes_travels_whole(tmp_path: Path) -> None:
    here, there = (tmp_path / name / "abc.pt" for name in ("here", "there"))
    folder = here.with_suffix(".shards")
    folder.mkdir(parents=True)
    for name in (".metadata", "__0_0.distcp", "progress.json"):
        (folder / name).write_text(name)
    state = read_state(here)
    assert len(state) == 3
    there.with_suffix(".shards").mkdir(parents=True)
    (there.with_suffix(".shards") / "__1_0.distcp").touch()  # of an older state
    write_state(there, state)
    assert read_state(there) == state
    write_state(there, {})
    assert read_state(there) == state
    assert read_state(tmp_path / "abc.pt") == {}
