import pytest
import torch
import torch.nn.functional as F

from examples.memory_plus import MemoryPlus


@pytest.mark.parametrize("query_norm", ["layer", "none"])
def test_the_output_is_that_of_loops_over_tokens_heads_and_slots(query_norm: str) -> None:
    torch.manual_seed(0)
    layer = MemoryPlus(12, n_slots=25, heads=2, top_k=3, d_key=8, query_norm=query_norm)
    layer = layer.double().eval()
    keys = layer.retrieval.keys  # [2, heads, d_key / 2, 5]
    x_BTD = torch.randn(2, 4, 12, dtype=torch.float64)
    for x_D, output_D in zip(x_BTD.flatten(0, 1), layer(x_BTD).flatten(0, 1), strict=True):
        query_HK = (layer.retrieval.query.weight @ x_D).view(2, 8)
        if query_norm == "layer":
            query_HK = F.layer_norm(query_HK, (8,))
        y_D = torch.zeros(12, dtype=torch.float64)
        for head in range(2):
            first, second = query_HK[head].split(4)
            scores = torch.stack(  # every slot, no product-key short cut
                [
                    first @ keys[0, head, :, slot // 5] + second @ keys[1, head, :, slot % 5]
                    for slot in range(25)
                ]
            )
            best = scores.argsort(descending=True)[:3]
            for weight, slot in zip(scores[best].softmax(-1), best, strict=True):
                y_D += weight * layer.values_ND[slot]
        gated_D = y_D * F.silu(layer.gate.weight @ x_D)
        torch.testing.assert_close(output_D, layer.out.weight @ gated_D)


def test_values_are_a_table_and_few_are_active() -> None:
    layer = MemoryPlus(16, n_slots=64, heads=2, top_k=4, d_key=8)
    assert [id(table) for table in layer.tables()] == [id(layer.values_ND)]
    total = sum(parameter.numel() for parameter in layer.parameters())
    assert layer.active_parameters() == total - (64 - 2 * 4) * 16


def test_slots_that_are_no_square_are_refused() -> None:
    with pytest.raises(ValueError, match="no square"):
        MemoryPlus(16, n_slots=60)
