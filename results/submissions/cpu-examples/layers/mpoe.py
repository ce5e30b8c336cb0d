"""MPOE: experts that share the central tensor of a matrix-product-operator decomposition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import Layer, full_precision

OUTER = 4  # the largest size of an outer mode


def modes(n: int) -> tuple[int, int, int]:
    """Three factors of n; the outer two are the largest divisors up to OUTER."""
    first = max(d for d in range(1, OUTER + 1) if n % d == 0)
    last = max(d for d in range(1, OUTER + 1) if (n // first) % d == 0)
    return first, n // (first * last), last


class MPOExperts(nn.Module):
    """W_e as a chain of three tensors: the central one shared by all experts, the outer two not.

    W_e[abc, xyz] = sum over bonds p, q of left_e[a, x, p] central[p, b, y, q] right_e[q, c, z],
    with input modes a, b, c and output modes x, y, z.
    """

    def __init__(self, n_experts: int, d_in: int, d_out: int, bond: int) -> None:
        super().__init__()
        (a, b, c), (x, y, z) = modes(d_in), modes(d_out)
        # A bond never needs more than the smaller side of the cut it spans.
        p, q = min(bond, a * x), min(bond, c * z)
        self.left_EAXP = nn.Parameter(torch.empty(n_experts, a, x, p))
        self.central_PBYQ = nn.Parameter(torch.empty(p, b, y, q))
        self.right_EQCZ = nn.Parameter(torch.empty(n_experts, q, c, z))
        nn.init.normal_(self.left_EAXP, std=p**-0.5)
        nn.init.normal_(self.central_PBYQ, std=d_in**-0.5)
        nn.init.normal_(self.right_EQCZ, std=q**-0.5)

    def matrix(self, expert: int) -> Tensor:
        """The expert's [d_in, d_out], which `forward` never builds."""
        left, right = self.left_EAXP[expert], self.right_EQCZ[expert]
        tensor = torch.einsum("axp,pbyq,qcz->abcxyz", left, self.central_PBYQ, right)
        return tensor.flatten(3).flatten(0, 2)

    def forward(self, h_MI: Tensor, expert_M: Tensor, central_PBYQ: Tensor) -> Tensor:
        """h W_e for each token's expert, contracted from the right: [tokens, d_in] -> d_out.

        Args:
            central_PBYQ: the central tensor, with or without its gradient.
        """
        _, a, x, p = self.left_EAXP.shape
        _, b, _, q = self.central_PBYQ.shape
        _, _, c, z = self.right_EQCZ.shape
        left_MAXP = F.embedding(expert_M, self.left_EAXP.flatten(1)).view(-1, a, x, p)
        right_MQCZ = F.embedding(expert_M, self.right_EQCZ.flatten(1)).view(-1, q, c, z)
        h_MABC = h_MI.view(-1, a, b, c)
        h_MABQZ = torch.einsum("mabc,mqcz->mabqz", h_MABC, right_MQCZ)
        h_MAPYZ = torch.einsum("mabqz,pbyq->mapyz", h_MABQZ, central_PBYQ)
        return torch.einsum("maxp,mapyz->mxyz", left_MAXP, h_MAPYZ).flatten(1)

    def flops_per_token(self) -> int:
        """The three contractions, each 2 x the product of the sizes of all its indices."""
        _, a, x, p = self.left_EAXP.shape
        _, b, y, q = self.central_PBYQ.shape
        _, _, c, z = self.right_EQCZ.shape
        return 2 * (a * b * c * q * z + a * b * q * z * p * y + a * x * p * y * z)


class MPOE(Layer):
    """y = p_e FFN_e(x), e the most probable expert, both matrices of FFN_e as MPOs.

    MPOE (arXiv 2203.01104): experts share the central tensors, which hold most parameters, and have
    small auxiliary tensors of their own. A central tensor learns from all tokens, an auxiliary one
    from those of its expert alone; so the gradient of the central tensors is masked at random, here
    for a whole step with probability `mask`.

    Chosen here: three tensors instead of five; bonds of at most `bond`, where the paper starts
    from the full decomposition of a pre-trained matrix; a random initialisation in which the
    entries of W_e have variance 1 / fan-in; every token is contracted with the chain, so that no
    matrix is built and the FLOPs are those of the contraction; the router and the load-balancing
    loss of Switch (arXiv 2101.03961, eq. 4); GELU, no biases.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        n_experts: int = 16
        bond: int = 4  # largest bond dimension between tensors
        mask: float = 0.1  # probability that a step leaves the central tensors alone
        balance: float = 0.01  # coefficient of the load-balancing loss
        ratio: float = 4.0  # hidden width over d_model

        def __post_init__(self) -> None:
            if self.n_experts < 1 or self.bond < 1 or self.ratio <= 0:
                raise ValueError("n_experts and bond must be at least 1, ratio positive")
            if not 0 <= self.mask < 1:
                raise ValueError(f"mask must be in [0, 1), not {self.mask}")

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        o = self.options
        d_ff = round(o.ratio * d_model)
        self.router = nn.Linear(d_model, o.n_experts, bias=False)
        nn.init.normal_(self.router.weight, std=d_model**-0.5)
        self.up = MPOExperts(o.n_experts, d_model, d_ff, o.bond)
        self.down = MPOExperts(o.n_experts, d_ff, d_model, o.bond)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, 1)
        with full_precision(x_MD):
            p_ME = self.router(x_MD.to(self.router.weight.dtype)).softmax(dim=-1)
        gate_M1, index_M1 = p_ME.topk(1, dim=-1)
        expert_M = index_M1[:, 0]
        centrals: list[Tensor] = [self.up.central_PBYQ, self.down.central_PBYQ]
        if self.training:
            learn = torch.rand((), device=x_MD.device) >= self.options.mask
            centrals = [torch.where(learn, tensor, tensor.detach()) for tensor in centrals]
            counts_E = torch.zeros_like(p_ME[0]).index_add_(
                0, expert_M, torch.ones_like(p_ME[:, 0])
            )
            share_E = counts_E / expert_M.numel()
            n_experts = self.options.n_experts
            self.aux_loss = self.options.balance * n_experts * (share_E * p_ME.mean(0)).sum()
        h_MF = F.gelu(self.up(x_MD, expert_M, centrals[0]))
        y_MD = self.down(h_MF, expert_M, centrals[1]) * gate_M1
        return y_MD.to(x_BTD.dtype).view_as(x_BTD)

    def routing_parameters(self) -> list[Tensor]:
        return [self.router.weight]

    def load(self, x_BTD: Tensor) -> Tensor:
        """Choices of each expert."""
        index = self.router(x_BTD).argmax(-1).flatten()
        return index.bincount(minlength=self.options.n_experts)

    def flops_per_token(self) -> int:
        experts = self.up.flops_per_token() + self.down.flops_per_token()
        return self.routing_flops_per_token() + experts

    def routing_flops_per_token(self) -> int:
        return 2 * self.d_model * self.options.n_experts

    def active_parameters(self) -> int:
        """The router, the central tensors, and the auxiliary tensors of one expert."""
        auxiliary = sum(
            parameter.numel()
            for part in (self.up, self.down)
            for parameter in (part.left_EAXP, part.right_EQCZ)
        )
        rest = super().active_parameters() - auxiliary
        return rest + auxiliary // self.options.n_experts
