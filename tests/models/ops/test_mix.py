"""The expert mix and the value sum: every back end against a float64 reference.

Triton's kernels run where there is a GPU; where there is none, `test_triton_in_the_interpreter`
runs this file again with Triton's interpreter, which takes CPU tensors.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isoflop.models.ops import bag_mix, expert_mix, product_key_topk, value_sum

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON = importlib.util.find_spec("triton") is not None
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")

needs_triton = pytest.mark.skipif(not TRITON, reason="triton is not installed")
runs_triton = pytest.mark.skipif(
    not TRITON or (DEVICE.type == "cpu" and not INTERPRETED),
    reason="no GPU here, or triton is not installed",
)
needs_gpu = pytest.mark.skipif(DEVICE.type == "cpu", reason="no GPU here")

SPLIT = 20  # pairs of one expert per program in these tests, so that small cases split
FAST = ["bag", "dense", pytest.param("triton", marks=runs_triton)]


def routing(kind: str, M: int, P: int, N: int, generator: torch.Generator) -> Tensor:
    """Expert indices [M, P]: "uniform", "zipf" (skewed, repeats within a token), "one" (a single
    hot expert), "few" (three experts, all others empty) or "brim" (one pair more than Triton's
    kernels sum in one program, as `split` sets it)."""
    if kind == "brim":
        return (torch.arange(M * P) // (SPLIT + 1)).view(M, P)
    if kind == "one":
        return torch.full((M, P), N - 1)
    if kind == "few":
        return torch.randint(3, (M, P), generator=generator)
    weight = torch.ones(N) if kind == "uniform" else 1 / torch.arange(1, N + 1)
    return torch.multinomial(weight, M * P, replacement=True, generator=generator).view(M, P)


def mix_case(kind: str, M: int, P: int, D: int, N: int, seed: int) -> tuple[Tensor, ...]:
    """x, up, down, gate, and dy, in float64, and the index."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    x, up, down, gate, dy = (
        normal(M, D),
        normal(N, D) * D**-0.5,
        normal(N, D) * D**-0.5,
        normal(M, P),
        normal(M, D),
    )
    return x, up, down, gate, dy, routing(kind, M, P, N, g)


def on_device(case: tuple[Tensor, ...], backend: str) -> tuple[Tensor, ...]:
    return tuple(t.to(DEVICE) for t in case) if backend == "triton" else case


