"""Engram: its definition written as loops, its hashes, its control, what it may see."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models import LAYERS, Config, Decoder, Dense, Engram
from isoflop.models.engram import multipliers, primes

B, T, V = 2, 11, 40


def build(d_model: int = 16, **options: Any) -> Engram:
    torch.manual_seed(0)
    layer = Engram(d_model, **{"table_size": 50, "heads": 2} | options)
    with torch.no_grad():
        for parameter in layer.parameters():  # a zero kernel and unit norms would hide faults
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def tokens(seed: int = 1, high: int = V) -> Tensor:
    return torch.randint(high, (B, T), generator=torch.Generator().manual_seed(seed))


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean() + torch.finfo(x.dtype).eps).sqrt() * weight


def rows_of(sequence: list[int], t: int, longest: int, sizes: list[int]) -> list[int]:
    """Rows of the tables of the n-grams that end at position t, with Python's integers."""
    odd = multipliers(longest).tolist()
    heads = len(sizes) // (longest - 1)
    rows = []
    for n in range(2, longest + 1):
        mixed = 0
        for back in range(n):
            number = sequence[t - back] + 1 if t >= back else 0  # 0 before the start
            mixed ^= number * odd[back]
        for head in range(heads):
            table = (n - 2) * heads + head
            rows.append(sum(sizes[:table]) + mixed % sizes[table])
    return rows


def naive(layer: Engram, x_BTD: Tensor, tokens_BT: Tensor, sizes: list[int]) -> Tensor:
    """The definition, token by token."""
    longest = layer.options.longest
    outputs = []
    for x_TD, sequence in zip(x_BTD, tokens_BT.tolist(), strict=True):
        values = []
        for t, x in enumerate(x_TD):
            e = torch.cat([layer.table_RW[row] for row in rows_of(sequence, t, longest, sizes)])
            q = rms_norm(x, layer.query_norm.weight)
            k = rms_norm(layer.key.weight @ e, layer.key_norm.weight)
            z = (q * k).sum() / math.sqrt(len(x))
            values.append((z.sign() * z.abs().sqrt()).sigmoid() * (layer.value.weight @ e))
        for t, x in enumerate(x_TD):
            mixed = torch.zeros_like(x)
            for tap in range(4):
                if t - tap * longest >= 0:
                    value = rms_norm(values[t - tap * longest], layer.value_norm.weight)
                    mixed = mixed + layer.kernel_DK[:, tap] * value
            outputs.append(layer.ffn(x) + values[t] + F.silu(mixed))
    return torch.stack(outputs).view_as(x_BTD)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [53, 59, 61, 67]),
        ({"table_size": 53, "longest": 2}, [53, 59]),
        ({"heads": 1, "longest": 4}, [53, 59, 61]),
        ({"table_size": 1}, [1, 1, 1, 1]),
    ],
)
def test_definition_and_gradients(options: dict[str, Any], sizes: list[int]) -> None:
    layer = build(**options).double()
    x_BTD = torch.randn(B, T, 16, dtype=torch.float64, requires_grad=True)
    leaves = [x_BTD, *layer.parameters()]
    layer.see_tokens(tokens())
    y_BTD, expected = layer(x_BTD), naive(layer, x_BTD, tokens(), sizes)
    torch.testing.assert_close(y_BTD, expected)
    weight = torch.randn_like(y_BTD)
    gradients = (torch.autograd.grad((y * weight).sum(), leaves) for y in (y_BTD, expected))
    for gradient, of_naive in zip(*gradients, strict=True):
        assert of_naive.abs().max() > 0
        torch.testing.assert_close(gradient, of_naive)


def test_hashes_of_the_largest_ids_are_those_of_whole_numbers() -> None:
    layer = build(table_size=1000, longest=8)
    tokens_BT = 2**22 - 1 - tokens()
    layer.see_tokens(tokens_BT)
    sizes = layer.sizes_NH.flatten().tolist()
    for sequence, rows in zip(tokens_BT.tolist(), layer.rows_BTS.tolist(), strict=True):
        assert rows == [rows_of(sequence, t, 8, sizes) for t in range(T)]


def test_equal_n_grams_read_equal_rows_and_others_do_not() -> None:
    layer = build(table_size=10_000, heads=1)
    sequence = torch.tensor([[7, 1, 2, 3, 9, 1, 2, 3, 2, 3]])
    layer.see_tokens(sequence)
    pairs, triples = layer.rows_BTS[0].T.tolist()
    assert pairs[3] == pairs[7] == pairs[9]  # 2 3
    assert triples[3] == triples[7] != triples[9]  # 1 2 3, and not 3 2 3
    different = {tuple(sequence[0, max(0, t - 1) : t + 1].tolist()) for t in range(10)}
    assert len(set(pairs)) == len(different)
    layer.see_tokens(torch.tensor([[0, 5], [5, 5]]))
    start, second = layer.rows_BTS[0, 0, 0], layer.rows_BTS[1, 1, 0]
    layer.see_tokens(torch.tensor([[0, 0]]))
    assert layer.rows_BTS[0, 1, 0] != start  # no token is what stands before the start
    assert second != start


def test_ten_thousand_n_grams_spread_over_a_table() -> None:
    layer = build(table_size=5000, heads=2)
    every = torch.cartesian_prod(torch.arange(100), torch.arange(100))
    layer.see_tokens(every)
    rows = layer.rows_BTS[:, 1, :2]  # of pairs, in both tables
    for head in range(2):
        used = len(rows[:, head].unique())
        assert used == pytest.approx(5000 * (1 - math.exp(-2)), rel=0.05)  # as if at random
    # Different table sizes: n-grams that share a row in one table do not in the other.
    assert len(rows.unique(dim=0)) > 9900


