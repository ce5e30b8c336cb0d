import torch
import torch.nn.functional as F

from isoflop.models import PEER


def test_definition() -> None:
    """f(x) = sum over heads and retrieved experts of g_i act(u_i . x) v_i, written as loops."""
    torch.manual_seed(0)
    layer = PEER(8, n_experts=25, heads=2, top_k=3, d_key=4, activation="relu")
    x_BTD = torch.randn(2, 3, 8)
    y_BTD = layer(x_BTD)
    gate_MP, index_MP = layer.retrieval(x_BTD.flatten(0, 1))
    for m, x in enumerate(x_BTD.flatten(0, 1)):
        y = torch.zeros(8)
        for gate, i in zip(gate_MP[m], index_MP[m], strict=True):
            y += gate * F.relu(layer.up_ND[i] @ x) * layer.down_ND[i]
        torch.testing.assert_close(y_BTD.flatten(0, 1)[m], y)
    torch.testing.assert_close(gate_MP.sum(-1), torch.full((6,), 2.0))  # softmax per head


def test_with_every_expert_active_it_is_a_dense_mlp() -> None:
    torch.manual_seed(0)
    layer = PEER(8, n_experts=16, heads=1, top_k=16, d_key=4, query_norm="none")
    x_BTD = torch.randn(2, 5, 8)
    query = layer.retrieval.query(x_BTD)
    first, second = (
        query[..., :2] @ layer.retrieval.keys[0, 0],
        query[..., 2:] @ layer.retrieval.keys[1, 0],
    )
    gate_BTN = (first.unsqueeze(-1) + second.unsqueeze(-2)).flatten(-2).softmax(-1)
    dense = (gate_BTN * F.gelu(x_BTD @ layer.up_ND.T)) @ layer.down_ND
    torch.testing.assert_close(layer(x_BTD), dense)


def test_heads_share_experts_and_by_default_keys() -> None:
    shared = PEER(8, n_experts=16, heads=4, top_k=2, d_key=4)
    assert shared.up_ND.shape == shared.down_ND.shape == (16, 8)
    assert shared.retrieval.keys.shape[1] == 1
    separate = PEER(8, n_experts=16, heads=4, top_k=2, d_key=4, shared_keys=False)
    assert separate.retrieval.keys.shape[1] == 4


def test_defaults_are_the_paper_s() -> None:
    options = PEER.Options()
    assert (options.n_experts, options.heads, options.top_k) == (1024**2, 8, 16)
    assert (options.shared_keys, options.query_norm) == (True, "batch")


def test_an_expert_nobody_retrieves_gets_no_gradient() -> None:
    torch.manual_seed(0)
    layer = PEER(8, n_experts=64, heads=1, top_k=2, d_key=4)
    x_BTD = torch.randn(1, 4, 8)
    layer(x_BTD).square().sum().backward()
    used = set(layer.retrieval(x_BTD[0])[1].flatten().tolist())
    touched = set(layer.up_ND.grad.abs().sum(-1).nonzero().flatten().tolist())
    assert touched == used
