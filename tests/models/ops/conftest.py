"""Fixtures of the operators' tests."""

from collections.abc import Iterator

import pytest
import torch

from tests.models.ops.cases import SPLIT
from tests.models.ops.devices import TRITON


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that is allocated and not written reads as NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels split rows with few pairs already."""
    if TRITON:
        monkeypatch.setattr("isoflop.models.ops.pairs_triton.SPLIT", SPLIT)
