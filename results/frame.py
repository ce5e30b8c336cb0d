"""Records as a pandas DataFrame, for notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.results.record import Record, RecordError, load_records

if TYPE_CHECKING:  # nothing but `read_records` waits for pandas
    import pandas


def read_records(directory: str | Path) -> pandas.DataFrame:
    """The records in a folder as a table, one row per record, ordered by cell id.

    Columns are the fields of a record; those of a table within it are joined to its name by `_`:
    `size_width`, `options_granularity`, `parameters_layer_active`, `measured_device`,
    `measured_versions_torch`. The sums `parameters_active`, `parameters_total`,
    `flops_per_token_forward` and `flops_per_token_training` are columns too. An option that the
    record's layer does not have, and the loss of a cell that did not finish, are missing values.
    `curve` holds a list of (step, mean training loss).

    Args:
        directory: folder of `<cell>.json` files, such as `runs/quick/records`.
    Raises:
        RecordError: there are none, or a record is unreadable.
    """
    import pandas

    records = load_records(Path(directory))
    if not records:
        raise RecordError(
            f"{directory}: no records here; give the folder that holds them, such as "
            "runs/quick/records"
        )
    return pandas.json_normalize([_row(record) for record in records], sep="_")


def _row(record: Record) -> dict[str, Any]:
    row = record.model_dump()
    parameters, flops = record.parameters, record.flops_per_token
    row["parameters"] |= {"active": parameters.active, "total": parameters.total}
    row["flops_per_token"] |= {"forward": flops.forward, "training": flops.training}
    return row
