"""The engine `ray`: every cell is a task of a Ray cluster, and its record comes home.

No shared disk is needed: the tokens travel to a node once, records and the states of stopped cells
travel back to the command, which stores them. A node that is lost costs the steps of its cells.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from isoflop.bench import checkpoint
from isoflop.bench.checkpoint import read_state, write_state
from isoflop.bench.data import open_tokens
from isoflop.bench.data import prepare as prepare_tokens
from isoflop.bench.engines.contract import (
    EngineError,
    Event,
    Limits,
    read_options,
    refuse_gpus,
    remove_scratch,
    scratch_of,
    store,
    whole_number,
)
from isoflop.bench.engines.copies import Copies
from isoflop.bench.engines.local import Waiting, places, starting_order, train_queue
from isoflop.bench.kept_models import initial_path, model_path
from isoflop.bench.plan import Cell
from isoflop.bench.train import checkpoint_path
from isoflop.results.errors import IsoflopError
from isoflop.results.files import write_whole

OPTIONS = {"address": "", "cpus": "1", "gpus": "0", "backups": "yes"}
CRASHES = 3  # of a cell's process before the cell counts as one that cannot run
Files = dict[str, bytes]


@dataclass(frozen=True)
class _Done:
    """The last that a task says: files of the cell that the command keeps."""

    state: Files  # of a stopped cell, by their paths in the folder of checkpoints
    weights: Files  # by suffix


@dataclass
class Ray:
    """The engine.

    Args:
        given: options, as key=value.
    """

    given: list[str] = field(default_factory=list)
    left_running = ""

    def __post_init__(self) -> None:
        self.options = read_options("ray", self.given, OPTIONS)
        self.cpus = _share(self.options["cpus"])
        self.gpus = whole_number("ray", "gpus", self.options["gpus"], least=0)
        if self.options["backups"] not in ("yes", "no"):
            raise EngineError("--engine-options: ray's backups is yes or no")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports home by default
        try:
            import ray  # noqa: F401
        except ModuleNotFoundError:
            raise EngineError(
                "--on ray: Ray is not installed: pip install 'isoflop[ray]'"
            ) from None

    def dry_run(self, cells: list[Cell], records: Path, limits: Limits) -> str:
        """Nothing is submitted.

        Raises:
            EngineError: a task has fewer GPUs than a cell takes.
        """
        if self.gpus:
            refuse_gpus("ray", self.gpus, cells)
        return ""

    def train(
        self, cells: list[Cell], records: Path, limits: Limits
    ) -> Generator[Event, None, None]:
        """See `contract.Engine`."""
        import ray

        if not cells:
            return
        tokens = prepare_tokens(cells[0].corpus)
        connected = ray.is_initialized()
        if not connected:
            self._connect()
        try:
            slots = self._slots()
            files = ray.put(
                {path.name: path.read_bytes() for path in tokens.folder.iterdir() if path.is_file()}
            )
            task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(_train_cell)
            yield from self._run(task, cells, records, limits, str(tokens.folder), files, slots)
        finally:
            if not connected:
                ray.shutdown()
        remove_scratch(records)

    def _connect(self) -> None:
        import ray

        address = self.options["address"] or os.environ.get("RAY_ADDRESS")
        try:
            ray.init(
                address=address, log_to_driver=False, include_dashboard=None if address else False
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise EngineError(
                f"--on ray: no cluster at {address or 'this machine'}: {reason}"
            ) from None

    def _slots(self) -> int:
        """Cells that the nodes can train at a time.

        Raises:
            EngineError: no node can train one: Ray would wait for ever, without a word.
        """
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        slots = 0
        for resources in nodes:
            fit = [int(resources.get("CPU", 0) // self.cpus)]
            fit += [int(resources.get("GPU", 0) // self.gpus)] if self.gpus else []
            slots += min(fit)
        if not slots:
            most = {
                kind: int(max((resources.get(kind, 0) for resources in nodes), default=0))
                for kind in ("CPU", "GPU")
            }
            raise EngineError(
                f"--on ray: no node has {self.cpus:g} CPUs and {self.gpus} GPUs for a cell; the "
                f"largest has {most['CPU']} and {most['GPU']}: change --engine-options; a cell "
                "over several nodes takes --on slurm, with nodes=N"
            )
        return slots

    def _run(
        self,
        task: Any,
        cells: list[Cell],
        records: Path,
        limits: Limits,
        corpus: str,
        files: Any,
        slots: int,
    ) -> Generator[Event, None, None]:
        import ray
        from ray import exceptions

        copies = Copies(starting_order(cells, limits), self.options["backups"] == "yes")
        scratch = scratch_of(records)
        left = None if limits.deadline is None else limits.deadline - time.monotonic()
        deadline = None if left is None else time.time() + left
        try:
            while copies.goes_on():
                if deadline is not None and time.time() > deadline:
                    copies.stop()
                while len(copies.running) < slots and (new := copies.take()):
                    saved = read_state(checkpoint_path(scratch, new))
                    begun = task.options(num_returns="streaming").remote(
                        new, corpus, files, saved, deadline, limits.models is not None
                    )
                    copies.begin(begun, new)
                if not copies.running:
                    break
                ready, _ = ray.wait(list(copies.running), timeout=1.0)
                for stream in ready:
                    news: Any = stream
                    cell = copies.running[news]
                    try:
                        message: Any = ray.get(next(news))
                    except StopIteration:
                        copies.end(news)
                        continue
                    except exceptions.RayTaskError as error:  # our own code raised
                        cause = error.cause if isinstance(error.cause, Exception) else error
                        if isinstance(cause, IsoflopError):
                            raise EngineError(f"--on ray: {cause}") from None
                        raise
                    except exceptions.RayError as error:
                        lost = isinstance(error, exceptions.NodeDiedError)
                        failures = copies.fail(news, counts=not lost)
                        again = copies.lose(news, unneeded=limits.models is None)
                        with suppress(EngineError):  # nodes may come back
                            slots = self._slots()
                        if not again:
                            continue
                        if failures >= CRASHES:
                            raise EngineError(
                                f"--on ray: {cell.variant} {cell.size.name}: its process died "
                                f"{CRASHES} times: {type(error).__name__}"
                            ) from None
                        yield Event(
                            cell, warning="its node is gone" if lost else "its process is gone"
                        )
                        continue
                    yield from self._heard(copies, news, message, records, limits)
        finally:
            for news in copies.running:
                with suppress(exceptions.RayError):
                    ray.cancel(news, force=False)

    @staticmethod
    def _heard(
        copies: Copies, task: Any, message: Event | _Done, records: Path, limits: Limits
    ) -> Iterator[Event]:
        """What the command says of a task's message, after it has stored what came home."""
        cell, scratch = copies.running[task], scratch_of(records)
        if isinstance(message, _Done):
            if cell.id not in copies.recorded:
                write_state(checkpoint_path(scratch, cell), message.state)
            for suffix, content in message.weights.items():
                assert limits.models is not None
                write_whole(limits.models / f"{cell.id}{suffix}", content)
        elif message.record is not None:
            if message.record.status == "failed" and not copies.alone(task):
                copies.fail(task, counts=True)  # the other copy may do better
                copies.lose(task, unneeded=False)
                yield Event(cell, warning=f"one of two copies failed: {message.record.message}")
            elif copies.record(task):
                yield store(cell, message.record, records, scratch)
            else:
                count = f"{copies.refused} so far"
                yield Event(cell, warning=f"the record of its second copy is refused, {count}")
        elif copies.stop_one(task) if message.stopped else copies.speaks(task):
            yield replace(message, cell=cell)


