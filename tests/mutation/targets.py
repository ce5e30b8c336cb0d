"""Which files are mutated, and the tests that belong to each."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = (
    "models/*.py",
    "bench/step.py",
    "bench/train.py",
    "bench/plan.py",
    "bench/flops.py",
    "analysis/surface*.py",
    "analysis/parabola.py",
    "analysis/ranking.py",
    "analysis/ratios.py",
    "analysis/laws/*.py",
)
# Besides the test that mirrors a file. Cheap ones first: the first failure ends the run.
MODELS = ("tests/models/test_init.py", "tests/models/test_decoder.py", "tests/bench/test_flops.py")
SURFACE = ("tests/analysis/test_surface.py", "tests/analysis/test_surface_multiplier.py")
TABLE = ("tests/analysis/laws/test_table.py", "tests/isoflop/cli/test_fit.py")
LAWS = ("tests/analysis/laws/test_laws.py", "tests/analysis/laws/test_fit.py")
MORE: dict[str, tuple[str, ...]] = {
    "models/layer.py": ("tests/bench/test_step.py", "tests/bench/test_lint.py"),
    "models/product_keys.py": ("tests/models/test_pkm.py", "tests/models/test_peer.py"),
    "bench/flops.py": ("tests/bench/test_counted_operators.py",),
    "bench/step.py": ("tests/bench/test_train.py",),
    "bench/plan.py": ("tests/isoflop/cli/test_plan.py",),
    "analysis/surface_headline.py": SURFACE,
    "analysis/surface_holdout.py": SURFACE,
    "analysis/surface_misfit.py": SURFACE,
    "analysis/surface_multiplier.py": SURFACE,
    "analysis/surface_noise.py": SURFACE,
    "analysis/surface_solver.py": SURFACE,
    "analysis/parabola.py": ("tests/analysis/test_curves.py",),
    "analysis/laws/approaches.py": LAWS,
    "analysis/laws/delimited.py": ("tests/analysis/laws/test_tablefile.py", *TABLE),
    "analysis/laws/dense.py": LAWS,
    "analysis/laws/law.py": LAWS,
    "analysis/laws/moe.py": LAWS,
    "analysis/laws/names.py": TABLE,
    "analysis/laws/numbers.py": TABLE,
    "analysis/laws/solver.py": LAWS,
    "analysis/laws/units.py": TABLE,
}


def targets() -> list[str]:
    """Paths of the files that are mutated."""
    paths = (path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern)))
    return [path.relative_to(ROOT).as_posix() for path in paths if path.name != "__init__.py"]


def find_tests(path: str) -> list[str]:
    """The test that mirrors a file, if there is one, and what else asks about it."""
    folder, _, name = path.rpartition("/")
    mirror = f"tests/{folder}/test_{name}"
    more = MORE.get(path, ()) + (MODELS if folder == "models" else ())
    return list(dict.fromkeys([*([mirror] if (ROOT / mirror).exists() else []), *more]))


def selection(path: str) -> list[str]:
    """What pytest takes to run of those tests what is about a layer, where the file has one.

    The word is in the names of tests, of their files or of their parameters. Simulations of
    intervals, minutes each, are left out.
    """
    folder, _, name = path.removesuffix(".py").rpartition("/")
    if folder == "analysis/laws":
        return [*find_tests(path), "-k", "not nominal_rate and not within_its_intervals"]
    if folder != "models" or name in ("layer", "decoder"):
        return find_tests(path)
    word = "product_keys or peer or pkm" if name == "product_keys" else name
    return [*find_tests(path), "-k", word]
