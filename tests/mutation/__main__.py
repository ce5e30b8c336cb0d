"""The share of mutants that the tests notice."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

# Before torch is imported: the tests run on a core.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

from tests.mutation import score
from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.mutants import Mutant, sample
from tests.mutation.runner import LOG, NO_END, PASSED, copied, run_tests, written
from tests.mutation.targets import ROOT, selection, targets


class Judge:
    """Says what the tests make of mutants."""

    def __init__(self) -> None:
        self.sound: set[str] = set()  # tests that pass on the code as it is

    def ask(self, mutant: Mutant) -> str:
        """One of `score.FIELDS`."""
        if (mutant.path, mutant.before, mutant.after) in EQUIVALENT:
            return "equivalent"
        tests = selection(mutant.path)
        with written(mutant.path, mutant.source):
            result, last = run_tests(tests)
        if result == PASSED:
            print(f"survived: {mutant.name}", flush=True)
            return "survived"
        if result == NO_END:
            print(f"no end: {mutant.name}: {last}", flush=True)
        self.check(last, tests)
        return "killed"

    def check(self, last: str, tests: list[str]) -> None:
        """A test that fails on the code as it is would kill every mutant. One that could not be
        imported has no name."""
        if last not in self.sound:
            if run_tests([last] if last else ["--collect-only", *tests])[0] != PASSED:
                sys.exit(f"{last or tests} fails on the code as it is:\n{Path(LOG).read_text()}")
            self.sound.add(last)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("mutants", nargs="?", type=int, default=60, help="how many are tried")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="of files with this in their path")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--store", action="store_true", help="write docs/mutation.json")
    arguments = parser.parse_args()
    files = {p: (ROOT / p).read_text() for p in targets() if arguments.only in p}
    code = score.code()
    counts: score.Counts = {}
    survivors: list[str] = []
    end = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder, copied(Path(folder) / "tree"):
        judge = Judge()
        for mutant in sample(files, arguments.mutants, arguments.seed):
            result = judge.ask(mutant)
            if result == "survived":
                survivors.append(mutant.name)
            count = counts.setdefault(mutant.path, dict.fromkeys(score.FIELDS, 0))
            count["tried"] += 1
            count[result] += 1
            if time.monotonic() > end:
                break
    total = score.total(counts)
    text = ", ".join(f"{number} {what}" for what, number in total.items())
    print(f"mutation: {text}: score {100 * score.share(total):.1f}%, seed {arguments.seed}")
    if arguments.store:
        score.store(code, arguments.seed, counts, survivors)


if __name__ == "__main__":
    main()
