"""The schedule, the optimiser's constants, and what is decayed."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isoflop.bench.step import Trainer, learning_rate_at, make_optimizer
from isoflop.bench.suite import Training
from isoflop.models import LAYERS, Decoder, Layer, ParameterGroup
from tests.bench.cells import TINY, tiny_cells


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
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1, 0.0]
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
    tables, decayed, spared = make_optimizer(model, cell.training).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0
    spared_names = {names[id(p)] for p in spared["params"]}
    assert {"embedding.weight", "norm.weight"} <= spared_names
    table_names = {names[id(p)] for p in tables["params"]}
    assert table_names == {"blocks.1.ffn.up_ND", "blocks.1.ffn.down_ND"}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    assert {"head.weight", "blocks.1.ffn.retrieval.keys"} <= decayed_names
    assert decayed_names | spared_names | table_names == set(names.values())


@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_the_fused_kernel_of_a_gpu_clips_as_a_pass_over_the_gradients_does(clip: float) -> None:
    """It divides before moments and weight decay; torch's CPU kernel takes the divisor too."""
    (_, cell) = tiny_cells(training=TINY["training"] | {"clip": clip})
    windows = np.random.default_rng(0).integers(300, size=(4, 17))
    plain, divided = (Trainer(cell, torch.device("cpu")) for _ in range(2))

    def divide() -> None:
        divided.device = torch.device("cuda")
        Trainer._clip(divided)
        divided.device = torch.device("cpu")

    divided._clip = divide  # type: ignore[method-assign]
    for step in range(3, 6):
        plain.step(step, windows)
        divided.step(step, windows)
    for a, b in zip(plain.model.parameters(), divided.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        for moment in ("exp_avg", "exp_avg_sq"):
            ours, theirs = (t.optimizer.state[p][moment] for t, p in ((plain, a), (divided, b)))
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-10)
    divisor = divided.optimizer.grad_scale  # type: ignore[attr-defined]
    assert (float(divisor) == 1) is (clip == 100.0)


class Grouped(Layer):
    """A table, a matrix of its own rate, a plain matrix, and a count of steps."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.table, self.fast, self.plain = (
            nn.Parameter(torch.zeros(d_model, d_model)) for _ in range(3)
        )
        self.steps = 0

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD @ (self.table + self.fast + self.plain)

    def flops_per_token(self) -> int:
        return 2 * self.d_model**2

    def tables(self) -> list[nn.Parameter]:
        return [self.table]

    def parameter_groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup([self.table, self.fast], rate=3.0, decay=0.5),
            ParameterGroup([], rate=1.0),
        ]

    def after_step(self) -> None:
        self.steps += 1


def test_a_layer_states_rates_and_decay_and_is_told_of_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LAYERS, "grouped", Grouped)
    variants = {"v": {"layer": "grouped", "learning_rate": 1e-2, "table_rate": 2.0}}
    training = {"context": 16, "batch": 4, "micro_batch": 2, "validation_tokens": 512}
    (cell,) = tiny_cells(variants=variants, training=training)
    trainer = Trainer(cell, torch.device("cpu"))
    layer = trainer.model.tested[0]
    tokens = np.random.default_rng(0).integers(300, size=(4, 17))
    for step in range(3):
        trainer.step(step, tokens)
    assert layer.steps == 3  # not one for each micro-batch
    rate = learning_rate_at(2, cell.steps, cell.learning_rate, cell.training)
    groups = {id(p): g for g in trainer.optimizer.param_groups for p in g["params"]}
    for parameter, factor, decay in (
        (layer.table, 6.0, 0.05),
        (layer.fast, 3.0, 0.05),
        (layer.plain, 1.0, 0.1),
    ):
        group = groups[id(parameter)]
        assert group["lr"] == pytest.approx(factor * rate)
        assert group["weight_decay"] == pytest.approx(decay)


def test_what_a_layer_draws_in_training_does_not_depend_on_its_initialisation() -> None:
    dense, peer, other = (*tiny_cells(), tiny_cells(seeds=[1])[0])
    drawn = []
    for cell in (dense, peer, other):
        Trainer(cell, torch.device("cpu"))
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_constant_rate_stays_after_the_warm_up() -> None:
    training = Training(context=1, batch=1, warmup=0.1)
    rates = [learning_rate_at(step, 100, 2.0, training, constant=True) for step in range(100)]
    assert rates[:10] == [learning_rate_at(step, 100, 2.0, training) for step in range(10)]
    assert set(rates[10:]) == {2.0}
