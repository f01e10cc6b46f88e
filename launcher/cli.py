"""The commands of `python -m launcher`. They print; `display` draws a followed log, and `exits` tells what went wrong.

Each command is short: resolve, ask the backend, print. The order of submit is the order of its life: settings, spec,
backend, follow, summary. Backends and everything that needs pydantic are imported by the command that uses them, so
that `--help` answers at once.
"""

import json
import math
import re
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter

from launcher import report
from launcher.backends import Backend, JobRef
from launcher.display import Format
from launcher.errors import Detached, NotFoundError, RequestError, UnreachableError, WaitTimedOut
from launcher.exits import run
from launcher.follow import Reading, raise_outcome, show
from launcher.interrupts import keep_interrupts
from launcher.logs import Selection
from launcher.outage import patiently
from launcher.parameters import JobName, Json, LatestName, Profile, Where, count, examples, flag
from launcher.timing import parse_duration
from trainer.help import HelpPage

_HELP = f"""
Train PNASNet-5 on NPUs: start a job, follow its log per device, and see how it ends.

A job outlives this program: leave it with Ctrl-C, and come back whenever you like.

For example:

  {report.PROGRAM} submit --npus 8 --mode full --data-path /data/imagenet
  {report.PROGRAM} logs -f
  {report.PROGRAM} submit --help
"""


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415  # only --version pays for it

    return f"pnas {version('pnas')}"


app = App(
    name=report.PROGRAM,
    help=_HELP,
    help_format="plaintext",
    help_formatter=HelpPage(),
    help_epilogue=report.exit_code_table(),
    version=_version,
    group_parameters="Options",
    result_action="return_value",
)
RUN, WATCH, STOP, SETTINGS = (Group.create_ordered(name) for name in ("Run", "Watch", "Stop", "Settings"))
app["--help"].group = app["--version"].group = Group.create_ordered("Help")


@app.command(
    group=RUN,
    help_epilogue=examples(
        "submit --npus 8 --mode full --data-path /data/imagenet",
        "submit --npus 2 --mode performance --steps 100 --detach",
        "submit --npus 8 --profile recommended --name ladder-a",
        "submit --name ladder-a --resume auto",
    ),
)
def submit(
    *,
    profile: Profile = None,
    dry_run: Annotated[
        Literal["client", "server"] | None,
        Parameter(help="Start nothing: check here, or have the cluster check too.", group="Job", show_default=False),
    ] = None,
    again: Annotated[bool, flag("Start the same job once more, though it has ended.", group="Job")] = False,
    detach: Annotated[bool, flag("Start it, print its name, and leave.", group="Job")] = False,
    save: Annotated[
        Path | None,
        Parameter(
            help="Folder that gets one log file per device while it is followed.", group="Job", show_default=False
        ),
    ] = None,
    **options: Any,
) -> None:
    """Start a training job and follow it to its end.

    All options are checked before anything starts. Each can also come from the environment (PNAS_BATCH_SIZE=64) or from
    a profile. Ctrl-C leaves the job running and says how to come back. With --resume auto an ended job goes on, and
    keeps the settings that are not given again.
    """
    from launcher.starting import check_only, prepare  # noqa: PLC0415  # pydantic

    job = prepare(options, profile, now=datetime.now().astimezone())
    if dry_run is not None:
        if job.why:
            _note(job.why)
        for warning in check_only(job, dry_run):
            _note(f"warning: {warning}")
        where = "the cluster accepts it" if dry_run == "server" else "its settings are valid"
        print(f"job {job.spec.name}: {where}; nothing was started")
        return
    try:
        done = job.backend.submit(job.spec, again=again)
        for text in filter(None, (job.why, done.note)):
            _note(text)
        if not done.existed:
            state = patiently(lambda: job.backend.get(done.ref), _note, every_s=job.backend.poll_s)
            _note(report.header(job.spec_of(done), attempt=state.attempt, where=job.words))
        if detach:
            print(done.ref.name)
        else:
            _follow(job.backend, done.ref, Reading(save=save), where=job.words)
    except KeyboardInterrupt:
        if not job.goes_on():
            raise
        raise Detached(report.come_back(job.spec.name, job.words)) from None


