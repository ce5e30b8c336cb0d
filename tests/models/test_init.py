"""How every registered layer starts: the moments of its parameters, which nothing else would show.

A wrong initialisation trains, and only costs loss: a planted change of one passed every other test.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal

import pytest
import torch

from isoflop.models import LAYERS, Config, Decoder, decoder
from isoflop.models.decoder import causal_attention
from isoflop.models.monet import hidden_square
from isoflop.models.ultramem import score_norm

# name of the parameter -> its standard deviation at width d, and for a uniform one its bound
Stated = dict[str, Callable[[int], float]]
PRODUCT_KEYS = {"n_experts": 64**2, "heads": 2, "top_k": 4, "d_key": 32}
KEYS: Stated = {
    "retrieval.query.weight": lambda d: d**-0.5,
    "retrieval.keys": lambda d: 16**-0.5 / math.sqrt(3),  # uniform in +-1 / sqrt(d_key / 2)
}
GATES = [math.exp(NormalDist().inv_cdf((i - 0.375) / 32.25)) for i in range(1, 33)]
# 32 experts of which 4 are chosen: the sum of their squared gates makes up for itself.
GATE_NORM = math.hypot(*GATES[-4:]) / sum(GATES)
MOE: Stated = {
    "router.weight": lambda d: d**-0.5,
    "up_EDF": lambda d: d**-0.5,
    "down_EFD": lambda d: (4 * d / 4) ** -0.5,  # 1 / fan-in of experts of width d_ff / 4
}
SCORES = score_norm(64, 4) * 16**-0.6  # of slots that are chosen, at the start
# scales and offsets of norms that do not start at 1 and 0
SCALES = {"ultramem": {"query_norm.weight": 16**-0.4, "key_norm.weight": 16**-0.4}}
CASES: dict[str, tuple[str, dict[str, object], Stated]] = {
    "dense": (
        "dense",
        {},
        {"up.weight": lambda d: d**-0.5, "down.weight": lambda d: (4 * d) ** -0.5},
    ),
    "engram": (
        "engram",
        {"table_size": 500},
        {
            "ffn.up.weight": lambda d: d**-0.5,
            "ffn.down.weight": lambda d: (4 * d) ** -0.5,
            "table_RW": lambda d: 1.0,
            "key.weight": lambda d: d**-0.5,  # the memory is as wide as the model
            "value.weight": lambda d: d**-0.5,
        },
    ),
    "moe": (
        "moe",
        {"granularity": 4},
        MOE | {"down_EFD": lambda d: d**-0.5 / GATE_NORM},
    ),
    "moe_ec": ("moe_ec", {"granularity": 4}, MOE),
    "moe_shared": (
        "moe_shared",
        {"granularity": 4},
        MOE
        | {
            "down_EFD": lambda d: (3 / d) ** 0.5,  # three chosen experts of width d
            "shared.up.weight": lambda d: d**-0.5,
            "shared.down.weight": lambda d: d**-0.5,
        },
    ),
    "moe_latent": (
        "moe_latent",
        {"granularity": 4},
        MOE
        | {
            "up_EDF": lambda d: (d / 4) ** -0.5,  # the latent width is d / 4
            "down_EFD": lambda d: (12 / d) ** 0.5,  # twelve chosen experts of width d
            "compress.weight": lambda d: d**-0.5,
            "expand.weight": lambda d: (d / 4) ** -0.5,
            "shared.up.weight": lambda d: d**-0.5,
            "shared.down.weight": lambda d: d**-0.5,
        },
    ),
    "remoe": (
        "remoe",
        {"granularity": 4},
        MOE | {"down_EFD": lambda d: (2 / 32 / d) ** 0.5},  # 32 experts of width d
    ),
    "pkm": (
        "pkm",
        {"n_slots": 64**2, "heads": 2, "top_k": 4, "d_key": 32},
        KEYS | {"values_ND": lambda d: d**-0.5},
    ),
    "peer": (
        "peer",
        PRODUCT_KEYS,
        KEYS | {"up_ND": lambda d: d**-0.5, "down_ND": lambda d: d**-0.5},
    ),
    "omnimoe": (
        "omnimoe",
        {},
        {
            "router.weight": lambda d: d**-0.5,
            "up_ND": lambda d: d**-0.5,
            "down_ND": lambda d: d**-0.5,
            "shared.up.weight": lambda d: d**-0.5,
            "shared.down.weight": lambda d: (round(d / 3) * 8) ** -0.5,  # 8/3 d, by eights
        },
    ),
    "monet": (
        "monet",
        {"n_experts": 32**2, "heads": 4, "top_k": 2},
        {
            "router.weight": lambda d: d**-0.5,
            "up.weight": lambda d: d**-0.5,
            "down.weight": lambda d: (0.425 / (d / 8) / hidden_square(32, 2, 4)) ** 0.5,
        },
    ),
    "ultramem": (
        "ultramem",
        {"n_slots": 64**2, "top_k": 4, "d_key": 32},
        {
            "ffn.up.weight": lambda d: d**-0.5,
            "ffn.down.weight": lambda d: (4 * d) ** -0.5,
            "query.weight": lambda d: d**-0.5,
            "keys": lambda d: 16**-0.5,
            "core_RR": lambda d: 12**-0.5,  # roughly: it is scaled to a singular value of 1
            "into.weight": lambda d: d**-0.5,
            "out.weight": lambda d: (3 * d / 8) ** -0.5,
            "up_NU": lambda d: (0.425 / (d / 8)) ** 0.25 / SCORES**0.5,
            "values_NV": lambda d: (0.425 / (d / 8)) ** 0.25 / SCORES**0.5,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("case", CASES)
def test_every_parameter_has_its_stated_moments(case: str, width: int) -> None:
    name, options, stated = CASES[case]
    torch.manual_seed(0)
    layer = LAYERS[name](width, **options)
    random = {key: p for key, p in layer.named_parameters() if p.detach().std() > 0}
    assert set(random) == set(stated), "each random parameter is stated, and no other"
    for key, parameter in random.items():
        values = parameter.detach()
        deviation = stated[key](width)
        slack = 5 / math.sqrt(values.numel())  # standard errors of a moment
        assert float(values.std()) == pytest.approx(deviation, rel=slack), key
        assert abs(float(values.mean())) < slack * deviation, key
    for key, parameter in layer.named_parameters():
        if key not in random:  # scales and offsets of norms
            value = SCALES.get(name, {}).get(key, 1.0 if key.endswith("weight") else 0.0)
            assert bool((parameter == value).all()), key


def test_sub_keys_are_uniform_within_their_bound() -> None:
    torch.manual_seed(0)
    keys = LAYERS["peer"](64, **PRODUCT_KEYS).retrieval.keys.detach()
    bound = 16**-0.5
    assert 0.99 * bound < float(keys.abs().max()) <= bound


def test_every_registered_layer_is_stated() -> None:
    assert set(CASES) == set(LAYERS)


def test_the_backbone_starts_so_that_the_first_loss_is_that_of_a_uniform_guess() -> None:
    torch.manual_seed(0)
    model = Decoder(Config(LAYERS["dense"], width=64, depth=3, heads=4, vocabulary=500, context=8))
    tokens_BT = torch.randint(500, (2, 8))
    loss, _ = model.loss(tokens_BT, tokens_BT)
    assert loss.item() == pytest.approx(math.log(500))
    assert float(model.embedding.weight.std()) == pytest.approx(1, rel=0.03)
    attention = model.blocks[0].attention
    for weight in (attention.qkv.weight, attention.out.weight):
        assert float(weight.std()) == pytest.approx(64**-0.5, rel=0.05)


@pytest.mark.parametrize("initialisation", ["random", "positional"])
def test_attention_by_position_alone_is_possible_from_the_start(
    initialisation: Literal["random", "positional"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean scores of the first block by distance, over random tokens: what all tokens share."""
    torch.manual_seed(0)
    model = Decoder(
        Config(
            LAYERS["dense"],
            width=64,
            depth=3,
            heads=4,
            vocabulary=500,
            context=16,
            initialisation=initialisation,
        )
    )
    scores: list[torch.Tensor] = []

    def keep(q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor) -> torch.Tensor:
        scores.append((q_BHTK @ k_BHTK.transpose(-1, -2)).detach().mean(0) / 4)
        return causal_attention(q_BHTK, k_BHTK, v_BHTK)

    monkeypatch.setattr(decoder, "causal_attention", keep)
    outputs = []
    for block in model.blocks:
        block.attention.register_forward_hook(lambda *call: outputs.append(call[2]))
    model(torch.randint(500, (2000, 16)))
    shared = torch.stack([scores[0].diagonal(-o, 1, 2).mean(-1) for o in range(1, 8)])
    spread = float(shared.std(0).mean())  # over distances, in nats of the softmax
    mean = float(model.embedding.weight.mean())
    if initialisation == "random":
        assert spread < 0.012
        assert abs(mean) < 0.02
        assert all(bool(y_BTD.any()) for y_BTD in outputs)
    else:
        assert spread > 0.018
        assert mean == pytest.approx(0.25, abs=0.02)
        assert not any(bool(y_BTD.any()) for y_BTD in outputs)


