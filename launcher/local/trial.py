"""The trainer's own checks, before an attempt of a job is spent.

Only the trainer reads checkpoints and counts images. A continued run has both, so the trainer is asked whether it would
refuse the options; what it refuses must not become the job's latest attempt.
"""

import signal
import subprocess
from collections.abc import Mapping, Sequence

from launcher.errors import ConflictError, ExitCode, RequestError


def check_by_trainer(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Have the trainer check its command line, the data and the checkpoint.

    Raises:
        RequestError: the trainer refuses them; the message is the trainer's.
        ConflictError: another process works in the run's folder.
    """
    trial = subprocess.run(
        [*command, "--dry-run"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environ,
        text=True,
        errors="replace",
        check=False,
    )
    if trial.returncode == 0:
        return
    if trial.returncode in (ExitCode.INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt  # Ctrl-C reached the trainer too
    words = next((line for line in reversed(trial.stdout.splitlines()) if line.strip()), "it said nothing")
    error = ConflictError if trial.returncode == ExitCode.CONFLICT else RequestError
    raise error(words.strip().removeprefix("error: "))
