"""What holds for every method."""

from pathlib import Path

import pytest
import torch

from isoflop.bench.methods import METHODS, Calibration, Method, find_method, register
from isoflop.bench.methods.counts import CountError, counts, stored_bytes
from isoflop.bench.methods.experts import Experts, UnfitError, rebuild
from isoflop.bench.methods.method import make_method, with_layers
from isoflop.models import Decoder
from tests.bench.methods.models import OPTIONS, apply, initial_of, make_calibration, make_model

TOKENS = make_calibration(9).tokens
FITS_DENSE = {"low-rank", "quantise", "factorise-dense"}
FITS_EXPERTS = set(METHODS) - {"factorise-dense"}
FIT = [
    (method, layer)
    for method in sorted(METHODS)
    for layer in OPTIONS
    if method in (FITS_DENSE if layer == "dense" else FITS_EXPERTS)
]
UNFIT = [(m, layer) for m in sorted(METHODS) for layer in OPTIONS if (m, layer) not in FIT]


@pytest.mark.parametrize(("method", "layer"), FIT)
def test_its_counts_are_those_of_the_model(method: str, layer: str) -> None:
    model = make_model(layer)
    changed = apply(method, model)
    before, after = counts(model, TOKENS, "none"), counts(changed, TOKENS, method)
    assert after.parameters.total == sum(p.numel() for p in changed.parameters())
    assert after.measured <= after.flops.forward
    assert (after.stored_bytes, after.flops.forward, after.parameters.total) != (
        before.stored_bytes,
        before.flops.forward,
        before.parameters.total,
    )


@pytest.mark.parametrize(("method", "layer"), FIT)
def test_it_is_deterministic_and_leaves_the_model_as_it_was(method: str, layer: str) -> None:
    model = make_model(layer)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (apply(method, model)(TOKENS) for _ in range(2))
    assert torch.equal(first, second)
    after = model.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in state.items())


@pytest.mark.parametrize(("method", "layer"), FIT)
def test_where_it_changes_nothing_the_output_is_the_source_s(method: str, layer: str) -> None:
    options = METHODS[method].identity
    if options is None:
        pytest.skip("whatever its options, it changes something")
    model = make_model(layer)
    torch.testing.assert_close(apply(method, model, **options)(TOKENS), model(TOKENS))


@pytest.mark.parametrize(("method", "layer"), FIT)
def test_the_rest_of_the_model_stays(method: str, layer: str) -> None:
    model = make_model(layer)
    changed = apply(method, model)
    before, after = model.state_dict(), changed.state_dict()
    rest = [name for name in before if ".ffn." not in name]
    assert len(rest) > 10
    assert all(torch.equal(before[name], after[name]) for name in rest)
    assert [block.ffn for block in changed.blocks] == changed.tested


@pytest.mark.parametrize(("method", "layer"), UNFIT)
def test_a_layer_that_it_does_not_fit_is_refused(method: str, layer: str) -> None:
    with pytest.raises(UnfitError, match=method):
        apply(method, make_model(layer))


def test_a_layer_of_another_kind_is_refused() -> None:
    with pytest.raises(UnfitError, match="'peer': only dense, moe and moe_shared"):
        apply("quantise", make_model("peer", n_experts=64, heads=2, top_k=4, d_key=8))


@pytest.mark.parametrize("layer", OPTIONS)
def test_a_rebuilt_layer_trains_as_its_source(layer: str) -> None:
    """Outputs, gradients, the balancing loss and the bias after a step."""
    model = make_model(layer)
    changed = with_layers(model, [rebuild(tested) for tested in model.tested])
    results = []
    for each in (model, changed):
        each.train()
        loss, auxiliary = each.loss(TOKENS, TOKENS)
        (loss + auxiliary).backward()
        for tested in each.tested:
            tested.after_step()
        results.append((loss, auxiliary, each.embedding.weight.grad, each(TOKENS)))
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(after, before)
    assert (float(results[0][1]) > 0) == (layer == "moe")
    names = {"moe": "router.weight", "moe_shared": "router.weight", "dense": "down.weight"}
    gradient = dict(model.tested[0].named_parameters())[names[layer]].grad
    twin = dict(changed.tested[0].named_parameters())[names[layer]].grad
    torch.testing.assert_close(twin, gradient.T[None] if layer == "dense" else gradient)


def test_a_count_that_is_wrong_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = apply("prune-random", make_model())
    monkeypatch.setattr(Experts, "total_parameters", lambda self: 7)
    with pytest.raises(CountError, match="7 parameters by formula"):
        counts(changed, TOKENS, "x")


def test_flops_that_are_wrong_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = apply("prune-random", make_model())
    monkeypatch.setattr(Experts, "flops_per_token", lambda self: 10_000)
    with pytest.raises(CountError, match="FLOPs per token by formula"):
        counts(changed, TOKENS, "x")


def test_a_source_is_stored_in_bfloat16() -> None:
    model = make_model()
    assert stored_bytes(model) == 2 * sum(p.numel() for p in model.parameters())


def test_inputs_are_what_the_layers_read() -> None:
    model, calibration = make_model(), make_calibration()
    seen: list[torch.Tensor] = []
    model.tested[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(calibration.tokens)
    own = calibration.inputs(make_model())[1]
    torch.testing.assert_close(own, seen[0].flatten(0, 1))


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"dropp: unknown option of method prune-random.*'drop'"):
        make_method(METHODS["prune-random"], {"dropp": 0.5})
    with pytest.raises(ValueError, match="drop must be at least 0 and below 1"):
        make_method(METHODS["prune-random"], {"drop": 1.0})
    with pytest.raises(ValueError, match="bits"):
        make_method(METHODS["quantise"], {"bits": 3})


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="registered already"):
        register("quantise")(Method)


OWN = """
import copy
from isoflop.bench.methods import Method

class Same(Method):
    def apply(self, model, calibration):
        return copy.deepcopy(model)
"""


def test_a_method_of_a_user_s_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    kind = find_method(f"{tmp_path}/own.py:Same")
    assert kind.name == "own.py:Same"
    model = make_model()
    changed: Decoder = kind().apply(model, make_calibration())
    assert torch.equal(changed(TOKENS), model(TOKENS))
    with pytest.raises(ValueError, match="no class 'Other' derived from Method"):
        find_method(f"{tmp_path}/own.py:Other")
    with pytest.raises(ValueError, match="did you mean 'prune-reap'"):
        find_method("prune-reep")


def test_the_loss_of_the_text_is_the_model_s() -> None:
    model, calibration = make_model(), make_calibration()
    own = Calibration(calibration.tokens, calibration.targets, 0, initial_of(model))
    loss = float(model.loss(calibration.tokens, calibration.targets)[0])
    assert own.loss(model) == pytest.approx(loss, rel=1e-6)
