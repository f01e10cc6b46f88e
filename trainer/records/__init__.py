"""The files that a run leaves behind: its folder, lines, metrics, TensorBoard events, results and provenance."""
