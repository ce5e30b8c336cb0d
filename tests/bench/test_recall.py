"""The synthetic corpus: the same everywhere, with known things to remember."""

import hashlib
from collections import Counter

from isoflop.bench.documents import documents
from isoflop.bench.recall import DOCUMENTS, FACTS, OF_FACTS, OF_LINKS, facts, recall_documents
from isoflop.bench.suite import Corpus


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
