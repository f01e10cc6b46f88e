"""`logs`, `status`, `wait` and `list`: what jobs do, and how they end."""

import math
import os
import re
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from launcher import PROGRAM
from launcher.app import WATCH, app
from launcher.commands.common import follow_to_its_end, job_of, words_of
from launcher.commands.parameters import Json, LatestName, Where, count, examples, flag
from launcher.commands.printing import note, print_json
from launcher.errors import DetachedError, LauncherError, RequestError, WaitTimeoutError
from launcher.jobs import Backend, JobRef, JobState
from launcher.kube.retry import call_with_retry
from launcher.output import report
from launcher.output.display import Format
from launcher.output.follow import Reading, raise_outcome, show
from launcher.output.lines import Selection
from launcher.output.timing import parse_duration


@app.command(group=WATCH, help_epilogue=examples("logs", "logs NAME -f", "logs --rank 3 --tail 20"))
def logs(
    name: LatestName = None,
    /,
    *,
    follow: Annotated[bool, flag("Go on until the job ends, as submit does.", alias="-f")] = False,
    rank: Annotated[int | None, Parameter(help="Only this rank's lines.", converter=count)] = None,
    device: Annotated[str | None, Parameter(help="Only this device's lines: 3 or npu:3.")] = None,
    grep: Annotated[str | None, Parameter(help="Only lines that match this regular expression.")] = None,
    tail: Annotated[int | None, Parameter(help="Begin with the last so many lines.", converter=count)] = None,
    since: Annotated[str | None, Parameter(help="Begin so long ago: 90, 10m, 1h30m.")] = None,
    attempt: Annotated[int | None, Parameter(help="An earlier attempt's lines.", converter=count)] = None,
    timestamps: Annotated[bool, flag("Begin each line with its time, as the cluster has it.")] = False,
    raw: Annotated[bool, flag("Lines as they were written, numbers included.")] = False,
    save: Annotated[Path | None, Parameter(help="Folder that gets one file per device, too.")] = None,
    json_: Json = False,
    where: Where | None = None,
) -> None:
    """Show a job's log, and say so if a line is missing.

    The number of each line within its device is the proof. With --follow it ends with the job's summary and exit code.
    """
    if raw and json_:
        raise RequestError("--raw and --json contradict each other; choose one")
    if follow and attempt is not None:
        raise RequestError("--follow goes on with the latest attempt; leave --attempt out")
    selection = Selection(rank, device, None if grep is None else _pattern(grep))
    since_s = None if since is None else parse_duration(since)
    found, ref = job_of(name, where)
    if timestamps and found.name == "local":
        raise RequestError("--timestamps: this machine keeps no time of each line; leave it out")
    form: Format = "raw" if raw else "json" if json_ else "text"
    reading = Reading(form=form, timestamps=timestamps, selection=selection, tail=tail, since_s=since_s, save=save)
    if follow:
        follow_to_its_end(found, ref, reading, where=words_of(where))
    else:
        show(found, ref, reading, attempt=attempt)


@app.command(group=WATCH, help_epilogue=examples("status", "status NAME --json"))
def status(name: LatestName = None, /, *, json_: Json = False, where: Where | None = None) -> None:
    """Say what a job is doing, how far it is, or how and why it ended."""
    found, ref = job_of(name, where)
    state, progress = found.get(ref), found.progress(ref)
    if json_:
        print_json(report.job_document(state, progress))
    else:
        events = found.events(ref)
        print(report.status_text(state, progress, events, now=time.time(), where=words_of(where)))


@app.command(group=WATCH, help_epilogue=examples("wait", "wait NAME --timeout 2h"))
def wait(
    name: LatestName = None,
    /,
    *,
    timeout: Annotated[str | None, Parameter(help="Give up after so long: 90, 10m, 1h30m.")] = None,
    json_: Json = False,
    where: Where | None = None,
) -> None:
    """Wait until a job has ended, and end with its exit code.

    With --timeout, end with 124 if the time is over first.
    """
    deadline = math.inf if timeout is None else time.monotonic() + parse_duration(timeout)
    found, ref = job_of(name, where)
    try:
        state = _ended(found, ref, deadline, timeout)
    except KeyboardInterrupt:
        raise DetachedError(report.come_back(ref.name, words_of(where))) from None
    if json_:
        print_json(report.job_document(state, found.progress(ref)))
    else:
        print(f"{ref.name} {state.phase.value}")
    raise_outcome(state)


@app.command(name="list", group=WATCH, help_epilogue=examples("list", "list --json"))
def list_(*, json_: Json = False, where: Where | None = None) -> None:
    """Show all jobs, the latest last."""
    from launcher.backends import list_jobs  # noqa: PLC0415  # the other commands find one job

    where = where or Where()
    listing = list_jobs(where.name, where.place)
    jobs = [(state, backend.glance(state)) for backend, state in listing.jobs]
    if json_:
        print_json(report.list_document(jobs))
    elif jobs:
        print(report.list_text(jobs, now=time.time()))
    else:
        note(f"no jobs yet; start one with `{PROGRAM} submit`")
    if listing.problem is not None:
        note(f"warning: not all of the cluster's jobs are shown: {listing.problem}")


def _ended(backend: Backend, ref: JobRef, deadline: float, timeout: str | None) -> JobState:
    """How the job is when it has ended.

    Raises:
        WaitTimeoutError: that is later than `deadline` (monotonic), or cannot be known by then.
    """
    last = ""
    try:
        while True:
            state = call_with_retry(lambda: backend.get(ref), note, every_s=backend.poll_s, deadline=deadline)
            if state.phase.ended:
                return state
            last = state.phase.value
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            time.sleep(min(backend.poll_s, left_s))
    except LauncherError as error:
        if not error.transient or time.monotonic() < deadline:
            raise
        last = f"{last or 'there'}, as far as is known,"
    raise WaitTimeoutError(f"job {ref.name} is still {last} after {timeout}; it goes on")


def _pattern(text: str) -> re.Pattern[bytes]:
    try:
        return re.compile(os.fsencode(text))
    except re.error as error:
        raise RequestError(f"--grep {text}: {error}") from error
