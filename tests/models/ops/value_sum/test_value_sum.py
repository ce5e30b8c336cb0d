"""The value sum: every back end against a float64 reference."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isoflop.models.ops import value_sum
from tests.models.ops.cases import (
    assert_near,
    gradients,
    most_bytes_of_one_operator,
    on_device,
    pair_case,
    rounded,
    with_other_threads,
)
from tests.models.ops.devices import INTERPRETED, runs_triton

TRITON = pytest.param("triton", marks=runs_triton)


def run(case: tuple[Tensor, ...], backend: str, dtype: torch.dtype) -> list[Tensor]:
    """[y, and the gradients of values and gate]."""
    _, _, values, gate, dy, index = on_device(case, backend)
    return gradients(lambda v, g: value_sum(v, index, g, backend), [values, gate], dy, dtype)


@pytest.mark.usefixtures("poisoned", "split")
@pytest.mark.parametrize("d", [64, 100, 256, 768])
@pytest.mark.parametrize("kind", ["uniform", "zipf", "single", "few", "brim"])
@pytest.mark.parametrize("backend", ["cpu", "dense", TRITON])
def test_equals_the_float64_reference(backend: str, kind: str, d: int) -> None:
    case = pair_case(kind, 12, 7, d, 10, seed=1)
    expected = run(case, "reference", torch.float64)
    assert_near(run(case, backend, torch.float32), expected, 1e-6)


def test_reference_is_the_sum_it_states() -> None:
    _, _, values, gate, _, index = pair_case("zipf", 5, 3, 4, 6, seed=0)
    y = value_sum(values, index, gate, "reference")
    for m in range(5):
        terms = [gate[m, p] * values[index[m, p]] for p in range(3)]
        torch.testing.assert_close(y[m], sum(terms))


@pytest.mark.parametrize("backend", ["reference", "cpu", "dense"])
def test_gradcheck(backend: str) -> None:
    _, _, values, gate, _, index = pair_case("zipf", 4, 3, 5, 7, seed=1)
    leaves = [t.requires_grad_() for t in (values, gate)]
    assert torch.autograd.gradcheck(lambda v, g: value_sum(v, index, g, backend), leaves)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("backend", ["cpu", TRITON])
def test_is_bitwise_repeatable_on_any_number_of_threads(backend: str) -> None:
    case = pair_case("zipf", 20 if INTERPRETED else 700, 16, 32, 50, seed=2)
    first = run(case, backend, torch.float32)
    second = with_other_threads(lambda: run(case, backend, torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("poisoned", "split")
@pytest.mark.parametrize("backend", [TRITON])
def test_bfloat16_sums_in_float32(backend: str) -> None:
    """Only results are rounded: as near to float64 on the same input as bfloat16 can be."""
    case = rounded(pair_case("zipf", 12, 7, 100, 10, seed=7))
    expected = run(case, "reference", torch.float64)
    assert_near(run(case, backend, torch.bfloat16), expected, 2**-8)


@pytest.mark.usefixtures("poisoned", "split")
@pytest.mark.parametrize("backend", [TRITON])
def test_gradients_of_float32_tables_are_not_rounded(backend: str) -> None:
    """Under autocast the table is read in bfloat16, and its gradient written as it was summed."""
    case = rounded(pair_case("zipf", 12, 7, 100, 10, seed=7))
    *_, values, gate, dy, index = on_device(case, backend)
    leaves = [t.float().requires_grad_() for t in (values, gate)]
    with torch.autocast(values.device.type, torch.bfloat16):
        y = value_sum(leaves[0], index, leaves[1], backend)
    actual = torch.autograd.grad(y, leaves, dy.float())
    assert_near(actual, run(case, "reference", torch.float64)[1:], 1e-6)


def test_cpu_makes_no_tensor_of_tokens_pairs_and_width() -> None:
    M, P, D, N = 512, 64, 48, 300
    case = pair_case("uniform", M, P, D, N, seed=4)
    whole = 4 * M * P * D
    assert most_bytes_of_one_operator(partial(run, case, "cpu", torch.float32)) < whole / 8


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_are_counted_exactly(device: str) -> None:
    M, P, D, N = 6, 5, 7, 40
    values = torch.empty(N, D, device=device, requires_grad=True)
    gate = torch.empty(M, P, device=device, requires_grad=True)
    index = torch.zeros(M, P, dtype=torch.int64, device=device)
    with FlopCounterMode(display=False) as counter:
        y = value_sum(values, index, gate)
    assert counter.get_total_flops() == 2 * M * P * D
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * M * P * D


def test_meta_takes_the_reference_path_and_traces() -> None:
    values, gate = torch.empty(10**6, 8, device="meta"), torch.empty(6, 4, device="meta")
    index = torch.empty(6, 4, dtype=torch.int64, device="meta")
    graph = torch.jit.trace(value_sum, (values, index, gate), check_trace=False).inlined_graph
    kinds = {node.kind() for node in graph.nodes() if not node.kind().startswith("prim::")}
    assert kinds <= {"aten::einsum", "aten::embedding", "aten::to"}


def test_fvcore_finds_the_operator_by_name() -> None:
    from fvcore.nn import FlopCountAnalysis

    class Sum(torch.nn.Module):
        def forward(self, values: Tensor, index: Tensor, gate: Tensor) -> Tensor:
            return value_sum(values, index, gate, "cpu")

    case = torch.randn(9, 8), torch.randint(9, (6, 4)), torch.randn(6, 4)
    analysis = FlopCountAnalysis(Sum(), case).unsupported_ops_warnings(False)
    analysis.set_op_handle("isoflop::value_sum", lambda inputs, outputs: 1)
    assert analysis.total() == 1


def test_operator_keeps_the_rules_of_torch_library() -> None:
    _, _, values, gate, _, index = pair_case("uniform", 6, 4, 8, 9, seed=5)
    table, gate = (t.float().requires_grad_() for t in (values, gate))
    operands = (table.detach(), index.to(torch.int32), gate, table, "cpu")
    torch.library.opcheck(torch.ops.isoflop.value_sum.default, operands)


def test_bad_input_is_refused() -> None:
    values, index, gate = torch.randn(5, 4), torch.zeros(3, 2).long(), torch.randn(3, 2)
    with pytest.raises(ValueError, match=r"must both be \[M, P\]"):
        value_sum(values, index, gate[:, :1])
    meta = values.to("meta"), index.to("meta"), gate.to("meta")
    with pytest.raises(ValueError, match="'cpu' is impossible here: it runs on a CPU only"):
        value_sum(*meta, "cpu")
    with pytest.raises(ValueError, match="'cpu' is impossible here: it needs as many rows as pair"):
        value_sum(values, index.repeat(1, 3), gate.repeat(1, 3), "cpu")
    with pytest.raises(ValueError, match="'triton' is impossible here: it runs on CUDA only"):
        value_sum(*meta, "triton")