QUICK = {"heads": 2, "top_k": 16, "d_key": 16}
OUTPUTS: list[tuple[str, dict[str, object]]] = [
    ("dense", {"activation": "swiglu"}),
    ("dense", {"activation": "relu2"}),
    ("engram", {}),
    ("engram", {"table_size": 1}),
    *(("moe", {"granularity": g, "expansion": e}) for g in (1, 4, 32) for e in (4, 8)),
    ("moe_ec", {"granularity": 4}),
    ("moe_shared", {"granularity": 4}),
    ("moe_shared", {"granularity": 8, "shared": 0}),
    ("moe_latent", {"granularity": 4}),
    ("moe_latent", {"granularity": 4, "latent_norm": True}),
    ("moe_latent", {"granularity": 1, "shared": 0, "latent_norm": True}),
    *(("remoe", {"granularity": g, "expansion": e}) for g in (1, 4, 32) for e in (4, 8)),
    ("pkm", QUICK | {"n_slots": 64**2, "initial_output": "dense"}),
    ("peer", QUICK | {"n_experts": 64**2, "initial_output": "dense"}),
    ("omnimoe", {}),
    ("monet", {}),
    ("monet", {"n_experts": 64**2, "heads": 4, "top_k": 4}),
    ("monet", {"n_experts": 16**2, "heads": 1, "top_k": 4}),
    ("ultramem", {"ratio": 0.0}),
    ("ultramem", {"n_slots": 32**2, "top_k": 32, "d_key": 32}),
]


