"""Looks that tell variants apart."""

import re
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb

from isoflop.analysis.analyse import analyse
from isoflop.analysis.report.style import (
    BASELINE,
    FAMILIES,
    HIGHLIGHT,
    MARKERS,
    families,
    family,
    looks,
)
from isoflop.analysis.simulate import simulate
from isoflop.models import LAYERS
from tests.analysis.report.crowd import MULTIPLIERS

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def test_the_layer_under_comparison_stands_out_and_the_others_recede() -> None:
    records = simulate({"dense": 1.0, "moe": 1.2, "peer": 1.5, "pkm": 0.7}, (1e14, 4e14))
    usual = looks(analyse(records, samples=10))
    assert {(look.weight, look.strength) for look in usual.values()} == {(1.0, 1.0)}
    assert {name: look.tint() for name, look in usual.items()} == {
        "dense": BASELINE,
        "moe": FAMILIES["MoE"][0].lower(),
        "peer": FAMILIES["single-neuron experts"][0].lower(),
        "pkm": FAMILIES["memory"][0].lower(),
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
    for names in (list(MULTIPLIERS), ["dense", *(f"layer-{number}" for number in range(40))]):
        analysis = analyse(simulate(dict.fromkeys(names, 1.0), (1e14,)), samples=2)
        chosen = looks(analysis)
        assert len({(look.colour, look.marker) for look in chosen.values()}) == len(names)
        for members in families(analysis).values():
            colours = {chosen[name].colour for name in members}
            assert len(colours) >= min(len(members), 6)
            others = {look.colour for name, look in chosen.items() if name not in members}
            assert not colours & others
    assert {look.marker for look in chosen.values()} == set(MARKERS)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("dense", "dense"), ("moe", "MoE"), ("moe_ec", "MoE"), ("remoe", "MoE"),
        ("xmoe.py:XMoE", "MoE"), ("pkm", "memory"), ("memory_plus.py:MemoryPlus", "memory"),
        ("peer", "single-neuron experts"), ("omnimoe", "single-neuron experts"),
        ("mine.py:Dense2", "other"), ("memoirs.py:Mine", "other"),
    ],
)  # fmt: skip
def test_a_layer_has_a_family(layer: str, expected: str) -> None:
    assert family(layer) == expected


def test_every_registered_layer_and_example_has_a_family() -> None:
    classes = [
        f"{path.name}:{name}"
        for path in EXAMPLES.glob("*.py")
        for name in re.findall(r"^class (\w+)\(Layer\)", path.read_text(encoding="utf-8"), re.M)
    ]
    assert len(classes) > 3
    assert [name for name in (*LAYERS, *classes) if family(name) == "other"] == []
