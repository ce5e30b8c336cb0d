"""Which column of a table is which of a law's, by its usual names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.analysis.laws.delimited import TableError
from isoflop.analysis.laws.law import Law, six_nd

LABELS = ("seed", "run", "budget", "validation_hash", "flop_convention")  # not numbers
USUAL: Mapping[str, tuple[str, ...]] = {
    "C": (
        *("c", "flops", "flop", "compute", "computebudget", "flopbudget", "flopsbudget"),
        *("trainingflops", "trainingflop", "trainflops", "trainflop", "totalflops", "numflops"),
        *("trainingcompute", "traincompute", "totalcompute", "nflops", "budgetflops"),
    ),
    "N": (
        *("n", "params", "parameters", "nparams", "nparameters", "numparams", "numparameters"),
        *("modelsize", "modelparams", "modelparameters", "parametercount", "paramcount"),
        *("numberofparameters", "nonembeddingparams", "nonembeddingparameters", "nnonembedding"),
        *("nonembparams", "nonembparameters", "paramsnonembedding", "modelsizeparams"),
    ),
    "D": (
        *("d", "tokens", "ntokens", "numtokens", "trainingtokens", "traintokens", "totaltokens"),
        *("tokensseen", "tokenstrained", "trainedtokens", "numberoftokens", "numtrainingtokens"),
        *("numtraintokens", "tokencount", "datasettokens", "datatokens"),
    ),
    "L": (
        *("l", "loss", "valloss", "validationloss", "finalloss", "testloss", "evalloss", "lossval"),
        *("lossvalidation", "finalvalloss", "finalvalidationloss", "valloss", "heldoutloss"),
        *("finaltestloss", "finalevalloss", "crossentropy", "nll", "valnll", "valcrossentropy"),
    ),
    "E": ("e", "experts", "numexperts", "nexperts", "numberofexperts", "expertcount"),
    "G": ("g", "granularity"),
    "seed": ("seed", "torchseed", "randomseed", "rngseed", "trainseed", "trainingseed"),
    "run": ("run", "runid", "runname", "runindex"),
    "budget": ("budget", "budgetname", "isoflopbudget", "flopgroup", "budgetgroup"),
    "validation_hash": ("validationhash",),
    "flop_convention": ("flopconvention",),
}
SCALES = {
    **dict.fromkeys(("k", "thousand", "thousands", "1e3", "10^3"), 1e3),
    **dict.fromkeys(("m", "million", "millions", "mio", "1e6", "10^6"), 1e6),
    **dict.fromkeys(("b", "g", "bn", "billion", "billions", "1e9", "10^9"), 1e9),
    **dict.fromkeys(("t", "trillion", "trillions", "1e12", "10^12"), 1e12),
    **dict.fromkeys(("pf", "pflop", "pflops", "petaflop", "petaflops", "1e15", "10^15"), 1e15),
    **dict.fromkeys(("eflop", "eflops", "exaflop", "exaflops", "1e18", "10^18"), 1e18),
    **dict.fromkeys(("zflop", "zflops", "zettaflop", "zettaflops", "1e21", "10^21"), 1e21),
    **dict.fromkeys(("nats", "nat", "flops", "flop", "tokens", "params", "parameters"), 1.0),
}
IN_PARENTHESES = re.compile(r"(.+?)\s*[\[(]\s*(?:in\s+|x\s*|\u00d7\s*)?([^\[\]()]+?)\s*[\])]")
ENDING = re.compile(
    r"(.+?)[ _-](?:in[ _-])?(k|m|b|t|bn|millions?|billions?|trillions?)", re.IGNORECASE
)


@dataclass(frozen=True)
class Name:
    """A table's column for one of ours, and what its header says its numbers are multiplied by."""

    header: str
    scale: float = 1.0


