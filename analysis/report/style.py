"""The look of the charts: colours, markers and weights of variants, matplotlib's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_hex, to_rgb

from isoflop.analysis.analyse import Analysis

# A hue per family, in shades that differ in lightness: the families in the colours of Okabe and
# Ito, which the colour-blind tell apart. The baseline is nearly black.
FAMILIES: dict[str, tuple[str, ...]] = {
    "dense": ("#6E6E6E", "#9A9A9A", "#4A4A4A", "#B4B4B4"),
    "MoE": ("#0072B2", "#56B4E9", "#1B3F8B", "#4C8FD6", "#7A6FD0", "#0B5C7A"),
    "memory": ("#D55E00", "#E69F00", "#9C2F12", "#F0803C", "#B97A00", "#C43C5A"),
    "single-neuron experts": ("#009E73", "#66B84A", "#00614A", "#44AA99", "#7F8F1E", "#2E8B3A"),
    "other": ("#CC79A7", "#882255", "#A569BD", "#E05A9B", "#6A3D9A", "#B56576", "#8E44AD"),
}
MEMBERS = {  # by the layer's registered name, or the class of one in a file
    "dense": ("dense",),
    "MoE": ("MPOE",),
    "memory": ("pkm", "ultramem", "engram", "MemoryPlus"),
    "single-neuron experts": ("peer", "omnimoe", "monet"),
}
PALETTE = (  # where there are no families
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    "#882255", "#999933", "#332288", "#44AA99", "#AA4499", "#7F7F7F",
)  # fmt: skip
BASELINE = "#222222"
HIGHLIGHT = "#E6195F"  # the layer under comparison
WEIGHT = 1.6  # of its lines and markers, over the usual
MUTED = 0.55  # strength of the other layers' colours beside it
MARKERS = "os^v><"  # those that Chart.js can fill too; the diamond is kept for optima
# the first of each family, so that small suites repeat none
MARKER = {"dense": 5, "MoE": 1, "memory": 5, "single-neuron experts": 3, "other": 1}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "isoflop",  # else element names are random
    "text.parse_math": False,  # a dollar in a variant's name is a dollar
}


@dataclass(frozen=True)
class Look:
    """How a variant is drawn, in figures and on the page."""

    colour: str
    marker: str = "o"
    strength: float = 1.0  # of the colour, the rest being paper
    weight: float = 1.0  # of lines and markers, over the usual

    def tint(self, strength: float = 1.0) -> str:
        """The colour on white paper, at a part of its strength."""
        return shade(self.colour, self.strength * strength)


NEUTRAL = Look("#5B6470")  # of what belongs to no variant of the report


def looks(analysis: Analysis) -> dict[str, Look]:
    """One look per variant, its colour by its family: a layer under comparison stands out, the
    others recede."""
    named = (analysis.baseline, analysis.highlight)
    strength = MUTED if analysis.highlight else 1.0
    result = {}
    for name, members in families(analysis).items():
        others = [variant for variant in members if variant not in named]
        colours = FAMILIES[name]
        for place, variant in enumerate(others):
            colour = colours[place % len(colours)]
            result[variant] = Look(colour, _marker(MARKER[name], place, len(colours)), strength)
    if analysis.baseline:
        result[analysis.baseline] = Look(BASELINE, MARKERS[0])
    if analysis.highlight:
        used = {look.marker for look in result.values()}
        marker = next((marker for marker in MARKERS if marker not in used), MARKERS[-1])
        result[analysis.highlight] = Look(HIGHLIGHT, marker, weight=WEIGHT)
    return {variant: result[variant] for variant in analysis.variants}


def families(analysis: Analysis) -> dict[str, list[str]]:
    """The variants of every family that has one."""
    result: dict[str, list[str]] = {name: [] for name in FAMILIES}
    layers = {record.variant: record.layer for record in analysis.records}
    for variant in analysis.variants:
        result[family(layers[variant])].append(variant)
    return {name: members for name, members in result.items() if members}


def family(layer: str) -> str:
    """The family of a layer by its name: what is not known, and has no "moe" in it, is other."""
    name = layer.rpartition(":")[2]
    for known, members in MEMBERS.items():
        if name in members:
            return known
    return "MoE" if "moe" in name.lower() else "other"


def _marker(first: int, place: int, colours: int) -> str:
    """Shifted by one when the colours repeat, so that no pair of colour and marker repeats."""
    return MARKERS[(first + place % colours + place // colours) % len(MARKERS)]


def shades(analysis: Analysis) -> dict[float, float]:
    """A strength of colour per budget, the largest full."""
    strengths = np.linspace(1, 0.35, len(analysis.budgets))[::-1]
    return dict(zip(analysis.budgets, strengths.tolist(), strict=True))


def shade(colour: str, strength: float) -> str:
    """The colour mixed with white."""
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return to_hex((red, green, blue))
