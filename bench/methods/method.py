"""The interface of a method that makes a trained model smaller, and the register of methods."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from isoflop.bench.layers import complete_options, file_of, load_file, read_source
from isoflop.bench.methods.experts import Rebuilt, rebuild
from isoflop.models import Decoder
from isoflop.models.layer import registrar
from isoflop.results.errors import IsoflopError, did_you_mean

SEQUENCES = 64  # of a forward pass over the calibration text


@dataclass(frozen=True)
class Calibration:
    """What a method may see beside the model."""

    tokens: Tensor  # [windows, context] ids of text that no evaluation holds
    targets: Tensor  # [windows, context] ids of the tokens that follow
    seed: int  # of all random choices
    initial: Decoder | None = None  # the model before it was trained, if it was kept

    @torch.no_grad()
    def inputs(self, model: Decoder) -> list[Tensor]:
        """What every layer under test reads of the text, [tokens, width] each, in float32."""
        seen: list[list[Tensor]] = [[] for _ in model.tested]

        def hook(parts: list[Tensor]) -> Callable[..., None]:
            return lambda module, inputs: parts.append(inputs[0].flatten(0, -2).float())

        handles = [
            layer.register_forward_pre_hook(hook(parts))
            for layer, parts in zip(model.tested, seen, strict=True)
        ]
        was_training = model.training
        model.eval()
        try:
            for part in self.tokens.split(SEQUENCES):
                model.features(part)
        finally:
            model.train(was_training)
            for handle in handles:
                handle.remove()
        return [torch.cat(parts) for parts in seen]

    @torch.no_grad()
    def loss(self, model: Decoder) -> float:
        """Cross-entropy of the text, nats per token."""
        was_training = model.training
        model.eval()
        total = 0.0
        parts = zip(self.tokens.split(SEQUENCES), self.targets.split(SEQUENCES), strict=True)
        for tokens, targets in parts:
            total += float(model.loss(tokens, targets)[0]) * len(tokens)
        model.train(was_training)
        return total / len(self.tokens)

    def generator(self) -> torch.Generator:
        """Random numbers that depend on the seed alone."""
        return torch.Generator().manual_seed(self.seed)


class Method:
    """Makes a smaller or cheaper model of a trained one: real tensors of fewer numbers, no masks.

    A subclass writes `apply`, and lists its options as typed fields of a nested `Options`
    dataclass. Its layers state their counts by formula (see `experts.Rebuilt`), which are checked
    against the model that comes out.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """None here. A subclass raises ValueError in `__post_init__` for a value it refuses."""

    name: ClassVar[str] = ""  # set by `register`
    calibrated: ClassVar[bool] = True  # its result depends on the calibration text or seed
    needs_initial: ClassVar[bool] = False  # it compares with the model before training
    identity: ClassVar[dict[str, Any] | None] = None  # options that change nothing, if there are
    note: ClassVar[str] = ""  # what a reader of the result must know

    def __init__(self, **options: Any) -> None:
        self.options: Any = self.Options(**options)

    def apply(self, model: Decoder, calibration: Calibration) -> Decoder:
        """A changed copy; the model stays as it is.

        Raises:
            ValueError: it does not fit a layer under test, or its options do not.
        """
        raise NotImplementedError

    def searched(self) -> int:
        """Evaluations of a candidate that the last `apply` took."""
        return 0


def with_layers(model: Decoder, layers: Sequence[Rebuilt]) -> Decoder:
    """A copy of a model with other layers under test, in the order of their blocks."""
    tested = {id(layer): new for layer, new in zip(model.tested, layers, strict=True)}
    # What is replaced is not copied: `deepcopy` takes it from its memo.
    result = copy.deepcopy(model, {id(old): tested[id(old)] for old in model.tested})
    result.train(model.training)
    return result


def rebuilt(model: Decoder) -> list[Rebuilt]:
    """Copies of the layers under test in the form that methods change.

    Raises:
        ValueError: a layer cannot be changed.
    """
    return [rebuild(layer) for layer in model.tested]


M = TypeVar("M", bound=type[Method])

METHODS: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[M], M]:
    """Class decorator that registers a method under `name`.

    Raises:
        ValueError: the name is taken.
    """

    return registrar(METHODS, name, "method")


def find_method(name: str, source: str | None = None) -> type[Method]:
    """A method by registered name, or as path/to/file.py:Class.

    Args:
        source: text of the file, if it is not to be read anew.
    Raises:
        ValueError: there is none, or its file cannot be imported or does not give it.
    """
    if name in METHODS:
        return METHODS[name]
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        raise ValueError(
            f"no method {name!r}{did_you_mean(name, METHODS)}; known: "
            f"{', '.join(sorted(METHODS))}, or path/to/file.py:Class"
        )
    names = vars(load_file(path, read_source(path) if source is None else source))
    kind = names.get(attribute)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise ValueError(f"{path}: no class {attribute!r} derived from Method")
    if not vars(kind).get("name"):
        kind.name = f"{Path(path).name}:{attribute}"
    return kind


def make_method(kind: type[Method], options: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
    """A method, and its options with the defaults.

    Raises:
        ValueError: one line, for an unknown option or a value it cannot take.
    """
    complete = complete_options(kind, options, "method")
    return kind(**complete), complete


def find_choices(
    name: str, choices: Sequence[dict[str, Any]]
) -> tuple[str | None, list[tuple[Method, dict[str, Any]]]]:
    """The text of a method's file, if it has one, and the method with each choice of options.

    Args:
        name: as for `find_method`.
    Raises:
        IsoflopError: there is no such method, or it does not have such options.
    """
    try:
        path = file_of(name)
        code = read_source(path) if path else None
        kind = find_method(name, code)
        return code, [make_method(kind, options) for options in choices]
    except ValueError as error:
        raise IsoflopError(f"--method: {error}") from None
