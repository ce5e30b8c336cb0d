"""Calibration text: windows that no evaluation holds."""

from __future__ import annotations

import numpy as np

from isoflop.bench.data import Tokens, windows_at
from isoflop.bench.readers import DataError


class Held:
    """Runs of tokens of the evaluation, for the question whether a window shares one.

    A run is half a window: a window cut from the text of an evaluation holds at least one that lies
    wholly in one of its windows, wherever it was cut.
    """

    def __init__(self, evaluations: list[np.ndarray], context: int) -> None:
        self.length = max(1, context // 2)
        self.runs = {
            run for windows in evaluations for row in windows for run in _runs(row, self.length)
        }

    def shares(self, windows: np.ndarray) -> np.ndarray:
        """[windows] whether any run of a window, at whatever place, is one of the evaluation's."""
        return np.array(
            [any(run in self.runs for run in _runs(row, self.length)) for row in windows]
        )


def _runs(row: np.ndarray, length: int) -> list[bytes]:
    """Every run of `length` tokens of a row."""
    data, size = np.ascontiguousarray(row, dtype=np.int64).tobytes(), 8
    return [data[size * at : size * (at + length)] for at in range(len(row) - length + 1)]


def from_training(tokens: Tokens, held: Held, context: int, windows: int, seed: int) -> np.ndarray:
    """Windows of the training text, drawn by the seed, that share no run with an evaluation.

    Returns:
        [windows, context + 1] token ids.
    Raises:
        DataError: there are not so many.
    """
    starts = np.arange((len(tokens.train) - 1) // context) * context
    np.random.default_rng([seed, 0]).shuffle(starts)
    chosen: list[np.ndarray] = []
    for part in np.array_split(starts, max(1, len(starts) // max(1, windows))):
        candidates = windows_at(tokens.train, part, context)
        chosen += list(candidates[~held.shares(candidates)]) if len(candidates) else []
        if len(chosen) >= windows:
            return np.stack(chosen[:windows])
    raise DataError(
        f"--tokens: the training text has {len(chosen)} windows of {context} tokens apart from the "
        f"evaluation's, {windows} are needed: lower it"
    )


def from_text(windows: np.ndarray, held: Held, path: str, count: int, seed: int) -> np.ndarray:
    """Windows of a text of the user's own, drawn by the seed.

    Raises:
        DataError: it overlaps an evaluation, or is too short.
    """
    shared = int(held.shares(windows).sum())
    if shared:
        raise DataError(
            f"--calibration: {path}: {shared} of {len(windows)} windows overlap a text that is "
            "evaluated: give another one"
        )
    if len(windows) < count:
        raise DataError(
            f"--calibration: {path}: it has {len(windows)} windows, --tokens asks for {count}"
        )
    order = np.random.default_rng([seed, 0]).permutation(len(windows))
    return windows[order[:count]]
