"""`cancel` and `delete`: end a job, and forget it."""

from typing import Annotated

from launcher import PROGRAM
from launcher.commands.common import job_named, where_words
from launcher.commands.parameters import JobName, Json, Where, flag
from launcher.commands.printing import note, print_json
from launcher.errors import DetachedError
from launcher.jobs import JobRef, Jobs
from launcher.output import report


def cancel(name: JobName, /, *, json_: Json = False, where: Where | None = None) -> None:
    """Ask a job to save its state and stop, and wait until it has."""
    jobs, ref = job_named(name, where)
    if (state := jobs.get(ref)).phase.ended:
        note(f"job {name} had ended already: {state.phase.value}")
    else:
        note(f"job {name} is asked to save and stop …")
        _cancel(jobs, ref, where)
        state = jobs.get(ref)
    if json_:
        print_json(report.job_document(state, jobs.progress(ref)))
    else:
        print(f"{name} {state.phase.value}" + (f": {state.reason}" if state.reason else ""))


def delete(
    name: JobName,
    /,
    *,
    force: Annotated[bool, flag("Cancel it first if it still runs.")] = False,
    json_: Json = False,
    where: Where | None = None,
) -> None:
    """Forget a job; the files in its output folder stay."""
    jobs, ref = job_named(name, where)
    if force:
        _cancel(jobs, ref, where)
    files = jobs.get(ref).files
    jobs.delete(ref)
    if json_:
        print_json(report.deleted_document(ref, files))
    else:
        print(f"{name} deleted" + (f"; its files stay in {files}" if files else ""))


def _cancel(jobs: Jobs, ref: JobRef, where: Where | None) -> None:
    try:
        jobs.cancel(ref)
    except KeyboardInterrupt:
        again = f"{PROGRAM} status {ref.name}{where_words(where)}"
        raise DetachedError(f"job {ref.name} is still stopping; see how far it is with `{again}`") from None
