"""Submit training jobs, follow their per-device logs, and say why one waits or failed."""

PROGRAM = "python -m launcher"
"""The command line of the launcher."""
API_VERSION = "pnas/v1"
"""The version of every document and record; it changes when a field changes its meaning or is removed."""
