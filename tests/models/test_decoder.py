import math

import pytest
import torch
from torch import Tensor

from isoflop.models import LAYERS, Config, Decoder, decoder
from isoflop.models.decoder import blocks_with_layer, causal_attention

# One small set of options per registered layer; a new layer must be added here.
OPTIONS = {
    "dense": {},
    "engram": {"table_size": 64, "heads": 2},
    "moe": {"granularity": 2, "expansion": 4},
    "moe_ec": {"granularity": 2, "expansion": 4},
    "moe_shared": {"granularity": 2, "expansion": 4},
    "moe_latent": {"granularity": 2, "expansion": 4, "reduction": 2},
    "remoe": {"granularity": 2, "expansion": 4},
    "pkm": {"n_slots": 64, "heads": 2, "top_k": 4, "d_key": 8},
    "peer": {"n_experts": 64, "heads": 2, "top_k": 4, "d_key": 8},
    "omnimoe": {"n_experts": 64, "top_k": 4},
    "ultramem": {"n_slots": 64, "top_k": 4, "d_key": 8},
    "monet": {"n_experts": 64, "heads": 2, "top_k": 2},
}
B, T, V = 4, 12, 40


def build(layer: str, **options: object) -> Decoder:
    torch.manual_seed(0)
    config = Config(
        layer=LAYERS[layer],
        options=OPTIONS[layer] | options,
        placement="all",
        width=16,
        depth=2,
        heads=2,
        vocabulary=V,
        context=T,
    )
    model = Decoder(config)
    torch.nn.init.normal_(model.head.weight)  # it starts at zero, which would hide everything
    return model


def change(model: Decoder, sequence: int, position: int) -> tuple[Tensor, Tensor]:
    """Logits before and after one token changes."""
    tokens_BT = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))
    changed = tokens_BT.clone()
    changed[sequence, position] = (changed[sequence, position] + 1) % V
    with torch.no_grad():
        return model(tokens_BT), model(changed)


def test_options_here_name_every_registered_layer() -> None:
    assert set(OPTIONS) == set(LAYERS)


@pytest.mark.parametrize("layer", OPTIONS)
def test_in_evaluation_a_later_token_never_changes_an_earlier_logit(layer: str) -> None:
    model = build(layer).eval()
    for position in (1, 5, T - 1):
        before, after = change(model, 0, position)
        torch.testing.assert_close(before[:, :position], after[:, :position], rtol=0, atol=1e-5)
        assert (before[0, position:] - after[0, position:]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        ("dense", {}),
        ("engram", {}),
        ("moe", {}),
        ("moe_ec", {}),
        ("pkm", {"query_norm": "layer"}),
        ("pkm", {"query_norm": "none"}),
        ("peer", {"query_norm": "layer"}),
        ("peer", {"query_norm": "none"}),
        ("omnimoe", {"logit_norm": "layer"}),
        ("omnimoe", {"logit_norm": "none"}),
        ("ultramem", {}),
        ("monet", {"logit_norm": "layer"}),
    ],
)
def test_in_training_neither_wherever_the_layer_allows_it(layer: str, options: dict) -> None:
    model = build(layer, **options).train()
    for position in (1, 5, T - 1):
        before, after = change(model, 0, position)
        torch.testing.assert_close(before[:, :position], after[:, :position], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", ["pkm", "peer", "omnimoe"])
def test_batch_norm_leaks_in_training_a_little_and_less_in_larger_batches(layer: str) -> None:
    """BatchNorm's statistics see the whole batch: one token of M moves them by about 1 / M."""

    def leak(copies: int) -> float:
        model = build(layer).train()
        generator = torch.Generator().manual_seed(1)
        tokens_BT = torch.randint(0, V, (B * copies, T), generator=generator)
        changed = tokens_BT.clone()
        changed[0, -1] = (changed[0, -1] + 1) % V
        with torch.no_grad():
            difference = (model(tokens_BT) - model(changed))[:, :-1]
        return float(difference.square().mean().sqrt())

    small, large = leak(1), leak(64)
    assert 0 < large < small / 4
    assert small < 0.5


def test_expert_choice_sees_other_sequences_but_not_the_future() -> None:
    model = build("moe_ec").train()
    for position in (1, 5, T - 1):
        before, after = change(model, 1, position)
        torch.testing.assert_close(before[:, :position], after[:, :position], rtol=0, atol=1e-5)
    before, after = change(model, 1, 0)
    assert (before[0] - after[0]).abs().max() > 1e-2  # the group is shared, as documented


@pytest.mark.parametrize("layer", [name for name in OPTIONS if name != "moe_ec"])
def test_other_sequences_do_not_matter_in_evaluation(layer: str) -> None:
    before, after = change(build(layer).eval(), 1, 0)
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", OPTIONS)
def test_gradients_in_float64(layer: str) -> None:
    torch.manual_seed(3)
    module = LAYERS[layer](8, **OPTIONS[layer]).double()
    x_BTD = torch.randn(4, 2, 8, dtype=torch.float64, requires_grad=True)
    module.see_tokens(torch.randint(V, (4, 2)))
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x_BTD, *module.parameters()), fast_mode=True)


def test_placement() -> None:
    assert blocks_with_layer("middle", 1) == {0}
    assert blocks_with_layer("middle", 4) == {2}
    assert blocks_with_layer("middle", 5) == {2}
    assert blocks_with_layer("all", 3) == {0, 1, 2}
    assert blocks_with_layer([0, 2], 3) == {0, 2}
    for wrong in ("centre", [3], []):
        with pytest.raises(ValueError, match="placement"):
            blocks_with_layer(wrong, 3)
    model = Decoder(Config(layer=LAYERS["pkm"], options=OPTIONS["pkm"], width=16, depth=3))
    kinds = [block.ffn.name for block in model.blocks]
    assert kinds == ["dense", "pkm", "dense"]


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    model = Decoder(Config(layer=LAYERS["dense"], width=16, vocabulary=V, context=T))
    tokens = torch.randint(0, V, (2, T))
    cross_entropy, auxiliary = model.loss(tokens, tokens)
    assert cross_entropy.item() == pytest.approx(math.log(V))
    assert auxiliary.item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_written_out_is_torch_s(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "CPU_HAS_BFLOAT16", True)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 33, 8, dtype=dtype).unbind(0)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(causal_attention(q, k, v), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("layer", OPTIONS)
def test_counts_add_up(layer: str) -> None:
    model = build(layer)
    counts = model.parameter_counts()
    parts = sum(counts[key] for key in ("embedding", "head", "backbone", "layer_total"))
    assert parts == sum(p.numel() for p in model.parameters())
    assert 0 < counts["layer_active"] <= counts["layer_total"]


def test_a_width_that_its_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 48 must be an even multiple of heads 5"):
        Config(layer=LAYERS["dense"], width=48, heads=5)
