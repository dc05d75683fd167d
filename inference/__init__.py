"""Using what was trained: `generate.py` and `evaluate.py` are the ways in."""
