"""Records as another device would have made them."""

from isoflop.results.record import Record


def moved(record: Record, device: str, factor: float = 1.0) -> Record:
    """The record of the same cell on another device, which takes `factor` times the seconds."""
    seconds = factor * record.measured.train_seconds
    return record.model_copy(
        update={
            "measured": record.measured.model_copy(
                update={"device": device, "train_seconds": seconds}
            )
        }
    )
