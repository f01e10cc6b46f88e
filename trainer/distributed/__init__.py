"""Everything that ranks do together: process group, stop requests, batch-norm statistics, watchdog."""
