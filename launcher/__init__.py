"""Submit training jobs, follow their per-device logs, and say why one waits or failed."""

PROGRAM = "python -m launcher"
"""What a person types."""
