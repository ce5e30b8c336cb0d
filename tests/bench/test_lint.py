from pathlib import Path

import pytest

from isoflop.bench.checks import CHECKS, ESSENTIAL
from isoflop.bench.lint import LintError, lint, read_options, refuse, refuse_files, with_class
from tests.bench.cells import tiny_cells

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))

GOOD = """\
import torch
from torch import nn
from isoflop import Layer

class Mine(Layer):
    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.linear = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x):
        return self.linear(x)

    def flops_per_token(self):
        return 2 * self.d_model**2
"""

# What a user may do wrong: the check that finds it, what to replace in GOOD, and part of the line.
FAULTS = {
    "import": ("builds", "import torch\n", "import torch\nimport nowhere\n", "No module named"),
    "syntax": ("builds", "class Mine(Layer):", "class Mine(Layer)", "cannot be imported"),
    "no layer": ("builds", "class Mine(Layer)", "class Mine(nn.Module)", "not a class derived"),
    "init raises": ("builds", "super().__init__(d_model, **options)", "1 / 0", "py:7: raises Zero"),
    "no formula": ("builds", "flops_per_token", "flops", "raises NotImplementedError"),
    "fractional": ("builds", "2 * self", "2.0 * self", "must return a whole number from"),
    "taken name": (
        "builds",
        "class Mine(Layer):",
        'class Mine(Layer):\n    name = "dense"',
        "has the name of the registered dense",
    ),
    "active": (
        "builds",
        "    def forward",
        "    def active_parameters(self):\n        return 10**9\n\n    def forward",
        "active_parameters() is 1000000000, yet there are 1024",
    ),
    "forward raises": ("shape", "self.linear(x)", "self.linear(x[..., 1:])", "py:11: raises Runt"),
    "shape": ("shape", "self.linear(x)", "self.linear(x)[:, 1:]", "not (8, 11, 32)"),
    "tuple": ("shape", "self.linear(x)", "self.linear(x), None", "not tuple"),
    "dtype": ("shape", "self.linear(x)", "self.linear(x).double()", "not torch.float64"),
    "in place": ("shape", "self.linear(x)", "self.linear(x.mul_(2))", "in place"),
    "auxiliary": (
        "shape",
        "        return self.linear(x)",
        "        self.aux_loss = x\n        return self.linear(x)",
        "scalar",
    ),
    "mean over time": ("causality", "linear(x)", "linear(x - x.mean(1, keepdim=True))", "position"),
    "next token": ("causality", "linear(x)", "linear(x) + x.roll(-1, dims=1)", "earlier outputs"),
    "over the batch": ("causality", "linear(x)", "linear(x) - x.mean((0, 1))", "earlier outputs"),
    "mixes sequences": ("batch", "linear(x)", "linear(x - x.mean(0))", "`mixes_batch = True`"),
    "needs its batch": (
        "batch",
        "        return self.linear(x)",
        "        if len(x) % 2:\n"
        "            raise ValueError('odd')\n"
        "        return self.linear(x)",
        "a sequence without its batch raises ValueError: odd; an output may",
    ),
    "attends on real tensors": (
        "flops",
        "        return self.linear(x)",
        "        h = x[:, None]\n"
        "        attend = nn.functional.scaled_dot_product_attention\n"
        "        more = 0 if x.is_meta else attend(h, h, h, is_causal=True)[:, 0]\n"
        "        return self.linear(x) + more",
        "forward does 3584 FLOPs per token on real tensors, 2048 in the trace",
    ),
    "recurrent on real tensors": (
        "flops",
        "        return self.linear(x)",
        "        more = 0 if x.is_meta else nn.LSTM(32, 32, batch_first=True)(x)[0]\n"
        "        return self.linear(x) + 0 * more",
        "cannot count aten::mkldnn_rnn_layer on real tensors: write it with matrix products",
    ),
    "vector on real tensors": (
        "flops",
        "        return self.linear(x)",
        "        more = 0 if x.is_meta else x[0] @ x[0, 0]\n"
        "        return self.linear(x) + 0 * (more if x.is_meta else more.sum())",
        "per token on real tensors",
    ),
    "more in evaluation": (
        "flops",
        "self.linear(x)",
        "self.linear(x if self.training else self.linear(x))",
        "in the trace, in evaluation",
    ),
    "no formula's number": ("builds", "2 * self.d_model**2", "None", "not None"),
    "negative": ("builds", "2 * self", "-2 * self", "whole number from 0 to 2^63, not -2048"),
    "huge": ("builds", "2 * self.d_model**2", "10**5000", "not an object of type int"),
    "truth for a count": ("builds", "2 * self.d_model**2", "True", "not True"),
    "options": (
        "builds",
        "    def __init__",
        "    class Options:\n        pass\n\n    def __init__",
        "must be a dataclass",
    ),
    "mark": (
        "builds",
        "    def __init__",
        "    mixes_batch = 'yes'\n\n    def __init__",
        "mixes_batch must be True or False, not 'yes'",
    ),
    "recursion": ("builds", "2 * self.d_model**2", "self.flops_per_token()", "RecursionError"),
    "exit": ("builds", "2 * self.d_model**2", "exit(0)", "calls sys.exit(0)"),
    "behind a zero": (
        "causality",
        "        return self.linear(x)",
        "        return self.linear(x) + self.gate * x.mean(1, keepdim=True)",
        "earlier outputs",
    ),
    "too few FLOPs": ("flops", "2 * self", "1 * self", "per token by formula"),
    "too many FLOPs": ("flops", "2 * self", "3 * self", "per token by formula"),
    "right at one width": ("flops", "2 * self.d_model**2", "64 * self.d_model", "width 48"),
    "uncounted": ("flops", "self.linear(x)", "self.linear(x) + x.cumprod(-1)", "cannot count"),
    "less on the meta device": (
        "flops",
        "self.linear(x)",
        "self.linear(x if x.is_meta else self.linear(x))",
        "forward does 4096 FLOPs per token on real tensors, 2048 in the trace",
    ),
    "less in a trace": (
        "flops",
        "self.linear(x)",
        "self.linear(x if torch.jit.is_tracing() else self.linear(x))",
        "on real tensors",
    ),
    "no gradient": ("gradients", "linear(x)", "linear(x).detach() + x", "linear.weight gets no"),
    "not finite": (
        "gradients",
        "linear(x)",
        "linear(x) + (0 * x).abs().sqrt()",
        "gradient of the input is not finite",
    ),
    "wrong gradient": ("gradcheck", "linear(x)", "linear(x) * x.detach()", "finite differences"),
    "float32": ("gradcheck", "linear(x)", "linear(x.float().to(x.dtype))", "finite differences"),
    "numpy's chance": (
        "determinism",
        "self.linear(x)",
        "self.linear(x) * __import__('random').random()",
        "torch's generator",
    ),
    "chance in evaluation": ("determinism", "linear(x)", "linear(x) * torch.rand(())", "two calls"),
    "bfloat16": (
        "bfloat16",
        "        return self.linear(x)",
        "        h = self.linear(x)\n        return h + (100 * h).sin()",
        "full_precision",
    ),
    "compile": (
        "compile",
        "self.linear(x)",
        "self.linear(x) * (2 if torch.compiler.is_compiling() else 1)",
        "torch.compile changes the output",
    ),
}


