"""The phase of a local job, from its records and its living processes. Pure.

SIGKILL leaves no record. A job without living processes and without an exit record is lost: neither running nor a
success.
"""

import signal
from collections.abc import Mapping
from typing import Any

from launcher.jobs import Phase
from trainer.shared.errors import RESUMABLE

# Seconds from a job's creation until its runner has recorded its process ids.
START_S = 30.0
# The signal module has no names for real-time signals.
_SIGNALS = {number.value: number.name for number in signal.Signals}


def phase_of(
    processes: Mapping[str, Any], end: Mapping[str, Any] | None, *, alive: bool, cancelled: bool, age_s: float
) -> tuple[Phase, str]:
    """Return the phase that the records and the processes add up to, and the reason."""
    if end is not None:
        return _outcome(end["returncode"], cancelled=cancelled)
    if alive:
        return (Phase.RUNNING, "") if processes.get("trainer") else (Phase.PENDING, "starting")
    if not processes and age_s < START_S:
        return Phase.PENDING, "starting"
    if cancelled:
        return Phase.CANCELLED, "stopped, but its exit status was not recorded"
    return Phase.LOST, "its processes are gone and left no exit status (killed, or the machine was restarted)"


def _outcome(returncode: int, *, cancelled: bool) -> tuple[Phase, str]:
    if returncode == 0:
        return Phase.SUCCEEDED, ""
    stopped = "stopped by SIGTERM; it can go on"
    if cancelled:
        return Phase.CANCELLED, stopped if returncode == RESUMABLE else "stopped before it was done"
    if returncode == RESUMABLE:
        return Phase.RESUMABLE, stopped
    if returncode < 0:
        return Phase.FAILED, f"the trainer was killed by {_SIGNALS.get(-returncode, f'signal {-returncode}')}"
    return Phase.FAILED, f"the trainer ended with exit code {returncode}"
