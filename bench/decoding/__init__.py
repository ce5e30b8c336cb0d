"""Decoding at batch 1, and experts that are read from a file as they are needed."""
