"""Simulated suites with known multipliers: how often intervals cover and differences are found.

`python -m isoflop.analysis.simulations` runs them and stores the counts.
"""
