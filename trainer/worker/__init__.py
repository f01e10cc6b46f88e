"""One training process: what the supervisor starts for each rank."""
