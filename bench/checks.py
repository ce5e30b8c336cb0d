"""The checks of a layer, which `isoflop.bench.lint` runs.

A check returns an empty text, or one line on what to fix.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from isoflop.bench.autocast import autocast
from isoflop.bench.executed import executed_flops
from isoflop.bench.fair_checks import output_at_the_start, routing
from isoflop.bench.flops import FlopError, verify_flops
from isoflop.bench.isolate import describe
from isoflop.bench.layers import complete_options, counts_problem, find_layer
from isoflop.bench.subject import BATCH, TIME, VOCABULARY, WIDTHS, Subject, random_input, stir
from isoflop.models import LAYERS, Decoder, Layer, measures_flops

CAUSAL = 1e-5  # change of an earlier logit, over the largest logit, that rounding may explain
ALONE = 1e-4  # change of an output without its batch, over the largest, that rounding may explain
BFLOAT16 = 0.1  # norm of the change under bfloat16 autocast over the norm of the output
COMPILED = 1e-4  # change under torch.compile over the largest output


def _builds(subject: Subject) -> str:
    try:
        subject.layer = find_layer(subject.name, subject.source)
        subject.options = complete_options(subject.layer, subject.given)
    except ValueError as error:
        return str(error)
    name = subject.layer.name
    if name in LAYERS and LAYERS[name] is not subject.layer:
        return f"it has the name of the registered {name}: give the class another, or none"
    if not isinstance(subject.layer.mixes_batch, bool):
        return f"mixes_batch must be True or False, not {subject.layer.mixes_batch!r}"
    for width in WIDTHS:
        problem = counts_problem(subject.layer(width, **subject.options))
        if problem:
            return problem
    return ""


def _shape(subject: Subject) -> str:
    module, x_BTD = subject.build(), random_input()
    before = x_BTD.clone()
    y_BTD = module(x_BTD)
    if not isinstance(y_BTD, Tensor) or y_BTD.shape != x_BTD.shape:
        shape = tuple(y_BTD.shape) if isinstance(y_BTD, Tensor) else type(y_BTD).__name__
        return f"forward must return {tuple(x_BTD.shape)} for an input of that shape, not {shape}"
    if y_BTD.dtype != x_BTD.dtype:
        return f"forward must return {x_BTD.dtype} for an input of that type, not {y_BTD.dtype}"
    if not bool(y_BTD.isfinite().all()):
        return "the output is not finite on normal input: check the initialisation"
    if not torch.equal(x_BTD, before):
        return "forward changes its input in place: the residual needs it, so work on a copy"
    auxiliary = module.aux_loss
    if auxiliary is not None and (not isinstance(auxiliary, Tensor) or auxiliary.dim()):
        return "aux_loss must be a scalar tensor or None"
    return ""


def _determinism(subject: Subject) -> str:
    outputs = [subject.build(seed=3).train()(random_input()) for _ in range(2)]
    if not torch.equal(*outputs):
        return "the same seed gives another output: draw all randomness from torch's generator"
    module = subject.build().eval()
    if not torch.equal(module(random_input()), module(random_input())):
        return "two calls in evaluation differ: no randomness or state where self.training is False"
    return ""


def _causality(subject: Subject) -> str:
    torch.manual_seed(0)
    model = Decoder(subject.config(WIDTHS[0])).eval()
    stir(model)  # the head starts at zero, which would hide everything
    generator = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(0, VOCABULARY, (BATCH, TIME), generator=generator)
    with torch.no_grad():
        logits = model(tokens_BT)
        for position in (1, TIME // 2, TIME - 1):
            changed = tokens_BT.clone()
            changed[:, position:] = (changed[:, position:] + 1) % VOCABULARY
            earlier = (model(changed) - logits)[:, :position].abs().max() / logits.abs().max()
            if not earlier <= CAUSAL:
                return (
                    f"tokens from position {position} on change earlier outputs (by {earlier:.2g} "
                    "of the largest): in evaluation an output may depend on its own and earlier "
                    "positions only; look for sums, sorts or capacities over the time dimension"
                )
    return ""


def _batch(subject: Subject) -> str:
    return alone(subject.build().eval(), random_input())


def alone(module: Layer, x_BTD: Tensor, share: float = 0.0) -> str:
    """Do sequences give the same output alone as in their batch, in evaluation?

    Args:
        share: of the tokens that may differ, where rounding may change a choice of experts.
    """
    if module.mixes_batch:
        return ""
    remedy = (
        "an output may depend on its own sequence only, unless the class states "
        "`mixes_batch = True`"
    )
    with torch.no_grad():
        together = module(x_BTD)
        for row in sorted({0, len(x_BTD) - 1}):
            try:
                single = module(x_BTD[row : row + 1])[0]
            except Exception as error:
                return f"a sequence without its batch {describe(error)}; {remedy}"
            change_T = (single - together[row]).abs().amax(-1) / together.abs().max()
            if not float((~(change_T <= ALONE)).float().mean()) <= share:
                return (
                    f"a sequence alone and in a batch of {len(x_BTD)} differ, by "
                    f"{float(change_T.max()):.2g} of the largest output: {remedy}"
                )
    return ""


def _flops(subject: Subject) -> str:
    """The formula equals the trace, and the layer does no more work on real tensors.

    A trace has tensors without data: a layer that tells them apart could do less work there.
    """
    for width in WIDTHS:
        try:
            verify_flops(subject.config(width), BATCH)
        except FlopError as error:
            return f"{error}; correct flops_per_token or forward"
    return real_flops(subject.build(), random_input())


def real_flops(module: Layer, x_BTD: Tensor) -> str:
    """Does the layer do more work on real tensors, in training or evaluation, than it states?

    Args:
        module: as built: one that measures its work has measured nothing else.
    """
    tokens = x_BTD.shape[0] * x_BTD.shape[1]
    for training in (True, False):
        module.train(training)
        try:
            flops = executed_flops(lambda: module(x_BTD), module.name)
        except FlopError as error:
            return str(error)
        stated = module.measured_flops_per_token()
        if flops > round(stated * tokens):
            where = "by measured_flops_per_token" if measures_flops(module) else "in the trace"
            return (
                f"forward does {flops / tokens:.10g} FLOPs per token on real tensors, "
                f"{stated:.10g} {where}{'' if training else ', in evaluation'}: it must not do "
                "less there"
            )
    return ""


def _gradients(subject: Subject) -> str:
    module = subject.build().train()
    x_BTD = random_input().requires_grad_()
    loss = module(x_BTD).square().mean()
    (loss if module.aux_loss is None else loss + module.aux_loss).backward()
    leaves = {"the input": x_BTD, **dict(module.named_parameters())}
    for name, leaf in leaves.items():
        if leaf.requires_grad and leaf.grad is None:
            return f"{name} gets no gradient: use it in forward, without detach, or remove it"
        if leaf.grad is not None and not bool(leaf.grad.isfinite().all()):
            return f"the gradient of {name} is not finite: look for 0/0, log 0 or sqrt at 0"
    return ""


def _gradcheck(subject: Subject) -> str:
    module = subject.build().double().eval()
    x_BTD = random_input(torch.float64, time=2).requires_grad_()
    y_BTD = module(x_BTD)
    if y_BTD.dtype != torch.float64:
        return (
            "computes less precisely than its float64 input: cast to the parameters' dtype, not "
            "to float32"
        )
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    try:
        torch.autograd.gradcheck(call, (x_BTD, *module.parameters()), fast_mode=True)
    except GradcheckError as error:
        first = next(iter(str(error).strip().splitlines()), "")
        return (
            f"gradients differ from finite differences in float64 ({first}): check custom "
            "backward passes, detach, and casts to float32"
        )
    return ""


def _bfloat16(subject: Subject) -> str:
    module, x_BTD = subject.build().eval(), random_input()
    expected = module(x_BTD)
    with autocast("cpu"):
        y_BTD = module(x_BTD)
        loss = y_BTD.float().square().mean()
    loss.backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not bool(y_BTD.isfinite().all()) or not all(bool(g.isfinite().all()) for g in gradients):
        return (
            "output or gradients are not finite under bfloat16 autocast, which every cell trains "
            "with; training is not refused for this"
        )
    change = float((y_BTD.detach().float() - expected.detach()).norm() / expected.detach().norm())
    if not change <= BFLOAT16:
        return (
            f"bfloat16 autocast changes the output by {change:.0%}: compute routing scores and "
            "softmax in float32, see isoflop.full_precision; training is not refused for this"
        )
    return ""


def _compile(subject: Subject) -> str:
    module, x_BTD = subject.build().eval(), random_input()
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(module), backend="aot_eager")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hints for those who compile; only the result counts here
        expected, y_BTD = module(x_BTD), compiled(x_BTD)
    change = float((y_BTD - expected).abs().max() / expected.abs().max())
    if not change <= COMPILED:
        return f"torch.compile changes the output, by {change:.2g} of the largest"
    return ""


CHECKS: dict[str, Callable[[Subject], str]] = {
    "builds": _builds,
    "shape": _shape,
    "determinism": _determinism,
    "causality": _causality,
    "batch": _batch,
    "flops": _flops,
    "gradients": _gradients,
    "gradcheck": _gradcheck,
    "routing": routing,
    "output": output_at_the_start,
    "bfloat16": _bfloat16,
    "compile": _compile,
}
# Without these no result means anything: they must pass before any training.
ESSENTIAL = ("builds", "shape", "determinism", "causality", "batch", "flops")
