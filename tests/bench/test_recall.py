"""The synthetic corpus: the same everywhere, with known things to remember."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import torch

from isoflop.bench import recall
from isoflop.bench.data import prepare
from isoflop.bench.documents import documents
from isoflop.bench.recall import DOCUMENTS, FACTS, OF_FACTS, OF_LINKS, facts, recall_documents
from isoflop.bench.suite import Corpus
from isoflop.bench.train import train_cell
from tests.bench.cells import tiny_cells


def test_it_is_the_same_on_every_machine() -> None:
    texts = list(documents(Corpus(source="recall")))
    assert len(texts) == DOCUMENTS == len(set(texts))
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()
    assert digest.startswith("5fbd4cca9dc3c38f")


def test_facts_are_always_the_same_and_links_come_back() -> None:
    known = facts()
    assert len(known) == FACTS
    seen: Counter[str] = Counter()
    for text, _ in zip(recall_documents(), range(500), strict=False):
        pairs = [line.split(">") for line in text.splitlines()]
        assert len(pairs) == OF_FACTS + 2 * OF_LINKS
        links = [(key, value) for key, value in pairs if known.get(key) != value]
        assert len(links) == 2 * OF_LINKS
        assert set(Counter(links).values()) == {2}
        seen.update(key for key, value in pairs if known.get(key) == value)
    assert max(seen.values()) > 1  # in several documents


def test_a_memory_that_is_looked_up_gains_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against its control, whose tables have a single row, at equal FLOPs: with 256 facts, each
    read 20 times in training, 2.56 against 2.75 nats; dense is at the control's loss."""
    monkeypatch.setattr(recall, "FACTS", 256)
    monkeypatch.setattr(recall, "DOCUMENTS", 512)
    cells = tiny_cells(
        corpus={"source": "recall", "vocabulary": 300, "validation": 0.1},
        training={"context": 64, "batch": 8, "validation_tokens": 8192},
        sizes={"s": {"width": 32, "depth": 3, "heads": 2}},
        budgets=[{"flops": 5e10}],
        variants={
            f"rows-{rows}": {
                "layer": "engram",
                "learning_rate": 1e-2,
                "options": {"table_size": rows, "heads": 4},
            }
            for rows in (1, 4096)
        },
    )
    tokens = prepare(cells[0].corpus)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small steps: more threads only wait for each other
    control, memory = (train_cell(c, tokens, torch.device("cpu"), tmp_path).loss for c in cells)
    torch.set_num_threads(threads)
    assert control is not None
    assert memory is not None
    assert memory < control - 0.1
