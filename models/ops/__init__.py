"""Operators of the sparse layers, each in several implementations (back ends) of one definition.

One folder per operator: `__init__.py` has the public function, `reference.py` the definition in
plain torch, `op.py` its entry in torch's dispatcher (shapes, gradients, FLOPs), `cpu.py` and
`triton.py` the fast back ends. "auto" takes a fast one once it has agreed with the definition:
see `verify`. What several operators share is in the modules beside the folders.
"""

from isoflop.models.ops.expert_ffn import expert_ffn
from isoflop.models.ops.expert_mix import expert_mix
from isoflop.models.ops.product_key_topk import product_key_topk
from isoflop.models.ops.value_sum import value_sum
from isoflop.models.ops.verify import backends_in_use, forget_use, replaced_backends

__all__ = [
    "backends_in_use",
    "expert_ffn",
    "expert_mix",
    "forget_use",
    "product_key_topk",
    "replaced_backends",
    "value_sum",
]
