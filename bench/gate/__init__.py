"""Is this code what it was, in counts, losses, time and memory?"""
