"""What is trained: a decoder and the feed-forward layers put in it. Pure torch."""

from models.decoder import Config, Decoder
from models.dense import Dense
from models.layer import LAYERS, Layer, register
from models.moe import ExpertChoiceMoE, MoE
from models.peer import PEER
from models.pkm import PKM

__all__ = [
    "LAYERS",
    "PEER",
    "PKM",
    "Config",
    "Decoder",
    "Dense",
    "ExpertChoiceMoE",
    "Layer",
    "MoE",
    "register",
]
