"""The expert mix: every back end against a float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isoflop.models.ops import expert_mix, product_key_topk
from tests.models.ops.cases import (
    assert_near,
    gradients,
    most_bytes_of_one_operator,
    on_device,
    pair_case,
    rounded,
    with_other_threads,
)
from tests.models.ops.devices import DEVICE, INTERPRETED, needs_gpu, runs_triton

TRITON = pytest.param("triton", marks=runs_triton)


def run(
    case: tuple[Tensor, ...], backend: str, dtype: torch.dtype, activation: str = "gelu"
) -> list[Tensor]:
    """[y, and the gradients of x, up, down and gate]."""
    x, up, down, gate, dy, index = on_device(case, backend)

    def function(x: Tensor, up: Tensor, down: Tensor, gate: Tensor) -> Tensor:
        return expert_mix(x, up, down, index, gate, activation, backend)

    return gradients(function, [x, up, down, gate], dy, dtype)


@pytest.mark.usefixtures("poisoned", "split")
@pytest.mark.parametrize("d", [64, 100, 256, 768])
@pytest.mark.parametrize("kind", ["uniform", "zipf", "single", "few", "brim"])
@pytest.mark.parametrize("backend", ["cpu", "dense", TRITON])
def test_equals_the_float64_reference(backend: str, kind: str, d: int) -> None:
    for seed, activation in enumerate(("gelu", "relu", "silu")):
        case = pair_case(kind, 12, 7, d, 10, seed)
        expected = run(case, "reference", torch.float64, activation)
        assert_near(run(case, backend, torch.float32, activation), expected, 1e-6)


def test_reference_is_the_sum_it_states() -> None:
    x, up, down, gate, _, index = pair_case("zipf", 5, 3, 4, 6, seed=0)
    y = expert_mix(x, up, down, index, gate, "relu", "reference")
    for m in range(5):
        terms = [
            gate[m, p] * torch.relu(x[m] @ up[index[m, p]]) * down[index[m, p]] for p in range(3)
        ]
        torch.testing.assert_close(y[m], sum(terms))


@pytest.mark.parametrize("backend", ["reference", "cpu", "dense"])
@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
def test_gradcheck(backend: str, activation: str) -> None:
    x, up, down, gate, _, index = pair_case("zipf", 4, 3, 5, 7, seed=1)
    leaves = [t.requires_grad_() for t in (x, up, down, gate)]

    def mix(x: Tensor, up: Tensor, down: Tensor, gate: Tensor) -> Tensor:
        return expert_mix(x, up, down, index, gate, activation, backend)

    assert torch.autograd.gradcheck(mix, leaves)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("backend", ["cpu", TRITON])
def test_is_bitwise_repeatable_on_any_number_of_threads(backend: str) -> None:
    case = pair_case("zipf", 20 if INTERPRETED else 700, 16, 32, 50, seed=2)
    first = run(case, backend, torch.float32)
    second = with_other_threads(lambda: run(case, backend, torch.float32))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_mixed_precision_loses_only_the_rounding_of_x_and_y() -> None:
    case = pair_case("zipf", 64, 8, 64, 100, seed=3)
    x, up, down, gate, dy, index = case
    x = x.bfloat16()
    leaves = [t.float().requires_grad_() for t in (up, down, gate)]
    with torch.autocast("cpu", torch.bfloat16):
        y = expert_mix(x, *leaves[:2], index, leaves[2], "gelu")
    assert y.dtype == torch.bfloat16
    actual = [y, *torch.autograd.grad(y, leaves, dy.bfloat16())]
    exact = (x.double(), up, down, gate, dy.bfloat16().double(), index)
    y_exact, _, *grads_exact = run(exact, "reference", torch.float64)
    assert_near(actual[:1], [y_exact], 2**-8)
    assert_near(actual[1:], grads_exact, 1e-5)


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
    """Under autocast tables are read in bfloat16, and gradients written as they were summed."""
    case = rounded(pair_case("zipf", 12, 7, 100, 10, seed=7))
    x, up, down, gate, dy, index = on_device(case, backend)
    leaves = [t.float().requires_grad_() for t in (up, down, gate)]
    with torch.autocast(x.device.type, torch.bfloat16):
        y = expert_mix(x.float(), *leaves[:2], index, leaves[2], "gelu", backend)
    actual = torch.autograd.grad(y, leaves, dy.float())
    assert_near(actual, run(case, "reference", torch.float64)[2:], 1e-5)


def test_cpu_makes_no_tensor_of_tokens_pairs_and_width() -> None:
    M, P, D, N = 512, 64, 48, 300
    case = pair_case("uniform", M, P, D, N, seed=4)
    whole = 4 * M * P * D
    assert most_bytes_of_one_operator(partial(run, case, "cpu", torch.float32)) < whole / 8
    # the reference does, and the profiler sees it
    assert most_bytes_of_one_operator(partial(run, case, "reference", torch.float32)) >= whole


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_are_counted_exactly(device: str) -> None:
    M, P, D, N = 6, 5, 7, 40
    x, up, down = (torch.empty(n, D, device=device, requires_grad=True) for n in (M, N, N))
    gate = torch.empty(M, P, device=device, requires_grad=True)
    index = torch.zeros(M, P, dtype=torch.int64, device=device)
    with FlopCounterMode(display=False) as counter:
        y = expert_mix(x, up, down, index, gate, "gelu")
    assert counter.get_total_flops() == 4 * M * P * D
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * 4 * M * P * D


def test_meta_takes_the_reference_path_and_traces() -> None:
    x, table = torch.empty(6, 8, device="meta"), torch.empty(10**6, 8, device="meta")
    gate = torch.empty(6, 4, device="meta")
    index = torch.empty(6, 4, dtype=torch.int64, device="meta")

    def mix(x: Tensor, table: Tensor, index: Tensor, gate: Tensor) -> Tensor:
        return expert_mix(x, table, table, index, gate, "relu")

    graph = torch.jit.trace(mix, (x, table, index, gate), check_trace=False).inlined_graph
    kinds = {node.kind() for node in graph.nodes() if not node.kind().startswith("prim::")}
    assert kinds <= {"aten::einsum", "aten::embedding", "aten::relu", "aten::mul", "aten::to"}


def test_fvcore_finds_the_operator_by_name() -> None:
    from fvcore.nn import FlopCountAnalysis

    class Mix(torch.nn.Module):
        def forward(self, x: Tensor, up: Tensor, index: Tensor, gate: Tensor) -> Tensor:
            return expert_mix(x, up, up, index, gate, "gelu", "cpu")

    case = torch.randn(6, 8), torch.randn(9, 8), torch.randint(9, (6, 4)), torch.randn(6, 4)
    seen = []

    def handle(name: str) -> Callable[..., int]:
        return lambda inputs, outputs: seen.append(name) or 1

    analysis = FlopCountAnalysis(Mix(), case).unsupported_ops_warnings(False)
    analysis.set_op_handle("isoflop::expert_mix", handle("isoflop::expert_mix"))
    assert analysis.total() == 1
    assert seen == ["isoflop::expert_mix"]


def test_operator_keeps_the_rules_of_torch_library() -> None:
    x, up, down, gate, _, index = pair_case("uniform", 6, 4, 8, 9, seed=5)
    index = index.to(torch.int32)
    x, up, down, gate = (t.float().requires_grad_() for t in (x, up, down, gate))
    operands = (x, up.detach(), down.detach(), index, gate, up, down, "gelu", "cpu")
    torch.library.opcheck(torch.ops.isoflop.expert_mix.default, operands)


def test_compiles_whole() -> None:
    case = pair_case("zipf", 20, 4, 16, 30, seed=6)
    x, up, down, gate, dy, index = case
    compiled = torch.compile(
        lambda x, up, down, gate: expert_mix(x, up, down, index, gate, "gelu"),
        fullgraph=True,
        backend="aot_eager",
    )
    actual = gradients(compiled, [x, up, down, gate], dy, torch.float32)
    expected = run(case, "cpu", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_bad_input_is_refused() -> None:
    x, up = torch.randn(3, 4), torch.randn(5, 4)
    index, gate = torch.zeros(3, 2).long(), torch.randn(3, 2)
    with pytest.raises(ValueError, match="activation 'tanh' is unknown: one of gelu, relu, silu"):
        expert_mix(x, up, up, index, gate, "tanh")
    with pytest.raises(ValueError, match="back end 'fast' is unknown"):
        expert_mix(x, up, up, index, gate, "gelu", "fast")
    with pytest.raises(ValueError, match=r"must be \[M, D\], \[N, D\] and \[N, D\]"):
        expert_mix(x, up, up[:, :3], index, gate, "gelu")


@pytest.mark.parametrize(("n", "fastest"), [(8, "dense"), (9, "cpu")])
def test_auto_takes_dense_for_few_experts(n: int, fastest: str) -> None:
    x, up, down, gate, _, index = pair_case("uniform", 3, 2, 4, n, seed=0)
    auto, forced = (expert_mix(x, up, down, index, gate, "gelu", b) for b in ("auto", fastest))
    assert torch.equal(auto, forced)


@needs_gpu
@runs_triton
def test_triton_step_in_a_cuda_graph() -> None:
    case = on_device(pair_case("zipf", 500, 8, 64, 400, seed=8), "triton")
    dy = case[4].float()
    query, keys = torch.randn(2, 2, 500, 8).to(DEVICE), torch.randn(2, 1, 8, 20).to(DEVICE)
    operands = *(t.float() for t in case[:3]), query, keys

    def step() -> list[Tensor]:
        # Leaves of its own: autograd ties a leaf to the stream that it is first used on.
        leaves = [t.detach().requires_grad_() for t in operands]
        x, up, down, query, keys = leaves
        score, index = product_key_topk(query, keys, 4, "triton")
        gate, index = (t.transpose(0, 1).flatten(1) for t in (score.softmax(-1), index))
        y = expert_mix(x, up, down, index, gate, "gelu", "triton")
        return [y, *torch.autograd.grad(y, leaves, dy)]

    expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = step()  # whatever waits for the device ends the capture with an error
    for t in actual:
        t.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
