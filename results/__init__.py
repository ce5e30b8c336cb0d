"""What came out: the schema of a record and of a submission, and the data themselves."""

if __name__ != "isoflop.results":  # imported twice, its classes and operators would exist twice
    raise ImportError("import this folder as isoflop.results, not as results")
