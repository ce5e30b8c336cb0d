"""What holds for the whole tree: imports, links, length of files, repeats, words, versions."""

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("analysis", "bench", "models", "results")
PACKAGES = (*FOLDERS, "isoflop")
LONGEST, LONGEST_TEST = 320, 340  # lines: what is read in one sitting; tests one at a time

# A longer file needs a reason.
LONGER = {
    "tests/analysis/laws/test_fit.py": "every status and interval of a fit, on simulations",
    "tests/analysis/laws/test_table.py": "a table of tables: what is read, and each refusal",
    "tests/isoflop/cli/test_layers.py": "all that a layer of one's own goes through, on one suite",
}

REPEAT = 6  # lines of code in a row that may not stand twice

# Pairs of files, or one twice, whose repeats are meant.
COMMAND = "typer reads a command's options from its signature"
BACK_ENDS = "back ends of one operator take the same arguments"
TWINS = {
    ("isoflop/cli/layers.py", "isoflop/cli/suites.py"): COMMAND,
    ("isoflop/cli/suites.py", "isoflop/cli/suites.py"): COMMAND,
    ("models/ops/expert_ffn/grouped.py", "models/ops/expert_ffn/reference.py"): BACK_ENDS,
    ("models/ops/expert_mix/cpu.py", "models/ops/expert_mix/triton.py"): BACK_ENDS,
    ("models/ops/expert_ffn/triton.py",) * 2: "two kernels that take the same tiles",
}

# Words that the project replaced by those of the field.
BANNED = {
    "bracket": "learning-rate sweep",
    "rollout": "extrapolation test, or held-out budget",
    "cannot be told from": "not significantly different, or inconclusive",
    "four times in five": "80% power",
    "nats left": "tuning gap",
}
GENERATED = re.compile(r"<!-- isoflop:.*?<!-- /isoflop -->", re.DOTALL)


def files(*suffixes: str, tests: bool = True) -> list[Path]:
    """Files of the project, as relative paths; what is trained or drawn, and links, left out."""
    folders = [*PACKAGES, "docs", "examples", ".ci", ".github", *(["tests"] if tests else [])]
    below = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    paths = [path.relative_to(ROOT) for path in (*ROOT.glob("*"), *below) if path.is_file()]
    assert len(paths) > 100
    return sorted(
        path
        for path in paths
        if path.suffix in suffixes
        and path.parts[:2] not in {("results", name) for name in ("quick", "submissions")}
        and not (path.parts[0] == "isoflop" and path.parts[1] in FOLDERS)
    )


def lines(path: Path) -> list[str]:
    return (ROOT / path).read_text(encoding="utf-8").splitlines()


def test_the_folders_are_imported_under_the_name_isoflop() -> None:
    bare = re.compile(r"^(from|import) (models|bench|analysis|results)\b")
    wrong = [
        f"{path}:{number}: {line}"
        for path in files(".py", ".md", ".ipynb", ".yml", ".toml", ".ini")
        for number, line in enumerate(lines(path), 1)
        if bare.match(line)
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_link_leads_to_its_folder(folder: str) -> None:
    assert (ROOT / "isoflop" / folder).readlink() == Path("..") / folder


def test_import_linter_sees_every_module() -> None:
    """Where a link is missing it says that all contracts are kept, of what is left."""
    graph = grimp.build_graph("isoflop", include_external_packages=True, cache_dir=None)
    modules = set()
    for path in files(".py", tests=False):
        if path.parts[0] in PACKAGES:
            inside = path if path.parts[0] == "isoflop" else "isoflop" / path
            modules.add(".".join(inside.with_suffix("").parts).removesuffix(".__init__"))
    assert {module for module in graph.modules if module.split(".")[0] == "isoflop"} == modules


def test_a_file_of_code_is_read_in_one_sitting() -> None:
    over = {
        path.as_posix(): len(lines(path))
        for path in files(".py")
        if len(lines(path)) > (LONGEST_TEST if path.parts[0] == "tests" else LONGEST)
    }
    assert {path: length for path, length in over.items() if path not in LONGER} == {}
    assert LONGER.keys() <= over.keys()  # else its reason is no longer needed


def code_lines(source: str) -> list[tuple[int, str]]:
    """Numbered lines with a letter or digit, without imports, docstrings, comments and spaces."""
    skipped: set[int] = set()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            skipped.update(range(node.lineno, (node.end_lineno or 0) + 1))
        elif isinstance(node, documented) and ast.get_docstring(node) is not None:
            skipped.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    split = ((n, " ".join(line.split())) for n, line in enumerate(source.splitlines(), 1))
    return [
        (n, line.split(" # ")[0])
        for n, line in split
        if n not in skipped and re.search(r"\w", line) and not line.startswith("#")
    ]


def repeats(sources: dict[str, str]) -> dict[tuple[str, str], list[str]]:
    """Where the same lines stand in two places, by the two files."""
    places = defaultdict(list)
    for path, source in sources.items():
        numbered = code_lines(source)
        for start in range(len(numbered) - REPEAT + 1):
            run = numbered[start : start + REPEAT]
            places[tuple(line for _, line in run)].append((path, run[0][0]))
    result = defaultdict(list)
    for (path, line), *others in places.values():
        for other, other_line in others:
            pair = (min(path, other), max(path, other))
            result[pair].append(f"{path}:{line} ~ {other}:{other_line}")
    return result


def test_no_code_stands_twice() -> None:
    paths = [path for path in files(".py", tests=False) if path.parts[0] in PACKAGES]
    result = repeats({p.as_posix(): (ROOT / p).read_text(encoding="utf-8") for p in paths})
    assert {pair: where for pair, where in result.items() if pair not in TWINS} == {}
    assert TWINS.keys() <= result.keys()  # else its reason is no longer needed


def test_a_repeat_is_seen_through_comments_spaces_and_imports() -> None:
    plain = [f"a{i} = f({i})" for i in range(REPEAT)]
    spaced = ["def g():", '    """Text."""', *(f"    {line}  # {line}" for line in plain)]
    spaced[4:4] = ["", "    # a comment", "    import os"]
    sources = {"a.py": "\n".join(plain), "b.py": "\n".join(spaced)}
    assert repeats(sources) == {("a.py", "b.py"): ["a.py:1 ~ b.py:3"]}
    sources["a.py"] = sources["a.py"].replace("a3", "b3")
    assert repeats(sources) == {}


@pytest.mark.parametrize("word", BANNED)
def test_the_words_are_those_of_the_field(word: str) -> None:
    """Generated blocks are left out: they are checked against the code that writes them."""
    wrong = []
    for path in files(".py", ".md", ".ipynb", ".toml", ".yml", ".html", ".js", ".css"):
        if path.name == Path(__file__).name or ".min." in path.name:
            continue
        text = GENERATED.sub("", (ROOT / path).read_text(encoding="utf-8"))
        # A phrase may be broken over two lines, and a name has underscores for spaces.
        if word in re.sub(r"[\s_]+(# )?", " ", text).lower():
            wrong.append(str(path))
    assert wrong == [], f"write {BANNED[word]}"


def test_checkouts_of_workflows_leave_no_credentials() -> None:
    """Steps after them run code of whoever opened the pull request."""
    for path in files(".yml"):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert text.count("actions/checkout@") == text.count("persist-credentials: false"), path


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{version}}}" in (ROOT / "README.md").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_names_the_coverage_that_is_demanded() -> None:
    floor = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]["report"]
    assert f"at least {floor['fail_under']}% of all lines" in (ROOT / "README.md").read_text()
