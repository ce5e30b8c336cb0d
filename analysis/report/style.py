"""The look of the charts: colours, markers and weights of variants, matplotlib's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_hex, to_rgb

from isoflop.analysis.analyse import Analysis

# The colours of Okabe and Ito, which the colour-blind tell apart, then some of Paul Tol's "muted";
# the baseline is nearly black.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    "#882255", "#999933", "#332288", "#44AA99", "#AA4499", "#7F7F7F",
)  # fmt: skip
BASELINE = "#222222"
HIGHLIGHT = "#E6195F"  # the layer under comparison
WEIGHT = 1.6  # of its lines and markers, over the usual
MUTED = 0.55  # strength of the other layers' colours beside it
MARKERS = "os^v><"  # those that Chart.js can fill too; the diamond is kept for optima
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
    """One look per variant: a layer under comparison stands out, the others recede."""
    named = (analysis.baseline, analysis.highlight)
    others = [variant for variant in analysis.variants if variant not in named]
    strength = MUTED if analysis.highlight else 1.0
    result = {
        variant: Look(PALETTE[place % len(PALETTE)], _marker(place + 1), strength)
        for place, variant in enumerate(others)
    }
    if analysis.baseline:
        result[analysis.baseline] = Look(BASELINE, _marker(0))
    if analysis.highlight:
        result[analysis.highlight] = Look(HIGHLIGHT, _marker(len(others) + 1), weight=WEIGHT)
    return {variant: result[variant] for variant in analysis.variants}


def _marker(place: int) -> str:
    """Shifted by one when the colours repeat, so that no pair of colour and marker repeats."""
    return MARKERS[(place + place // len(PALETTE)) % len(MARKERS)]


def shades(analysis: Analysis) -> dict[float, float]:
    """A strength of colour per budget, the largest full."""
    strengths = np.linspace(1, 0.35, len(analysis.budgets))[::-1]
    return dict(zip(analysis.budgets, strengths.tolist(), strict=True))


def shade(colour: str, strength: float) -> str:
    """The colour mixed with white."""
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return to_hex((red, green, blue))
