"""Decoding token by token gives what the whole sequence at once gives."""

import time

import pytest
import torch

from isoflop.bench.decoding.decode import Engine, milliseconds
from isoflop.models import Decoder
from tests.models.test_decoder import OPTIONS, T, V, build

TOKENS = torch.randint(0, V, (T,), generator=torch.Generator().manual_seed(2))


def whole(model: Decoder, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(tokens[None])[0]


@pytest.mark.parametrize("layer", [name for name in OPTIONS if name not in ("engram", "moe_ec")])
def test_the_logits_are_those_of_the_full_forward_pass(layer: str) -> None:
    model = build(layer, **({"activation": "swiglu"} if layer == "dense" else {}))
    with torch.no_grad():
        model(torch.randint(0, V, (4, T)))  # moves the running statistics of batch norms
    engine = Engine(model)
    stepped = torch.stack([engine.step(token) for token in TOKENS.tolist()])
    torch.testing.assert_close(stepped, whole(model), rtol=1e-5, atol=1e-5)


def test_an_output_norm_counts() -> None:
    model = build("moe")
    with torch.no_grad():
        for block in model.blocks:
            block.output_norm = torch.nn.RMSNorm(16)
    engine = Engine(model)
    stepped = torch.stack([engine.step(token) for token in TOKENS.tolist()])
    torch.testing.assert_close(stepped, whole(model), rtol=1e-5, atol=1e-5)


def test_a_new_sequence_sees_nothing_of_the_last() -> None:
    engine = Engine(build("moe"))
    first = engine.step(3)
    engine.step(5)
    engine.clear()
    assert torch.equal(engine.step(3), first)


def test_greedy_decoding_takes_the_likeliest_token_each_time() -> None:
    model = build("moe")
    prompt = TOKENS[:4].tolist()
    expected = list(prompt)
    for _ in range(5):
        expected.append(int(whole(model, torch.tensor(expected))[-1].argmax()))
    engine = Engine(model)
    assert engine.generate(prompt, 5) == expected[4:]
    assert engine.generate(prompt, 5) == expected[4:]  # begins anew


def test_what_cannot_be_decoded_is_refused() -> None:
    for layer, reason in (("moe_ec", "other sequences"), ("engram", "ids of earlier tokens")):
        with pytest.raises(ValueError, match=reason):
            Engine(build(layer))
    engine = Engine(build("dense"))
    with pytest.raises(ValueError, match="empty"):
        engine.generate([], 1)
    with pytest.raises(ValueError, match="longer than the context of 12"):
        engine.generate([1], T + 1)


def test_the_time_of_a_token_is_that_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, step = torch.get_num_threads(), Engine.step

    def slow(engine: Engine, token: int) -> torch.Tensor:
        assert torch.get_num_threads() == 1
        time.sleep(0.02)
        return step(engine, token)

    monkeypatch.setattr(Engine, "step", slow)
    assert milliseconds([build("moe")], TOKENS.tolist()[:4])[0] >= 20
    assert torch.get_num_threads() == threads
