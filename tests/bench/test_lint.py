from pathlib import Path

import pytest

from isoflop.bench.checks import CHECKS, ESSENTIAL
from isoflop.bench.lint import LintError, check_options, lint, refuse, refuse_files, with_class
from isoflop.bench.shape_checks import Shape, at_shape
from isoflop.bench.subject import Subject
from isoflop.models import LAYERS
from tests.bench.cells import tiny_cells
from tests.bench.faulty_layers import FAULTS, GOOD

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def write(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text)
    return f"{path}:Mine"


def faulty(folder: Path, name: str) -> str:
    _, right, wrong, _ = FAULTS[name]
    assert right in GOOD
    text = GOOD.replace(right, wrong)
    if "self.gate(x)" in wrong:
        line = "        self.gate = nn.Linear(d_model, 1, bias=False)\n"
        text = text.replace("2 * self.d_model**2", "2 * self.d_model**2 + 2 * self.d_model")
        text = text.replace("    def forward", f"{line}\n    def forward")
    elif "self.gate" in wrong:
        line = "        self.gate = nn.Parameter(torch.zeros(d_model))\n"
        text = text.replace("    def forward", f"{line}\n    def forward")
    return write(folder, text)


def test_a_sound_layer_passes_every_check(tmp_path: Path) -> None:
    name = write(tmp_path, GOOD)
    findings = lint(name)
    assert [finding.check for finding in findings] == list(CHECKS)
    assert not [finding for finding in findings if not finding.ok or finding.fix]
    refuse(name)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_its_check_in_one_line(tmp_path: Path, fault: str) -> None:
    check, _, _, text = FAULTS[fault]
    name = faulty(tmp_path, fault)
    checks = list(CHECKS)
    findings = lint(name, checks=checks[: checks.index(check) + 1])
    finding = next(finding for finding in findings if not finding.ok)
    assert finding.check == check
    assert text in finding.fix
    assert "\n" not in finding.fix
    if check in ESSENTIAL:
        with pytest.raises(LintError, match=f"mine.py:Mine: {check}: ") as error:
            refuse(name)
        assert text in str(error.value)
        assert "\n" not in str(error.value)
    else:
        refuse(name)


def test_every_check_has_a_fault() -> None:
    informs = {"output"}  # states the scale of the output, whatever it is
    assert {check for check, *_ in FAULTS.values()} == set(CHECKS) - informs


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_is_fit_to_be_trained(path: Path) -> None:
    failed = [finding for finding in lint(with_class(str(path))) if not finding.ok]
    assert not failed


def test_there_are_five_examples() -> None:
    assert len(EXAMPLES) == 5


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("layer", ["dense", "engram", "moe", "moe_ec"])
def test_registered_layers_pass_too(layer: str) -> None:
    assert all(finding.ok for finding in lint(layer))


LOOKS_UP = (
    ("(d_model, d_model, bias=False)", "(d_model, d_model, bias=False)\n"
     "        self.rows = nn.Embedding(50, d_model)\n\n"
     "    def see_tokens(self, tokens):\n        self.tokens = tokens"),
    ("self.linear(x)", "self.linear(x) + self.rows(self.tokens)"),
)  # fmt: skip


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("later", [0, 1])
def test_a_layer_may_see_tokens_yet_none_that_come_later(tmp_path: Path, later: int) -> None:
    text = GOOD
    for right, wrong in LOOKS_UP:
        assert right in text
        text = text.replace(right, wrong)
    text = text.replace("self.tokens = tokens", f"self.tokens = tokens.roll(-{later}, 1)")
    findings = lint(write(tmp_path, text), shapes=[Shape(24, 16, 4)])
    failed = {finding.check for finding in findings if not finding.ok}
    assert failed == ({"causality"} if later else set())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("check", ["causality", "batch", "flops"])
def test_what_sees_tokens_is_asked_at_a_shape_too(check: str) -> None:
    subject = Subject("engram", {}, layer=LAYERS["engram"])
    assert at_shape(check, subject, Shape(24, 16, 4), []) == ""


@pytest.mark.usefixtures("here")
def test_fast_paths_are_not_taken_for_more_work_than_was_counted() -> None:
    small = {"heads": 2, "top_k": 4, "d_key": 8}
    refuse("pkm", small | {"n_slots": 64})
    refuse("peer", small | {"n_experts": 64})


@pytest.mark.usefixtures("here")
def test_options_are_checked(tmp_path: Path) -> None:
    finding = lint("moe", {"granularity": 0})[-1]
    assert (finding.check, finding.ok) == ("builds", False)
    assert "granularity" in finding.fix


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"granularity": "two"}, "granularity: Input should be a valid integer"),
        ({"granularity": 0}, "granularity"),
        ({"grain": 4}, "grain: unknown option of layer moe.*; known: .*granularity"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, object], text: str) -> None:
    check_options("moe", {"granularity": 4})
    check_options("nowhere.py:Mine", {"x": [1, 2]})  # `builds` says what is wrong with it
    with pytest.raises(LintError, match=f"--option {text}") as error:
        check_options("moe", options)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("here")
def test_only_layers_from_files_are_refused_before_a_run(tmp_path: Path) -> None:
    refuse_files(tiny_cells())
    variants = {"mine": {"layer": write(tmp_path, GOOD), "learning_rate": 1e-2}}
    refuse_files(tiny_cells(variants=variants))
    (tmp_path / "bad").mkdir()
    variants["mine"]["layer"] = faulty(tmp_path / "bad", "mean over time")
    with pytest.raises(LintError, match="causality"):
        refuse_files(tiny_cells(variants=variants))


@pytest.mark.usefixtures("here")
def test_the_class_is_found_if_there_is_one(tmp_path: Path) -> None:
    assert with_class("dense") == "dense"
    name = write(tmp_path, GOOD)
    path = name.rpartition(":")[0]
    assert with_class(path) == name
    assert with_class(name) == name
    two = tmp_path / "two.py"
    two.write_text(f"{GOOD}\nclass Other(Mine):\n    pass\n\nclass _Base(Mine):\n    pass\n")
    none = tmp_path / "none.py"
    none.write_text("x = 1\n")
    wrong = tmp_path / "wrong.py"
    wrong.write_text("class\n")
    failing = tmp_path / "failing.py"
    failing.write_text(f"1 / 0\n{GOOD}")
    for bad, text in (
        (two, "which layer: Mine, Other"),
        (none, "no public class derived from isoflop.Layer"),
        (wrong, "not Python"),
        (failing, "ZeroDivisionError"),
        (tmp_path / "absent.py", "No such file"),
    ):
        with pytest.raises(LintError, match=text):
            with_class(str(bad))
