"""Count a job's failures by the records of its attempts, and end the job when its retries are used up.

A cluster cannot count them: Volcano takes each eviction, drain and preemption for a failure, and a Kubernetes Job does
not know whether a run got further. So a cluster's own limit is only for pods that fail before they come here.

A try is the life of one trainer, with its restarts in the pod. It counts if it failed and nothing had asked it to stop
before. A try that was lost (killed without a word, or its peer's node was) counts if the next one begins at the same
step: a container that runs out of memory at once must not start for ever, and a node that is lost now and then must not
end a long run.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.checkpoint.reading import list_checkpoints, step_of
from trainer.records.attempts import write_attempt
from trainer.shared.attempts import read_attempts
from trainer.shared.errors import NoRetryError, StoppedError, TrainerError
from trainer.shared.runs import CHECKPOINTS_FOLDER

Ending = Literal["done", "stopped", "lost", "failed"]
"""How a try ended. `stopped`: by a signal to this node or another; `lost`: another node is gone without a word."""
ENDING = "try_ended"
"""The ending in the record of a try's last attempt. A try without it was killed."""
STOPS_IN_VAIN = 2
"""After this number of stops at the same step, a start of the job saves a step before it stops."""


@dataclass(frozen=True)
class JobRetries:
    """The job whose pod this process runs in, and how often the job may be tried again."""

    job: str
    limit: int

    @classmethod
    def of_pod(cls, environ: Mapping[str, str]) -> "JobRetries | None":
        """Return what the launcher's template tells a pod; None outside of such a pod."""
        job, limit = environ.get("POD_JOB_UID"), environ.get("POD_RETRIES", "")
        return cls(job, int(limit)) if job and limit.isdecimal() else None

    def are_used_up(self, run: Path) -> bool:
        """Return whether the job has no retry left, now that a try has failed."""
        return len(failed_tries(read_attempts(run), self.job, next_step=0)) > self.limit

    def count_early_end(self, run: Path, attempt: int, error: TrainerError) -> None:
        """Record a try that failed or was stopped before its workers, unless its exit code ends the job anyway.

        Raises:
            NoRetryError: The job has no retry left; it has the text of `error`.
        """
        ending: Ending = "stopped" if isinstance(error, StoppedError) else "failed"
        if ending == "failed" and error.exit_code != TrainerError.exit_code:
            return
        # The try before it is judged by how far it came; its checkpoints need no look at their bytes for that.
        newest = next(iter(list_checkpoints(run / CHECKPOINTS_FOLDER)), None)
        record = {"job": self.job, ENDING: ending, "cause": str(error), "checkpoint": newest and str(newest)}
        # A disk that is full: only the cluster's own limit ends the job.
        with suppress(TrainerError):
            write_attempt(run, attempt, record)
        if ending == "failed" and self.are_used_up(run):
            raise NoRetryError(f"{error}; no retry of --retries {self.limit} is left") from error

    def check_start(self, run: Path, checkpoint: Path | None) -> int:
        """Return how many of the last tries were stopped without progress, if there are too many; else 0.

        Args:
            checkpoint: Where the next try begins.

        Raises:
            NoRetryError: The job has no retry left.
        """
        records, step = read_attempts(run), _step(checkpoint)
        failed = failed_tries(records, self.job, next_step=step)
        if len(failed) > self.limit:
            attempts = ", ".join(str(one.attempt) for one in failed)
            raise NoRetryError(
                f"{run}: no retry of --retries {self.limit} is left: attempts {attempts} failed, the last one with "
                f"{failed[-1].cause}: correct that, and continue with `submit --name {run.name} --resume auto`"
            )
        stops = stops_in_vain(records, self.job, next_step=step)
        return stops if stops >= STOPS_IN_VAIN else 0


@dataclass(frozen=True)
class Try:
    """One try of a job.

    Attributes:
        attempt: The number of its last attempt.
        step: The step of the run at which it began.
        cause: Why it ended, in logfmt.
    """

    attempt: int
    step: int
    ending: Ending
    cause: str


def failed_tries(records: Sequence[Mapping[str, Any]], job: str, *, next_step: int) -> list[Try]:
    """Return the tries of `job` that count as failures.

    Args:
        records: Of all attempts of the run, in their order.
        next_step: Where the next try begins.
    """
    tries = _tries(records, job)
    steps = [*(one.step for one in tries), next_step]
    return [
        one
        for one, following in zip(tries, steps[1:], strict=True)
        if one.ending == "failed" or (one.ending == "lost" and following <= one.step)
    ]


def stops_in_vain(records: Sequence[Mapping[str, Any]], job: str, *, next_step: int) -> int:
    """Return how many tries of `job` were stopped one after another, and the run got no further in any of them."""
    count = 0
    for one in reversed(_tries(records, job)):
        if one.ending != "stopped" or next_step > one.step:
            break
        count += 1
    return count


def _tries(records: Sequence[Mapping[str, Any]], job: str) -> list[Try]:
    """Return the tries of `job`. An attempt that began after a crash in its pod belongs to the try before it."""
    tries: list[Try] = []
    for record in records:
        if record.get("job") != job:
            continue
        step, number = _step(record.get("checkpoint")), int(record.get("attempt", 0))
        if tries and record.get("restarted_after") is not None:
            step = tries.pop().step
        cause = str(record.get("cause") or 'cause="killed without a word (out of memory?)"')
        tries.append(Try(number, step, record.get(ENDING) or "lost", cause))
    return tries


def _step(checkpoint: str | Path | None) -> int:
    return 0 if checkpoint is None else step_of(Path(checkpoint)) or 0
