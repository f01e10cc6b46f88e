"""`cancel` and `delete`: end a job, and forget it."""

import threading
from typing import Annotated

from cyclopts import Parameter

from launcher import PROGRAM
from launcher.backends import list_jobs
from launcher.commands.common import job_named
from launcher.commands.parameters import ANYWHERE, JobName, JsonFlag, Where, flag
from launcher.commands.printing import note, print_json
from launcher.errors import DetachedError, LauncherError, RequestError
from launcher.jobs import JobRef, Jobs, JobState
from launcher.output import report
from launcher.output.progress import JobProgress
from trainer.shared.text import visible


def cancel(
    name: Annotated[str | None, Parameter(help="The job.")] = None,
    /,
    *,
    release: Annotated[
        str | None, Parameter(help="Cancel every job of a Helm release, in place of one job.", show_default=False)
    ] = None,
    json_: JsonFlag = False,
    where: Where = ANYWHERE,
) -> None:
    """Ask a job to save its state and stop, and wait until it has."""
    if (name is None) == (not release):
        raise RequestError(
            f"give the NAME of one job, or --release for all jobs of a Helm release; see `{PROGRAM} cancel --help`"
        )
    if release is not None:
        _cancel_release(release, where, json_=json_)
        return
    jobs, ref = job_named(name, where)
    if (state := jobs.get(ref)).phase.ended:
        note(f"job {ref.name} had ended already: {state.phase.value}")
    else:
        _cancel(jobs, ref, where)
        state = jobs.get(ref)
    if json_:
        print_json(report.job_document(state, jobs.progress(state)))
    else:
        print(_outcome(state))


def delete(
    name: JobName,
    /,
    *,
    force: Annotated[bool, flag("Cancel it first if it still runs.")] = False,
    json_: JsonFlag = False,
    where: Where = ANYWHERE,
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
        print(f"{name} deleted" + (f"; its files stay in {visible(files)}" if files else ""))


def _running_jobs_of(release: str, where: Where) -> list[tuple[Jobs, JobRef]]:
    """Return the release's jobs that have not ended.

    Raises:
        LauncherError: some jobs cannot be seen.
    """
    listing = list_jobs(where.backend_name, where.access)
    if listing.problem is not None:
        raise listing.problem
    return [
        (jobs, state.ref)
        for jobs, state, _ in listing.jobs
        if state.spec.get("pods", {}).get("release") == release and not state.phase.ended
    ]


def _cancel_release(release: str, where: Where, *, json_: bool) -> None:
    """Cancel the release's jobs at once, so that their grace periods run side by side.

    Raises:
        LauncherError: a job could not be stopped; all others are.
    """
    running = _running_jobs_of(release, where)
    errors: list[LauncherError] = []
    asked: list[str] = []

    def cancel_job(jobs: Jobs, ref: JobRef) -> None:
        try:
            jobs.cancel(ref, on_asked=lambda: asked.append(ref.name))
        except LauncherError as error:
            errors.append(error)

    # Daemon threads, so that Ctrl-C ends the launcher and not the wait for them.
    threads = [threading.Thread(target=cancel_job, args=job, daemon=True) for job in running]
    note(f"stopping {len(threads) or 'no'} jobs of release {release} …")
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        raise DetachedError(
            f"interrupted: {len(asked)} of {len(threads)} jobs of release {release} have the request to save and stop; "
            f"see `{PROGRAM} list{where.words}`"
        ) from None
    states = [jobs.get(ref) for jobs, ref in running]
    if json_:
        print_json(report.list_document([(state, JobProgress()) for state in states]))
    else:
        print("".join(f"{_outcome(state)}\n" for state in states), end="")
    if errors:
        raise errors[0].after_document(json_)


def _outcome(state: JobState) -> str:
    return f"{state.ref.name} {state.phase.value}" + (f": {visible(state.reason)}" if state.reason else "")


def _cancel(jobs: Jobs, ref: JobRef, where: Where) -> None:
    """Cancel a job, and say so when it has the request: Ctrl-C before that does not stop the job, and says so too.

    Raises:
        DetachedError: Ctrl-C came while the job was stopping.
    """
    asked = False

    def on_asked() -> None:
        nonlocal asked
        asked = True
        note(f"job {ref.name} is asked to save and stop …")

    try:
        jobs.cancel(ref, on_asked=on_asked)
    except KeyboardInterrupt:
        if not asked:
            raise DetachedError(f"interrupted before job {ref.name} was asked to stop: it goes on") from None
        again = f"{PROGRAM} status {ref.name}{where.words}"
        raise DetachedError(f"job {ref.name} is still stopping; see how far it is with `{again}`") from None
