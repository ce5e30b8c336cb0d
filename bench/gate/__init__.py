"""The gate: have counts, losses, step time or memory changed?"""
