"""Speed of the operators against other implementations, on a GPU or, without one, a CPU.

    .ci/speed NAME

builds the kernels, checks them, times them, stores in results/benchmarks/NAME.json what
`isoflop.analysis.report.benchmarks` derives tables from, and prints these.

All in one process; every round times each rival, then ours: forward (no gradients), and forward +
backward.
Bytes are of the rows that must be read and written: with e bytes an element and M pairs of width d,
2 e M d forward and three times that forward + backward for the expert mix, half of it for the value
sum; for a retrieval queries, sub-keys, scores and indices; for MoE experts their weights, and each
row in, hidden and out.

Rivals that are not installed (peer-pytorch, product-key-memory, liger-kernel) are left out. What is
asserted holds in a plain process: with a worker's allocator settings rivals that allocate more gain
more, which is stored and shown.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.analysis.report.benchmarks import COLUMNS, LEFT, Measurements, heading, rows_of
from isoflop.analysis.report.markdown import table
from isoflop.models import PEER, PKM
from isoflop.models.ops import expert_ffn, expert_mix, product_key_topk, value_sum
from tests.benchmarks.machine import DEVICE, DTYPE, GPU, LIKE_A_WORKER, describe
from tests.benchmarks.race import Implementation, race

pytest.importorskip("pytest_benchmark")

# tokens, heads, k, experts, width
GATHERS = (
    [(65536, 8, 16, 1024**2, d) for d in (256, 512, 1024)]
    if GPU
    else [(4096, 4, 16, n**2, 256) for n in (128, 256)]
)
# tokens, experts, experts per token, width, expert width: granularity 1, 8 and 16, expansion 8
MOES = [
    (M, 8 * g, g, d, 4 * d // g)
    for M, d in [(65536, 1024) if GPU else (2048, 128)]
    for g in (1, 8, 16)
]


@pytest.fixture(scope="module")
def problems(request: pytest.FixtureRequest) -> Iterator[list[dict[str, Any]]]:
    """The results that `race` adds, printed at the end."""
    results: list[dict[str, Any]] = []
    yield results
    if not results:
        return
    measured = Measurements.model_validate(
        {
            "machine_info": describe(),
            "datetime": str(date.today()),
            "benchmarks": [{"extra_info": result} for result in results],
        }
    )
    rows = [row for problem in measured.problems() for row in rows_of(measured, problem)]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{heading(measured)}\n{table(COLUMNS, rows, LEFT)}")


def sizes(M: int, heads: int, k: int, N: int, d: int) -> str:
    return f"T {M}, h {heads}, k {k}, N {N}, d {d}"


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = DTYPE) -> list[Tensor]:
    return [
        torch.randn(shape, dtype=dtype, device=DEVICE).div_(math.sqrt(shape[-1])).requires_grad_()
        for shape in shapes
    ]


def pairs(M: int, P: int, N: int) -> tuple[Tensor, Tensor]:
    """Uniform indices [M, P], and gates."""
    index = torch.randint(N, (M, P), device=DEVICE)
    return index, torch.rand(M, P, device=DEVICE).div_(P).requires_grad_()


@pytest.mark.parametrize(("M", "heads", "k", "N", "d"), GATHERS)
def test_expert_mix(
    benchmark: Any, problems: Any, M: int, heads: int, k: int, N: int, d: int
) -> None:
    torch.manual_seed(0)
    x, up, down = leaves((M, d), (N, d), (N, d))
    index, gate = pairs(M, heads * k, N)
    dy = torch.randn_like(x)
    gather = torch.compile(expert_mix, dynamic=False)

    def implementation(function: Callable[..., Tensor], backend: str) -> Implementation:
        return Implementation(
            lambda: function(x, up, down, index, gate, "gelu", backend), [x, up, down, gate], dy
        )

    implementations = {
        "ours": implementation(expert_mix, "auto"),
        "gather, einsum": implementation(expert_mix, "reference"),
        "gather, compiled": implementation(gather, "reference"),
    }
    moved = 2 * M * heads * k * d * x.element_size()
    ratios = race(
        benchmark, problems, f"expert mix: {sizes(M, heads, k, N, d)}", implementations, moved
    )
    if not GPU and not LIKE_A_WORKER:
        assert ratios["gather, einsum"] > (6 if N == 128**2 else 4)


@pytest.mark.parametrize(("M", "heads", "k", "N", "d"), GATHERS)
def test_value_sum(
    benchmark: Any, problems: Any, M: int, heads: int, k: int, N: int, d: int
) -> None:
    torch.manual_seed(0)
    (values,) = leaves((N, d))
    index, gate = pairs(M, heads * k, N)
    dy = torch.randn(M, d, dtype=DTYPE, device=DEVICE)
    functions: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: value_sum(values, index, gate),
        "gather, einsum": lambda: value_sum(values, index, gate, "reference"),
        "F.embedding_bag": lambda: F.embedding_bag(
            index, values, per_sample_weights=gate.to(DTYPE), mode="sum"
        ),
    }
    implementations = {
        name: Implementation(function, [values, gate], dy) for name, function in functions.items()
    }
    moved = M * heads * k * d * values.element_size()
    race(benchmark, problems, f"value sum: {sizes(M, heads, k, N, d)}", implementations, moved)


@pytest.mark.parametrize(("M", "heads", "k", "N"), sorted({gather[:4] for gather in GATHERS}))
def test_retrieval(benchmark: Any, problems: Any, M: int, heads: int, k: int, N: int) -> None:
    """The best k of N product keys, against products and `torch.topk`; sub-queries of 64."""
    torch.manual_seed(0)
    n = math.isqrt(N)
    query, keys = leaves((2, heads, M, 64), (2, heads, 64, n), dtype=torch.float32)
    dy = torch.randn(heads, M, k, device=DEVICE)

    def implementation(backend: str) -> Implementation:
        return Implementation(
            lambda: product_key_topk(query, keys, k, backend)[0], [query, keys], dy
        )

    implementations = {
        "ours": implementation("auto"),
        "products, torch.topk": implementation("reference"),
    }
    moved = 4 * (query.numel() + keys.numel() + dy.numel()) + 8 * dy.numel()
    ratios = race(
        benchmark,
        problems,
        f"retrieval: T {M}, h {heads}, k {k}, N {N}",
        implementations,
        moved,
        flops_forward=4 * heads * M * 64 * n,
    )
    if not LIKE_A_WORKER:
        assert ratios["products, torch.topk"] > 1  # or it should be the back end here


def layer_implementation(layer: nn.Module, x: Tensor) -> Implementation:
    def forward() -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=GPU):
            return layer(x)

    layer.to(DEVICE)
    trained = [p for p in layer.parameters() if p.requires_grad]
    return Implementation(forward, [x, *trained], torch.randn_like(x))


@pytest.mark.parametrize(("M", "heads", "k", "N", "d"), GATHERS)
@pytest.mark.parametrize("name", ["peer", "pkm"])
def test_layer(
    benchmark: Any, problems: Any, name: str, M: int, heads: int, k: int, N: int, d: int
) -> None:
    """Retrieval included; ours and the rival have queries of 2 * 64."""
    torch.manual_seed(0)
    (x,) = leaves((8, M // 8, d), dtype=torch.float32)
    options = {"heads": heads, "top_k": k, "d_key": 128}
    if name == "peer":
        rival = pytest.importorskip("PEER_pytorch").PEER(
            d,
            heads=heads,
            num_experts=N,
            num_experts_per_head=k,
            dim_key=64,
            non_competing_scores=False,  # its default keeps one expert a head
        )
        implementations = {"ours": layer_implementation(PEER(d, n_experts=N, **options), x)}
        implementations["peer-pytorch"] = layer_implementation(rival, x)
    else:
        rival = pytest.importorskip("product_key_memory").PKM(
            d, heads=heads, num_keys=math.isqrt(N), topk=k, dim_head=64
        )
        implementations = {"ours": layer_implementation(PKM(d, n_slots=N, **options), x)}
        implementations["product-key-memory"] = layer_implementation(rival, x)
    moved = (2 if name == "peer" else 1) * M * heads * k * d * DTYPE.itemsize
    ratios = race(
        benchmark, problems, f"{name} layer: {sizes(M, heads, k, N, d)}", implementations, moved
    )
    if name == "peer" and "peer-pytorch" in ratios and not LIKE_A_WORKER:
        assert ratios["peer-pytorch"] > 5


def liger_implementation(
    x: Tensor, w_in: Tensor, w_out: Tensor, index: Tensor, gate: Tensor, dy: Tensor
) -> Implementation:
    """Liger keeps both weights transposed."""
    from liger_kernel.ops import LigerFusedMoEFunction

    up, down = (w.detach().transpose(1, 2).contiguous().requires_grad_() for w in (w_in, w_out))
    chosen = index.to(torch.int32)
    return Implementation(
        lambda: LigerFusedMoEFunction.apply(x, up, down, chosen, gate), [x, up, down, gate], dy
    )


@pytest.mark.parametrize(("M", "E", "K", "d", "width"), MOES)
def test_experts(benchmark: Any, problems: Any, M: int, E: int, K: int, d: int, width: int) -> None:
    """SwiGLU experts, as Liger's kernel has them."""
    torch.manual_seed(0)
    x, w_in, w_out = leaves((M, d), (E, d, 2 * width), (E, width, d))
    gate, index = (torch.randn(M, E, device=DEVICE)).softmax(1).topk(K)
    gate.requires_grad_()
    dy = torch.randn_like(x)
    everything = [x, w_in, w_out, gate]

    def plain() -> Tensor:
        """Sort, gather, grouped products and scatter, as torchtitan and transformers do."""
        order = index.flatten().argsort(stable=True)
        ends = torch.bincount(index.flatten(), minlength=E).cumsum(0).to(torch.int32)
        value, gated = F.grouped_mm(x[order // K], w_in, offs=ends).chunk(2, -1)
        y = F.grouped_mm(F.silu(value) * gated, w_out, offs=ends)
        y = (y * gate.flatten()[order, None]).to(x.dtype)
        return torch.zeros_like(x).index_add(0, order // K, y)

    def dense() -> Tensor:
        value, gated = (x @ w_dense_in).chunk(2, -1)
        return (F.silu(value) * gated) @ w_dense_out

    w_dense_in, w_dense_out = leaves((d, 2 * width * K), (width * K, d))
    implementations = {
        "ours": Implementation(
            lambda: expert_ffn(x, w_in, w_out, index, gate, "swiglu"), everything, dy
        ),
        "grouped_mm, plain": Implementation(plain, everything, dy),
        "dense of equal FLOPs": Implementation(dense, [x, w_dense_in, w_dense_out], dy),
    }
    if GPU and importlib.util.find_spec("liger_kernel"):
        implementations["liger-kernel"] = liger_implementation(x, w_in, w_out, index, gate, dy)
    moved = x.element_size() * (w_in.numel() + w_out.numel() + M * K * (2 * d + 3 * width))
    race(
        benchmark,
        problems,
        f"experts: T {M}, E {E}, K {K}, d {d}, width {width}",
        implementations,
        moved,
        flops_forward=6 * M * K * d * width,
    )
