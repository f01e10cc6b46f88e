"""The training loop and its parts: modes, steps, optimizer, schedule, precision, checkpoints."""
