"""Measurements against named peers, each in one run with its peer; results are kept in `results/`."""
