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
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Group, Parameter

from launcher import report
from launcher.backends import Backend, JobRef, exists, open_backend
from launcher.display import Format
from launcher.errors import Detached, NotFoundError, RequestError, WaitTimedOut
from launcher.exits import run
from launcher.follow import raise_outcome, show
from launcher.interrupts import keep_interrupts
from launcher.logs import Selection
from launcher.parameters import JobName, Json, LatestName, Profile, Where, count, examples, flag
from launcher.progress import Progress
from launcher.timing import parse_duration
from trainer.help import HelpPage

if TYPE_CHECKING:
    from launcher.settings import Settings

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

_POLL_S = 0.2


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
    detach: Annotated[bool, flag("Start it, print its name, and leave.", group="Job")] = False,
    **options: Any,
) -> None:
    """Start a training job and follow it to its end.

    All options are checked before anything starts. Each can also come from the environment (PNAS_BATCH_SIZE=64) or from
    a profile. Ctrl-C leaves the job running and says how to come back. With --resume auto an ended job goes on, and
    keeps the settings that are not given again.
    """
    from launcher.spec import make_spec  # noqa: PLC0415  # pydantic

    settings, backend = _settings(profile, options)
    spec = make_spec(
        settings.options,
        settings.train,
        settings.given,
        now=datetime.now().astimezone(),
        taken=lambda name: exists(backend, name),
    )
    try:
        ref = backend.submit(spec)
        if settings.options.backend == "auto":
            _note("no cluster backend is set up: the job runs on this machine (--backend local)")
        _note(report.header(spec, attempt=backend.get(ref).attempt))
        if detach:
            print(ref.name)
        else:
            _follow(backend, ref)
    except KeyboardInterrupt:
        if not exists(backend, spec.name) or backend.get(JobRef(backend.name, spec.name)).phase.ended:
            raise
        raise Detached(report.come_back(spec.name)) from None


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
    raw: Annotated[bool, flag("Lines as they were written, numbers included.")] = False,
    json_: Json = False,
    backend: Where = "auto",
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
    found = open_backend(backend)
    ref = _ref(found, name)
    form: Format = "raw" if raw else "json" if json_ else "text"
    if follow:
        _follow(found, ref, form=form, selection=selection, tail=tail, since_s=since_s)
    else:
        show(found, ref, form=form, selection=selection, tail=tail, since_s=since_s, attempt=attempt)


@app.command(group=WATCH, help_epilogue=examples("status", "status NAME --json"))
def status(name: LatestName = None, /, *, json_: Json = False, backend: Where = "auto") -> None:
    """Say what a job is doing, how far it is, or how and why it ended."""
    found = open_backend(backend)
    ref = _ref(found, name)
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
    backend: Where = "auto",
) -> None:
    """Wait until a job has ended, and end with its exit code.

    With --timeout, end with 124 if the time is over first.
    """
    deadline = math.inf if timeout is None else time.monotonic() + parse_duration(timeout)
    found = open_backend(backend)
    ref = _ref(found, name)
    try:
        while not (state := found.get(ref)).phase.ended:
            if time.monotonic() >= deadline:
                raise WaitTimedOut(f"job {ref.name} is still {state.phase.value} after {timeout}; it goes on")
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        raise Detached(report.come_back(ref.name)) from None
    if json_:
        _print_json(report.job_document(state, found.progress(ref)))
    else:
        print(f"{ref.name} {state.phase.value}")
    raise_outcome(state)


@app.command(name="list", group=WATCH, help_epilogue=examples("list", "list --json"))
def list_(*, json_: Json = False, backend: Where = "auto") -> None:
    """Show all jobs, the latest last."""
    found = open_backend(backend)
    jobs = [(state, found.progress(state.ref) if state.spec else Progress()) for state in found.list()]
    if json_:
        _print_json(report.list_document(jobs))
    elif jobs:
        print(report.list_text(jobs, now=time.time()))
    else:
        _note(f"no jobs yet; start one with `{report.PROGRAM} submit`")


