"""What ranks do together: the process group, stop requests, batch-norm statistics, the watchdog."""
