"""The files in which a run records what happened."""