def find_names(
    path: Path, law: Law, header: Sequence[str], rename: Mapping[str, str]
) -> dict[str, Name]:
    """The table's column for each of ours, of those it has: `rename` first, then usual names.

    Raises:
        TableError: a column of the law is missing, or could be one of several.
    """
    numbers = tuple(dict.fromkeys((*law.columns, "C", *law.optional)))
    if law.flops_by_law is six_nd:
        numbers = tuple(dict.fromkeys((*numbers, "N", "D")))
    known = (*numbers, *LABELS)
    names: dict[str, Name] = {}
    for ours, theirs in rename.items():
        if ours not in known:
            raise TableError(f"{ours}={theirs}: {law.name} reads {', '.join(known)}, not {ours}")
        if theirs not in header:
            raise TableError(f"{path}: no column {theirs!r} for {ours}; it has {shown(header)}")
        other = next((n for n, name in names.items() if name.header == theirs), None)
        if other and not {ours, other} <= set(LABELS):
            raise TableError(f"{ours}={theirs}: {theirs} is {other} already; a column is one thing")
        if ours in numbers and any(theirs == n for n in numbers if n not in (ours, *rename)):
            raise TableError(
                f"{ours}={theirs}: {theirs} is the law's own {theirs}; rename that too"
            )
        names[ours] = Name(theirs, _scale(theirs) if ours in numbers else 1.0)
    taken = {name.header for name in names.values()}
    for ours in known:
        if ours not in names:
            free = [theirs for theirs in header if theirs not in taken]
            if name := _usual(path, ours, free, ours in numbers, ours in law.columns):
                names[ours] = name
    if "C" not in names and "budget" in names and "C" in law.columns and "budget" not in rename:
        names["C"] = names["budget"]
    _refuse_missing(path, law, header, names)
    return names


def _usual(path: Path, ours: str, header: list[str], number: bool, needed: bool) -> Name | None:
    """The column that usually means `ours`: by our own name, else the only one that could."""
    if ours in header:
        return Name(ours)
    could = {theirs: _scale(theirs) for theirs in header if _stem(theirs, number) in USUAL[ours]}
    if ours == "L":  # losses come in nats, not in millions of them
        could = {theirs: scale for theirs, scale in could.items() if scale == 1}
    if len(could) > 1 and needed:
        raise TableError(
            f"{path}: {' and '.join(could)} could each be {ours}; say which: "
            f"--column {ours}={next(iter(could))!r}"
        )
    if len(could) != 1:
        return None
    theirs, scale = next(iter(could.items()))
    return Name(theirs, scale if number else 1.0)


def _parts(header: str) -> tuple[str, str]:
    """A header's name and its unit: "Params (M)" is Params, M."""
    match = IN_PARENTHESES.fullmatch(header) or ENDING.fullmatch(header)
    return (match[1], match[2].strip().lower()) if match else (header, "")


def _stem(header: str, number: bool) -> str:
    """The header in small letters and digits alone; nothing if its unit is not known."""
    name, unit = _parts(header) if number else (header, "")
    if unit and unit not in SCALES:
        return ""
    return re.sub(r"[\s_\-./]", "", name).lower()


def _scale(header: str) -> float:
    return SCALES.get(_parts(header)[1], 1.0)


def shown(header: Sequence[str]) -> str:
    """The columns there are, those of a very wide table cut short."""
    more = f" and {len(header) - 20} more" if len(header) > 20 else ""
    return ", ".join(name[:40] for name in header[:20]) + more


def _refuse_missing(path: Path, law: Law, header: Sequence[str], names: Mapping[str, Name]) -> None:
    missing = [name for name in law.columns if name not in names]
    if law.flops_by_law is six_nd and len({"C", "N", "D"} & set(names)) >= 2:
        missing = [name for name in missing if name not in ("C", "N", "D")]
    if missing == ["L"] and any(re.search("ppl|perplexity", name.lower()) for name in header):
        raise TableError(f"{path}: no column L; a loss is the logarithm of perplexity, in nats")
    if missing:
        raise TableError(
            f"{path}: no column {', '.join(missing)}, which {law.name} needs; name yours "
            f"(--column {missing[0]}=NAME), of {shown(header)}"
        )
