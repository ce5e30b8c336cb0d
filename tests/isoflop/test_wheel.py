"""The package as users have it: from a wheel, an editable install, a clone without installation.

Each is used from a project that has folders of the same names as ours, and a layer's file.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("analysis", "bench", "models", "results")
SOURCES = ("isoflop", *FOLDERS, "pyproject.toml", "README.md", "LICENSE")
PIP = ("--disable-pip-version-check", "--no-index", "--no-build-isolation", "--no-deps", "--quiet")
RUN_AS_A_SCRIPT = '\n\nif __name__ == "__main__":\n    print(MyLayer(8).flops_per_token())\n'
SESSION = """
import sys

from isoflop.bench.compare import prepare
from isoflop.cli.main import main

for line in sys.argv[1:]:
    sys.argv = ["isoflop", *line.split()]
    try:
        main()
    except SystemExit as end:
        assert not end.code, line
print(prepare("my_layer.py:MyLayer", "quick", None, 1).source)
"""


@dataclass(frozen=True)
class Installation:
    """A way to have isoflop, and a project that uses it."""

    python: Path
    command: list[str]  # that starts `isoflop`
    path: list[Path]  # what PYTHONPATH must hold
    package: Path  # where `import isoflop` must come from
    published: Path  # where `compare` must find the published records
    project: Path

    def start(
        self, *command: str | Path, path: tuple[Path | str, ...] = ()
    ) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if path or self.path:
            environment["PYTHONPATH"] = os.pathsep.join(map(str, [*path, *self.path]))
        return subprocess.Popen(
            command,
            cwd=self.project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str | Path, path: tuple[Path | str, ...] = ()) -> str:
        """The stdout of a command that must succeed."""
        process = self.start(*command, path=path)
        stdout, stderr = process.communicate()
        assert process.returncode == 0, stderr + stdout
        return stdout


def copy_sources(folder: Path) -> Path:
    """A clone: what is in the working tree, with the links of isoflop/ as links."""
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", "figures")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=unwanted)
        else:
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def new_environment(folder: Path) -> tuple[Path, Path, Path]:
    """A virtual environment that sees the dependencies of this one, but no editable package.

    Folders named in a .pth file are searched last, and .pth files in them are not read.

    Returns:
        its Python, its scripts and its site-packages.
    """
    venv.create(folder, symlinks=os.name != "nt")
    at = {"base": str(folder), "platbase": str(folder)}
    scripts, packages = (
        Path(sysconfig.get_path(kind, "venv", at)) for kind in ("scripts", "purelib")
    )
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return scripts / "python", scripts, packages


def pip(*arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def make_project(folder: Path) -> Path:
    """A user's project: packages of our names, two layers, records and a test."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("OWNER = 'the user'\n")
    layer = (ROOT / "bench/template.py").read_text(encoding="utf-8") + RUN_AS_A_SCRIPT
    (folder / "my_layer.py").write_text(layer, encoding="utf-8")
    uses_models = "import models\n\nassert models.OWNER == 'the user'\n"
    (folder / "other_layer.py").write_text(layer + uses_models, encoding="utf-8")
    (folder / "test_layer.py").write_text(
        "def test_it():\n    import models, my_layer, other_layer\n    my_layer.MyLayer(8)\n"
    )
    published = sorted((ROOT / "results/submissions/quick-baselines/records").glob("*.json"))
    (folder / "runs/mine/records").mkdir(parents=True)
    for record in published[:3]:
        shutil.copy(record, folder / "runs/mine/records")
    return folder


@pytest.fixture(scope="module", params=["wheel", "editable", "clone"])
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    top = tmp_path_factory.mktemp(request.param)
    project, clone = make_project(top / "project"), copy_sources(top / "clone")
    submissions = Path("results/submissions")
    if request.param == "clone":
        python = Path(sys.executable)
        module = [str(python), "-m", "isoflop"]
        package = clone / "isoflop"
        yield Installation(python, module, [clone], package, clone / submissions, project)
        return
    python, scripts, packages = new_environment(top / "environment")
    # Not --force-reinstall, which would remove the isoflop of the environment that runs this.
    into = ("--python", python, "install", "--ignore-installed", *PIP)
    if request.param == "editable":
        pip(*into, "--editable", clone)
        package, published = clone / "isoflop", clone / submissions
    else:
        pip("wheel", *PIP, "--wheel-dir", top, clone)
        shutil.rmtree(clone)
        pip(*into, next(top.glob("*.whl")))
        package, published = packages / "isoflop", packages / "isoflop" / submissions
    yield Installation(python, [str(scripts / "isoflop")], [], package, published, project)


