"""What a record says of the machine and of the code that ran."""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from isoflop.models.ops.backends import cpu_has_bfloat16
from isoflop.results.record import Measured


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's; of one without bfloat16 products, that too."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor() + ("" if cpu_has_bfloat16() else ", no bfloat16")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now on, where a process may train several cells: on a GPU."""
    if device.type == "cuda":
        torch.cuda.init()  # a fresh process knows of no device until then
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes, of the device's allocator on a GPU, of the process on a CPU.

    None on a CPU where Python cannot tell, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in ("isoflop", "torch", "tokenizers", "fvcore"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # isoflop itself may run from a folder on the path
            found[name] = "not installed"
    return found


def git_revision() -> str | None:
    """The revision of the code that runs, with `+` if it has uncommitted changes."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def measured(device: str, started: datetime.datetime, seconds: float, **more: Any) -> Measured:
    """What a record says of the machine, the day and the code.

    Args:
        device: by name.
        seconds: of the whole.
        more: further fields of `Measured`; none was trained if they do not say so.
    """
    trained: dict[str, Any] = {"train_seconds": 0.0, "tokens_per_second": None}
    return Measured(
        device=device,
        started=started.isoformat(timespec="seconds"),
        seconds=seconds,
        versions=versions(),
        git_revision=git_revision(),
        **trained | {"peak_memory_bytes": None} | more,
    )
