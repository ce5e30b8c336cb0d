"""What the records mean: curves, laws, figures, leaderboard, page. Never imports torch."""

if __name__ != "isoflop.analysis":  # imported twice, its classes and operators would exist twice
    raise ImportError("import this folder as isoflop.analysis, not as analysis")
