from pathlib import Path

import numpy as np
import pytest

from isoflop.bench.data import (
    DataError,
    Sampler,
    Tokens,
    bits_per_byte,
    documents,
    find,
    hash_of_windows,
    is_held_out,
    open_tokens,
    prepare,
)
from isoflop.bench.suite import Corpus


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """A file of 200 short documents, and an empty cache."""
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    text = "".join(
        f"Document {i} says: «{i * i}» and naïve 東京.\n<|endoftext|>\n" for i in range(200)
    )
    (tmp_path / "corpus.txt").write_text(text)
    return Corpus(source=str(tmp_path / "corpus.txt"), vocabulary=300, validation=0.2)


def decode(tokens: Tokens, ids: np.ndarray) -> str:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokens.folder / "tokenizer.json"))
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def test_tokens_are_the_documents_split_by_document(corpus: Corpus) -> None:
    tokens = prepare(corpus)
    texts = list(documents(corpus))
    for split, held_out in ((tokens.train, False), (tokens.validation, True)):
        expected = "".join(
            text + "<|endoftext|>" for text in texts if is_held_out(text, 0.2) == held_out
        )
        assert decode(tokens, split) == expected
    assert 20 < sum(is_held_out(text, 0.2) for text in texts) < 60


def test_bytes_of_tokens_add_up_to_the_text(corpus: Corpus) -> None:
    tokens = prepare(corpus)
    held_out = [text for text in documents(corpus) if is_held_out(text, 0.2)]
    expected = sum(len(text.encode()) for text in held_out)
    assert tokens.bytes_of_token[tokens.validation].sum() == expected


def test_the_cache_is_used_and_keyed_by_content(corpus: Corpus) -> None:
    assert find(corpus) is None
    prepared = prepare(corpus)
    cached = find(corpus)
    assert cached is not None
    assert cached.folder == prepared.folder
    Path(corpus.source).write_text(Path(corpus.source).read_text() + "One more.\n")
    assert find(corpus) is None


def test_a_broken_off_preparation_is_not_taken_for_a_whole_one(corpus: Corpus) -> None:
    folder = prepare(corpus).folder
    (folder / "meta.json").unlink()  # it is written last
    assert find(corpus) is None
    assert len(prepare(corpus).train) == len(open_tokens(folder).train)


def test_a_single_document_cannot_be_split(corpus: Corpus) -> None:
    Path(corpus.source).write_text("All one document.")
    with pytest.raises(DataError, match="too few documents to hold some out"):
        prepare(corpus)


def test_too_little_text_is_one_line(corpus: Corpus) -> None:
    tokens = prepare(corpus)
    with pytest.raises(
        DataError, match=r"training.validation_tokens: .* 1000001 are needed: lower it"
    ):
        tokens.validation_windows(10**6, context=8)
    with pytest.raises(DataError, match=r"too few for one batch of 9999 x 8"):
        Sampler(tokens.train, 8, 9999, seed=0)


def test_an_epoch_shows_every_window_once_and_epochs_differ() -> None:
    tokens = np.arange(1003, dtype=np.uint16)
    sampler = Sampler(tokens, context=10, batch=9, seed=3)
    assert sampler.per_epoch == 99
    epochs = [np.concatenate([sampler(11 * e + i)[:, 0] for i in range(11)]) for e in range(2)]
    for starts in epochs:
        assert len(set(starts.tolist())) == 99
        assert len({start % 10 for start in starts.tolist()}) == 1
    assert not np.array_equal(epochs[0], epochs[1])
    batch = sampler(0)
    assert batch.shape == (9, 11)
    assert np.array_equal(batch, batch[:, :1] + np.arange(11))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    tokens = np.arange(1003, dtype=np.uint16)
    forward = Sampler(tokens, 10, 4, seed=1)
    batches = [forward(step) for step in range(60)]
    assert np.array_equal(Sampler(tokens, 10, 4, seed=1)(57), batches[57])
    assert not np.array_equal(Sampler(tokens, 10, 4, seed=2)(57), batches[57])


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight() -> None:
    windows = np.arange(33).reshape(1, 33)
    assert bits_per_byte(np.log(256), windows, np.ones(33)) == pytest.approx(8)
    assert bits_per_byte(np.log(256), windows, np.full(33, 2)) == pytest.approx(4)


def test_the_hash_of_a_validation_set_knows_every_token() -> None:
    windows = np.arange(20).reshape(2, 10)
    other = windows.copy()
    other[1, 9] += 1
    assert hash_of_windows(windows) == hash_of_windows(windows.astype(np.uint16))
    assert hash_of_windows(windows) != hash_of_windows(other)
