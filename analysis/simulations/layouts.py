"""The cells of a suite, for simulation: its sizes, tokens and FLOPs; the losses are simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop import results
from isoflop.analysis.simulate import record
from isoflop.results.record import Flops, Parameters, Record, Size, load_records

QUICK = Path(results.__file__).resolve().parent / "submissions" / "quick-baselines" / "records"
VARIANTS = ("dense", "moe-g1", "moe-g4", "pkm", "peer")  # of quick, those that are simulated
# the suite `paper`, with every variant counted as dense is
PAPER_SIZES = {"s": (512, 10), "m": (768, 12), "l": (1024, 16), "xl": (1280, 20)}  # width, depth
PAPER_BUDGETS = (6e18, 2e19)
PAPER_CONTEXT, PAPER_VOCABULARY, PAPER_BATCH = 2048, 32_768, 128


@dataclass(frozen=True)
class Layout:
    """The cells of a suite."""

    name: str
    records: tuple[Record, ...]  # finished; their losses are replaced in every simulated suite
    baseline: str
    budget: float  # FLOPs, of the ranking: the largest that all variants have

    @property
    def layers(self) -> list[str]:
        """The variants that are compared with the baseline."""
        return sorted({record.variant for record in self.records} - {self.baseline})


def quick(seeds: int = 1) -> Layout:
    """The suite `quick` with five of its variants, from its published records."""
    cells = [
        record for record in load_records(QUICK) if record.seed == 0 and record.variant in VARIANTS
    ]
    return _layout("quick", cells, "dense", seeds)


def incomplete() -> Layout:
    """`quick`, where every layer's cell of size s at the largest budget has not finished."""
    whole = quick()
    cells = [
        cell
        for cell in whole.records
        if (cell.size.name, cell.budget) != ("s", whole.budget) or cell.variant == whole.baseline
    ]
    return _layout(whole.name, cells, whole.baseline, 1)


def paper(seeds: int = 1) -> Layout:
    """The suite `paper`: two budgets, four sizes."""
    cells = [
        _paper_cell(variant, budget, name)
        for variant in ("dense", "moe", "peer", "pkm")
        for budget in PAPER_BUDGETS
        for name in PAPER_SIZES
    ]
    return _layout("paper", cells, "dense", seeds)


def _layout(name: str, cells: Sequence[Record], baseline: str, seeds: int) -> Layout:
    by_variant: dict[str, set[float]] = {}
    for cell in cells:
        by_variant.setdefault(cell.variant, set()).add(cell.budget)
    copies = [cell.model_copy(update={"seed": seed}) for cell in cells for seed in range(seeds)]
    return Layout(name, tuple(copies), baseline, max(set.intersection(*by_variant.values())))


def _paper_cell(variant: str, budget: float, name: str) -> Record:
    width, depth = PAPER_SIZES[name]
    block, table = width**2 * depth, PAPER_VOCABULARY * width
    cost = Flops(
        attention=8 * block + 4 * PAPER_CONTEXT * width * depth,
        ffn=16 * block,
        routing=0,
        head=2 * table,
    )
    step = PAPER_BATCH * PAPER_CONTEXT
    tokens = round(budget / cost.training / step) * step
    return record(variant, budget, width).model_copy(
        update={
            "size": Size(name=name, width=width, depth=depth, heads=width // 64),
            "parameters": Parameters(
                embedding=table,
                head=table,
                backbone=4 * block,
                layer_active=8 * block,
                layer_total=8 * block,
            ),
            "flops_per_token": cost,
            "tokens": tokens,
            "flops": tokens * cost.training,
        }
    )