def _share(text: str) -> float:
    """CPUs of a cell, of which several may share one.

    Raises:
        EngineError: it is no number, or not above 0.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise EngineError(f"--engine-options: ray's cpus: {text!r} is no number above 0")
    return value


def _train_cell(
    cell: Cell,
    corpus: str,
    files: Files,
    saved: Files,
    deadline: float | None,
    keep_models: bool,
) -> Iterator[Event | _Done]:
    """Body of a task: the local engine with one cell, in a folder of its own.

    Args:
        corpus: the folder of tokens where the command runs; used if this node has it.
        files: its content.
        saved: the state of the cell, if it was stopped; see `read_state`.
        deadline: of `time.time`.
    """
    left = None if deadline is None else max(0.0, deadline - time.time())
    with tempfile.TemporaryDirectory(prefix="isoflop-") as name:
        records = Path(name) / "records"
        state = checkpoint_path(scratch_of(records), cell)
        write_state(state, saved)
        models = Path(name) / "models" if keep_models else None
        tokens = open_tokens(_tokens_folder(Path(corpus), files))
        here = places(1)[: cell.training.gpus_per_cell]
        limits = Limits(models, None if left is None else time.monotonic() + left)
        yield from train_queue(Waiting([cell]), tokens, cell, records, limits, here)
        kept = [model_path(models, cell.id), initial_path(models, cell.id)] if models else []
        weights = {
            path.name.removeprefix(cell.id): path.read_bytes() for path in kept if path.exists()
        }
        yield _Done(read_state(state), weights)


def _tokens_folder(corpus: Path, files: Files) -> Path:
    """The folder of tokens on this node, made once: several cells may want it at a time."""
    if (corpus / "meta.json").exists():
        return corpus
    folder = Path(tempfile.gettempdir()) / "isoflop-tokens" / corpus.name
    for name in sorted(files, key=lambda name: name == "meta.json"):  # last: all is there
        path = folder / name
        if not path.exists():
            checkpoint.save_whole(path, lambda file, name=name: file.write_bytes(files[name]))  # type: ignore[misc]
    return folder
