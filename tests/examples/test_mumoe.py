import torch
import torch.nn.functional as F
from torch import Tensor

from examples.mumoe import CPExperts, MuMoE, entmax15


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_the_factorised_product_is_that_of_the_explicit_dense_experts() -> None:
    torch.manual_seed(0)
    experts = CPExperts(n_experts=5, d_in=7, d_out=6, rank=4).double()
    z_BTI, a_BTN = randn(2, 3, 7), randn(2, 3, 5, seed=1).softmax(-1)
    dense_NIO = torch.zeros(5, 7, 6, dtype=torch.float64)
    for r in range(4):  # a sum of outer products, rank by rank
        outer_NI = experts.expert_NR[:, r, None] * experts.into_IR[None, :, r]
        dense_NIO += outer_NI[..., None] * experts.out_OR[None, None, :, r]
    expected_BTO = sum(a_BTN[..., n, None] * (z_BTI @ dense_NIO[n]) for n in range(5))
    torch.testing.assert_close(experts(z_BTI, a_BTN), expected_BTO)


def test_entmax_meets_its_definition() -> None:
    """argmax over p of p.z + H(p), H the 1.5-Tsallis entropy: no other point of the simplex wins.

    H(p) = 1 / (1.5 * 0.5) * sum(p - p^1.5) (arXiv 1905.05702).
    """
    z_MN = 2 * randn(50, 6)
    p_MN = entmax15(z_MN)
    torch.testing.assert_close(p_MN.sum(-1), torch.ones(50, dtype=torch.float64))
    assert (p_MN >= 0).all()
    assert (p_MN == 0).any()  # sparse, as softmax never is
    assert ((p_MN > 0).sum(-1) > 1).any()

    def objective(p: Tensor) -> Tensor:
        return (p * z_MN).sum(-1) + (p - p.clamp(min=0) ** 1.5).sum(-1) / 0.75

    best_M = objective(p_MN)
    for seed in range(20):
        other_MN = 0.9 * p_MN + 0.1 * (3 * randn(50, 6, seed=seed)).softmax(-1)
        assert (objective(other_MN) < best_M).all()


def test_entmax_has_the_gradient_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(entmax15, (2 * randn(8, 6).requires_grad_(),))


def test_the_block_is_two_mixes_with_the_same_coefficients() -> None:
    torch.manual_seed(0)
    layer = MuMoE(16, n_experts=4).double()
    torch.nn.init.normal_(layer.gate.weight)
    x_BTD = randn(2, 3, 16)
    a_BTN = entmax15(F.layer_norm(x_BTD @ layer.gate.weight.t(), (4,)))
    expected_BTD = layer.down(F.gelu(layer.up(x_BTD, a_BTN)), a_BTN)
    torch.testing.assert_close(layer(x_BTD), expected_BTD)


def test_all_experts_weigh_the_same_at_the_start_and_parameters_match_the_dense_ffn() -> None:
    layer = MuMoE(64)
    torch.testing.assert_close(
        layer.coefficients(torch.randn(2, 3, 64)), torch.full((2, 3, 32), 1 / 32)
    )
    factors = sum(p.numel() for part in (layer.up, layer.down) for p in part.parameters())
    assert abs(factors / (2 * 64 * 256) - 1) < 0.02
