import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from examples.moec import MoEC


def probabilities(tokens: int, experts: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tokens, experts, generator=generator, dtype=torch.float64).softmax(-1)


def test_the_variances_are_those_within_and_between_clusters() -> None:
    layer = MoEC(16, clusters=3, cluster_size=4)
    p_ME = probabilities(50, 12)
    within, between = layer.variances(p_ME)
    clusters = [p_ME[:, first : first + 4] for first in (0, 4, 8)]
    torch.testing.assert_close(
        within, torch.stack([c.var(-1, unbiased=False) for c in clusters]).mean()
    )
    means_MC = torch.stack([c.mean(-1) for c in clusters], dim=-1)
    torch.testing.assert_close(between, means_MC.var(-1, unbiased=False).mean())
    torch.testing.assert_close(within + between, p_ME.var(-1, unbiased=False).mean())


def test_the_variance_loss_prefers_a_cluster_that_is_alike_and_apart() -> None:
    layer = MoEC(16, clusters=2, cluster_size=2)
    alike, mixed = torch.tensor([[0.4, 0.4, 0.1, 0.1]]), torch.tensor([[0.4, 0.1, 0.4, 0.1]])
    (within, between), (within_mixed, between_mixed) = (
        layer.variances(alike),
        layer.variances(mixed),
    )
    assert within - between < within_mixed - between_mixed
    assert within == pytest.approx(0, abs=1e-9)
    assert between_mixed == pytest.approx(0, abs=1e-9)


def test_the_auxiliary_loss_is_balance_and_variance() -> None:
    torch.manual_seed(0)
    options = {"clusters": 3, "cluster_size": 2, "dropout": 0.0}
    x_BTD = torch.randn(2, 8, 16)
    losses = {}
    for balance, variance in ((1.0, 0.0), (0.0, 1.0), (0.3, 0.2)):
        torch.manual_seed(1)
        layer = MoEC(16, balance=balance, variance=variance, **options).train()
        layer(x_BTD)
        losses[balance, variance] = layer.aux_loss
    p_ME = layer.router(x_BTD.flatten(0, 1)).softmax(-1)
    within, between = layer.variances(p_ME)
    torch.testing.assert_close(losses[0.0, 1.0], 36 * (within - between))
    share_E = F.one_hot(p_ME.argmax(-1), 6).float().mean(0)
    torch.testing.assert_close(losses[1.0, 0.0], 6 * (share_E * p_ME.mean(0)).sum())
    both = 0.3 * losses[1.0, 0.0] + 0.2 * losses[0.0, 1.0]
    torch.testing.assert_close(losses[0.3, 0.2], both)


@pytest.mark.parametrize(("dropout", "count"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.99, 3)])
def test_dropout_takes_as_many_experts_of_every_cluster_and_never_all(
    dropout: float, count: int
) -> None:
    torch.manual_seed(0)
    layer = MoEC(16, clusters=5, cluster_size=4, dropout=dropout)
    masks = torch.stack([layer.dropped(torch.device("cpu")) for _ in range(100)])
    assert (masks.unflatten(1, (5, 4)).sum(-1) == count).all()
    if count:  # every expert is dropped now and then
        assert masks.any(0).all()
        assert (~masks).any(0).all()


def test_a_dropped_expert_is_not_used_in_training_and_is_in_evaluation() -> None:
    torch.manual_seed(0)
    layer = MoEC(16, clusters=2, cluster_size=2, dropout=0.5)
    mask_E = torch.tensor([True, False, False, True])
    layer.dropped = lambda device: mask_E  # type: ignore[method-assign]
    layer.train()(torch.randn(4, 32, 16)).square().sum().backward()
    assert layer.up_EDF.grad is not None
    used_E = layer.up_EDF.grad.abs().sum((1, 2)) > 0
    assert not used_E[mask_E].any()
    assert used_E[~mask_E].all()
    layer.zero_grad()
    layer.eval()(torch.randn(4, 32, 16)).square().sum().backward()
    assert (layer.up_EDF.grad.abs().sum((1, 2)) > 0).all()


def test_the_output_is_that_of_the_most_probable_expert() -> None:
    torch.manual_seed(0)
    layer = MoEC(16, clusters=2, cluster_size=3).double().eval()
    x_BTD = torch.randn(2, 5, 16, dtype=torch.float64)
    for x_D, y_D in zip(x_BTD.flatten(0, 1), layer(x_BTD).flatten(0, 1), strict=True):
        p_E = (layer.router.weight @ x_D).softmax(-1)
        e = int(p_E.argmax())
        expected_D = p_E[e] * (F.gelu(x_D @ layer.up_EDF[e]) @ layer.down_EFD[e])
        torch.testing.assert_close(y_D, expected_D)
