"""Tables of losses on other text: worked by hand, in LEADERBOARD.md, on the page."""

import math
from pathlib import Path

import pytest

from isoflop.analysis.report import derive, other_text
from isoflop.analysis.simulate import simulate
from isoflop.results.record import RecordError, write_record
from isoflop.results.scored import FILE, Scored
from tests.results.test_scored import as_json


def scored(variant: str, data: str, *losses: float) -> Scored:
    mean = sum(losses) / len(losses)
    return Scored(
        variant=variant, size="s", budget=1e12, optimum="ok", seeds=len(losses), data=data,
        data_hash="0", tokens=1280, losses=losses, nats_per_token=mean,
        perplexity_per_token=math.exp(mean), bits_per_byte=mean / 2,
    )  # fmt: skip


SCORED = [
    scored("dense", "news", 2.0, 2.2, 2.4), scored("dense", "novels", 3.0, 3.0, 3.0),
    scored("moe", "news", 1.9), scored("moe", "novels", 2.9),
]  # fmt: skip


def test_means_intervals_and_perplexities() -> None:
    """The deviation of 2.0, 2.2, 2.4 is 0.2; with two degrees of freedom t is 4.303."""
    assert other_text.header(SCORED) == ("variant", "size", "seeds", "news", "novels")
    half = 4.303 * 0.2
    mean = half / math.sqrt(3)
    assert other_text.losses(SCORED, ["moe", "dense"]) == [
        ["moe", "s", "1", f"1.900 [{1.9 - half:.3f}, {1.9 + half:.3f}] (6.7)",
         "2.900 [2.900, 2.900] (18.2)"],
        ["dense", "s", "3", f"2.200 [{2.2 - mean:.3f}, {2.2 + mean:.3f}] (9.0)",
         "3.000 [3.000, 3.000] (20.1)"],
    ]  # fmt: skip
    first = other_text.bits_per_byte(SCORED, ["dense", "moe"])[0]
    assert first[3] == f"1.100 [{1.1 - mean / 2:.3f}, {1.1 + mean / 2:.3f}]"


def test_one_seed_has_no_interval() -> None:
    alone = [scored("dense", "news", 2.0), scored("moe", "news", 1.9)]
    assert [row[3] for row in other_text.losses(alone, ["dense", "moe"])] == [
        "2.000 (7.4)", "1.900 (6.7)"
    ]  # fmt: skip
    assert "Models of 1e12 FLOPs" in other_text.text(alone)
    assert "Tokens scored: news 1,280." in other_text.text(alone)


def test_a_board_shows_what_eval_printed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for record in simulate({"dense": 1.0, "moe": 1.5}):
        write_record(folder / "records", record)
    without = derive.generate(folder)[1]
    assert not any(b"Other text" in content for content in without.values())
    (folder / FILE).write_text(as_json(SCORED))
    files = derive.generate(folder)[1]
    board = files[folder / "LEADERBOARD.md"].decode()
    assert "\n## Other text\n" in board
    assert "\n## Other text, bits per byte\n" in board
    assert "2.900 [2.900, 2.900] (18.2)" in board
    page = files[folder / "index.html"].decode()
    assert '<h2 id="h-scored">Other text</h2>' in page
    assert "2.900 [2.900, 2.900] (18.2)" in page
    (folder / FILE).write_text(as_json([scored("pkm", "news", 2.0)]))
    with pytest.raises(RecordError, match="no records of pkm"):
        derive.generate(folder)
