"""A queue in a folder that machines share: what waits, who has taken it, and what they report.

A cell is taken by making its claim, a file that only one can make. A claim that its task gave up,
or left behind as it died, is removed, and the cell is taken by another. Every task appends its news
to a file of its own.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from isoflop.bench.engines.contract import Event, Limits
from isoflop.bench.plan import Cell
from isoflop.bench.train import Progress
from isoflop.results.files import write_whole
from isoflop.results.record import read_record

CELLS = TypeAdapter(list[Cell])
PROGRESS = TypeAdapter(Progress)


class SharedQueue:
    """The folder, as the command and its tasks see it.

    Args:
        task: of the array, as JOB_TASK; empty for the command.
    """

    def __init__(self, folder: Path, task: str = "") -> None:
        self.folder, self.task = folder, task
        self.read: dict[Path, int] = {}  # bytes of every file of news that are known
        self.known: tuple[int, list[Cell]] = (-1, [])  # when the list of cells was written

    # ------------------------------------------------------------------------------ the command

    def fill(self, cells: list[Cell], corpus: Path, records: Path, limits: Limits) -> None:
        """Say what is to be trained. Tasks that still run take from the new list."""
        for name in ("claims", "news"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "stop").unlink(missing_ok=True)
        for path in (self.folder / "news").iterdir():  # of an earlier command
            self.read[path] = path.stat().st_size
        settings = {
            "corpus": str(corpus),
            "records": str(records),
            "models": str(limits.models.resolve()) if limits.models else None,
        }
        write_whole(self.folder / "settings.json", json.dumps(settings))
        write_whole(self.folder / "cells.json", CELLS.dump_json(cells))

    def note_job(self, job: str) -> None:
        """Keep a job's number for a command that is started again."""
        with (self.folder / "jobs").open("a") as file:
            file.write(job + "\n")

    def jobs(self) -> list[str]:
        """Those that were submitted."""
        path = self.folder / "jobs"
        return path.read_text().split() if path.exists() else []

    def stop(self) -> None:
        """Ask every task to save its cells and end."""
        (self.folder / "stop").touch()

    def claims(self) -> dict[Path, str]:
        """The task that has each claim."""
        result = {}
        for path in (self.folder / "claims").iterdir():
            try:
                result[path] = path.read_text().strip()
            except FileNotFoundError:  # given back meanwhile
                continue
        return result

    def release(self, claims: dict[Path, str], alive: set[str]) -> None:
        """Remove claims of tasks that do not run.

        Args:
            claims: as they were before SLURM was asked who runs: a later one is a live task's.
        """
        for path, task in claims.items():
            if task and task not in alive and task != "done":
                path.unlink(missing_ok=True)

    def release_all(self) -> None:
        """Remove all claims, when no task runs."""
        for path in (self.folder / "claims").iterdir():
            path.unlink(missing_ok=True)

    def news(self, left: dict[str, Cell]) -> Iterator[Event]:
        """What tasks have reported since the last call, of cells that are not done.

        A record that is there without a report counts too: its task may have died in between.
        """
        ended: set[str] = set()
        for line in self._lines():
            cell = left.get(line["cell"])
            if cell is None or cell.id in ended:
                continue
            if line["kind"] == "record":
                ended.add(cell.id)
                yield Event(cell, record=read_record(self.records / f"{cell.id}.json"))
            elif line["kind"] == "progress":
                yield Event(cell, progress=PROGRESS.validate_python(line["progress"]))
            else:
                yield Event(cell, warning=line["text"])
        for cell in list(left.values()):
            path = self.records / f"{cell.id}.json"
            if cell.id not in ended and path.exists():
                record = read_record(path)
                if record.status != "failed":
                    ended.add(cell.id)
                    yield Event(cell, record=record)

    def _lines(self) -> Iterator[dict[str, Any]]:
        for path in sorted((self.folder / "news").iterdir()):
            with path.open("rb") as file:
                file.seek(self.read.get(path, 0))
                while (line := file.readline()).endswith(b"\n"):  # else it is being written
                    self.read[path] = file.tell()
                    yield json.loads(line)

    # -------------------------------------------------------------------------------- the tasks

    @property
    def settings(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "settings.json").read_text()))

    @property
    def records(self) -> Path:
        return Path(self.settings["records"])

    def cells(self) -> list[Cell]:
        """What is to be trained, the longest first."""
        path = self.folder / "cells.json"
        written = path.stat().st_mtime_ns
        if written != self.known[0]:
            self.known = written, CELLS.validate_json(path.read_bytes())
        return self.known[1]

    def asked_to_stop(self) -> bool:
        return (self.folder / "stop").exists()

    def give_back_all(self) -> None:
        """Give back what this task held when it died: it has been started again."""
        self.release({p: t for p, t in self.claims().items() if t == self.task}, set())

    def take(self, suits: Callable[[Cell], bool]) -> Cell | None:
        """See `local.Queue`."""
        for cell in self.cells():
            path = self._claim(cell)
            if path.exists() or not suits(cell):
                continue
            done = self.records / f"{cell.id}.json"
            if done.exists() and read_record(done).status != "failed":
                continue
            temporary = self.folder / f".{self.task}-{os.getpid()}"
            temporary.write_text(self.task)
            try:
                os.link(temporary, path)  # whole at once, and only if there is none
            except FileExistsError:
                continue
            finally:
                temporary.unlink()
            return cell
        return None

    def give_back(self, cell: Cell) -> None:
        """See `local.Queue`."""
        self._claim(cell).unlink(missing_ok=True)

    def report(self, event: Event) -> None:
        """Tell the command."""
        line: dict[str, Any] = {"cell": event.cell.id, "at": time.time()}
        if event.record is not None:
            line |= {"kind": "record"}
            write_whole(self._claim(event.cell), "done")
        elif event.progress is not None:
            line |= {"kind": "progress", "progress": asdict(event.progress)}
        elif event.warning:
            line |= {"kind": "warning", "text": event.warning}
        else:
            return
        restart = os.environ.get("SLURM_RESTART_COUNT", "0")
        with (self.folder / "news" / f"{self.task}-{restart}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _claim(self, cell: Cell) -> Path:
        return self.folder / "claims" / cell.id
