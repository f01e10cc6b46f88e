"""`logs`, `status`, `wait` and `list`: read jobs."""

import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from launcher import PROGRAM
from launcher.backends import list_jobs
from launcher.commands.common import follow_to_its_end, job_named, raise_outcome, wait_for_end, warn_if_incomplete
from launcher.commands.parameters import ANYWHERE, JsonFlag, LatestName, Where, flag, parse_duration
from launcher.commands.printing import note, print_json
from launcher.errors import DetachedError, RequestError
from launcher.jobs import JobRef, Jobs
from launcher.kube.retry import poll
from launcher.output import report
from launcher.output.display import Format
from launcher.output.follow import LogView, show_log
from launcher.output.history import history_document, history_text, read_history
from launcher.output.lines import Selection
from trainer.shared.durations import count, format_duration

_POLL_S = 1.0


def logs(
    name: LatestName = None,
    /,
    *,
    follow: Annotated[bool, flag("Go on until the job ends, as submit does.", alias="-f")] = False,
    rank: Annotated[int | None, Parameter(help="Only this rank's lines.", converter=count)] = None,
    device: Annotated[str | None, Parameter(help="Only this device's lines: 3 or npu:3.")] = None,
    grep: Annotated[str | None, Parameter(help="Only lines that match this regular expression.")] = None,
    tail: Annotated[int | None, Parameter(help="Begin with the last lines, this many.", converter=count)] = None,
    since: Annotated[str | None, Parameter(help="Show lines since this long ago: 90, 10m, 1h30m.")] = None,
    attempt: Annotated[int | None, Parameter(help="An earlier attempt's lines.", converter=count)] = None,
    all_ranks: Annotated[bool, flag("Show a line of each rank, also if several ranks say the same.")] = False,
    timestamps: Annotated[bool, flag("Begin each line with its time; on this machine, to a second.")] = False,
    raw: Annotated[bool, flag("Lines as they were written, numbers included.")] = False,
    save: Annotated[Path | None, Parameter(help="Folder that gets one file per device, too.")] = None,
    json_: JsonFlag = False,
    where: Where = ANYWHERE,
) -> None:
    """Show a job's log, and say so if a line is missing.

    The number of each line within its device is the proof. With --follow it ends with the job's summary and exit code.
    """
    if raw and json_:
        raise RequestError("--raw and --json contradict each other; choose one")
    if follow and attempt is not None:
        raise RequestError("--follow goes on with the latest attempt; leave out --attempt")
    selection = Selection(rank, device, None if grep is None else _pattern(grep))
    since_s = None if since is None else parse_duration(since)
    # A follower outlasts an outage of the cluster, also one in which it begins.
    jobs, ref = poll(lambda: job_named(name, where), every_s=_POLL_S, note=note) if follow else job_named(name, where)
    form: Format = "raw" if raw else "json" if json_ else "text"
    view = LogView(
        form=form,
        timestamps=timestamps,
        selection=selection,
        tail=tail,
        since_s=since_s,
        save=save,
        all_ranks=all_ranks,
    )
    if follow:
        follow_to_its_end(jobs, ref, view, where=where.words)
    else:
        warn_if_incomplete(show_log(jobs, ref, view, attempt=attempt))


def status(
    name: LatestName = None,
    /,
    *,
    history: Annotated[bool, flag("Show each attempt of its run: node, start, steps, why it ended.")] = False,
    json_: JsonFlag = False,
    where: Where = ANYWHERE,
) -> None:
    """Say what a job is doing, how far it is, or how and why it ended."""
    jobs, ref = job_named(name, where)
    if history:
        _show_history(jobs, ref, as_json=json_)
        return
    if json_:
        state = jobs.get(ref)
        print_json(report.job_document(state, jobs.progress(state)))
    else:
        state, events = jobs.get_with_events(ref)
        print(report.status_text(state, jobs.progress(state), events, now=time.time(), where=where.words))


def wait(
    name: LatestName = None,
    /,
    *,
    timeout: Annotated[str | None, Parameter(help="Give up after this long: 90, 10m, 1h30m.")] = None,
    json_: JsonFlag = False,
    where: Where = ANYWHERE,
) -> None:
    """Wait until a job has ended, and end with its exit code.

    With --timeout, end with 124 if the time is over first.
    """
    duration_s = None if timeout is None else parse_duration(timeout)
    deadline = math.inf if duration_s is None else time.monotonic() + duration_s
    waited = "" if duration_s is None else format_duration(duration_s)
    unknown = f"the cluster has not answered for {waited}; a running job goes on"
    jobs, ref = poll(
        lambda: job_named(name, where), every_s=_POLL_S, deadline=deadline, note=note, expired=lambda _: unknown
    )
    try:
        state = wait_for_end(jobs, ref, deadline, waited)
    except KeyboardInterrupt:
        raise DetachedError(report.reattach_hint(ref.name, where.words)) from None
    if json_:
        print_json(report.job_document(state, jobs.progress(state)))
    else:
        print(f"{ref.name} {state.phase.value}")
    raise_outcome(state, printed=json_)


def list_(*, json_: JsonFlag = False, where: Where = ANYWHERE) -> None:
    """Show all jobs, the latest last."""
    listing = list_jobs(where.backend_name, where.access).with_progress()
    jobs = [(state, progress) for _, state, progress in listing.jobs]
    if json_:
        print_json(report.list_document(jobs, problem=None if listing.problem is None else str(listing.problem)))
    elif jobs:
        print(report.list_text(jobs, now=time.time()))
        sys.stdout.flush()
        for warning in report.unreadable_jobs(jobs):
            note(warning)
    else:
        note(f"no jobs yet; start one with `{PROGRAM} submit`")
    for state, _ in jobs:
        if state.lost_node:
            note(f"warning: job {state.ref.name}: {state.lost_node}")
    if listing.problem is not None:
        note(f"warning: not all of the cluster's jobs are shown: {listing.problem}")


def _show_history(jobs: Jobs, ref: JobRef, *, as_json: bool) -> None:
    state = jobs.get(ref)
    attempts = read_history(jobs.logs(ref), state)
    if as_json:
        print_json(history_document(state, attempts))
    elif attempts:
        print(history_text(attempts))
    else:
        files = state.files or "its output folder"
        note(f"no attempt has begun, or the beginning of the log is gone: attempt-*.json in {files} tell of each")


def _pattern(text: str) -> re.Pattern[bytes]:
    try:
        return re.compile(os.fsencode(text))
    except re.error as error:
        raise RequestError(f"--grep {text}: {error}") from error
