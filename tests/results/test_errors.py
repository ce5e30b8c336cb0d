import re
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from isoflop.results.errors import explain
from isoflop.results.record import Frozen


def _lower(text: str) -> str:
    if text != text.lower():
        raise ValueError("use small letters")
    return text


class Inner(Frozen):
    width: Annotated[int, Field(gt=0)]
    name: Annotated[str, AfterValidator(_lower)] = "a"


class Outer(Frozen):
    sizes: dict[str, Inner] = {}
    rows: Annotated[list[Inner], Field(min_length=1)] = [Inner(width=1)]


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"size": {}}, "size: unknown key (did you mean 'sizes'?); known here: sizes, rows"),
        (
            {"sizes": {"s": {"widht": 1}}},
            "sizes.s.widht: unknown key (did you mean 'width'?); known here: width, name",
        ),
        ({"rows": [{"width": 1, "x": 2}]}, "rows.0.x: unknown key; known here: width, name"),
        ({"sizes": {"s": {}}}, "sizes.s.width: missing"),
        ({"sizes": {"s": {"width": 0}}}, "sizes.s.width: Input should be greater than 0, not 0"),
        ({"sizes": {"s": {"width": 1, "name": "A"}}}, "sizes.s.name: use small letters, not 'A'"),
        ({"sizes": {"s": [1, 2]}}, "sizes.s: Input should be a valid dictionary or instance of"),
        ({"rows": []}, "rows: List should have at least 1 item after validation, not 0"),
    ],
)
def test_an_error_is_one_line_of_key_fault_and_remedy(table: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(table)
    assert explain(caught.value, Outer).startswith(line)
    assert "\n" not in explain(caught.value, Outer)
    without_names = re.sub(r" \(did you mean .*|; known .*", "", explain(caught.value, Outer))
    assert explain(caught.value) == without_names


def test_an_error_without_a_key_or_a_short_value_has_neither() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Annotated[str, AfterValidator(_lower)]).validate_python("A")
    assert explain(caught.value) == "use small letters, not 'A'"
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate_json('{"sizes": ')
    assert explain(caught.value, Outer).startswith("Invalid JSON: EOF while parsing")
    assert "not" not in explain(caught.value, Outer)
