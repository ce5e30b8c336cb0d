"""Is a method what it says? Checks on small models, before it is used on kept ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from isoflop.bench import isolate
from isoflop.bench.layers import file_of
from isoflop.bench.lint import Finding
from isoflop.bench.methods.counts import CountError, counts
from isoflop.bench.methods.experts import UnfitError
from isoflop.bench.methods.method import METHODS, Calibration, Method, find_method, make_method
from isoflop.models import LAYERS, Config, Decoder

CHECKS = ("fits", "source", "counts", "deterministic", "identity")
MODELS: dict[str, dict[str, Any]] = {
    "moe": {"granularity": 2, "expansion": 4},
    "moe_shared": {"granularity": 4, "expansion": 4},
    "dense": {},
}
VOCABULARY, CONTEXT, WINDOWS = 64, 16, 24


def names_method(name: str) -> bool:
    """Whether a name is a method's: registered, or a class of a file."""
    if name in METHODS:
        return True
    try:
        return bool(file_of(name)) and issubclass(find_method(name), Method)
    except ValueError:
        return False


def lint(name: str, options: dict[str, Any]) -> list[Finding]:
    """Run the checks in a child process: whatever the method's code does is a finding."""
    findings: list[Finding] = []
    try:
        for item in isolate.stream(_findings, name, options):
            findings.append(Finding(**item))
    except isolate.ChildError as error:
        findings.append(Finding(CHECKS[len(findings)], False, str(error)))
    return findings


def _findings(name: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Body of the child. It ends with the first failure of `fits`."""
    try:
        kind = find_method(name)
        method, _ = make_method(kind, options)
        fitting = [layer for layer in MODELS if _fits(method, _model(layer))]
    except Exception as error:
        yield asdict(Finding("fits", False, isolate.describe(error)))
        return
    if not fitting:
        yield asdict(Finding("fits", False, "it fits none of dense, moe and moe_shared"))
        return
    yield asdict(Finding("fits", True, "", ", ".join(fitting)))
    checks: dict[str, Callable[[Method, Decoder], str]] = {
        "source": _source,
        "counts": _counts,
        "deterministic": _deterministic,
    }
    for check, ask in checks.items():
        yield asdict(_asked(check, ask, method, fitting))
    if kind.identity is None:
        note = "no options at which it changes nothing are stated"
        yield asdict(Finding("identity", True, "", note))
        return
    try:
        same, _ = make_method(kind, kind.identity)
    except ValueError as error:
        yield asdict(Finding("identity", False, str(error)))
        return
    yield asdict(_asked("identity", _identity, same, fitting))


def _asked(
    check: str, ask: Callable[[Method, Decoder], str], method: Method, layers: list[str]
) -> Finding:
    for layer in layers:
        try:
            problem = ask(method, _model(layer))
        except Exception as error:
            problem = isolate.describe(error)
        if problem:
            return Finding(check, False, f"{layer}: {problem}")
    return Finding(check, True, "")


def _model(layer: str, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(
        Config(
            layer=LAYERS[layer],
            options=MODELS[layer],
            placement="all",
            width=16,
            depth=2,
            heads=2,
            vocabulary=VOCABULARY,
            context=CONTEXT,
        )
    )
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model.eval()


def _calibration(model: Decoder) -> Calibration:
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, VOCABULARY, (WINDOWS, CONTEXT + 1), generator=generator)
    layer = model.config.layer.name
    return Calibration(windows[:, :-1], windows[:, 1:], 0, _model(layer, seed=1))


def _fits(method: Method, model: Decoder) -> bool:
    try:
        method.apply(model, _calibration(model))
    except UnfitError:
        return False
    return True


def _source(method: Method, model: Decoder) -> str:
    before = copy.deepcopy(model.state_dict())
    method.apply(model, _calibration(model))
    after = model.state_dict()
    same = before.keys() == after.keys() and all(
        torch.equal(tensor, after[name]) for name, tensor in before.items()
    )
    return "" if same else "apply() changes the model that it is given; change a copy"


def _counts(method: Method, model: Decoder) -> str:
    calibration = _calibration(model)
    try:
        counts(method.apply(model, calibration), calibration.tokens, method.name)
    except CountError as error:
        return str(error)
    return ""


@torch.no_grad()
def _deterministic(method: Method, model: Decoder) -> str:
    calibration = _calibration(model)
    outputs = []
    for seed in range(2):
        torch.manual_seed(seed)
        changed = method.apply(model, calibration)
        outputs.append(changed.eval()(calibration.tokens))
    same = torch.equal(*outputs)
    return "" if same else "twice on the same text it differs; draw from calibration.generator()"


@torch.no_grad()
def _identity(method: Method, model: Decoder) -> str:
    calibration = _calibration(model)
    changed = method.apply(model, calibration)
    error = float((changed.eval()(calibration.tokens) - model(calibration.tokens)).abs().max())
    return "" if error < 1e-4 else f"with the options of `identity` outputs differ by {error:.2g}"
