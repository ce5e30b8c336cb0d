from pathlib import Path

import pytest

from isoflop.bench.lint import LintError, refuse, refuse_files
from isoflop.bench.shape_checks import LARGEST, Shape, reduced
from tests.bench.cells import tiny_cells
from tests.bench.test_lint import GOOD, write

# Alike at small shapes; at a longer sequence, or a wider layer, another.
AT_SHAPE = {
    "causality": ("linear(x)", "linear(x.roll(-1, 1) if x.shape[1] > 12 else x)"),
    "batch": ("linear(x)", "linear(x - x.mean(0) if x.shape[1] > 12 else x)"),
    "flops": ("linear(x)", "linear(x if x.is_meta or x.shape[1] < 13 else self.linear(x))"),
}
AUTOCAST = ("linear(x)", "linear(x.roll(-1, 1) if torch.is_autocast_enabled('cpu') else x)")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("check", AT_SHAPE)
def test_shapes_of_cells_are_asked_too(tmp_path: Path, check: str) -> None:
    name = write(tmp_path, GOOD.replace(*AT_SHAPE[check]))
    refuse(name)
    cells = tiny_cells(variants={"mine": {"layer": name, "learning_rate": 1e-2}})
    with pytest.raises(LintError, match=f"{check}: at batch 4, context 16, width 16: ") as error:
        refuse_files(cells)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("here")
def test_cells_are_asked_as_they_train(tmp_path: Path) -> None:
    """Under autocast, with the source of the plan, once for each layer and shape."""
    name = write(tmp_path, GOOD.replace(*AUTOCAST))
    variants = {"mine": {"layer": name, "learning_rate": 1e-2}}
    cells = tiny_cells(variants=variants, seeds=[0, 1])
    write(tmp_path, GOOD)
    with pytest.raises(LintError, match=r"causality: at batch 4.* in evaluation under autocast"):
        refuse_files(cells)
    assert refuse_files(tiny_cells(variants=variants, seeds=[0, 1])) == []


@pytest.mark.parametrize(("layer", "options"), [("moe", {"granularity": 32}), ("moe_latent", {})])
def test_zeros_that_align_the_experts_are_no_work(layer: str, options: dict) -> None:
    """Experts of an odd width, or of odd inputs, are filled up to 16 bytes on real tensors."""
    # widths 2 and 3 of the experts, and 4 and 6 of their inputs
    refuse(layer, options, [Shape(width=width, context=16, batch=4) for width in (16, 24)])


def test_a_huge_shape_is_reduced() -> None:
    huge = Shape(width=4096, context=2048, batch=64)
    asked = reduced(huge, 16 * 4096**2, mixes_batch=False)
    assert asked.width == 4096
    assert asked.batch * asked.context * 16 * 4096**2 <= LARGEST
    assert asked.batch == 2  # sequences go first
    assert reduced(huge, 16 * 4096**2, mixes_batch=True).batch == 64
    small = Shape(width=64, context=64, batch=4)
    assert reduced(small, 16 * 64**2, mixes_batch=False) == small
