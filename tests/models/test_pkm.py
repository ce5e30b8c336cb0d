import torch

from isoflop.models import PKM, Dense


def test_definition() -> None:
    """y = sum over heads and retrieved slots of softmax(score) * value, written as loops."""
    torch.manual_seed(0)
    layer = PKM(8, n_slots=25, heads=2, top_k=3, d_key=4)
    x_BTD = torch.randn(2, 3, 8)
    y_MD = layer(x_BTD).flatten(0, 1)
    gate_MP, index_MP = layer.retrieval(x_BTD.flatten(0, 1))
    for m in range(6):
        y = sum(g * layer.values_ND[i] for g, i in zip(gate_MP[m], index_MP[m], strict=True))
        torch.testing.assert_close(y_MD[m], y)


def test_with_every_slot_read_it_is_soft_attention_over_the_memory() -> None:
    torch.manual_seed(0)
    layer = PKM(8, n_slots=16, heads=1, top_k=16, d_key=4, query_norm="none")
    x_BTD = torch.randn(2, 5, 8)
    query, keys = layer.retrieval.query(x_BTD), layer.retrieval.keys
    first, second = query[..., :2] @ keys[0, 0], query[..., 2:] @ keys[1, 0]
    weight_BTN = (first.unsqueeze(-1) + second.unsqueeze(-2)).flatten(-2).softmax(-1)
    torch.testing.assert_close(layer(x_BTD), weight_BTN @ layer.values_ND)


def test_values_may_start_large_and_keep_their_rate() -> None:
    torch.manual_seed(0)
    options = {"n_slots": 64**2, "heads": 2, "top_k": 16, "d_key": 16}
    x_BTD = torch.randn(8, 32, 64)
    large = PKM(64, **options, initial_output="dense").eval()
    assert 0.8 < float(large(x_BTD).std() / Dense(64)(x_BTD).std()) < 1.2
    (group,) = PKM(64, **options, constant_rate=True, decay=True).parameter_groups()
    assert (group.constant, group.decay, group.parameters[0].shape) == (True, 1.0, (4096, 64))


def test_the_load_is_the_sum_of_the_weights_of_each_slot() -> None:
    torch.manual_seed(0)
    layer = PKM(8, n_slots=25, heads=2, top_k=3, d_key=4).eval()
    x_BTD = torch.randn(2, 3, 8)
    gate_MP, index_MP = layer.retrieval(x_BTD.flatten(0, 1))
    load = torch.zeros(25, dtype=torch.float64)
    for gate, index in zip(gate_MP.flatten(), index_MP.flatten(), strict=True):
        load[index] += gate
    torch.testing.assert_close(layer.load(x_BTD), load)


def test_defaults_are_those_its_authors_report() -> None:
    options = PKM.Options()
    assert (options.n_slots, options.heads, options.top_k) == (512**2, 4, 32)
    assert (options.d_key, options.shared_keys, options.query_norm) == (128, False, "batch")
    assert PKM(8, n_slots=16, heads=4, top_k=2, d_key=4).retrieval.keys.shape[1] == 4