@app.command(group=STOP, help_epilogue=examples("cancel NAME"))
def cancel(name: JobName, /, *, backend: Where = "auto") -> None:
    """Ask a job to save its state and stop, and wait until it has."""
    found = open_backend(backend)
    ref = _ref(found, name)
    if (state := found.get(ref)).phase.ended:
        _note(f"job {name} had ended already: {state.phase.value}")
        return
    _note(f"job {name} is asked to save and stop …")
    _cancel(found, ref)
    state = found.get(ref)
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
    backend: Where = "auto",
) -> None:
    """Forget a job; what it wrote to its output folder stays."""
    found = open_backend(backend)
    ref = _ref(found, name)
    if force:
        _cancel(found, ref)
    output = found.get(ref).output
    found.delete(ref)
    stays = f"; its files stay in {output}" if output is not None and output.exists() else ""
    print(f"{name} deleted{stays}")


config = App(name="config", help="Look at settings.", group=SETTINGS, help_epilogue="", version_flags=[])
app.command(config)


@config.command(
    name="show", help_epilogue=examples("config show", "config show --mode performance --profile recommended")
)
def config_show(*, profile: Profile = None, json_: Json = False, **options: Any) -> None:
    """Print the settings that submit would use, and where each comes from.

    Precedence: flag > environment (PNAS_<SETTING>) > profile > mode preset > default.
    """
    settings, _ = _settings(profile, options)
    if json_:
        _print_json(report.settings_document(settings))
    else:
        print(report.settings_text(settings))


def main(tokens: Sequence[str]) -> int:
    """Run one command; return its exit code. Every error is one line on stderr."""
    # SIGTERM lets go of a job just as Ctrl-C does; neither ends it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keep_interrupts()
    return run(lambda: _command(tokens))


def _command(tokens: Sequence[str]) -> None:
    if {"submit", "config"} & set(tokens):
        from launcher.options import take_settings  # noqa: PLC0415  # pydantic: only these two commands pay for it

        take_settings(submit)
        take_settings(config_show)
    app(tokens, exit_on_error=False, print_error=False)


def _settings(profile: str | None, options: dict[str, Any]) -> "tuple[Settings, Backend]":
    """What was asked for, with what is known of the run that it continues."""
    from launcher.resume import find_earlier  # noqa: PLC0415  # pydantic
    from launcher.settings import resolve_settings  # noqa: PLC0415
    from trainer.config.options import typed  # noqa: PLC0415

    flags = typed(options)
    settings = resolve_settings(flags, profile)
    backend = open_backend(settings.options.backend)
    if settings.train.resume is not None:
        name, earlier = find_earlier(settings, backend)
        settings = resolve_settings({**flags, "name": name}, profile, earlier=earlier)
    return settings, backend


def _follow(
    backend: Backend,
    ref: JobRef,
    *,
    form: Format = "text",
    selection: Selection | None = None,
    tail: int | None = None,
    since_s: float | None = None,
) -> None:
    """Show a job to its end, sum up, and end with its exit code."""
    try:
        seen = show(backend, ref, form=form, selection=selection, tail=tail, since_s=since_s, follow=True)
    except KeyboardInterrupt:
        raise Detached(report.come_back(ref.name)) from None
    state = backend.get(ref)
    text = report.summary(state, seen.progress, seen.demultiplexer, now=time.time())
    print(text, file=sys.stdout if form == "text" else sys.stderr)
    raise_outcome(state)


def _cancel(backend: Backend, ref: JobRef) -> None:
    try:
        backend.cancel(ref)
    except KeyboardInterrupt:
        raise Detached(
            f"job {ref.name} is still stopping; see how far it is with `{report.PROGRAM} status {ref.name}`"
        ) from None


def _ref(backend: Backend, name: str | None) -> JobRef:
    """The job called `name`, or the latest, which is then named on stderr."""
    if name is not None:
        ref = JobRef(backend.name, name)
        backend.get(ref)
        return ref
    states = backend.list()
    if not states:
        raise NotFoundError(f"there are no jobs yet; start one with `{report.PROGRAM} submit`")
    _note(f"job {states[-1].ref.name}")
    return states[-1].ref


def _pattern(text: str) -> re.Pattern[bytes]:
    try:
        return re.compile(text.encode())
    except re.error as error:
        raise RequestError(f"--grep {text}: {error}") from error


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2))


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
