"""How a model is trained and checked: suite, plan, FLOPs, data, trainer, gate, submissions."""

if __name__ != "isoflop.bench":  # imported twice, its classes and operators would exist twice
    raise ImportError("import this folder as isoflop.bench, not as bench")
