"""The schedule, the optimiser's constants, and what is decayed."""

import itertools

import pytest

from isoflop.bench.step import learning_rate_at, make_optimizer
from isoflop.bench.suite import Training
from isoflop.models import Decoder
from tests.bench.cells import tiny_cells


def test_rates_are_those_worked_out_by_hand() -> None:
    """Warm-up over steps 0 to 9 of 100, and the decay counted from its end, not from step 0."""
    cosine = Training(context=1, batch=1, warmup=0.1, final=0.1)
    by_hand = {0: 0.2, 4: 1.0, 9: 2.0, 10: 2.0, 40: 1.55, 55: 1.1, 70: 0.65}
    for step, rate in by_hand.items():
        assert learning_rate_at(step, 100, 2.0, cosine) == pytest.approx(rate, rel=1e-12), step
    wsd = Training(context=1, batch=1, schedule="wsd", warmup=0.1, decay=0.2, final=0.1)
    for step, rate in {0: 0.2, 9: 2.0, 10: 2.0, 80: 2.0, 90: 1.1, 95: 0.65}.items():
        assert learning_rate_at(step, 100, 2.0, wsd) == pytest.approx(rate, rel=1e-12), step


def test_the_optimiser_has_the_stated_constants() -> None:
    training = Training(context=1, batch=1)
    groups = make_optimizer(Decoder(tiny_cells()[1].config), training).param_groups
    for group in groups:
        assert group["betas"] == (0.9, 0.95)
        assert group["eps"] == 1e-8
        assert not group["amsgrad"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert training.clip == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_schedule_ends_at_the_cells_own_horizon(schedule: str) -> None:
    training = Training(context=1, batch=1, schedule=schedule, warmup=0.1, decay=0.2, final=0.1)
    for steps in (1, 10, 1000):
        rates = [learning_rate_at(step, steps, 2.0, training) for step in range(steps)]
        assert max(rates) == pytest.approx(2.0)
        if steps == 1000:
            assert rates[0] == pytest.approx(2.0 / 100)
            assert rates[99] == pytest.approx(2.0)
            assert rates[-1] == pytest.approx(0.2, rel=0.05)
            assert all(a >= b for a, b in itertools.pairwise(rates[100:]))
        if steps == 1000 and schedule == "wsd":
            assert rates[799] == 2.0 > rates[805]


def test_weight_decay_spares_embedding_norms_and_tables() -> None:
    cell = tiny_cells()[1]
    model = Decoder(cell.config)
    decayed, spared = make_optimizer(model, cell.training).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0
    spared_names = {names[id(p)] for p in spared["params"]}
    assert {"embedding.weight", "norm.weight", "blocks.1.ffn.up_ND"} <= spared_names
    decayed_names = {names[id(p)] for p in decayed["params"]}
    assert {"head.weight", "blocks.1.ffn.retrieval.keys"} <= decayed_names
    assert decayed_names | spared_names == set(names.values())
