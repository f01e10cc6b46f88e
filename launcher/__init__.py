"""Submit training jobs, follow their per-device logs, and say why one waits or failed."""
