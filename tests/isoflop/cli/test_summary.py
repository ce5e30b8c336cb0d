"""The outcome of the gate as Markdown."""

from isoflop.bench.gate.baseline import Check
from isoflop.cli.summary import markdown

GOOD = Check("losses", True, "1 losses within the noise of 4 stored seeds")
SLOW = Check(
    "step time",
    False,
    "peer 1.100x of base at most; a regression above 1.030x",
    ["peer: 1.100x, beyond 1.030x"],
    [
        {"variant": "dense", "base (ms)": "10", "head (ms)": "10.1"},
        {"variant": "peer", "base (ms)": "20", "head (ms)": "22"},
    ],
)


def test_what_failed_comes_first_and_the_details_are_folded() -> None:
    text = markdown([GOOD, SLOW])
    assert text.startswith("### isoflop check: **failed**\n\n| check ")
    assert "\n| losses    | ok     | 1 losses within" in text
    assert "\n| step time | FAIL   | peer 1.100x of base" in text
    assert "\n**step time**\n\n- peer: 1.100x, beyond 1.030x\n" in text
    assert "\n<details><summary>step time</summary>\n\n| variant | base" in text
    assert "\n| peer    |        20 |        22 |\n\n</details>\n" in text
    assert text.index("- peer") < text.index("<details>")


def test_what_passed_has_no_list() -> None:
    text = markdown([GOOD])
    assert text.startswith("### isoflop check: passed\n")
    assert "\n- " not in text


def test_text_of_a_check_is_no_markup() -> None:
    bad = Check("counts", False, "a | b", ["results/*/x.json: *"])
    text = markdown([bad])
    assert r"| a \| b " in text
    assert r"- results/\*/x.json: \*" in text
