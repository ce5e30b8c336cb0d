import math

import pytest
import torch
import torch.nn.functional as F

from examples.mpoe import MPOE, MPOExperts, modes


@pytest.mark.parametrize("n", [1, 7, 24, 32, 48, 96, 256, 768])
def test_modes_multiply_to_the_width(n: int) -> None:
    assert math.prod(modes(n)) == n
    assert max(modes(n)[0], modes(n)[2]) <= 4


def test_the_matrix_is_the_contraction_index_by_index() -> None:
    torch.manual_seed(0)
    experts = MPOExperts(2, 12, 8, bond=3).double()
    left, central, right = experts.left_EAXP, experts.central_PBYQ, experts.right_EQCZ
    (_, b, c), (_, y, z) = modes(12), modes(8)
    matrix = experts.matrix(1)
    assert matrix.shape == (12, 8)
    for i in range(12):
        for j in range(8):
            i1, i2, i3 = i // (b * c), i // c % b, i % c
            j1, j2, j3 = j // (y * z), j // z % y, j % z
            value = left[1, i1, j1] @ central[:, i2, j2, :] @ right[1, :, i3, j3]
            torch.testing.assert_close(matrix[i, j], value)


@pytest.mark.parametrize("bond", [1, 3, 100])
def test_the_chain_equals_the_explicit_experts(bond: int) -> None:
    torch.manual_seed(0)
    experts = MPOExperts(3, 24, 16, bond).double()
    h_MI = torch.randn(20, 24, dtype=torch.float64)
    expert_M = torch.randint(0, 3, (20,))
    expected = torch.stack(
        [h @ experts.matrix(int(e)) for h, e in zip(h_MI, expert_M, strict=True)]
    )
    torch.testing.assert_close(experts(h_MI, expert_M, experts.central_PBYQ), expected)


def test_full_bonds_can_hold_any_matrix() -> None:
    """With bonds as large as the cuts allow, the decomposition is exact (two SVDs)."""
    experts = MPOExperts(1, 24, 16, bond=1000).double()
    (a, b, c), (x, y, z) = modes(24), modes(16)
    w = torch.randn(24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cut = w.view(a, b, c, x, y, z).permute(0, 3, 1, 4, 2, 5).reshape(a * x, b * y * c * z)
    u, s, v = torch.linalg.svd(cut, full_matrices=False)
    p = experts.central_PBYQ.shape[0]
    rest = (s[:, None] * v).reshape(p * b * y, c * z)
    u2, s2, v2 = torch.linalg.svd(rest, full_matrices=False)
    q = experts.central_PBYQ.shape[-1]
    with torch.no_grad():
        experts.left_EAXP[0] = u.view(a, x, p)
        experts.central_PBYQ.copy_((u2 * s2).view(p, b, y, q))
        experts.right_EQCZ[0] = v2.view(q, c, z)
    torch.testing.assert_close(experts.matrix(0), w)


def test_experts_start_with_variance_one_over_fan_in() -> None:
    torch.manual_seed(0)
    matrices = [MPOExperts(16, 64, 256, 4).matrix(e) for e in range(16) for _ in range(4)]
    assert float(torch.stack(matrices).detach().square().mean()) * 64 == pytest.approx(1, rel=0.15)


def test_the_layer_is_the_feed_forward_network_of_the_most_probable_expert() -> None:
    torch.manual_seed(0)
    layer = MPOE(16, n_experts=5).double().eval()
    x_BTD = torch.randn(2, 4, 16, dtype=torch.float64)
    for x_D, y_D in zip(x_BTD.flatten(0, 1), layer(x_BTD).flatten(0, 1), strict=True):
        p_E = (layer.router.weight @ x_D).softmax(-1)
        e = int(p_E.argmax())
        expected_D = p_E[e] * (F.gelu(x_D @ layer.up.matrix(e)) @ layer.down.matrix(e))
        torch.testing.assert_close(y_D, expected_D)


def test_a_masked_step_leaves_the_central_tensors_alone_and_nothing_else() -> None:
    torch.manual_seed(0)
    layer = MPOE(16, n_experts=4, mask=0.5).train()
    x_BTD = torch.randn(2, 32, 16)
    masked = 0
    for _ in range(200):
        layer.zero_grad()
        layer(x_BTD).square().sum().backward()
        central = [part.central_PBYQ.grad for part in (layer.up, layer.down)]
        assert all(grad is not None for grad in central)
        still = [bool((grad == 0).all()) for grad in central if grad is not None]
        assert still[0] == still[1]
        masked += still[0]
        assert layer.up.left_EAXP.grad is not None
        assert layer.up.left_EAXP.grad.abs().sum() > 0
    assert 70 <= masked <= 130  # 100 expected, standard deviation 7


def test_most_parameters_are_shared() -> None:
    layer = MPOE(64)
    per_expert = layer.up.left_EAXP[0].numel() + layer.up.right_EQCZ[0].numel()
    assert per_expert < layer.up.central_PBYQ.numel() / 4
