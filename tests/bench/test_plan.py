import json
from pathlib import Path

import pytest

import isoflop.bench.counts
from isoflop.bench.cost import DEVICES, predict_bytes, predict_work
from isoflop.bench.layers import complete_options, find_layer
from isoflop.bench.plan import plan, sweep_cells
from isoflop.bench.suite import SuiteError
from isoflop.models import PEER, Layer
from tests.bench.cells import TINY, tiny_cells, tiny_suite

LAYER_FILE = """
from isoflop import Layer

class Nothing(Layer):
    "Adds nothing."

    def forward(self, x_BTD):
        return x_BTD * 0

    def flops_per_token(self):
        return 0
"""


def test_cells_are_variants_by_budgets_by_sizes_by_seeds() -> None:
    sizes = {name: {"width": 8 * i, "depth": 1, "heads": 1} for i, name in enumerate("abc", 1)}
    budgets = [{"flops": 2e9}, {"flops": 1e9, "sizes": ["a", "b"]}]
    cells = tiny_cells(sizes=sizes, budgets=budgets, seeds=[0, 1])
    assert len(cells) == 2 * (3 + 2) * 2
    assert [cell.budget for cell in cells] == sorted(cell.budget for cell in cells)
    assert len({cell.id for cell in cells}) == len(cells)


def test_a_budget_may_have_seeds_of_its_own() -> None:
    budgets = [{"flops": 5e8, "seeds": [0, 2]}, {"flops": 1e9}]
    choices = {"batch": {"two": {"training": {"batch": 2}, "variants": ["dense"]}}}
    cells = tiny_cells(budgets=budgets, seeds=[1], axes=choices)
    planned = {(cell.variant, cell.budget, cell.seed) for cell in cells}
    assert planned == {
        *((name, 5e8, seed) for name in ("dense", "peer", "dense batch=two") for seed in (0, 2)),
        *((name, 1e9, 1) for name in ("dense", "peer")),
    }


def test_tokens_are_the_budget_over_training_flops_per_token() -> None:
    for cell in tiny_cells():
        per_step = cell.flops_per_token.training * 4 * 16
        assert cell.steps == round(5e8 / per_step)
        assert cell.flops == cell.steps * per_step
        assert abs(cell.flops / 5e8 - 1) < 0.01


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": [1]},
        {"placement": "all"},
        {"budgets": [{"flops": 6e8}]},
        {"corpus": {**TINY["corpus"], "documents": 41}},
        {"training": {**TINY["training"], "clip": 0.5}},
        {"training": {**TINY["training"], "initialisation": "positional"}},
        {"transfer": {"width": 32}},
        {"sizes": {"s": {"width": 16, "depth": 2, "heads": 1}}},
    ],
)
def test_an_id_changes_with_everything_that_can_change_the_result(changes: dict) -> None:
    before, after = tiny_cells(), tiny_cells(**changes)
    assert [cell.id for cell in tiny_cells()] == [cell.id for cell in before]
    assert not {cell.id for cell in before} & {cell.id for cell in after}


def test_an_id_does_not_change_with_names_or_spelt_out_defaults() -> None:
    shape = {**TINY["sizes"]["s"], "batch": 4}
    variants = {"base": {"layer": "dense", "learning_rate": 1e-2, "options": {"ratio": 4.0}}}
    training = {**TINY["training"], "gpus_per_cell": 1, "initialisation": "random"}
    cells = tiny_cells(name="other", sizes={"small": shape}, variants=variants, training=training)
    assert cells[0].id == tiny_cells()[0].id


def test_the_learning_rate_follows_the_transfer_rule() -> None:
    sizes = {"s": {"width": 64, "depth": 1, "heads": 1}}
    budgets = [{"flops": 1e10}]
    cells = tiny_cells(sizes=sizes, budgets=budgets, transfer={"width": 16, "exponent": 0.5})
    assert cells[0].learning_rate == pytest.approx(1e-2 / 2)


def test_a_sweep_varies_the_rate_of_the_tune_cell() -> None:
    tune = {"sizes": ["s"], "budget": 5e8, "factors": [0.5, 1.0, 2.0], "seeds": [0, 1]}
    cells = sweep_cells(tiny_suite(tune=tune), "tiny.toml")
    # Two variants, three rates, two seeds; peer's tables at two further rates.
    assert len({cell.id for cell in cells}) == len(cells) == 2 * 3 * 2 + 2 * 2
    assert {cell.learning_rate for cell in cells} == {5e-3, 1e-2, 2e-2}
    tables = [cell for cell in cells if cell.table_rate != 1]
    assert {(c.variant, c.learning_rate, c.table_rate) for c in tables} == {
        ("peer", 1e-2, 0.5),
        ("peer", 1e-2, 2.0),
    }
    assert tiny_cells()[0].id in {cell.id for cell in cells}
    with pytest.raises(SuiteError, match=r"tiny.toml: tune: missing"):
        sweep_cells(tiny_suite(), "tiny.toml")


