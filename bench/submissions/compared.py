"""A submission against what it is ranked with: the published suite and the other submissions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from isoflop.bench.seeds import first_seeds
from isoflop.bench.submissions.recompute import same
from isoflop.bench.suite import Budget, Suite, load_suite, shipped_suites
from isoflop.results.manifest import Manifest, submissions
from isoflop.results.record import Record, load_records

if TYPE_CHECKING:
    from isoflop.bench.submissions.verify import Folder

ALIKE = ("corpus", "training", "placement", "transfer")  # in every submission to a suite


def only(suite: Suite, variants: set[str]) -> Suite:
    """The suite with these variants alone, and the budgets and choices that any of them has."""

    def chosen(part: Any) -> list[Any]:
        """Its variants cut to the chosen; nothing if it names others alone."""
        left = [name for name in part.variants if name in variants]
        return [part.model_copy(update={"variants": left})] if left or not part.variants else []

    changes = {
        "variants": {name: v for name, v in suite.variants.items() if name in variants},
        "budgets": [kept for budget in suite.budgets for kept in chosen(budget)],
        "axes": {
            axis: {name: kept for name, choice in choices.items() for kept in chosen(choice)}
            for axis, choices in suite.axes.items()
        },
    }
    return suite.model_copy(update=changes)


def as_published(folder: Folder) -> list[str]:
    """Where the suite of a submission departs from the shipped one of its name, if there is one.

    Complete is a variant with every size, budget, seed and choice of the published suite.
    """
    suite, where = folder.suite, folder.directory / "suite.toml"
    if suite.name not in shipped_suites():
        return []
    published = load_suite(suite.name)
    lines = [f"{field}: not as in the published suite" for field in _unlike(suite, published)]
    if folder.tune and suite.tune != published.tune:
        lines.append("tune: not as in the published suite")
    for name, variant in suite.variants.items():
        known = published.variants.get(name)
        if known and known != variant:
            lines.append(f"variants.{name}: not as in the published suite; give it another name")
        lines += [f"{line} of the published suite" for line in _lacks(suite, published, name)]
        lines += _other_seeds(suite, published, name)
        lines += [
            f"budgets: {name} has {budget:g} FLOPs at size {size}, unlike in the published suite"
            for budget, size in sorted(_points(suite, name) - _points(published, name))
        ]
    axes = only(published, set(suite.variants)).axes
    keys = [(axis, name) for table in (axes, suite.axes) for axis in table for name in table[axis]]
    for axis, name in dict.fromkeys(keys):
        if suite.axes.get(axis, {}).get(name) != axes.get(axis, {}).get(name):
            lines.append(f"axes.{axis}.{name}: not as in the published suite")
    return [f"{where}: {line}" for line in lines]


def against_others(folder: Folder, manifest: Manifest, top: Path) -> Iterator[str]:
    """Where a submission cannot be compared with the others to its suite, or with itself.

    Args:
        top: the folder of the submissions.
    """
    directory = folder.directory
    reference = own_text(folder.suite, [*folder.records, *folder.tune])
    for where, other in submissions(top, manifest.suite).items():
        if where.name == directory.name:
            continue
        unlike = list(_against(folder, manifest, where, other))
        yield from unlike
        if not unlike:
            theirs = load_records(where / "records")
            suite = load_suite(str(where / "suite.toml"))
            reference = own_text(suite, theirs) or reference
    yield from _text(folder, manifest, reference)


def _against(folder: Folder, manifest: Manifest, where: Path, other: Manifest) -> Iterator[str]:
    """A submission against another."""
    directory = folder.directory
    for name in sorted(manifest.variants.keys() & other.variants.keys()):
        yield f"{directory}: variant {name} is in {where} already"
    for field in ("validation_hash", "flop_convention"):
        said, theirs = getattr(manifest, field), getattr(other, field)
        if said != theirs:
            yield f"{directory}: {field}: {said!r}, yet {theirs!r} in {where}"
    suite = load_suite(str(where / "suite.toml"))
    for key in _unlike(folder.suite, suite)[:1]:
        yield f"{directory / 'suite.toml'}: {key}: not as in {where / 'suite.toml'}"
    for name in folder.suite.variants:
        for line in _lacks(folder.suite, suite, name):
            yield f"{directory / 'suite.toml'}: {line} of {where / 'suite.toml'}"


def _text(folder: Folder, manifest: Manifest, reference: Sequence[Record]) -> Iterator[str]:
    """Records of one text share it: with those of `reference`, or under a choice of another text
    with each other."""
    by_text: dict[str, list[Record]] = {}
    for record in [*folder.records, *folder.tune]:
        by_text.setdefault(other_text(folder.suite, record), []).append(record)
    for text, records in by_text.items():
        said = records[0].validation_hash if text else manifest.validation_hash
        yield from _alike(folder, records, said, records if text else reference)


def other_text(suite: Suite, record: Record) -> str:
    """What the choice of a record changes of the suite's corpus; empty for the suite's own."""
    if record.ablation is None:
        return ""
    choice = suite.axes.get(record.ablation.axis, {}).get(record.ablation.choice)
    return json.dumps(choice.corpus, sort_keys=True) if choice and choice.corpus else ""


def own_text(suite: Suite, records: Sequence[Record]) -> list[Record]:
    """Those of the suite's own text."""
    return [record for record in records if not other_text(suite, record)]


