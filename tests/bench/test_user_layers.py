"""Layer files that end, stop, fill or litter the process, or change while their cells train."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.bench import isolate
from isoflop.bench.checks import ESSENTIAL
from isoflop.bench.layers import find_layer
from isoflop.bench.lint import LintError, lint, refuse_files, with_class
from isoflop.bench.suite import SuiteError
from isoflop.results.errors import IsoflopError
from tests.bench.cells import tiny_cells
from tests.bench.test_lint import GOOD, write

ROOT = Path(__file__).parents[2]
ENDINGS = {
    "__import__('sys').exit(0)": "calls sys.exit(0)",
    "__import__('os')._exit(0)": "ended the process with exit code 0",
    "__import__('ctypes').string_at(0)": "the process was ended by SIGSEGV",
    "__import__('time').sleep(1000)": "was stopped after 5 s without a result",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_ends_the_process_is_one_line(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At import, before this process executes it."""
    if "sleep" in ending:
        monkeypatch.setattr(isolate, "SECONDS", 5)
    name = write(tmp_path, f"{GOOD}\n{ending}\n")
    with pytest.raises(LintError, match=r"mine\.py cannot be imported: ") as broken:
        with_class(name.rpartition(":")[0])
    with pytest.raises(SuiteError, match=r"variants\.mine\.layer: ") as refused:
        tiny_cells(variants={"mine": {"layer": name, "learning_rate": 1e-2}})
    for error in (broken, refused):
        assert ENDINGS[ending] in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("where", "check", "ending"),
    [
        ("return self.linear(x)", "shape", "__import__('os')._exit(0)"),
        ("return 2 * self.d_model**2", "builds", "__import__('os')._exit(0)"),
        ("return 2 * self.d_model**2", "builds", "__import__('ctypes').string_at(0)"),
    ],
)
def test_a_method_that_ends_the_process_is_a_finding(
    tmp_path: Path, where: str, check: str, ending: str
) -> None:
    name = write(tmp_path, GOOD.replace(where, f"{ending}; {where}"))
    variants = {"mine": {"layer": name, "learning_rate": 1e-2}}
    finding = lint(name, checks=ESSENTIAL)[-1]
    assert (finding.check, finding.ok) == (check, False)
    assert ENDINGS[ending] in finding.fix
    if check == "builds":
        with pytest.raises(SuiteError, match=r"variants\.mine\.layer: .*mine.py:Mine: "):
            tiny_cells(variants=variants)


@pytest.mark.parametrize("verb", [["lint", "mine.py"], ["plan", "suite.toml"]])
def test_an_exit_code_of_the_user_s_is_not_ours(tmp_path: Path, verb: list[str]) -> None:
    write(tmp_path, f"{GOOD}\nprint('noise')\n__import__('os')._exit(0)\n")
    (tmp_path / "suite.toml").write_text(
        "training = { context = 16, batch = 4 }\nbudgets = [{ flops = 5e8 }]\n"
        "transfer = { width = 16 }\nsizes.s = { width = 16, depth = 2, heads = 2 }\n"
        'variants.mine = { layer = "mine.py:Mine", learning_rate = 1e-2 }\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "isoflop", *verb],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    text = "mine.py cannot be imported: ended the process with exit code 0"
    if verb[0] == "lint":
        assert (done.returncode, done.stderr) == (1, "")
        assert done.stdout.startswith(f"FAIL builds       {text}\n")
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("isoflop: suite.toml: variants.mine.layer: mine.py")
        assert done.stderr.endswith("ended the process with exit code 0\n")
        assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("here")
def test_what_is_no_layer_file_is_one_line(tmp_path: Path) -> None:
    wrong = {
        "directory": "is a directory",
        "fifo": "is not a regular file",
        "large": "a layer's file has 1,048,576 at most",
        "binary": "not UTF-8",
        "empty": "no public class|no class 'Mine'; layers there: none",
        "null": "not Python",
        "deep": "cannot be imported",
    }
    (tmp_path / "directory.py").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo.py")
    else:
        del wrong["fifo"]
    with (tmp_path / "large.py").open("wb") as file:
        file.truncate(50 * 2**20)
    (tmp_path / "binary.py").write_bytes(b"# \xff\xfe\n" + GOOD.encode())
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "null.py").write_text("x = 1\0\n")
    (tmp_path / "deep.py").write_text("x = " + "(" * 1000 + ")" * 1000)
    for name, text in wrong.items():
        path = str(tmp_path / f"{name}.py")
        with pytest.raises(LintError, match=text) as error:
            with_class(path)
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match=text) as refused:
            find_layer(f"{path}:Mine")
        assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("here")