def test_the_tables_have_different_prime_sizes() -> None:
    assert [p for p, _ in zip(primes(1), range(8), strict=False)] == [2, 3, 5, 7, 11, 13, 17, 19]
    layer = build(table_size=4096, heads=8)
    sizes = layer.sizes_NH.flatten().tolist()
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 4099
    assert sum(sizes) == len(layer.table_RW)


def test_rows_and_outputs_see_no_later_token() -> None:
    layer = build().eval()
    x_BTD = torch.randn(B, T, 16)
    for position in (1, 5, T - 1):
        layer.see_tokens(tokens())
        before, rows = layer(x_BTD), layer.rows_BTS
        changed, x_changed = tokens(), x_BTD.clone()
        changed[:, position:] = (changed[:, position:] + 1) % V
        x_changed[:, position:] += 1
        layer.see_tokens(changed)
        assert torch.equal(layer.rows_BTS[:, :position], rows[:, :position])
        assert (layer.rows_BTS[:, position] != rows[:, position]).any()
        torch.testing.assert_close(layer(x_changed)[:, :position], before[:, :position])


def test_to_the_control_all_tokens_are_alike() -> None:
    x_BTD = torch.randn(B, T, 16)
    for size, alike in ((1, True), (50, False)):
        layer = build(table_size=size)
        outputs = []
        for seed in (1, 2):
            layer.see_tokens(tokens(seed))
            outputs.append(layer(x_BTD))
        assert torch.equal(*outputs) is alike
    control, layer = Engram(64, table_size=1), Engram(64)
    assert control.flops_per_token() == layer.flops_per_token()
    assert control.active_parameters() == layer.active_parameters()
    assert len(control.table_RW) == 16


def test_counts_written_out() -> None:
    layer = Engram(64, table_size=1000, heads=4, longest=3, memory_ratio=0.5)
    dense = Dense(64)
    e = 2 * 32  # pairs and triples
    projections, gate, convolution = 2 * 2 * e * 64, 2 * 64, 2 * 4 * 64
    assert layer.flops_per_token() == dense.flops_per_token() + projections + gate + convolution
    assert layer.routing_flops_per_token() == 0
    norms = 3 * 64
    assert layer.active_parameters() == (
        dense.active_parameters() + 2 * e * 64 + norms + 4 * 64 + 8 * 8
    )
    assert layer.tables() == [layer.table_RW]


def test_tables_learn_five_times_as_fast_without_decay() -> None:
    (group,) = build().parameter_groups()
    assert (group.rate, group.decay, group.constant) == (5.0, 0.0, False)
    assert build(table_rate=1.0).parameter_groups()[0].rate == 1


def test_load_counts_the_rows_that_are_read() -> None:
    layer = build()
    layer.see_tokens(tokens())
    load = layer.load(torch.zeros(B, T, 16))
    assert len(load) == len(layer.table_RW)
    assert load.sum() == B * T * 4
    assert load[layer.rows_BTS[0, 0, 0]] > 0


def test_without_tokens_of_this_batch_it_refuses() -> None:
    layer = build()
    with pytest.raises(ValueError, match="call see_tokens"):
        layer(torch.randn(B, T, 16))
    layer.see_tokens(tokens()[:, :5])
    with pytest.raises(ValueError, match="call see_tokens"):
        layer(torch.randn(B, T, 16))


def test_a_decoder_shows_every_layer_its_tokens() -> None:
    config = Config(Engram, {"heads": 2}, "all", 16, 2, 2, V, T)
    model = Decoder(config)
    for seed in (1, 2):
        model(tokens(seed))
        alone = Engram(16, heads=2)
        alone.see_tokens(tokens(seed))
        assert all(torch.equal(layer.rows_BTS, alone.rows_BTS) for layer in model.tested)
    assert not any("rows" in key or "NH" in key for key in model.state_dict())


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "engram"])
def test_the_other_layers_are_shown_nothing(name: str) -> None:
    assert "see_tokens" not in {key for kind in LAYERS[name].__mro__[:-3] for key in vars(kind)}


def test_compiled_blocks_see_the_tokens_of_every_batch() -> None:
    torch._dynamo.reset()
    graphs = []

    def collect(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    model = Decoder(Config(Engram, {"heads": 2}, [1], 16, 3, 2, V, T))
    torch.nn.init.normal_(model.head.weight)
    expected = [model(tokens(seed)) for seed in range(4)]
    for block in model.blocks:
        block.compile(backend=collect, dynamic=False, fullgraph=True)
    for seed in range(4):
        torch.testing.assert_close(model(tokens(seed)), expected[seed])
    assert len(graphs) == 2  # the dense blocks, and the layer's
    torch.compile(model.loss, fullgraph=True, backend=collect)(tokens(), tokens())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"table_size": 0}, "table_size and heads must be at least 1 and longest 2 to 8, not 0"),
        ({"heads": 0}, "table_size and heads must be at least 1"),
        ({"longest": 1}, "longest 2 to 8, not 4096, 8 and 1"),
        ({"memory_ratio": 0.0}, "memory_ratio and table_rate must be positive"),
        ({"table_rate": -1.0}, "memory_ratio and table_rate must be positive"),
        ({"ratio": 0.0}, "ratio must be positive"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Engram(16, **options)
