"""The life of a run: command line, start, loop, boundaries, records, saved state, resume, signals."""
