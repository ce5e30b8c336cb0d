"""The simulated cluster: what it must keep, cases worked out by hand, and what is stored."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest

from isoflop.bench.engines import simulate
from isoflop.bench.engines.simulate import POLICIES, cells_of, cluster_of, outcomes, queues_of
from isoflop.bench.engines.simulated_run import Cluster, Outcome, Run
from isoflop.bench.plan import Cell
from isoflop.bench.policy import COMPILE_SECONDS, need

STORED = json.loads((Path(__file__).parents[3] / simulate.STORED).read_text())
QUIET = Cluster(16, losses=0.0, checkpoint=600.0, noticed=300.0, slow=0.0)
cells = cache(cells_of)


def runs(policy: str, cluster: Cluster, suite: str = "h100", samples: int = 20) -> list[Outcome]:
    return outcomes(cells(suite, 1), policy, cluster, 1, samples)


def ratio(policy: str, cluster: Cluster) -> float:
    return fmean(run.makespan / run.bound for run in runs(policy, cluster))


def test_longest_first_is_near_the_bound_and_the_other_orders_are_not() -> None:
    longest, in_order, shards = (ratio(policy, QUIET) for policy in POLICIES)
    assert 1 <= longest < 1.15
    assert in_order > longest + 0.2
    assert shards > longest + 0.4


@pytest.mark.parametrize(
    ("engine", "policy"), [(e, p) for e in simulate.ENGINES for p in simulate.policies_of(e)]
)
def test_every_cell_is_recorded_once_whatever_is_lost(engine: str, policy: str) -> None:
    scenario = {"nodes": 64, "losses_per_hour": 2.0, "engine": engine}
    for run in runs(policy, replace(cluster_of(scenario), unseen=0.3)):
        assert sorted(run.recorded) == list(range(len(cells("h100", 1))))
        assert run.losses > 0
        assert run.lost_work > 0
        assert run.makespan >= run.bound
        if policy != "fixed shards":  # a copy may be one attempt more
            assert run.refused <= (1 + (engine == "ray")) * run.begun_again


def test_backups_take_slow_nodes_and_losses_out_of_the_end_of_a_run() -> None:
    """On the same nodes, which are slow and lost alike."""
    plain = replace(
        cluster_of({"nodes": 64, "losses_per_hour": 0.05, "engine": "ray"}), backups=False
    )
    for cluster in (replace(plain, losses=0.0), plain):
        without, copied = (
            runs(POLICIES[0], replace(cluster, backups=backups)) for backups in (False, True)
        )
        assert fmean(r.makespan for r in copied) < 0.95 * fmean(r.makespan for r in without)
        assert all(sorted(r.recorded) == list(range(len(cells("h100", 1)))) for r in copied)
        assert all(r.makespan >= r.bound for r in copied)
    assert sum(r.refused for r in copied) > 0


def test_a_copy_by_hand() -> None:
    """Node 0 is slow and needs 4000 s; node 1 is done at 1000 s, and copies the cell."""
    two = replace(QUIET, nodes=2, checkpoint=float("inf"), backups=True)
    run = Run([2000.0, 1000.0], [[0, 1]], two, "a")
    run.pace = [2.0, 1.0]
    expected = Outcome(3000.0, 2000.0, 3000.0, 0, 1, 0, (1, 0))
    assert run.play() == expected
    alone = Run([2000.0, 1000.0], [[0, 1]], replace(two, backups=False), "a")
    alone.pace = [2.0, 1.0]
    assert alone.play().makespan == 4000.0


def test_a_lost_cell_goes_on_in_its_copy() -> None:
    """Node 0 is lost at 1500 s; the copy that node 1 began at 1000 s is not begun again.

    But copied, by node 0 when it is back at 2400 s.
    """
    two = replace(QUIET, nodes=2, checkpoint=float("inf"), backups=True, unseen=0.0)
    lost = lost_once([2000.0, 1000.0], two, 1500.0)
    assert (lost.makespan, lost.begun_again, lost.lost_work) == (3000.0, 1, 1500.0 + 600.0)


def test_without_losses_nothing_is_begun_again() -> None:
    for policy in POLICIES:
        for run in runs(policy, replace(QUIET, slow=0.3), samples=3):
            assert (run.losses, run.begun_again, run.refused, run.lost_work) == (0, 0, 0, 0.0)


def test_states_on_a_shared_disk_bound_what_a_loss_costs() -> None:
    """Of every loss at most the seconds since the last state, and one more start."""
    lossy = replace(QUIET, losses=0.05, unseen=0.0)
    kept = runs("longest first", lossy, "paper")
    for run in kept:
        assert run.lost_work <= run.losses * (lossy.checkpoint + COMPILE_SECONDS)
    anew = runs("longest first", replace(lossy, checkpoint=float("inf")), "paper")
    assert fmean(r.lost_work for r in anew) > 5 * fmean(r.lost_work for r in kept)
    assert fmean(r.makespan for r in anew) > 1.5 * fmean(r.makespan for r in kept)


def lost_once(work: list[float], cluster: Cluster, when: float) -> Outcome:
    """Node 0 is lost once."""
    run = Run(work, [list(range(len(work)))], replace(cluster, losses=1e-12), "a")
    run.events = [(when, -1, "lose", 0)]
    return run.play()


def test_a_lost_cell_goes_on_from_its_last_state() -> None:
    one = replace(QUIET, nodes=1, unseen=0.0)
    # States at 600 and 1200; the node is back at 1500 + 900, and has 1800 seconds left to do.
    end = 2400 + COMPILE_SECONDS + 1800
    expected = Outcome(end, 3000.0, 300 + COMPILE_SECONDS, 1, 1, 0, (0,))
    assert lost_once([3000.0], one, 1500.0) == expected
    # Another node takes it as soon as the loss is noticed.
    two = lost_once([3000.0], replace(one, nodes=2), 1500.0)
    assert two.makespan == 1800 + COMPILE_SECONDS + 1800
    slow = lost_once([3000.0], replace(one, slow=1.0), 1500.0)  # at half the pace
    assert slow.makespan == 2400 + COMPILE_SECONDS + 2 * (3000 - 600)
    anew = lost_once([3000.0], replace(one, checkpoint=float("inf")), 1500.0)
    assert (anew.makespan, anew.lost_work) == (2400 + 3000, 1500)


def test_a_cell_of_a_node_out_of_sight_is_trained_twice_and_counts_once() -> None:
    out_of_sight = lost_once([3000.0, 5000.0], replace(QUIET, nodes=3, unseen=1.0), 100.0)
    # Node 2 begins it at 400 and ends at 3400, 400 seconds after node 0.
    assert out_of_sight == Outcome(5000.0, 5000.0, 3000.0, 1, 1, 1, (0, 1))
    soon = lost_once([3000.0], replace(QUIET, nodes=3, unseen=1.0), 2900.0)  # before it is noticed
    assert (soon.makespan, soon.begun_again, soon.refused) == (3000.0, 0, 0)


def test_queues_hold_every_cell_once() -> None:
    planned: list[Cell] = cells("paper", 1)
    for policy in POLICIES:
        for nodes in (3, 16, 64):
            queues = queues_of(policy, planned, nodes)
            assert sorted(cell for queue in queues for cell in queue) == list(range(len(planned)))
            assert len(queues) == (nodes if policy == "fixed shards" else 1)
    seconds = [
        need(planned[n], simulate.DEVICE).seconds for n in queues_of(POLICIES[0], planned, 1)[0]
    ]
    assert seconds == sorted(seconds, reverse=True)


def test_the_same_seed_gives_the_same_run() -> None:
    cluster = replace(QUIET, losses=1.0, slow=0.1)
    assert runs("suite order", cluster, samples=2) == runs("suite order", cluster, samples=2)


def test_what_is_stored_is_what_the_code_gives() -> None:
    """The first run of every row, played again; made anew by python -m ...engines.simulate."""
    known = [{key: row[key] for key in scenario} for row, scenario in
             zip(STORED["scenarios"], simulate.scenarios(), strict=True)]  # fmt: skip
    assert known == list(simulate.scenarios())
    assert STORED["samples"] >= 100
    for row in STORED["scenarios"]:
        planned = cells(row["suite"], row["seeds"])
        assert row["cells"] == len(planned)
        for policy in simulate.policies_of(row["engine"]):
            first = outcomes(planned, policy, cluster_of(row), STORED["seed"], 1)[0]
            expected = row["policies"][policy]["first_makespan"]
            assert first.makespan == pytest.approx(expected, rel=1e-6), (row, policy)


def test_the_command_stores_what_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simulate, "LAYOUTS", (("h100", 1, 16),))
    path = tmp_path / "cluster.json"
    arguments = ["simulate", "--samples", "2", "--seed", "0", "--store", str(path)]
    monkeypatch.setattr("sys.argv", arguments)
    assert simulate.main() == 0
    stored = json.loads(path.read_text())
    assert len(stored["scenarios"]) == len(capsys.readouterr().out.splitlines()) == 12
    assert len(stored["code"]) == len(STORED["code"]) == 16
    first = stored["scenarios"][-1]["policies"]["longest first"]["first_makespan"]
    assert first == STORED["scenarios"][11]["policies"]["longest first"]["first_makespan"]