def test_isoflop_is_the_installed_one_and_models_the_user_s(installed: Installation) -> None:
    code = "import isoflop, models; print(isoflop.__file__); print(models.__file__)"
    ours, theirs = installed.run(installed.python, "-c", code).splitlines()
    assert Path(ours) == installed.package / "__init__.py"
    assert Path(theirs) == installed.project / "models" / "__init__.py"


def test_the_command_and_python_m_isoflop_start(installed: Installation) -> None:
    for command in (installed.command, [installed.python, "-m", "isoflop"]):
        assert "training.batch" in installed.run(*command, "suites", "--fields")


def test_a_layer_s_file_runs_as_a_script(installed: Installation) -> None:
    assert installed.run(installed.python, "my_layer.py") == f"{2 * 8 * 20 * 3}\n"


def test_the_project_s_tests_run(installed: Installation) -> None:
    assert "1 passed" in installed.run(installed.python, "-m", "pytest", "test_layer.py")


@pytest.mark.parametrize("installed", ["editable", "clone"], indirect=True)
def test_every_verb_works_in_the_project(installed: Installation) -> None:
    """In one process, with the project on its path as for `python -m isoflop`."""
    verbs = ("layers", "lint my_layer.py", "lint other_layer.py", "plan ci", "report runs/mine")
    text = installed.run(installed.python, "-c", SESSION, *verbs)
    assert text.count("fit to be trained") == 2
    assert "moe-g4" in text
    assert (installed.project / "runs/mine/LEADERBOARD.md").exists()
    assert Path(text.splitlines()[-1]) == installed.published


@pytest.mark.parametrize("installed", ["wheel"], indirect=True)
class TestCommandsOfTheWheel:
    """Each verb as a user types it, in a process of its own."""

    def test_layers(self, installed: Installation) -> None:
        table = json.loads(installed.run(*installed.command, "layers", "--json"))
        assert {"dense", "moe", "peer", "pkm"} <= {row["layer"] for row in table}

    def test_lint(self, installed: Installation) -> None:
        assert "fit to be trained" in installed.run(*installed.command, "lint", "my_layer.py")

    def test_lint_of_a_layer_that_imports_the_project(self, installed: Installation) -> None:
        command = (*installed.command, "lint", "other_layer.py")
        assert "fit to be trained" in installed.run(*command, path=(".",))

    def test_plan(self, installed: Installation) -> None:
        rows = json.loads(installed.run(*installed.command, "plan", "ci", "--json"))
        assert {row["variant"] for row in rows} >= {"dense", "moe-g1", "pkm", "peer"}

    def test_compare_finds_the_published_records(self, installed: Installation) -> None:
        """Up to the line that says which records; the training after it takes minutes."""
        with installed.start(*installed.command, "compare", "my_layer.py") as process:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if line.startswith("compared with"):
                    process.kill()
                    break
        assert "".join(lines) == f"compared with the records in {installed.published}\n"

    def test_report(self, installed: Installation) -> None:
        installed.run(*installed.command, "report", "runs/mine")
        assert (installed.project / "runs/mine/LEADERBOARD.md").exists()
        assert (installed.project / "runs/mine/index.html").exists()


def test_the_package_list_names_every_folder_with_python_files() -> None:
    """Named one by one, since a search through links finds nothing in a copy without links."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    settings = tomllib.loads(text)["tool"]["setuptools"]
    folders = {Path("isoflop")}
    for top in ("isoflop/cli", *FOLDERS):
        folders |= {file.parent.relative_to(ROOT) for file in (ROOT / top).rglob("*.py")}
    data = ("results", "submissions")  # which may hold layers
    names = [".".join(path.parts) for path in folders if path.parts[:2] != data]
    packages = {name if name.startswith("isoflop") else f"isoflop.{name}" for name in names}
    assert sorted(settings["packages"]) == sorted(packages)
    assert settings["package-dir"] == {f"isoflop.{name}": name for name in FOLDERS}


def test_the_four_links_are_relative() -> None:
    links = [path for path in (ROOT / "isoflop").iterdir() if path.is_symlink()]
    assert {path.name: os.readlink(path) for path in links} == {
        name: f"../{name}" for name in FOLDERS
    }


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_cannot_be_imported_by_its_bare_name(name: str) -> None:
    code = [sys.executable, "-c", f"import {name}"]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"import this folder as isoflop.{name}, not as {name}" in done.stderr
