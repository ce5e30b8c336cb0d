"""What came out: the schema of a record and of a submission, and the data themselves.

`read_records` gives a folder of records as a pandas DataFrame.
"""

if __name__ != "isoflop.results":  # imported twice, its classes and operators would exist twice
    raise ImportError("import this folder as isoflop.results, not as results")

from isoflop.results.frame import read_records

__all__ = ["read_records"]
