"""Fast operators of the sparse layers: PEER's expert mix, PKM's value sum, MoE's experts."""

from models.sparse.grouped import expert_ffn
from models.sparse.mix import expert_mix, value_sum

__all__ = ["expert_ffn", "expert_mix", "value_sum"]
