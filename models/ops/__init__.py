"""Fast operators of the sparse layers: PEER's mix, PKM's sum, their retrieval, MoE's experts."""

from isoflop.models.ops.grouped import expert_ffn
from isoflop.models.ops.mix import expert_mix, value_sum
from isoflop.models.ops.topk import product_key_topk

__all__ = ["expert_ffn", "expert_mix", "product_key_topk", "value_sum"]
