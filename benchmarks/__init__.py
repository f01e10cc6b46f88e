"""Measurements against named peers, each in one run with its peer; `results/` has the last results."""