@app.command(group=RUN, help_epilogue=examples("render --npus 8 --image registry.example/pnas:0.1.0"))
def render(*, profile: Profile = None, **options: Any) -> None:
    """Print the manifests that submit would create, as YAML for kubectl; without a cluster.

    --backend auto renders for Volcano.
    """
    from launcher.manifests import manifests  # noqa: PLC0415  # pydantic

    sys.stdout.write(manifests(options, profile))


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
    found, ref = _job(name, where)
    if timestamps and found.name == "local":
        raise RequestError("--timestamps: this machine keeps no time of each line; leave it out")
    form: Format = "raw" if raw else "json" if json_ else "text"
    reading = Reading(form=form, timestamps=timestamps, selection=selection, tail=tail, since_s=since_s, save=save)
    if follow:
        _follow(found, ref, reading, where=_words(where))
    else:
        show(found, ref, reading, attempt=attempt)


@app.command(group=WATCH, help_epilogue=examples("status", "status NAME --json"))
def status(name: LatestName = None, /, *, json_: Json = False, where: Where | None = None) -> None:
    """Say what a job is doing, how far it is, or how and why it ended."""
    found, ref = _job(name, where)
    state, progress = found.get(ref), found.progress(ref)
    if json_:
        _print_json(report.job_document(state, progress))
    else:
        print(report.status_text(state, progress, found.events(ref), now=time.time()))


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
    found, ref = _job(name, where)
    try:
        while not (state := patiently(lambda: found.get(ref), _note, every_s=found.poll_s)).phase.ended:
            if time.monotonic() >= deadline:
                raise WaitTimedOut(f"job {ref.name} is still {state.phase.value} after {timeout}; it goes on")
            time.sleep(found.poll_s)
    except KeyboardInterrupt:
        raise Detached(report.come_back(ref.name, _words(where))) from None
    if json_:
        _print_json(report.job_document(state, found.progress(ref)))
    else:
        print(f"{ref.name} {state.phase.value}")
    raise_outcome(state)


@app.command(name="list", group=WATCH, help_epilogue=examples("list", "list --json"))
def list_(*, json_: Json = False, where: Where | None = None) -> None:
    """Show all jobs, the latest last."""
    from launcher.backends.choose import list_jobs  # noqa: PLC0415  # backends: --help does without

    where = where or Where()
    listing = list_jobs(where.name, where.place)
    jobs = [(state, backend.glance(state)) for backend, state in listing.jobs]
    if json_:
        _print_json(report.list_document(jobs))
    elif jobs:
        print(report.list_text(jobs, now=time.time()))
    else:
        _note(f"no jobs yet; start one with `{report.PROGRAM} submit`")
    if listing.problem is not None:
        _note(f"warning: the cluster's jobs are not shown: {listing.problem}")


@app.command(group=STOP, help_epilogue=examples("cancel NAME"))
def cancel(name: JobName, /, *, json_: Json = False, where: Where | None = None) -> None:
    """Ask a job to save its state and stop, and wait until it has."""
    found, ref = _job(name, where)
    if (state := found.get(ref)).phase.ended:
        _note(f"job {name} had ended already: {state.phase.value}")
    else:
        _note(f"job {name} is asked to save and stop …")
        _cancel(found, ref, where)
        state = found.get(ref)
    if json_:
        _print_json(report.job_document(state, found.progress(ref)))
    else:
        print(f"{name} {state.phase.value}" + (f": {state.reason}" if state.reason else ""))


