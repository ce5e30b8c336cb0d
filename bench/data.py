"""Text to tokens: documents, split, byte-level BPE, a memmap in the user's cache, fixed windows."""

from __future__ import annotations

import hashlib
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from isoflop.bench.documents import documents, hash_of_text, size_of_text
from isoflop.bench.readers import END_OF_TEXT, DataError
from isoflop.bench.suite import Corpus
from isoflop.bench.token_files import (
    METADATA,
    SCRATCH,
    Metadata,
    Say,
    content_hash,
    locked,
    read_metadata,
    remove_leftovers,
    store,
    verified,
)

TOKENIZER_SAMPLE = 50_000_000  # characters of training text that the tokenizer is trained on


@dataclass(frozen=True)
class Tokens:
    """A tokenised corpus. Both splits are flat; every document ends with the end-of-text token."""

    folder: Path  # in the cache
    train: np.ndarray  # uint16 or uint32, a memmap
    validation: np.ndarray
    bytes_of_token: np.ndarray  # [vocabulary] UTF-8 bytes that each token stands for

    def validation_windows(self, tokens: int, context: int) -> np.ndarray:
        """The fixed validation set: [windows, context + 1], the first `tokens` targets.

        Raises:
            DataError: the held-out text is too short.
        """
        windows = max(1, tokens // context)
        if windows * context + 1 > len(self.validation):
            raise DataError(
                f"training.validation_tokens: the held-out text has {len(self.validation)} tokens, "
                f"{windows * context + 1} are needed: lower it, or raise corpus.validation"
            )
        return windows_at(self.validation, np.arange(windows) * context, context)


def windows_at(tokens: np.ndarray, starts: np.ndarray, context: int) -> np.ndarray:
    """[len(starts), context + 1] int64: inputs and, shifted by one, targets."""
    return tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)


def hash_of_windows(windows: np.ndarray) -> str:
    """A short content hash of a validation set, stored in every record."""
    return hashlib.sha256(np.ascontiguousarray(windows, dtype=np.int64).tobytes()).hexdigest()[:16]