def test_an_id_does_not_change_with_where_a_layer_file_lies(tmp_path: Path) -> None:
    ids = set()
    for folder, text in (("a", LAYER_FILE), ("b/c", LAYER_FILE), ("d", LAYER_FILE + "#")):
        path = tmp_path / folder / "mine.py"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        variants = {"new": {"layer": f"{path}:Nothing", "learning_rate": 1e-2}}
        (cell,) = tiny_cells(variants=variants)
        assert cell.config.layer.name == "mine.py:Nothing"
        ids.add(cell.id)
    assert len(ids) == 2  # the third differs by its source


def test_a_layer_file_runs_from_its_source_and_leaves_no_bytecode(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(LAYER_FILE)
    find_layer(f"{path}:Nothing")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.py"]


def test_a_layer_file_is_used_without_touching_the_package(tmp_path: Path) -> None:
    path = tmp_path / "models.py"  # a name of ours, on purpose
    path.write_text(LAYER_FILE)
    name = f"{path}:Nothing"
    layer = find_layer(name)
    assert issubclass(layer, Layer)
    assert find_layer(name) is layer
    variants = {"new": {"layer": name, "learning_rate": 1e-2}}
    before = tiny_cells(variants=variants)[0].id
    path.write_text(LAYER_FILE.replace("* 0", "* 1"))
    assert tiny_cells(variants=variants)[0].id != before


@pytest.mark.parametrize(
    ("text", "attribute", "message"),
    [
        ("raise RuntimeError('no')", "A", "cannot be imported: raises RuntimeError: no$"),
        ("A = 3", "A", "is not a class derived from isoflop.Layer"),
        ("", "A", "no class 'A'; layers there: none$"),
        (
            LAYER_FILE,
            "Nothng",
            r"no class 'Nothng' \(did you mean 'Nothing'\?\); layers there: Nothing",
        ),
        ("import beside", "A", "No module named 'beside'.*; beside lies beside the file: set PYTH"),
    ],
)
def test_a_bad_layer_file_is_refused(
    tmp_path: Path, text: str, attribute: str, message: str
) -> None:
    (tmp_path / "beside").mkdir(exist_ok=True)
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        find_layer(f"{path}:{attribute}")


def test_a_class_derived_from_ours_has_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "derived.py"
    path.write_text("from isoflop.models import Dense\n\nclass Mine(Dense):\n    pass\n")
    assert find_layer(f"{path}:Mine").name == "derived.py:Mine"
    assert find_layer("dense").name == "dense"


def test_options_are_completed_and_checked() -> None:
    assert complete_options(PEER, {"heads": 2})["n_experts"] == 1024**2
    for options, message in (
        (
            {"head": 2},
            r"head: unknown option of layer peer \(did you mean 'heads'\?\); known: n_exp",
        ),
        ({"heads": "2"}, "heads: Input should be a valid integer"),
        ({"query_norm": "instance"}, "query_norm: Input should be 'batch', 'layer' or 'none'"),
        ({"n_experts": 80}, "80 keys are no square"),
    ):
        with pytest.raises(ValueError, match=message):
            complete_options(PEER, options)


def test_predictions_grow_with_the_budget_and_the_model() -> None:
    small = tiny_cells()[0]
    large = tiny_cells(budgets=[{"flops": 5e9}])[0]
    h100 = DEVICES["h100"]
    assert predict_work(large, h100) == pytest.approx(10 * predict_work(small, h100), rel=0.1)
    dense, peer = plan(tiny_suite(), "tiny.toml")
    assert predict_bytes(peer) > predict_bytes(dense) > 16 * dense.parameters.total


def test_a_plan_is_json_all_the_way() -> None:
    for cell in tiny_cells():
        json.dumps([cell.options, cell.placement, cell.parameters.model_dump()])


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [0, 0]},
        {"budgets": [{"flops": 5e8}, {"flops": 5e8}]},
        {"variants": {"a": TINY["variants"]["dense"], "b": TINY["variants"]["dense"]}},
    ],
)
def test_what_stands_twice_in_a_suite_is_refused(change: dict) -> None:
    with pytest.raises(SuiteError, match=r"is the same cell as .*remove what stands twice"):
        tiny_cells(**change)


def test_a_model_is_built_once_for_all_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = isoflop.bench.counts.build_on_meta
    monkeypatch.setattr(
        isoflop.bench.counts, "build_on_meta", lambda config: built.append(1) or build(config)
    )
    isoflop.bench.counts.counts.cache_clear()
    assert len(tiny_cells(seeds=list(range(50)))) == 100
    assert len(built) == 2
