"""What several commands do: find the job, and follow it to its end."""

import sys
import time

from launcher import PROGRAM
from launcher.commands.parameters import Where
from launcher.commands.printing import note
from launcher.errors import DetachedError, NotFoundError, RequestError, UnreachableError
from launcher.jobs import Backend, JobRef
from launcher.kube.retry import call_with_retry
from launcher.output import report
from launcher.output.follow import Reading, raise_outcome, show


def follow_to_its_end(backend: Backend, ref: JobRef, reading: Reading | None = None, *, where: str = "") -> None:
    """Show a job to its end, sum up, and end with its exit code."""
    reading = reading or Reading()
    try:
        seen = show(backend, ref, reading, follow=True)
    except KeyboardInterrupt:
        raise DetachedError(report.come_back(ref.name, where)) from None
    except UnreachableError as error:
        raise UnreachableError(f"{error}. {report.out_of_sight(ref.name, where)}") from error
    state = seen.outcome or call_with_retry(lambda: backend.get(ref), note, every_s=backend.poll_s)
    text = report.summary(state, seen, now=time.time(), where=where)
    print(text, file=sys.stdout if reading.form == "text" else sys.stderr)
    raise_outcome(state)


def job_of(name: str | None, where: Where | None) -> tuple[Backend, JobRef]:
    """The job called `name`, or the latest, which is then named on stderr."""
    from launcher.backends import find, list_jobs  # noqa: PLC0415  # submit comes with its backend

    where = where or Where()
    if name == "":
        raise RequestError("the job's name is empty; leave it out for the latest job")
    if name is not None:
        return find(name, where.name, where.place)
    listing = list_jobs(where.name, where.place)
    if not listing.jobs:
        raise listing.problem or NotFoundError(f"there are no jobs yet; start one with `{PROGRAM} submit`")
    if listing.problem is not None:
        note(f"warning: the latest job that could be seen is taken: {listing.problem}")
    backend, state = listing.jobs[-1]
    note(f"job {state.ref.name}")
    return backend, state.ref


def words_of(where: Where | None) -> str:
    """The options that lead to the same place again."""
    return "" if where is None else where.words
