"""A rank that hangs is named, with what it waits for, and the run ends; nobody has to notice a silence.

A stuck loader, file system, device or peer would otherwise hold every device of the job for as long as nobody looks.
"""

from trainer.distributed.watchdog.watch import Watchdog

__all__ = ["Watchdog"]
