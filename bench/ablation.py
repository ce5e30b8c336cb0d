"""The axes of an ablation: what each choice makes of the suite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import ValidationError

from isoflop.bench.suite import Choice, Corpus, Suite, SuiteError, Training
from isoflop.results.errors import explain
from isoflop.results.record import Ablation, Frozen

Table = TypeVar("Table", bound=Frozen)


def choices(suite: Suite, where: str) -> Iterator[tuple[Ablation, Suite, str]]:
    """Every choice with each of its variants: what it is, the suite under it, and its key.

    Args:
        where: the suite's file, for messages.
    Raises:
        SuiteError: a choice has a key or a value that the suite could not have.
    """
    for axis, of_axis in suite.axes.items():
        for name, choice in of_axis.items():
            key = f"{where}: axes.{axis}.{name}"
            changed = with_choice(suite, choice, key)
            for variant in choice.variants or suite.budgets[0].variants or suite.variants:
                yield Ablation(variant=variant, axis=axis, choice=name), changed, key


def with_choice(suite: Suite, choice: Choice, key: str) -> Suite:
    """The suite under a choice; the batch of a size gives way to that of the choice.

    Args:
        key: of the choice, for messages.
    Raises:
        SuiteError: a key or value of `training` or `corpus` is wrong.
    """
    changes: dict[str, Any] = {
        "training": _changed(suite.training, choice.training, Training, f"{key}.training"),
        "corpus": _changed(suite.corpus, choice.corpus, Corpus, f"{key}.corpus"),
        "variants": {
            name: variant.model_copy(
                update={
                    "options": variant.options | choice.options,
                    "learning_rate": variant.learning_rate * choice.rate,
                    "table_rate": variant.table_rate * choice.table_rate,
                }
            )
            for name, variant in suite.variants.items()
        },
    }
    if choice.placement is not None:
        changes["placement"] = choice.placement
    if choice.output_norm is not None:
        changes["output_norm"] = choice.output_norm
    if "batch" in choice.training:
        changes["sizes"] = {
            name: shape.model_copy(update={"batch": None}) for name, shape in suite.sizes.items()
        }
    return suite.model_copy(update=changes)


def _changed(table: Table, changes: dict[str, Any], schema: type[Table], key: str) -> Table:
    try:
        return schema.model_validate(table.model_dump() | changes)
    except ValidationError as error:
        raise SuiteError(f"{key}.{explain(error, schema)}") from None