def first_output(name: str, options: dict[str, object], width: int) -> float:
    torch.manual_seed(0)
    layer, x_BTD = LAYERS[name](width, **options).eval(), torch.randn(8, 32, width)
    layer.see_tokens(torch.randint(1024, (8, 32)))
    with torch.no_grad():
        return float(layer(x_BTD).square().mean().sqrt())


@pytest.mark.parametrize("width", [32, 64, 256])
@pytest.mark.parametrize(("name", "options"), OUTPUTS)
def test_the_first_output_is_within_a_factor_of_two_of_dense_s(
    name: str, options: dict[str, object], width: int
) -> None:
    assert 0.5 < first_output(name, options, width) / first_output("dense", {}, width) < 2


@pytest.mark.parametrize(("name", "scale"), [("pkm", 0.55), ("peer", 0.36)])
def test_tables_start_small_unless_told(name: str, scale: float) -> None:
    """As PKM's paper states, and for PEER because it trains better: see their docstrings."""
    count = {"pkm": "n_slots", "peer": "n_experts"}[name]
    options = QUICK | {count: 64**2}
    for width in (32, 64, 256):
        ratio = first_output(name, options, width) / first_output("dense", {}, width)
        assert ratio * width**0.5 == pytest.approx(scale, rel=0.2)
