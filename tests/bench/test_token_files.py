"""The token cache: verified when opened, made once, whole or not at all."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isoflop.bench import data, token_files
from isoflop.bench.data import DataError, find, open_tokens, prepare
from isoflop.bench.suite import Corpus


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    text = "".join(f"Document {i} says {i * i}.\n<|endoftext|>\n" for i in range(200))
    (tmp_path / "corpus.txt").write_text(text)
    return Corpus(source=str(tmp_path / "corpus.txt"), vocabulary=300, validation=0.2)


def edit(**changes: object) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        table = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(table | changes))

    return damage


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def zero(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(bytes((folder / name).stat().st_size))


def wider(folder: Path) -> None:
    path = folder / "train.bin"
    path.write_bytes(np.fromfile(path, np.uint16).astype(np.uint32).tobytes())


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (cut("train.bin"), "train.bin has"),
        (zero("train.bin"), "train.bin is not what was written"),
        (zero("validation.bin"), "validation.bin is not what was written"),
        (cut("tokenizer.json"), "tokenizer.json is not what was written"),
        (wider, "train.bin has"),
        (lambda folder: (folder / "train.bin").unlink(), "train.bin is missing"),
        (edit(dtype="uint32"), "meta.json is not what was written"),
        (edit(bytes_of_token=[1] * 300), "meta.json is not what was written"),
        (edit(train=5), "meta.json is not what was written"),
        (edit(train="5"), "meta.json cannot be read"),
        (cut("meta.json"), "meta.json cannot be read"),
        (zero("meta.json"), "meta.json cannot be read"),
        (lambda folder: (folder / "meta.json").write_bytes(b"[" * 99999), "cannot be read"),
        (lambda folder: (folder / "meta.json").write_bytes(b"\xff"), "cannot be read"),
    ],
)
def test_damaged_tokens_are_made_anew_and_that_is_said_once(
    damage: Callable[[Path], object], line: str, corpus: Corpus
) -> None:
    before = prepare(corpus)
    train, folder = before.train.copy(), before.folder
    damage(folder)
    said: list[str] = []
    assert find(corpus, said.append) is None
    assert [line in text for text in said] == [True]
    said.clear()
    after = prepare(corpus, said.append)
    assert sum("are not used" in text for text in said) == 1
    assert np.array_equal(after.train, train)
    said.clear()
    assert find(corpus, said.append) is not None
    assert said == []


def test_tokens_from_before_there_were_hashes_are_made_anew_without_a_word(corpus: Corpus) -> None:
    folder = prepare(corpus).folder
    old = {"dtype": "uint16", "bytes_of_token": [1] * 300, "train": 10, "validation": 10}
    (folder / "meta.json").write_text(json.dumps(old))
    said: list[str] = []
    assert find(corpus, said.append) is None
    tokens = prepare(corpus, said.append)
    assert len(tokens.train) > 10
    assert not any("not used" in line for line in said)


def test_what_was_verified_and_has_not_changed_is_not_hashed_again(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(corpus)
    assert find(corpus) is not None

    def fail(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(token_files, "content_hash", fail)
    folder = find(corpus).folder  # type: ignore[union-attr]
    open_tokens(folder)
    os.utime(folder / "train.bin")
    with pytest.raises(AssertionError):
        find(corpus)


def test_a_hash_knows_every_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_files, "BLOCK", 10)
    path, hashes = tmp_path / "file", set()
    for content in (b"", b"a" * 10, b"a" * 35, b"a" * 34 + b"b", b"b" + b"a" * 34, b"a" * 36):
        path.write_bytes(content)
        hashes.add(token_files.content_hash(path))
    assert len(hashes) == 6


def test_tokens_that_are_gone_are_one_line(corpus: Corpus) -> None:
    folder = prepare(corpus).folder
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="the tokens are gone or damaged"):
        open_tokens(folder)


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(corpus: Corpus) -> None:
    cache = data.cache_directory()
    other = cache / "0123456789abcdef"
    left = [data._folder(corpus) / ".tokenising-abc", other / "tmpabcd1234"]
    kept = [cache / "mine" / "tmpabcd1234", other / "else", cache / "tmpabcd1234"]
    for folder in (*left, *kept):
        folder.mkdir(parents=True)
        (folder / "train.bin").write_bytes(b"1")
    prepare(corpus)
    assert [folder.exists() for folder in (*left, *kept)] == [False, False, True, True, True]


def test_a_tokenisation_that_fails_leaves_nothing(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(token_files.os, "fsync", full)
        with pytest.raises(
            DataError, match=r"No space left on device; set ISOFLOP_CACHE to a fold"
        ):
            prepare(corpus)
    folder = data._folder(corpus)
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert prepare(corpus).train.size


def test_files_are_on_disk_before_the_metadata(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync
    monkeypatch.setattr(
        token_files.os,
        "fsync",
        lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")) or sync(handle),
    )
    prepare(corpus)
    order = [Path(name).name for name in synced]
    assert {"train.bin", "validation.bin", "tokenizer.json"} == set(order[:3])
    assert order[3] == data._folder(corpus).name
    assert order[4].startswith(".meta.json")


def test_a_cache_that_cannot_be_written_is_one_line(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="cannot write tokens: Not a directory; set ISOFLOP_CACHE"):
        prepare(corpus)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ISOFLOP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", none)
    with pytest.raises(DataError, match="set ISOFLOP_CACHE"):
        data.cache_directory()


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_processes_make_the_tokens_once(corpus: Corpus) -> None:
    """Two wait for a lock that this process holds; then one of them does the work."""
    folder = data._folder(corpus)
    folder.mkdir(parents=True)
    code = (
        "import sys; from isoflop.bench.data import prepare\n"
        "from isoflop.bench.suite import Corpus\n"
        "prepare(Corpus.model_validate_json(sys.argv[1]))"
    )
    with token_files.locked(folder, lambda line: None):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, corpus.model_dump_json()],
                env=os.environ | {"PYTHONPATH": os.getcwd()},
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        for process in processes:
            assert process.stderr is not None
            assert "another process tokenises this text" in process.stderr.readline()
        assert not (folder / "meta.json").exists()
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "".join(said).count("tokenising ") == 1


def test_without_locks_the_work_is_done_all_the_same(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # importing it fails, as on Windows
    assert prepare(corpus).train.size
