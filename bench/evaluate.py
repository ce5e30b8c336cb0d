"""The loss of trained models on text that their corpus does not hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from isoflop.bench.data import Tokens, bits_per_byte, windows_at
from isoflop.bench.documents import BUILT_IN, documents, files_of
from isoflop.bench.kept_models import load_model, model_path
from isoflop.bench.plan import Cell
from isoflop.bench.readers import END_OF_TEXT, DataError
from isoflop.bench.step import Trainer
from isoflop.bench.suite import Corpus


@dataclass(frozen=True)
class HeldOutSet:
    """A text in the tokens of a corpus, cut into windows."""

    name: str
    windows: np.ndarray  # [windows, context + 1] token ids
    bytes_of_token: np.ndarray  # [vocabulary]

    @property
    def tokens(self) -> int:
        """Tokens that are predicted."""
        return int(self.windows[:, 1:].size)

    def bits_per_byte(self, nats_per_token: float) -> float:
        """The loss in bits per byte of UTF-8 of the text that is predicted."""
        return bits_per_byte(nats_per_token, self.windows, self.bytes_of_token)


def check_path(path: str, option: str = "--data") -> None:
    """Check that a path names files that can be read as text, before any work.

    Args:
        option: that gave the path, for messages.
    Raises:
        DataError: there is none, or it cannot be.
    """
    try:
        local = path not in BUILT_IN and files_of(path) is not None
    except DataError as error:
        raise _of_option(error, option) from None
    if not local:  # it may be the name of a dataset, which is not read here
        raise DataError(f"{option}: no such file or folder {path}")


def read_set(
    path: str,
    column: str,
    tokens: Tokens,
    context: int,
    most: int | None,
    multiple: int = 1,
    option: str = "--data",
) -> HeldOutSet:
    """Tokenise a text with the tokenizer of a corpus, as the corpus itself is: documents in order,
    each with an end-of-text token. What is left over after the last whole window is not scored.

    Args:
        path: a file, a folder of files, or a pattern.
        column: that holds the text, in files of rows.
        tokens: of the corpus.
        most: tokens to score at most; all if None.
        multiple: the number of windows must be a multiple of this.
        option: that gave the path, for messages.
    Raises:
        DataError: it cannot be read, or is too short.
    """
    tokenizer = Tokenizer.from_file(str(tokens.folder / "tokenizer.json"))
    end = int(tokenizer.token_to_id(END_OF_TEXT) or 0)
    ids: list[int] = []
    try:
        for text in documents(Corpus(source=path, text=column)):
            ids += [*tokenizer.encode(text).ids, end]
            if most is not None and len(ids) > most:
                break
    except DataError as error:
        raise _of_option(error, option) from None
    scored = len(ids) - 1 if most is None else min(len(ids) - 1, most)
    windows = scored // context // multiple * multiple
    if windows < 1:
        allowed = "" if most is None else f", of which --tokens allows {most:,} to be scored"
        raise DataError(
            f"{option}: {path}: it has {len(ids):,} tokens{allowed}, too few for "
            f"{f'{multiple} windows' if multiple > 1 else 'one window'} of {context} tokens: "
            f"{multiple * context + 1:,} are needed"
        )
    starts = np.arange(windows) * context
    return HeldOutSet(path, windows_at(np.array(ids), starts, context), tokens.bytes_of_token)


def windows_multiple(cells: Iterable[Cell]) -> int:
    """The sequences that an evaluation must be a multiple of, so that every layer accepts them.

    It is 1 but for layers whose output depends on the batch, which may need whole batches.
    """
    return math.lcm(
        *(
            cell.training.micro_batch or cell.training.batch
            for cell in cells
            if cell.config.layer.mixes_batch
        )
    )


def kept_losses(cell: Cell, models: Path, sets: Sequence[HeldOutSet]) -> list[float]:
    """The mean cross-entropy of a cell's kept model on each set, in nats per token.

    Computed as the loss of its record was, under autocast to bfloat16; on a GPU if there is one.

    Raises:
        IsoflopError: see `load_model`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(model_path(models, cell.id), cell).to(device)
    trainer = Trainer(cell, device, model=model)
    return [trainer.evaluate(part.windows) for part in sets]


def _of_option(error: DataError, option: str) -> DataError:
    """An error of the reader, which names the keys of a suite's corpus, with the options' names."""
    line = str(error).replace("corpus.source", option, 1).replace("corpus.text", "--text", 1)
    return DataError(line)