def test_a_cell_keeps_the_layer_it_was_planned_with(tmp_path: Path) -> None:
    name = write(tmp_path, GOOD)
    variants = {"mine": {"layer": name, "learning_rate": 1e-2}}
    (cell,) = tiny_cells(variants=variants)
    planned = cell.config.layer(16).flops_per_token()
    write(tmp_path, GOOD.replace("2 * self", "3 * self"))
    assert cell.config.layer(16).flops_per_token() == planned
    assert refuse_files([cell]) == []
    assert find_layer(name)(16).flops_per_token() != planned
    (tmp_path / "mine.py").unlink()
    assert cell.config.layer(16).flops_per_token() == planned


def mutated(text: str, generator: random.Random) -> str:
    """One to three edits as people make them, and as accidents do."""
    inserts = [
        "raise RuntimeError('a\\nb')",
        "import nowhere",
        "x = None",
        "return None",
        "exit(0)",
        "assert False",
        "self.aux_loss = 'x'",
        "raise KeyboardInterrupt",
    ]
    words = [("d_model", "0"), ("self.linear", "self.missing"), ("x)", "x, x)"), ("2 *", "-1 *")]
    words += [("2 *", "0.5 *"), ("Layer", "object"), ("False", "None"), ("return", "yield")]
    words += [("2 *", "10**400 *"), ("(x)", "(x)[0]"), ("nn.Linear", "nn.LSTM"), ("**2", "**-2")]
    lines = text.splitlines()
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(len(lines))
        kind = generator.randrange(6)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            indent = " " * (len(lines[at]) - len(lines[at].lstrip()))
            lines.insert(at, indent + generator.choice(inserts))
        elif kind == 2:
            lines.insert(at, lines[generator.randrange(len(lines))])
        elif kind == 3:
            cut = generator.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:cut] + generator.choice("\x00\u2028\u0663()[]:\t'#\ud800@")
        else:
            lines = "\n".join(lines).replace(*generator.choice(words), 1).splitlines()
    return "\n".join(lines) + "\n"


def judge(folder: str, seed: int, count: int) -> list[str]:
    """What is wrong with the answers to mutated files; runs in a child."""
    generator = random.Random(seed)
    wrong = []
    for index in range(count):
        path = Path(folder) / f"layer{index}.py"
        path.write_bytes(mutated(GOOD, generator).encode(errors="surrogatepass"))
        answers = []
        try:
            answers = [f.fix for f in lint(with_class(str(path)), checks=ESSENTIAL) if not f.ok]
        except IsoflopError as error:
            answers.append(str(error))
        except BaseException as error:
            wrong.append(f"{path}: {error!r}")
        try:
            variant = {"layer": f"{path}:Mine", "learning_rate": 1e-2}
            tiny_cells(variants={"mine": variant})
        except IsoflopError as error:
            answers.append(str(error))
        except BaseException as error:
            wrong.append(f"{path}: in the plan {error!r}")
        wrong += [f"{path}: {text!r}" for text in answers if not text or not text.isprintable()]
    return wrong


def test_mutated_layer_files_are_findings_or_one_line(tmp_path: Path) -> None:
    assert isolate.call(judge, str(tmp_path), 11, 40) == []
