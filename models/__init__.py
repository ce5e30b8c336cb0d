"""The models that are trained: a decoder and its feed-forward layers. Pure torch."""

if __name__ != "isoflop.models":  # imported twice, its classes and operators would exist twice
    raise ImportError("import this folder as isoflop.models, not as models")

from isoflop.models.decoder import Config, Decoder
from isoflop.models.dense import Dense
from isoflop.models.engram import Engram
from isoflop.models.layer import (
    LAYERS,
    Layer,
    ParameterGroup,
    full_precision,
    measures_flops,
    register,
)
from isoflop.models.moe import ExpertChoiceMoE, MoE
from isoflop.models.moe_latent import LatentMoE
from isoflop.models.moe_shared import SharedMoE
from isoflop.models.monet import Monet
from isoflop.models.omnimoe import OmniMoE
from isoflop.models.peer import PEER
from isoflop.models.pkm import PKM
from isoflop.models.remoe import ReMoE
from isoflop.models.ultramem import UltraMem

__all__ = [
    "LAYERS",
    "PEER",
    "PKM",
    "Config",
    "Decoder",
    "Dense",
    "Engram",
    "ExpertChoiceMoE",
    "LatentMoE",
    "Layer",
    "MoE",
    "Monet",
    "OmniMoE",
    "ParameterGroup",
    "ReMoE",
    "SharedMoE",
    "UltraMem",
    "full_precision",
    "measures_flops",
    "register",
]