def _alike(
    folder: Folder, records: Sequence[Record], text: str | None, reference: Sequence[Record]
) -> Iterator[str]:
    """Records that are of other text than they must be.

    Args:
        text: the hash of the held-out text.
        reference: records of the same text.
    """
    for record in records:
        if record.validation_hash != text:
            yield (
                f"{folder.directory}: {record.cell}.json: validation_hash: says "
                f"{record.validation_hash}, the others {text}"
            )
    # Bytes and tokens of the held-out text, and tokens of the training text, are the same for all.
    for above, below in (("loss", "bits_per_byte"), ("tokens", "epochs")):
        known = [ratio for record in reference if (ratio := _ratio(record, above, below))]
        for record in records:
            value = _ratio(record, above, below)
            if value and known and not same(value, median(known)):
                yield (
                    f"{folder.directory}: {record.cell}.json: {above} over {below} is {value:.6g}, "
                    f"in the other records {median(known):.6g}"
                )


def _unlike(suite: Suite, other: Suite) -> list[str]:
    """The keys that must be the same in two suites of one name, and are not."""
    keys = [field for field in ALIKE if getattr(suite, field) != getattr(other, field)]
    shared = [name for name in suite.sizes if name in other.sizes]
    return keys + [f"sizes.{name}" for name in shared if suite.sizes[name] != other.sizes[name]]


def _lacks(suite: Suite, other: Suite, variant: str) -> list[str]:
    """The sizes and budgets of a variant in `other` that it does not have in `suite`."""
    return [
        f"budgets: {variant} lacks {budget:g} FLOPs at size {size}"
        for budget, size in sorted(_points(other, variant) - _points(suite, variant))
    ]


def _points(suite: Suite, variant: str) -> set[tuple[float, str]]:
    """Budget and size of every cell that a variant of this name has, or would have."""
    return {
        (budget.flops, size)
        for budget in _budgets(suite, variant)
        for size in budget.sizes or suite.sizes
    }


def _budgets(suite: Suite, variant: str) -> list[Budget]:
    """Those at which a variant of this name is, or would be, trained."""
    return [budget for budget in suite.budgets if not budget.variants or variant in budget.variants]


def _other_seeds(suite: Suite, published: Suite, variant: str) -> list[str]:
    """The budgets of a variant at which it has not the published seeds, and then the next."""
    lines = []
    wanted = {b.flops: published.seeds_at(b) for b in _budgets(published, variant)}
    for budget in _budgets(suite, variant):
        seeds, known = suite.seeds_at(budget), wanted.get(budget.flops, [])
        if seeds != first_seeds(known, len(seeds)) or len(seeds) < len(known):
            lines.append(
                f"seeds: are {seeds} at {budget.flops:g} FLOPs; those of the published suite, "
                f"{known}, come first"
            )
    return lines


def _ratio(record: Record, above: str, below: str) -> float | None:
    first, second = getattr(record, above), getattr(record, below)
    return first / second if first and second else None