@app.command(
    group=STOP,
    help_epilogue=examples("delete NAME", "delete NAME --force"),
)
def delete(
    name: JobName,
    /,
    *,
    force: Annotated[bool, flag("Cancel it first if it still runs.")] = False,
    json_: Json = False,
    where: Where | None = None,
) -> None:
    """Forget a job; what it wrote to its output folder stays."""
    found, ref = _job(name, where)
    if force:
        _cancel(found, ref, where)
    files = found.get(ref).files
    found.delete(ref)
    if json_:
        _print_json(report.deleted_document(ref, files))
    else:
        print(f"{name} deleted" + (f"; its files stay in {files}" if files else ""))


config = App(name="config", help="Look at settings.", group=SETTINGS, help_epilogue="", version_flags=[])
app.command(config)


@config.command(
    name="show", help_epilogue=examples("config show", "config show --mode performance --profile recommended")
)
def config_show(*, profile: Profile = None, json_: Json = False, **options: Any) -> None:
    """Print the settings that submit would use, and where each comes from.

    Precedence: flag > environment (PNAS_<SETTING>) > profile > mode preset > default.
    """
    from launcher.starting import settings_of  # noqa: PLC0415  # pydantic

    settings = settings_of(options, profile)
    if json_:
        _print_json(report.settings_document(settings))
    else:
        print(report.settings_text(settings))


TAKE_SETTINGS = {"submit": submit, "render": render, "config": config_show}
"""The commands that have an option for every setting, by the first word that leads to each."""


def main(tokens: Sequence[str]) -> int:
    """Run one command; return its exit code. Every error is one line on stderr."""
    # SIGTERM lets go of a job just as Ctrl-C does; neither ends it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keep_interrupts()
    return run(lambda: _command(tokens))


def _command(tokens: Sequence[str]) -> None:
    for word, command in TAKE_SETTINGS.items():
        if word in tokens:
            from launcher.options import take_settings  # noqa: PLC0415  # pydantic: only these commands pay for it

            take_settings(command, tokens)
    app(tokens, exit_on_error=False, print_error=False)


def _follow(backend: Backend, ref: JobRef, reading: Reading | None = None, *, where: str = "") -> None:
    """Show a job to its end, sum up, and end with its exit code."""
    reading = reading or Reading()
    try:
        seen = show(backend, ref, reading, follow=True)
    except KeyboardInterrupt:
        raise Detached(report.come_back(ref.name, where)) from None
    except UnreachableError as error:
        raise UnreachableError(f"{error}. {report.out_of_sight(ref.name, where)}") from error
    state = patiently(lambda: backend.get(ref), _note, every_s=backend.poll_s)
    text = report.summary(state, seen.progress, seen.demultiplexer, now=time.time())
    print(text, file=sys.stdout if reading.form == "text" else sys.stderr)
    raise_outcome(state)


def _cancel(backend: Backend, ref: JobRef, where: Where | None) -> None:
    try:
        backend.cancel(ref)
    except KeyboardInterrupt:
        again = f"{report.PROGRAM} status {ref.name}{_words(where)}"
        raise Detached(f"job {ref.name} is still stopping; see how far it is with `{again}`") from None


def _job(name: str | None, where: Where | None) -> tuple[Backend, JobRef]:
    """The job called `name`, or the latest, which is then named on stderr."""
    from launcher.backends.choose import find, list_jobs  # noqa: PLC0415  # as above

    where = where or Where()
    if name is not None:
        return find(name, where.name, where.place)
    listing = list_jobs(where.name, where.place)
    if not listing.jobs:
        raise listing.problem or NotFoundError(f"there are no jobs yet; start one with `{report.PROGRAM} submit`")
    backend, state = listing.jobs[-1]
    _note(f"job {state.ref.name}")
    return backend, state.ref


def _words(where: Where | None) -> str:
    return "" if where is None else where.words


def _pattern(text: str) -> re.Pattern[bytes]:
    try:
        return re.compile(text.encode())
    except re.error as error:
        raise RequestError(f"--grep {text}: {error}") from error


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2))


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