def gradients(
    function: Callable[..., Tensor], operands: list[Tensor], dy: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """[y, one gradient per operand]. `dtype` is that of all operands but the last, the gate."""
    *leaves, gate = operands
    leaves = [t.to(dtype).requires_grad_() for t in leaves]
    leaves.append(gate.to(torch.promote_types(dtype, torch.float32)).requires_grad_())
    y = function(*leaves)
    return [t.cpu() for t in (y, *torch.autograd.grad(y, leaves, dy.to(y.dtype)))]


def run_mix(
    case: tuple[Tensor, ...], backend: str, dtype: torch.dtype, activation: str = "gelu"
) -> list[Tensor]:
    x, up, down, gate, dy, index = on_device(case, backend)

    def function(x: Tensor, up: Tensor, down: Tensor, gate: Tensor) -> Tensor:
        return expert_mix(x, up, down, index, gate, activation, backend)

    return gradients(function, [x, up, down, gate], dy, dtype)


def run_sum(case: tuple[Tensor, ...], backend: str, dtype: torch.dtype) -> list[Tensor]:
    _, _, values, gate, dy, index = on_device(case, backend)
    return gradients(lambda v, g: value_sum(v, index, g, backend), [values, gate], dy, dtype)


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Equal up to `tolerance` of each tensor's own size (root mean square)."""
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = (a.double() - b).norm() / b.norm()
        assert error < tolerance, f"output {place}: relative error {error:.1e}"


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    if TRITON:
        monkeypatch.setattr("isoflop.models.ops.triton_mix.SPLIT", SPLIT)


@pytest.mark.usefixtures("poisoned", "split")
@pytest.mark.parametrize("d", [64, 100, 256, 768])
@pytest.mark.parametrize("kind", ["uniform", "zipf", "one", "few", "brim"])
@pytest.mark.parametrize("backend", FAST)
def test_equals_the_float64_reference(backend: str, kind: str, d: int) -> None:
    for seed, activation in enumerate(("gelu", "relu")):
        case = mix_case(kind, 12, 7, d, 10, seed)
        expected = run_mix(case, "reference", torch.float64, activation)
        assert_near(run_mix(case, backend, torch.float32, activation), expected, 1e-6)
    expected = run_sum(case, "reference", torch.float64)
    assert_near(run_sum(case, backend, torch.float32), expected, 1e-6)


def test_reference_is_the_sum_it_states() -> None:
    x, up, down, gate, _, index = mix_case("zipf", 5, 3, 4, 6, seed=0)
    for m in range(5):
        terms = [
            gate[m, p] * torch.relu(x[m] @ up[index[m, p]]) * down[index[m, p]] for p in range(3)
        ]
        y = expert_mix(x, up, down, index, gate, "relu", "reference")
        torch.testing.assert_close(y[m], sum(terms))
        terms = [gate[m, p] * down[index[m, p]] for p in range(3)]
        y = value_sum(down, index, gate, "reference")
        torch.testing.assert_close(y[m], sum(terms))


@pytest.mark.parametrize("n", [33, 40_000])  # keys sorted as 16 and as 32 bit integers
@pytest.mark.parametrize("m", [4, 1300, 5000])  # under, near and over the size for a radix sort
def test_sorting_is_stable_at_every_size(n: int, m: int) -> None:
    keys = torch.randint(n, (m * 8,), generator=torch.Generator().manual_seed(m))
    expected = keys.sort(stable=True).indices
    assert torch.equal(bag_mix.stable_argsort(keys, n), expected)


@pytest.mark.parametrize("backend", ["reference", "bag", "dense"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_gradcheck(backend: str, activation: str) -> None:
    x, up, down, gate, _, index = mix_case("zipf", 4, 3, 5, 7, seed=1)
    leaves = [t.requires_grad_() for t in (x, up, down, gate)]

    def mix(x: Tensor, up: Tensor, down: Tensor, gate: Tensor) -> Tensor:
        return expert_mix(x, up, down, index, gate, activation, backend)

    assert torch.autograd.gradcheck(mix, leaves)
    assert torch.autograd.gradcheck(lambda v, g: value_sum(v, index, g, backend), leaves[2:])


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("backend", ["bag", pytest.param("triton", marks=runs_triton)])
def test_is_bitwise_repeatable_on_any_number_of_threads(backend: str) -> None:
    case = mix_case("zipf", 20 if INTERPRETED else 700, 16, 32, 50, seed=2)
    threads = torch.get_num_threads()
    for run in (run_mix, run_sum):
        first = run(case, backend, torch.float32)
        torch.set_num_threads(3 - min(threads, 2))  # another number than before
        second = run(case, backend, torch.float32)
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_mixed_precision_loses_only_the_rounding_of_x_and_y() -> None:
    case = mix_case("zipf", 64, 8, 64, 100, seed=3)
    x, up, down, gate, dy, index = case
    x = x.bfloat16()
    leaves = [t.float().requires_grad_() for t in (up, down, gate)]
    with torch.autocast("cpu", torch.bfloat16):
        y = expert_mix(x, *leaves[:2], index, leaves[2], "gelu")
    assert y.dtype == torch.bfloat16
    found = [y, *torch.autograd.grad(y, leaves, dy.bfloat16())]
    exact = (x.double(), up, down, gate, dy.bfloat16().double(), index)
    y_exact, _, *grads_exact = run_mix(exact, "reference", torch.float64)
    assert_near(found[:1], [y_exact], 2**-8)
    assert_near(found[1:], grads_exact, 1e-5)


@pytest.mark.usefixtures("poisoned", "split")
@pytest.mark.parametrize("backend", [pytest.param("triton", marks=runs_triton)])
def test_bfloat16_sums_in_float32(backend: str) -> None:
    """Only results are rounded: as near to float64 on the same input as bfloat16 can be."""
    case = tuple(
        t if place in (3, 5) else t.bfloat16().double()
        for place, t in enumerate(mix_case("zipf", 12, 7, 100, 10, seed=7))
    )
    for run in (run_mix, run_sum):
        expected = run(case, "reference", torch.float64)
        assert_near(run(case, backend, torch.bfloat16), expected, 2**-8)


def most_bytes_of_one_operator(function: Callable[[], object]) -> int:
    """The most memory that any single call of an operator allocated, its callees left out."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    return max(event.self_cpu_memory_usage for event in profile.events())


def test_bag_makes_no_tensor_of_tokens_pairs_and_width() -> None:
    M, P, D, N = 512, 64, 48, 300
    case = mix_case("uniform", M, P, D, N, seed=4)
    whole = 4 * M * P * D
    for run in (run_mix, run_sum):
        assert most_bytes_of_one_operator(partial(run, case, "bag", torch.float32)) < whole / 8
    # the reference does, and the profiler sees it
    assert most_bytes_of_one_operator(lambda: run_mix(case, "reference", torch.float32)) >= whole


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_are_counted_exactly(device: str) -> None:
    M, P, D, N = 6, 5, 7, 40
    x, up, down = (torch.empty(n, D, device=device, requires_grad=True) for n in (M, N, N))
    gate = torch.empty(M, P, device=device, requires_grad=True)
    index = torch.zeros(M, P, dtype=torch.int64, device=device)
    for function, each in (
        (lambda: expert_mix(x, up, down, index, gate, "gelu"), 4),
        (lambda: value_sum(down, index, gate), 2),
    ):
        with FlopCounterMode(display=False) as counter:
            y = function()
        assert counter.get_total_flops() == each * M * P * D
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        assert counter.get_total_flops() == 2 * each * M * P * D


def test_meta_takes_the_reference_path_and_traces() -> None:
    x, table = torch.empty(6, 8, device="meta"), torch.empty(10**6, 8, device="meta")
    gate = torch.empty(6, 4, device="meta")
    index = torch.empty(6, 4, dtype=torch.int64, device="meta")

    def both(x: Tensor, table: Tensor, index: Tensor, gate: Tensor) -> Tensor:
        return expert_mix(x, table, table, index, gate, "relu") + value_sum(table, index, gate)

    graph = torch.jit.trace(both, (x, table, index, gate), check_trace=False).inlined_graph
    kinds = {node.kind() for node in graph.nodes() if not node.kind().startswith("prim::")}
    assert kinds <= {"aten::einsum", "aten::embedding", "aten::relu", "aten::mul", "aten::add"} | {
        "aten::to"
    }


def test_fvcore_finds_the_operators_by_name() -> None:
    from fvcore.nn import FlopCountAnalysis

    class Both(torch.nn.Module):
        def forward(self, x: Tensor, up: Tensor, index: Tensor, gate: Tensor) -> Tensor:
            return expert_mix(x, up, up, index, gate, "gelu", "bag") + value_sum(
                up, index, gate, "bag"
            )

    case = torch.randn(6, 8), torch.randn(9, 8), torch.randint(9, (6, 4)), torch.randn(6, 4)
    seen = []

    def handle(name: str) -> Callable[..., int]:
        return lambda inputs, outputs: seen.append(name) or 1

    analysis = FlopCountAnalysis(Both(), case).unsupported_ops_warnings(False)
    for name in ("isoflop::expert_mix", "isoflop::value_sum"):
        analysis.set_op_handle(name, handle(name))
    assert analysis.total() == 2
    assert set(seen) == {"isoflop::expert_mix", "isoflop::value_sum"}


def test_operators_keep_the_rules_of_torch_library() -> None:
    x, up, down, gate, _, index = mix_case("uniform", 6, 4, 8, 9, seed=5)
    index = index.to(torch.int32)
    x, up, down, gate = (t.float().requires_grad_() for t in (x, up, down, gate))
    operands = (x, up, down, index, gate, "gelu", "bag")
    torch.library.opcheck(torch.ops.isoflop.expert_mix.default, operands)
    torch.library.opcheck(torch.ops.isoflop.value_sum.default, (down, index, gate, "bag"))


def test_compiles_whole() -> None:
    case = mix_case("zipf", 20, 4, 16, 30, seed=6)
    x, up, down, gate, dy, index = case
    compiled = torch.compile(
        lambda x, up, down, gate: expert_mix(x, up, down, index, gate, "gelu"),
        fullgraph=True,
        backend="aot_eager",
    )
    found = gradients(compiled, [x, up, down, gate], dy, torch.float32)
    expected = run_mix(case, "bag", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_bad_input_is_refused() -> None:
    x, up, index, gate = torch.randn(3, 4), torch.randn(5, 4), torch.zeros(3, 2).long(), None
    gate = torch.randn(3, 2)
    with pytest.raises(ValueError, match="activation 'tanh' is unknown: one of gelu, relu"):
        expert_mix(x, up, up, index, gate, "tanh")
    with pytest.raises(ValueError, match="back end 'fast' is unknown"):
        expert_mix(x, up, up, index, gate, "gelu", "fast")
    with pytest.raises(ValueError, match=r"must be \[M, D\], \[N, D\] and \[N, D\]"):
        expert_mix(x, up, up[:, :3], index, gate, "gelu")
    with pytest.raises(ValueError, match=r"must both be \[M, P\]"):
        value_sum(up, index, gate[:, :1])
    with pytest.raises(ValueError, match="'bag' is impossible here: it runs on a CPU only"):
        value_sum(up.to("meta"), index.to("meta"), gate.to("meta"), "bag")
    with pytest.raises(ValueError, match="'bag' is impossible here: it needs as many rows as pair"):
        value_sum(up, index.repeat(1, 3), gate.repeat(1, 3), "bag")
    with pytest.raises(ValueError, match="'triton' is impossible here: it runs on CUDA only"):
        value_sum(up.to("meta"), index.to("meta"), gate.to("meta"), "triton")


@pytest.mark.parametrize(("n", "fastest"), [(8, "dense"), (9, "bag")])
def test_auto_takes_dense_for_few_experts(n: int, fastest: str) -> None:
    x, up, down, gate, _, index = mix_case("uniform", 3, 2, 4, n, seed=0)
    auto, forced = (expert_mix(x, up, down, index, gate, "gelu", b) for b in ("auto", fastest))
    assert torch.equal(auto, forced)


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this runs in the interpreter already")
@pytest.mark.timeout(600)
def test_triton_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-k", "triton", "--no-header", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(not INTERPRETED, reason="run by test_triton_in_the_interpreter")
def test_triton_plans_without_asking_the_device() -> None:
    """Fake tensors have no values: whatever waits for one, or for a size, raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from isoflop.models.ops import triton_mix

    with FakeTensorMode():
        plan = triton_mix._plan(torch.empty(6, 4, dtype=torch.int32), 10)
    assert plan.order.shape == (24,)


@needs_gpu
@runs_triton
def test_triton_step_in_a_cuda_graph() -> None:
    case = on_device(mix_case("zipf", 500, 8, 64, 400, seed=8), "triton")
    x, up, down = (t.float().requires_grad_() for t in case[:3])
    dy = case[4].float()
    query, keys = torch.randn(2, 2, 500, 8).to(DEVICE), torch.randn(2, 1, 8, 20).to(DEVICE)
    leaves = (x, up, down, query.requires_grad_(), keys.requires_grad_())

    def step() -> list[Tensor]:
        score, index = product_key_topk(query, keys, 4, "triton")
        gate, index = (t.transpose(0, 1).flatten(1) for t in (score.softmax(-1), index))
        y = expert_mix(x, up, down, index, gate, "gelu", "triton")
        return [y, *torch.autograd.grad(y, leaves, dy)]

    expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()  # whatever waits for the device ends the capture with an error
    for t in found:
        t.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
