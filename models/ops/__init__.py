"""Operators of the sparse layers, each in several implementations (back ends) of one definition.

One folder per operator: `__init__.py` has the public function, `reference.py` the definition in
plain torch, `op.py` its entry in torch's dispatcher (shapes, gradients, FLOPs), `cpu.py` and
`triton.py` the fast back ends. What several operators share is in the modules beside the folders.
"""

from isoflop.models.ops.expert_ffn import expert_ffn
from isoflop.models.ops.expert_mix import expert_mix
from isoflop.models.ops.product_key_topk import product_key_topk
from isoflop.models.ops.value_sum import value_sum

__all__ = ["expert_ffn", "expert_mix", "product_key_topk", "value_sum"]
