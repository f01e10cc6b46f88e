"""The training loop and what it computes with: modes, steps, schedule, precision, checkpoints."""
