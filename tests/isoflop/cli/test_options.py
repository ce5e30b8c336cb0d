"""Options on the command line: one syntax, of layers and of methods."""

import pytest
from typer.testing import CliRunner

from isoflop.cli.main import app
from isoflop.cli.options import options_of, single_options
from isoflop.results.errors import IsoflopError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {}),
        (["activation=swiglu", "ratio=2.5"], {"activation": "swiglu", "ratio": 2.5}),
        (['activation="swiglu"'], {"activation": "swiglu"}),
        (["granularity=4"], {"granularity": 4}),
        (["decay=true"], {"decay": True}),
        (["x=[1, 2]"], {"x": [1, 2]}),
        (['x="a,b"'], {"x": "a,b"}),
        (["x={ a = [1, 2], b = 2 }"], {"x": {"a": [1, 2], "b": 2}}),
        (["x=0.5-dev"], None),
    ],
)
def test_a_value_is_toml_or_one_word(given: list[str], expected: dict | None) -> None:
    if expected is None:
        with pytest.raises(IsoflopError):
            single_options(given)
        return
    assert single_options(given) == expected
    assert options_of(given) == [expected]


def test_values_between_commas_are_tried_in_all_combinations() -> None:
    assert options_of(["drop=0,0.5", "dropped=largest"]) == [
        {"drop": 0, "dropped": "largest"},
        {"drop": 0.5, "dropped": "largest"},
    ]
    assert options_of(["a=x, y", "b=[1, 2],[3]"]) == [
        {"a": a, "b": b} for a in ("x", "y") for b in ([1, 2], [3])
    ]
    assert options_of(["a=0.5,word,true"]) == [{"a": 0.5}, {"a": "word"}, {"a": True}]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["granularity"], "granularity: give NAME=VALUE"),
        (["=4"], "=4: give NAME=VALUE"),
        (["granularity=2", "granularity=4"], "granularity=4: give NAME=VALUE, each name once"),
        (["granularity=[4"], r"granularity=\[4: neither a TOML value nor one word"),
        (["granularity="], "granularity=: neither"),
        (["granularity=1,,2"], "granularity=1,,2: neither"),
        (["granularity=1]\nother = [2"], "neither"),
        (["granularity=2,4"], r"granularity=2,4: one value here; a list is written in \[ \]"),
    ],
)
def test_another_form_is_one_line(given: list[str], text: str) -> None:
    with pytest.raises(IsoflopError, match=text):
        single_options(given)


@pytest.mark.parametrize("verb", [["lint", "moe"], ["lint", "prune-reap"], ["compare", "moe"]])
def test_a_layer_and_a_method_refuse_it_alike(verb: list[str]) -> None:
    with pytest.raises(IsoflopError) as error:
        CliRunner().invoke(app, [*verb, "--option", "drop=0,0.5"], catch_exceptions=False)
    assert str(error.value) == "--option drop=0,0.5: one value here; a list is written in [ ]"
