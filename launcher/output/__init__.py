"""What a person sees of a job: its log, its progress, its summary."""
