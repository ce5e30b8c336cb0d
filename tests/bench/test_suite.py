from pathlib import Path
from typing import Any

import pytest

from isoflop.bench.plan import plan
from isoflop.bench.suite import (
    SHIPPED,
    Budget,
    Corpus,
    Shape,
    Suite,
    SuiteError,
    Training,
    Transfer,
    Tune,
    Variant,
    load_suite,
)

GOOD = """
[training]
context = 16
batch = 4
[sizes]
s = { width = 16, depth = 2, heads = 2 }
[[budgets]]
flops = 1e9
[transfer]
width = 16
[variants]
dense = { layer = "dense", learning_rate = 1e-2 }
"""


def load(folder: Path, text: str) -> Any:
    path = folder / "suite.toml"
    path.write_text(text)
    return plan(load_suite(str(path)), str(path))


def test_a_good_suite_loads(tmp_path: Path) -> None:
    assert len(load(tmp_path, GOOD)) == 1


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_suites_load_and_can_be_planned(path: Path) -> None:
    cells = plan(load_suite(path.stem), str(path))
    assert len({cell.id for cell in cells}) == len(cells)
    for cell in cells:
        assert abs(cell.flops / cell.budget - 1) <= 0.01


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "context",
            "contxt",
            "training.contxt: unknown key (did you mean 'context'?); known here: context, batch",
        ),
        (
            "[transfer]",
            "[transfers]",
            "transfers: unknown key (did you mean 'transfer'?); known here: name, description",
        ),
        (
            "depth = 2",
            "deep = 2",
            "sizes.s.deep: unknown key (did you mean 'depth'?); known here: width, depth",
        ),
        ("batch = 4\n", "", "training.batch: missing"),
        ("flops = 1e9", "flops = -1e9", "budgets.0.flops: Input should be greater than 0, not -"),
        ("flops = 1e9", "flops = 1e5", "budgets.0.flops: 100000 FLOPs cannot be met within 1%"),
        ("heads = 2", "heads = 3", "sizes.s: width 16 must be an even multiple of heads, not of 3"),
        (
            'layer = "dense"',
            'layer = "dens"',
            "variants.dense.layer: no layer 'dens' (did you mean 'dense'?); known: dense",
        ),
        ('layer = "dense"', 'layer = "no.py:A"', "variants.dense.layer: no file no.py"),
        (
            "1e-2 }",
            "1e-2, options = { ration = 2 } }",
            "options: ration: unknown option of layer dense (did you mean 'ratio'?); known",
        ),
        (
            "1e-2 }",
            '1e-2, options = { ratio = "2" } }',
            "variants.dense.options: ratio: Input should be a valid number",
        ),
        (
            "1e-2 }",
            "1e-2, options = { ratio = -2 } }",
            "variants.dense.options: ratio must be positive",
        ),
        ("[training]", "placement = [2]\n[training]", "placement"),
        ("flops = 1e9", 'flops = 1e9\nsizes = ["xl"]', "budgets.0.sizes: no size 'xl' in"),
        (
            "flops = 1e9",
            'flops = 1e9\nvariants = ["moe"]',
            "budgets.0.variants: no variant 'moe' in",
        ),
        (
            "flops = 1e9",
            'flops = 1e9\nsizes = ["S"]',
            "'S' in [sizes] (did you mean 's'?); known: s",
        ),
        (
            "flops = 1e9",
            'flops = 1e9\nvariants = ["densest"]',
            "(did you mean 'dense'?); known: dense",
        ),
        ("batch = 4", "batch = 4\nmicro_batch = 3", "training.micro_batch: 3 must divide"),
        ("[training]", "[training", "not TOML"),
        (
            "[transfer]",
            '[tune]\nsizes = ["xl"]\nbudget = 1e9\n[transfer]',
            "tune.sizes: no size 'xl'",
        ),
    ],
)
def test_a_bad_suite_is_one_line_naming_file_key_and_remedy(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(SuiteError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    line = str(caught.value)
    assert message in line
    assert line.startswith(str(tmp_path / "suite.toml"))
    assert "\n" not in line


def test_a_suite_that_is_not_there_lists_the_shipped_ones() -> None:
    with pytest.raises(SuiteError, match=r"nowhere: No such file.*ci, .*quick"):
        load_suite("nowhere")
    with pytest.raises(SuiteError, match=r" \(did you mean 'quick'\?\); give .* one of: .*quick"):
        load_suite("qick")


def test_every_field_says_what_it_means() -> None:
    tables = [Suite, Budget, Corpus, Shape, Training, Transfer, Tune, Variant]
    silent = [(t, key) for t in tables for key, f in t.model_fields.items() if not f.description]
    assert not silent


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x = " + b"[" * 5000 + b"]" * 5000, "not TOML"),
        (b"x = " + b"9" * 5000, "not TOML"),
        (b"\xff\xfe", "not TOML"),
        (b"#" * (2**20 + 1), "too many for a suite file"),
        (b"", "training: missing"),
    ],
)
def test_a_file_that_is_no_suite_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_bytes(content)
    with pytest.raises(SuiteError, match=message) as caught:
        load_suite(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_name_without_end_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="not a file; give a TOML file"):
        load_suite(str(tmp_path))
    with pytest.raises(SuiteError, match="File name too long"):
        load_suite("a" * 5000)


def test_a_suite_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text((SHIPPED / "ci.toml").read_text(), encoding="utf-8-sig")
    assert load_suite(str(path)).variants == load_suite("ci").variants
