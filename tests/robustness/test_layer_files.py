"""Damaged layer files: `lint` says what is wrong, whatever the file does to its process.

A fifth as many cases as of the other kinds: each starts a process that imports torch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from isoflop.bench import isolate, template
from tests.bench.faulty_layers import GOOD
from tests.robustness.mutate import mutate
from tests.robustness.program import run

SHARE = 5
SECONDS = 20.0  # that a check of a tiny layer may take before it counts as endless
ENDS = (
    "raise SystemExit(0)",
    "import os; os._exit(0)",
    "import os; os.kill(os.getpid(), 11)",
    "while True: pass",
    "raise KeyboardInterrupt",
    "raise BaseException('\\x1b[2J\\n::error::x')",
    "1 / 0",
    "x = 'x' * 10**12",
    "def again(): again()\nagain()",
)


def planted(text: str, r: random.Random) -> bytes:
    """A file with a line that ends it, somewhere where it is executed."""
    places = [("", 0), *((m.group(1), m.end()) for m in re.finditer(r"( +)def .*:\n", text))]
    indent, at = r.choice(places)
    deeper = indent + "    " if indent else ""
    lines = "".join(f"{deeper}{line}\n" for line in r.choice(ENDS).split("\n"))
    return (text[:at] + lines + text[at:]).encode()


@pytest.mark.timeout(7200)
def test_a_damaged_layer_file_is_a_finding(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    robustness: int,
    counted: Callable[..., None],
) -> None:
    monkeypatch.setattr(isolate, "SECONDS", SECONDS)
    texts = [GOOD, Path(template.__file__).read_text(encoding="utf-8")]
    faults, accepted, tried = [], 0, robustness // SHARE
    for seed in range(tried):
        r = random.Random(f"layer file {seed}")
        ends = r.random() < 0.4
        content = planted(GOOD, r) if ends else mutate(r.choice(texts), r)
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "mine.py").write_bytes(content)
        outcome = run(folder, "lint", "mine.py")
        fault = outcome.fault
        if not fault and outcome.code == 0:
            accepted += 1
            if ends or "fit to be trained" not in outcome.out:
                fault = f"is accepted: {outcome.out[-200:]!r}"
        if not fault and outcome.code and "mine.py" not in outcome.out + outcome.err:
            fault = f"does not name the file: {outcome.err[-200:]!r}"
        if not fault and "\x1b" in outcome.out + outcome.err:
            fault = "a terminal escape is printed"
        if fault:
            faults.append(f"seed {seed}: isoflop lint mine.py: {fault}")
    counted("damaged layer file", tried=tried, accepted=accepted, faults=len(faults))
    assert not faults, f"{len(faults)} of {tried}:\n" + "\n".join(faults)
