import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from isoflop.bench.engines.contract import Event
from isoflop.bench.plan import Cell
from isoflop.bench.train import Progress
from isoflop.cli.progress import watch
from isoflop.results.record import Record
from tests.bench.cells import make_record, tiny_cells

MESSAGE = "its process was ended by SIGKILL, [bold]perhaps[/bold] for want of memory"


def terminal(width: int = 80, height: int = 24) -> Console:
    return Console(force_terminal=True, width=width, height=height, file=io.StringIO(), _environ={})


def cells_of(variants: int, budgets: int) -> list[Cell]:
    return tiny_cells(
        variants={
            f"{i:02}-variant": {"layer": "dense", "learning_rate": 1e-2 + i * 1e-4}
            for i in range(variants)
        },
        budgets=[{"flops": 1e9 * (1 + i)} for i in range(budgets)],
        seeds=[0, 1],
    )


def record_of(cell: Cell, **changes: Any) -> Record:
    return make_record(cell=cell.id, variant=cell.variant, budget=cell.budget, **changes)


def failed(cell: Cell) -> Record:
    return record_of(cell, status="failed", loss=None, bits_per_byte=None, message=MESSAGE)


def step(cell: Cell, step: int) -> Event:
    return Event(cell, progress=Progress(step, 4.25, 1234.0, []))


def frame(console: Console, cells: list[Cell], events: list[Event], before: list[Record]) -> str:
    """What is on the screen after the last event."""
    shown: list[str] = []

    def looked_at() -> Iterator[Event]:
        yield from events
        # The watcher has seen them all; the live display is what it draws now.
        copy = Console(width=console.width, height=console.height, file=io.StringIO())
        assert console._live_stack
        copy.print(console._live_stack[-1].get_renderable())
        shown.append(copy.file.getvalue())  # type: ignore[attr-defined]

    watch(looked_at(), cells, before, console)
    return shown[0]


def test_the_table_counts_cells_and_keeps_the_lowest_loss() -> None:
    cells = cells_of(2, 2)
    first = [cell for cell in cells if cell.budget == 1e9]
    events = [
        Event(first[0], record=record_of(first[0], loss=4.75)),
        step(first[1], 10),
        Event(first[1], record=record_of(first[1], loss=4.25)),
        Event(first[3], record=failed(first[3])),
        step(cells[-1], cells[-1].steps // 2),
    ]
    lines = frame(terminal(), cells, events, [record_of(first[2], loss=5.0)]).splitlines()
    assert lines[0].split() == ["variant", "1e9", "2e9"]
    assert lines[2].split() == ["00-variant", "2/2", "4.250", "0/2", "-"]
    assert lines[3].split() == ["01-variant", "✗1", "1/2", "5.000", "0/2", "-"]
    assert "failed or diverged" in lines[4]
    assert lines[6].startswith("01-variant s 2e9 seed 1 ━")
    assert "loss 4.250, 1,234 tokens/s" in lines[6]
    assert lines[7].startswith("3 of 7 cells ━")  # one was there before
    assert "4e9 of 1.1e10 FLOPs" in lines[7]
    assert len(lines) == 8


def test_a_warning_of_a_cell_that_has_ended_brings_no_bar_back() -> None:
    cells = cells_of(1, 1)
    ended = Event(cells[0], record=record_of(cells[0], loss=5.0))
    late = Event(cells[0], warning="the record of its second copy is refused, 1 so far")
    frames = [frame(terminal(), cells, events, []) for events in ([ended], [ended, late])]
    assert frames[0] == frames[1]


def test_a_loss_of_zero_is_the_lowest() -> None:
    cells = cells_of(1, 1)
    events = [
        Event(cell, record=record_of(cell, loss=loss))
        for cell, loss in zip(cells, (0.0, 2.0), strict=True)
    ]
    assert "2/2 0.000" in frame(terminal(), cells, events, [])


@pytest.mark.parametrize(
    ("width", "height", "variants", "budgets", "running"),
    [(80, 24, 20, 5, 2), (80, 50, 20, 5, 16), (80, 24, 20, 9, 30), (40, 10, 3, 2, 1)],
)
def test_what_is_shown_fits_the_terminal(
    width: int, height: int, variants: int, budgets: int, running: int
) -> None:
    cells = cells_of(variants, budgets)
    half = len(cells) // 2
    events = [
        Event(cell, record=failed(cell) if number % 5 == 0 else record_of(cell, loss=12.0))
        for number, cell in enumerate(cells[:half])
    ]
    now = cells[half : half + running]
    shown = frame(terminal(width, height), cells, events + [step(c, 1) for c in now], [])
    lines = shown.splitlines()
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    rows = [line for line in lines if "/2 " in line]
    assert any(line.startswith(now[0].variant[:9]) for line in rows)  # where it happens now
    assert lines[-1].startswith(f"{half} of {len(cells)} cells")
    assert "━" in lines[-1] or width < 80
    for line in rows:
        assert "…" not in line[10:]  # a number is whole or not there
    if len(rows) < variants and width == 80:
        assert f"{len(rows)} of {variants} variants" in shown
    if running > height // 3:
        assert " more running" in shown


def test_twenty_variants_and_five_budgets_fit_eighty_columns() -> None:
    cells = cells_of(20, 5)
    shown = frame(terminal(80, 30), cells, [step(cells[0], 1)], [])
    assert shown.splitlines()[0].split() == ["variant", "1e9", "2e9", "3e9", "4e9", "5e9"]
    assert sum(line[2:].startswith("-variant") for line in shown.splitlines()) == 21  # and a bar


def test_a_terminal_gets_one_line_for_a_cell_that_fails_and_none_for_others() -> None:
    console = terminal(200)
    cells = cells_of(1, 1)
    made = watch(
        [Event(cells[0], record=failed(cells[0])), Event(cells[1], record=record_of(cells[1]))],
        cells,
        [],
        console,
    )
    assert [record.status for record in made] == ["failed", "finished"]
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert written.count(MESSAGE) == 1  # markup in it is text
    assert "[1/2] 00-variant s 1e9 FLOPs, seed 0: failed: " in written
    assert "[2/2]" not in written
    assert written.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_elsewhere_a_line_for_each_cell_that_ends() -> None:
    console = Console(file=io.StringIO(), width=80)
    cells = cells_of(1, 1)
    events = [step(cells[0], 3), Event(cells[0], record=record_of(cells[0]))]
    events += [step(cells[1], 3), Event(cells[1], record=failed(cells[1]))]
    watch(events, cells, [], console)
    written = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(written) == 2
    assert written[0].startswith(
        "[1/2] 00-variant s 1e9 FLOPs, seed 0: loss 4.5000 nats, 2.500 bits per byte, "
        "1,000 tokens/s; 1e9 of 2e9 FLOPs, about "
    )
    assert written[1].startswith(f"[2/2] 00-variant s 1e9 FLOPs, seed 1: failed: {MESSAGE}; ")


def test_a_record_of_a_variant_by_another_name_counts() -> None:
    cells = cells_of(1, 1)
    before = [make_record(cell=cells[0].id, variant="its-old-name", budget=1.0, loss=3.5)]
    assert "1/2 3.500" in frame(terminal(), cells, [step(cells[1], 1)], before)
