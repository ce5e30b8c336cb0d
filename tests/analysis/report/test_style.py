"""Looks that tell variants apart."""

import pytest
from matplotlib.colors import to_rgb

from isoflop.analysis.analyse import analyse
from isoflop.analysis.report.style import BASELINE, HIGHLIGHT, MARKERS, PALETTE, looks
from isoflop.analysis.simulate import simulate


def test_the_layer_under_comparison_stands_out_and_the_others_recede() -> None:
    records = simulate({"dense": 1.0, "moe": 1.2, "peer": 1.5, "pkm": 0.7}, (1e14, 4e14))
    usual = looks(analyse(records, samples=10))
    assert {(look.weight, look.strength) for look in usual.values()} == {(1.0, 1.0)}
    assert {name: look.tint() for name, look in usual.items()} == {
        "dense": BASELINE,
        "moe": PALETTE[0].lower(),
        "peer": PALETTE[1].lower(),
        "pkm": PALETTE[2].lower(),
    }
    shown = analyse(records, highlight="moe", samples=10)
    assert shown.variants == ("dense", "peer", "pkm", "moe")  # drawn last
    compared = looks(shown)
    assert compared["dense"].tint() == BASELINE
    assert compared["moe"].tint() == HIGHLIGHT.lower()
    assert compared["moe"].weight > compared["peer"].weight == compared["pkm"].weight == 1.0
    for name in ("peer", "pkm"):  # nearer to white, on the way from the usual colour
        usual_parts, muted = to_rgb(compared[name].colour), to_rgb(compared[name].tint())
        assert all(
            1 - after == pytest.approx(0.55 * (1 - before), abs=0.01)
            for before, after in zip(usual_parts, muted, strict=True)
        )
    assert len({look.tint() for look in compared.values()}) == 4
    assert len({look.marker for look in compared.values()}) == 4


def test_eighteen_variants_differ_in_colour_or_marker() -> None:
    names = ["dense", *(f"layer-{number}" for number in range(40))]
    analysis = analyse(simulate(dict.fromkeys(names, 1.0), (1e14,)), samples=2)
    chosen = list(looks(analysis).values())
    assert len({(look.colour, look.marker) for look in chosen[:18]}) == 18
    assert len({(look.colour, look.marker) for look in chosen}) == len(names)
    assert len({look.colour for look in chosen}) == len(PALETTE) + 1
    assert {look.marker for look in chosen} == set(MARKERS)
