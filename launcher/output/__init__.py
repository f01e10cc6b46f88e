"""The user's view of a job: its log, its progress, its summary."""
