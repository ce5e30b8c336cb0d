"""Run the simulations and store what they count.

    python -m isoflop.analysis.simulations --suites 1000                  # all truths
    python -m isoflop.analysis.simulations --suites 1000 "own floor"      # one of them
    python -m isoflop.analysis.simulations --document docs/statistics.md  # the tables alone

A truth that is stored with the same code, seed, suites and samples is not simulated again.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from isoflop.analysis.simulations.coverage import analyse_suite, count
from isoflop.analysis.simulations.stored import STORED, code, first_suite, read, truths, write
from isoflop.analysis.simulations.tables import write_tables


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Simulated suites with known multipliers.")
    parser.add_argument("truths", nargs="*", help="by name; all if none is given")
    parser.add_argument("--suites", type=int, default=0, help="number to simulate of each truth")
    parser.add_argument("--samples", type=int, default=1000, help="bootstrap samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=STORED)
    parser.add_argument("--document", type=Path, help="Markdown whose tables are written anew")
    options = parser.parse_args()
    known = {truth.name: truth for truth in truths()}
    if unknown := [name for name in options.truths if name not in known]:
        print(f"no such truth: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    for name in (options.truths or known) if options.suites else ():
        setting = {name: getattr(options, name) for name in ("seed", "suites", "samples")}
        setting["code"] = code()
        if read(options.store).get(name, {}).items() >= setting.items():
            continue
        started = time.monotonic()
        suites = [
            analyse_suite(known[name], (options.seed, number), options.samples)
            for number in range(options.suites)
        ]
        result = setting | {"first_suite": first_suite(suites[0])} | count(known[name], suites)
        write(options.store, read(options.store) | {name: result})
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    if options.document:
        write_tables(options.document, options.store)
    return 0


if __name__ == "__main__":
    sys.exit(main())
