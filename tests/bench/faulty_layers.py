"""A sound layer, and what a user may do wrong in it."""

GOOD = """\
import torch
from torch import nn
from isoflop import Layer

class Mine(Layer):
    def __init__(self, d_model, **options):
        super().__init__(d_model, **options)
        self.linear = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x):
        return self.linear(x)

    def flops_per_token(self):
        return 2 * self.d_model**2
"""

# What a user may do wrong: the check that finds it, what to replace in GOOD, and part of the line.
FAULTS = {
    "import": ("builds", "import torch\n", "import torch\nimport nowhere\n", "No module named"),
    "syntax": ("builds", "class Mine(Layer):", "class Mine(Layer)", "cannot be imported"),
    "no layer": ("builds", "class Mine(Layer)", "class Mine(nn.Module)", "not a class derived"),
    "init raises": ("builds", "super().__init__(d_model, **options)", "1 / 0", "py:7: raises Zero"),
    "no formula": ("builds", "flops_per_token", "flops", "raises NotImplementedError"),
    "fractional": ("builds", "2 * self", "2.0 * self", "must return a whole number from"),
    "taken name": (
        "builds",
        "class Mine(Layer):",
        'class Mine(Layer):\n    name = "dense"',
        "has the name of the registered dense",
    ),
    "active": (
        "builds",
        "    def forward",
        "    def active_parameters(self):\n        return 10**9\n\n    def forward",
        "active_parameters() is 1000000000, yet there are 1024",
    ),
    "forward raises": ("shape", "self.linear(x)", "self.linear(x[..., 1:])", "py:11: raises Runt"),
    "shape": ("shape", "self.linear(x)", "self.linear(x)[:, 1:]", "not (8, 11, 32)"),
    "tuple": ("shape", "self.linear(x)", "self.linear(x), None", "not tuple"),
    "dtype": ("shape", "self.linear(x)", "self.linear(x).double()", "not torch.float64"),
    "in place": ("shape", "self.linear(x)", "self.linear(x.mul_(2))", "in place"),
    "routed by a balance loss": (
        "routing",
        "        return self.linear(x)\n",
        "        y = self.linear(x) * self.gate(x).sigmoid()\n"
        "        return y / y.square().mean(-1, keepdim=True).sqrt()\n\n"
        "    def routing_parameters(self):\n        return [self.gate.weight]\n",
        "what routes gets",
    ),
    "no load": (
        "routing",
        "    def forward",
        "    def load(self, x):\n        return x.mean()\n\n    def forward",
        "load() must return how much each expert is used",
    ),
    "twice in groups": (
        "builds",
        "    def forward",
        "    def parameter_groups(self):\n"
        "        from isoflop import ParameterGroup\n"
        "        return [ParameterGroup([self.linear.weight])] * 2\n\n    def forward",
        "parameter_groups() must list parameters of the layer, each once",
    ),
    "auxiliary": (
        "shape",
        "        return self.linear(x)",
        "        self.aux_loss = x\n        return self.linear(x)",
        "scalar",
    ),
    "mean over time": ("causality", "linear(x)", "linear(x - x.mean(1, keepdim=True))", "position"),
    "next token": ("causality", "linear(x)", "linear(x) + x.roll(-1, dims=1)", "earlier outputs"),
    "over the batch": ("causality", "linear(x)", "linear(x) - x.mean((0, 1))", "earlier outputs"),
    "mixes sequences": ("batch", "linear(x)", "linear(x - x.mean(0))", "`mixes_batch = True`"),
    "needs its batch": (
        "batch",
        "        return self.linear(x)",
        "        if len(x) % 2:\n"
        "            raise ValueError('odd')\n"
        "        return self.linear(x)",
        "a sequence without its batch raises ValueError: odd; an output may",
    ),
    "attends on real tensors": (
        "flops",
        "        return self.linear(x)",
        "        h = x[:, None]\n"
        "        attend = nn.functional.scaled_dot_product_attention\n"
        "        more = 0 if x.is_meta else attend(h, h, h, is_causal=True)[:, 0]\n"
        "        return self.linear(x) + more",
        "forward does 3584 FLOPs per token on real tensors, 2048 in the trace",
    ),
    "recurrent on real tensors": (
        "flops",
        "        return self.linear(x)",
        "        more = 0 if x.is_meta else nn.LSTM(32, 32, batch_first=True)(x)[0]\n"
        "        return self.linear(x) + 0 * more",
        "cannot count aten::mkldnn_rnn_layer on real tensors: write it with matrix products",
    ),
    "vector on real tensors": (
        "flops",
        "        return self.linear(x)",
        "        more = 0 if x.is_meta else x[0] @ x[0, 0]\n"
        "        return self.linear(x) + 0 * (more if x.is_meta else more.sum())",
        "per token on real tensors",
    ),
    "more in evaluation": (
        "flops",
        "self.linear(x)",
        "self.linear(x if self.training else self.linear(x))",
        "in the trace, in evaluation",
    ),
    "no formula's number": ("builds", "2 * self.d_model**2", "None", "not None"),
    "negative": ("builds", "2 * self", "-2 * self", "whole number from 0 to 2^63, not -2048"),
    "huge": ("builds", "2 * self.d_model**2", "10**5000", "not an object of type int"),
    "truth for a count": ("builds", "2 * self.d_model**2", "True", "not True"),
    "options": (
        "builds",
        "    def __init__",
        "    class Options:\n        pass\n\n    def __init__",
        "must be a dataclass",
    ),
    "mark": (
        "builds",
        "    def __init__",
        "    mixes_batch = 'yes'\n\n    def __init__",
        "mixes_batch must be True or False, not 'yes'",
    ),
    "recursion": ("builds", "2 * self.d_model**2", "self.flops_per_token()", "RecursionError"),
    "exit": ("builds", "2 * self.d_model**2", "exit(0)", "calls sys.exit(0)"),
    "behind a zero": (
        "causality",
        "        return self.linear(x)",
        "        return self.linear(x) + self.gate * x.mean(1, keepdim=True)",
        "earlier outputs",
    ),
    "too few FLOPs": ("flops", "2 * self", "1 * self", "per token by formula"),
    "too many FLOPs": ("flops", "2 * self", "3 * self", "per token by formula"),
    "right at one width": ("flops", "2 * self.d_model**2", "64 * self.d_model", "width 48"),
    "uncounted": ("flops", "self.linear(x)", "self.linear(x) + x.cumprod(-1)", "cannot count"),
    "less on the meta device": (
        "flops",
        "self.linear(x)",
        "self.linear(x if x.is_meta else self.linear(x))",
        "forward does 4096 FLOPs per token on real tensors, 2048 in the trace",
    ),
    "less in a trace": (
        "flops",
        "self.linear(x)",
        "self.linear(x if torch.jit.is_tracing() else self.linear(x))",
        "on real tensors",
    ),
    "no gradient": ("gradients", "linear(x)", "linear(x).detach() + x", "linear.weight gets no"),
    "not finite": (
        "gradients",
        "linear(x)",
        "linear(x) + (0 * x).abs().sqrt()",
        "gradient of the input is not finite",
    ),
    "wrong gradient": ("gradcheck", "linear(x)", "linear(x) * x.detach()", "finite differences"),
    "float32": ("gradcheck", "linear(x)", "linear(x.float().to(x.dtype))", "finite differences"),
    "numpy's chance": (
        "determinism",
        "self.linear(x)",
        "self.linear(x) * __import__('random').random()",
        "torch's generator",
    ),
    "chance in evaluation": ("determinism", "linear(x)", "linear(x) * torch.rand(())", "two calls"),
    "bfloat16": (
        "bfloat16",
        "        return self.linear(x)",
        "        h = self.linear(x)\n        return h + (100 * h).sin()",
        "full_precision",
    ),
    "compile": (
        "compile",
        "self.linear(x)",
        "self.linear(x) * (2 if torch.compiler.is_compiling() else 1)",
        "torch.compile changes the output",
    ),
}