class Sampler:
    """Batches of training windows. Every epoch has a new shuffle and a new offset.

    A batch depends on (seed, step) alone, so that a resumed run sees the same data.
    """

    def __init__(self, tokens: np.ndarray, context: int, batch: int, seed: int) -> None:
        self.tokens, self.context, self.batch, self.seed = tokens, context, batch, seed
        self.per_epoch = (len(tokens) - 1) // context - 1  # one window of slack for the offset
        if self.per_epoch < batch:
            raise DataError(
                f"the training text has {len(tokens)} tokens, too few for one batch of "
                f"{batch} x {context}: use more text, or a smaller batch"
            )
        self._epoch, self._starts = -1, np.empty(0, dtype=np.int64)

    def __call__(self, step: int) -> np.ndarray:
        """[batch, context + 1] token ids of a step."""
        wanted = np.arange(step * self.batch, (step + 1) * self.batch)
        starts = [self._starts_of(i // self.per_epoch)[i % self.per_epoch] for i in wanted.tolist()]
        return windows_at(self.tokens, np.array(starts), self.context)

    def _starts_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            offset = random.integers(self.context)
            self._starts = offset + self.context * random.permutation(self.per_epoch)
            self._epoch = epoch
        return self._starts


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to validation. Its content decides, so the split never changes."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def cache_directory() -> Path:
    """`$ISOFLOP_CACHE`, or isoflop's folder in the user's cache directory."""
    chosen, base = os.environ.get("ISOFLOP_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen)
    try:
        return Path(base or Path.home() / ".cache") / "isoflop"
    except RuntimeError:  # a user without a home
        raise DataError("no home folder for the token cache: set ISOFLOP_CACHE") from None


def _folder(corpus: Corpus) -> Path:
    """Where the tokens of a corpus are: by a hash of the text, the split and the vocabulary.

    Of a hub dataset its name stands for the text.
    """
    digest = hashlib.sha256(corpus.model_dump_json().encode())
    hash_of_text(corpus.source, digest)
    return cache_directory() / digest.hexdigest()[:16]


def _dtype(corpus: Corpus) -> Literal["uint16", "uint32"]:
    return "uint16" if corpus.vocabulary <= 2**16 else "uint32"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def find(corpus: Corpus, say: Say = _say) -> Tokens | None:
    """The tokens of a corpus if they are in the cache, and whole.

    Raises:
        DataError: the source is a file that cannot be read.
    """
    folder = _folder(corpus)
    return open_tokens(folder) if verified(folder, _dtype(corpus), say) else None


def open_tokens(folder: Path) -> Tokens:
    """The tokens in a folder of the cache, mapped rather than read: not verified again.

    Raises:
        DataError: they are not there any more.
    """
    try:
        metadata = read_metadata(folder)
        if metadata is None:
            raise ValueError(f"{METADATA} is of another version")
        return Tokens(
            folder=folder,
            train=np.memmap(folder / "train.bin", dtype=metadata.dtype, mode="r"),
            validation=np.memmap(folder / "validation.bin", dtype=metadata.dtype, mode="r"),
            bytes_of_token=np.array(metadata.bytes_of_token),
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: the tokens are gone or damaged ({error}): run again") from None


def prepare(corpus: Corpus, say: Say = _say) -> Tokens:
    """The tokens of a corpus, from the cache or made now: split, train the BPE, tokenise.

    Several processes make them once: the others wait.

    Args:
        say: is told what is read, and why the cache is not used.
    Raises:
        DataError: the source cannot be read, has too few documents to split or too little text for
            the vocabulary, or the cache cannot be written.
    """
    folder, dtype = _folder(corpus), _dtype(corpus)
    if not verified(folder, dtype, say):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder.parent)
            with locked(folder, say):
                if not verified(folder, dtype, lambda line: None):
                    size = size_of_text(corpus.source)
                    what = corpus.source + (f" ({max(0.1, size / 1e6):,.1f} MB)" if size else "")
                    say(f"tokenising {what}, once: the tokens are kept in {folder}")
                    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
                        store(Path(scratch), folder, _tokenise(corpus, Path(scratch)))
        except OSError as error:
            raise DataError(
                f"{error.filename or folder}: cannot write tokens: {error.strerror or error}; set "
                "ISOFLOP_CACHE to a folder with room that you may write to"
            ) from None
    return open_tokens(folder)


def _tokenise(corpus: Corpus, scratch: Path) -> Metadata:
    """Write the tokens and the tokenizer of a corpus to a folder.

    Raises:
        DataError: see `prepare`.
        OSError: the folder is full.
    """
    tokenizer = _train_tokenizer(corpus)
    tokenizer.save(str(scratch / "tokenizer.json"))
    end = int(tokenizer.token_to_id(END_OF_TEXT) or 0)
    counts = {"train": 0, "validation": 0}
    with (
        (scratch / "train.bin").open("wb") as train,
        (scratch / "validation.bin").open("wb") as validation,
    ):
        files = {"train": train, "validation": validation}
        for batch in _batched(documents(corpus), 256):
            for text, encoding in zip(batch, tokenizer.encode_batch(batch), strict=True):
                split = "validation" if is_held_out(text, corpus.validation) else "train"
                ids = np.array([*encoding.ids, end], dtype=_dtype(corpus))
                files[split].write(ids.tobytes())
                counts[split] += len(ids)
    if not all(counts.values()):
        raise DataError(
            f"corpus.source: {corpus.source} has too few documents to hold some out: it gave "
            f"{counts['train']} training and {counts['validation']} validation tokens; in a .txt "
            f"file each document ends with a line {END_OF_TEXT}"
        )
    learnt = tokenizer.get_vocab_size()
    if learnt < corpus.vocabulary:
        raise DataError(
            f"corpus.vocabulary: {corpus.vocabulary} tokens are asked for, the text gives only "
            f"{learnt}: lower it, or use more text"
        )
    # Byte-level BPE writes one character per byte.
    sizes = [len(tokenizer.id_to_token(i) or "") for i in range(corpus.vocabulary)]
    sizes[end] = 0
    return Metadata(
        dtype=_dtype(corpus),
        bytes_of_token=sizes,
        sha256={path.name: content_hash(path) for path in sorted(scratch.iterdir())},
        train=counts["train"],
        validation=counts["validation"],
    )


def _train_tokenizer(corpus: Corpus) -> Tokenizer:
    """Byte-level BPE on the training documents alone."""

    def sample() -> Iterator[str]:
        characters = 0
        for text in documents(corpus):
            if not is_held_out(text, corpus.validation):
                yield text
                characters += len(text)
                if characters > TOKENIZER_SAMPLE:
                    return

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=corpus.vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(), trainer)
    return tokenizer


def _batched(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def bits_per_byte(nats_per_token: float, windows: np.ndarray, bytes_of_token: np.ndarray) -> float:
    """Cross-entropy per byte of the windows' targets, in bits."""
    targets = windows[:, 1:]
    return nats_per_token * targets.size / math.log(2) / float(bytes_of_token[targets].sum())