def write(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text)
    return f"{path}:Mine"


def faulty(folder: Path, name: str) -> str:
    _, right, wrong, _ = FAULTS[name]
    assert right in GOOD
    text = GOOD.replace(right, wrong)
    if "self.gate" in wrong:
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
    assert {check for check, *_ in FAULTS.values()} == set(CHECKS)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_is_fit_to_be_trained(path: Path) -> None:
    failed = [finding for finding in lint(with_class(str(path))) if not finding.ok]
    assert not failed


def test_there_are_five_examples() -> None:
    assert len(EXAMPLES) == 5


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("layer", ["dense", "moe", "moe_ec"])
def test_registered_layers_pass_too(layer: str) -> None:
    assert all(finding.ok for finding in lint(layer))


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
def test_options_are_toml_or_one_word() -> None:
    given = ["activation=swiglu", "ratio=2.5"]
    assert read_options("dense", given) == {"activation": "swiglu", "ratio": 2.5}
    assert read_options("dense", ['activation="swiglu"']) == {"activation": "swiglu"}
    assert read_options("moe", ["granularity=4"]) == {"granularity": 4}
    assert read_options("nowhere.py:Mine", ["x=[1, 2]"]) == {"x": [1, 2]}  # `builds` says it
    assert read_options("moe", []) == {}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["granularity"], "granularity: give NAME=VALUE"),
        (["=4"], "=4: give NAME=VALUE"),
        (["granularity=2", "granularity=4"], "granularity=4: give NAME=VALUE, each name once"),
        (["granularity=[4"], r"granularity=\[4: neither a TOML value nor one word"),
        (["granularity="], "granularity=: neither"),
        (["granularity=two"], "granularity: Input should be a valid integer"),
        (["granularity=0"], "granularity"),
        (["grain=4"], "grain: unknown option of layer moe.*; known: .*granularity"),
    ],
)
def test_a_wrong_option_is_one_line(given: list[str], text: str) -> None:
    with pytest.raises(LintError, match=f"--option {text}") as error:
        read_options("moe", given)
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
