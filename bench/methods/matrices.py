"""The weights of experts as methods leave them: whole, quantised, or as factors of low rank.

Sizes: E experts, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isoflop.bench.quantisation import packed_bytes

BYTES = 2  # of a weight that is stored as it is, in bfloat16


class Whole(nn.Module):
    """A matrix for each expert, [E, I, O], given and not copied; `bits` a weight if its values are
    quantised."""

    def __init__(self, weight_EIO: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_EIO.detach())
        self.bits: int | None = None
        self.group = 0  # weights with a scale in common, along the inputs

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[1], self.weight.shape[2]

    def forward(self, expert: int, x_MI: Tensor) -> Tensor:
        """[M, I] -> [M, O] by an expert's matrix."""
        return x_MI @ self.weight[expert]

    def of(self, expert: int) -> Tensor:
        """An expert's matrix, [I, O]."""
        return self.weight[expert].detach()

    def keep(self, experts: Sequence[int]) -> Whole:
        """The same with these experts alone."""
        kept = Whole(self.weight[list(experts)])
        kept.bits, kept.group = self.bits, self.group
        return kept

    def parameters_of(self, expert: int) -> int:
        inputs, outputs = self.shape
        return inputs * outputs

    def bytes_of(self, expert: int) -> int:
        """Stored bytes: whole bytes of codes, and a scale for each group of each output."""
        inputs, outputs = self.shape
        if self.bits is None:
            return BYTES * inputs * outputs
        return packed_bytes(f"int{self.bits}", inputs, outputs, self.group)


class Factored(nn.Module):
    """A matrix for each expert as a product [I, R] [R, O], each with a rank of its own."""

    def __init__(self, factors: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.left = nn.ParameterList([nn.Parameter(a.detach().clone()) for a, _ in factors])
        self.right = nn.ParameterList([nn.Parameter(b.detach().clone()) for _, b in factors])

    def __len__(self) -> int:
        return len(self.left)

    @property
    def shape(self) -> tuple[int, int]:
        return self.left[0].shape[0], self.right[0].shape[1]

    def forward(self, expert: int, x_MI: Tensor) -> Tensor:
        """[M, I] -> [M, O] through an expert's rank."""
        return x_MI @ self.left[expert] @ self.right[expert]

    def of(self, expert: int) -> Tensor:
        """An expert's matrix, [I, O]."""
        return (self.left[expert] @ self.right[expert]).detach()

    def keep(self, experts: Sequence[int]) -> Factored:
        """The same with these experts alone."""
        return Factored([(self.left[e], self.right[e]) for e in experts])

    def parameters_of(self, expert: int) -> int:
        """R (I + O)."""
        return self.left[expert].shape[1] * sum(self.shape)

    def bytes_of(self, expert: int) -> int:
        return BYTES * self.parameters_of(expert)


Matrices = Whole | Factored


def factors(weight_IO: Tensor, rank: int, gram_II: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best product of a rank, [I, R] and [R, O], by SVD: W ~ (U sqrt S) (sqrt S V).

    Args:
        gram_II: X^T X of the matrix's inputs X. If given, the product is the best for X W rather
            than for W: with X^T X = L L^T (Cholesky), the SVD is that of L^T W, and L^-T goes
            before its left factor.
    """
    weight = weight_IO.double()
    if gram_II is None:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
    else:
        gram = gram_II.double()
        # Inputs that the calibration text does not vary would make it singular.
        ridge = 1e-6 * gram.diagonal().mean().clamp(min=1e-12)
        upper = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram))).T
        u, s, v = torch.linalg.svd(upper @ weight, full_matrices=False)
        u = torch.linalg.solve_triangular(upper, u, upper=True)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(weight_IO.dtype), (root[:, None] * v[:rank]).to(weight_IO.dtype)
