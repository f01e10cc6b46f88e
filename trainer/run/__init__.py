"""One run folder and the process that owns it: attempts, resuming, the lock."""
