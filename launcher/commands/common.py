"""Steps that several commands share: find the job, and follow it to its end."""

import sys
import time
from dataclasses import replace

from launcher import PROGRAM
from launcher.backends import find_job, list_jobs
from launcher.commands.parameters import Where
from launcher.commands.printing import note, print_json
from launcher.errors import (
    ApiError,
    DetachedError,
    ExitCode,
    JobFailedError,
    JobStoppedError,
    LauncherError,
    NotFoundError,
    RequestError,
    UnreachableError,
)
from launcher.jobs import JobRef, Jobs, JobState
from launcher.kube.retry import poll
from launcher.output import report
from launcher.output.explanation import explanation_text
from launcher.output.follow import LogFollow, LogView, show_log


def follow_to_its_end(jobs: Jobs, ref: JobRef, view: LogView, *, where: str) -> None:
    """Show a job to its end, print the summary, in JSON the job too, and end with its exit code.

    Args:
        where: the options that lead to the job again, for messages.
    """
    left, again = report.reattach_hint(ref.name, where), report.follow_command(ref.name, where)
    try:
        reading = show_log(jobs, ref, replace(view, where=where), follow=True)
    except KeyboardInterrupt:
        raise DetachedError(left) from None
    except (UnreachableError, ApiError) as error:
        # A user can have the right to create jobs, and not to see their pods.
        raise error.with_hint(f"job {ref.name} does not need this launcher: come back with `{again}`") from error
    state = reading.outcome or poll(lambda: jobs.get(ref), every_s=jobs.poll_s, note=note)
    text = report.summary(state, reading, now=time.time(), where=where)
    print(text, file=sys.stdout if view.form == "text" else sys.stderr)
    warn_if_incomplete(reading)
    if state.phase.exit_code is ExitCode.JOB_FAILED:
        _say_why(jobs, ref, where)
    if view.form == "json":
        print_json(report.job_document(state, reading.progress), of_several=True)
    raise_outcome(state, printed=view.form == "json")


def _say_why(jobs: Jobs, ref: JobRef, where: str) -> None:
    """Print why a job failed, what proves it, and what to do next, as `explain` does."""
    try:
        explanation = jobs.explain(ref)
    except LauncherError:
        return  # The job was deleted, or the cluster is away: the error line has the first cause.
    if explanation.causes:
        sys.stdout.flush()
        note(explanation_text(explanation, now=time.time(), where=where))


def warn_if_incomplete(reading: LogFollow) -> None:
    """Print a note if lines of the log are missing, or if no device is selected."""
    absent = reading.absent_selection()
    for warning in filter(None, (absent and f"warning: {absent}", report.incomplete_warning(reading))):
        sys.stdout.flush()
        note(warning)


def raise_outcome(state: JobState, *, printed: bool) -> None:
    """Raise the error of an ended job's phase, with the first cause as its message.

    Args:
        printed: the job's JSON document has been printed.

    Raises:
        JobFailedError: the job failed, or was lost.
        JobStoppedError: the job was cancelled or preempted.
    """
    code = state.phase.exit_code
    if code is not ExitCode.OK:
        error = JobStoppedError if code is ExitCode.CANCELLED else JobFailedError
        raise error(f"job {state.ref.name} {state.phase.value.lower()}: {state.reason}").after_document(printed)


def job_named(name: str | None, where: Where) -> tuple[Jobs, JobRef]:
    """Return the job called `name`; without a name the latest job, which a note then names.

    Raises:
        NotFoundError: there is no such job.
        RequestError: the name is empty.
    """
    if name == "":
        raise RequestError("the job's name is empty; leave it out for the latest job")
    if name is not None:
        return find_job(name, where.backend_name, where.access)
    listing = list_jobs(where.backend_name, where.access)
    if not listing.jobs:
        raise listing.problem or NotFoundError(f"there are no jobs yet; start one with `{PROGRAM} submit`")
    if listing.problem is not None:
        note(f"warning: this is the latest job that could be seen: {listing.problem}")
    jobs, state, _ = listing.jobs[-1]
    note(f"job {state.ref.name}")
    return jobs, state.ref


def wait_for_end(jobs: Jobs, ref: JobRef, deadline: float, waited: str) -> JobState:
    """Wait until the job has ended, and return its state; `waited` is how long that may take, for the error's text.

    Raises:
        WaitTimeoutError: it has not ended at `deadline` (monotonic), or that cannot be known.
    """
    phase = "there"

    def ended() -> JobState | None:
        nonlocal phase
        state = jobs.get(ref)
        phase = state.phase.value
        return state if state.phase.ended else None

    def expired(error: LauncherError | None) -> str:
        doubt = "" if error is None else ", as far as is known,"
        return f"job {ref.name} is still {phase}{doubt} after {waited}; it goes on"

    return poll(ended, every_s=jobs.poll_s, deadline=deadline, note=note, expired=expired)
