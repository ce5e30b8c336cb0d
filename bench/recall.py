"""A synthetic corpus of recall, which needs no download: what has to be remembered is known.

A document is a list of pairs, `key>value`, one a line, of random letters:

- facts: pairs of a fixed dictionary. The same key has the same value in every document, so that a
  model can only know it by heart (n-gram recall); this is where memory layers should differ.
- links: pairs drawn for the document, each of which comes back later in it: its value can be copied
  from the context (associative recall), which attention does.

The rest, a key or the first value of a link, cannot be predicted. The corpus is the same on every
machine and never changes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

DOCUMENTS = 8192
FACTS = 16_384  # in the dictionary
OF_FACTS, OF_LINKS = 24, 8  # in a document; every link stands there twice
LETTERS = "abcdefghijklmnop"
LENGTH = 4  # letters of a key and of a value


def facts() -> dict[str, str]:
    """The dictionary."""
    generator = random.Random(0)
    result: dict[str, str] = {}
    while len(result) < FACTS:
        result.setdefault(_word(generator), _word(generator))
    return result


def recall_documents() -> Iterator[str]:
    """The documents."""
    known = list(facts().items())
    for number in range(DOCUMENTS):
        generator = random.Random(number + 1)
        links = [(_word(generator), _word(generator)) for _ in range(OF_LINKS)]
        first = [*generator.sample(known, OF_FACTS // 2), *links]
        again = [*generator.sample(known, OF_FACTS // 2), *links]
        generator.shuffle(first)
        generator.shuffle(again)
        yield "".join(f"{key}>{value}\n" for key, value in (*first, *again))


def _word(generator: random.Random) -> str:
    return "".join(generator.choices(LETTERS, k=LENGTH))
