"""The program as it runs where a package is not installed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run_without(package: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `isoflop` with these arguments in a folder, as if the package were not there."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"sys.argv = {['isoflop', *arguments]!r}\n"
        "from isoflop.cli.main import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
