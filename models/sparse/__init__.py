"""Fast operators of the sparse layers: PEER's expert mix, PKM's value sum, MoE's experts."""

from models.sparse.grouped import expert_ffn
from models.sparse.mix import expert_mix, value_sum
from models.sparse.ops import triton_lacks
from models.sparse.topk import product_key_topk

__all__ = ["expert_ffn", "expert_mix", "product_key_topk", "triton_lacks", "value_sum"]
