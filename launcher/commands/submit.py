"""`submit`: start a job, in the order of its life: settings, backend, spec, start, follow."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from launcher import PROGRAM
from launcher.commands.common import follow_to_its_end
from launcher.commands.parameters import Profile, flag
from launcher.commands.prepare import resolve_job, where_to_find
from launcher.commands.printing import note, print_json
from launcher.commands.settings import takes_settings
from launcher.errors import DetachedError, EndedError, LauncherError, RequestError
from launcher.jobs import KIND_NAMES, JobRef, Submitted, find_state
from launcher.output import report
from launcher.output.files import check_folder
from launcher.output.follow import LogView
from launcher.settings.layers import Settings
from launcher.settings.spec import JobSpec
from launcher.submitters import Submitter
from trainer.shared.config.layers import DEFAULT_ORIGIN


@takes_settings()
def submit(
    *,
    profile: Profile = None,
    dry_run: Annotated[
        Literal["client", "server"] | None,
        Parameter(help="Start nothing: check here, or have the cluster check too.", group="Job", show_default=False),
    ] = None,
    again: Annotated[bool, flag("Start the same job once more, though it has ended.", group="Job")] = False,
    once: Annotated[
        bool, flag("On a cluster: succeed without a start if the same job has ended.", group="Job")
    ] = False,
    detach: Annotated[bool, flag("Start it, print its name, and leave.", group="Job")] = False,
    save: Annotated[
        Path | None,
        Parameter(
            help="Folder that gets one log file per device while it is followed.", group="Job", show_default=False
        ),
    ] = None,
    all_ranks: Annotated[
        bool, flag("Show a line of each rank, also if several ranks say the same.", group="Job")
    ] = False,
    json_: Annotated[
        bool, flag("Print JSON lines: the submission, the log, and the job at its end.", name="--json", group="Job")
    ] = False,
    **options: Any,
) -> None:
    """Start a training job and follow it to its end.

    All options are checked before anything starts. Each can also come from the environment (PNAS_BATCH_SIZE=64) or from
    a profile. Ctrl-C leaves the job running and says how to come back. With --resume auto an ended job goes on, and
    keeps the settings that are not given again; an attempt that the trainer refused leaves no settings.
    """
    if once and again:
        raise RequestError("--once and --again contradict each other; choose one")
    if detach and save is not None:
        raise RequestError("--detach leaves before --save can write a line; use `logs NAME -f --save FOLDER` later")
    settings, submitter, reason = resolve_job(options, profile)
    with _explained(settings.origins, reason):
        spec = submitter.build(settings, now=datetime.now().astimezone(), again=again)
        if once and spec.backend not in KIND_NAMES:
            raise RequestError("--once: only a cluster knows whether the same job has ended; leave it out")
    where = where_to_find(settings, spec).words
    try:
        if dry_run is not None:
            with _explained(settings.origins, reason):
                _check(submitter, spec, reason, ask_server=dry_run == "server", json_=json_)
            return
        check_folder(save)
        with _explained(settings.origins, reason):
            submission = submitter.submit(spec)
        for text in filter(None, (reason, *submission.notes)):
            note(text)
        if not submission.existed:
            note(report.job_header(spec, attempt=submission.attempt, where=where, known=_is_known(settings)))
        _say_submitted(spec, submission, json_=json_, alone=detach)
        if not detach:
            view = LogView(form="json" if json_ else "text", save=save, all_ranks=all_ranks)
            follow_to_its_end(submitter.jobs, submission.ref, view, where=where)
    except EndedError as error:
        if not once:
            raise
        note(str(error))
        done = Submitted(JobRef(spec.backend, spec.name), [str(error)], existed=True)
        _say_submitted(spec, done, json_=json_, alone=True)
    except KeyboardInterrupt:
        if (hint := _interrupted_hint(submitter, spec, where)) is None:
            raise
        raise DetachedError(hint) from None


@contextmanager
def _explained(origins: Mapping[str, str], reason: str) -> Iterator[None]:
    """Say more about a refused request: where its setting comes from, and why this backend was chosen.

    Raises:
        RequestError: the request was refused.
    """
    try:
        yield
    except RequestError as error:
        option = str(error).partition(" ")[0].rstrip(":")
        origin = origins.get(option.removeprefix("--").replace("-", "_"), "flag")
        known = origin in ("flag", "default") or origin in str(error)
        place = "" if known else f"{option} comes from {'the ' if origin == 'environment' else ''}{origin}"
        # The request may be right for another place, such as a cluster whose kubeconfig was not found.
        more = "; ".join(filter(None, (place, reason)))
        raise RequestError(f"{error} ({more})" if more else str(error)) from None


def _interrupted_hint(submitter: Submitter, spec: JobSpec, where: str) -> str | None:
    """Return how the user finds the job that was being started; None if no job runs."""
    try:
        state = find_state(submitter.jobs, spec.name)
    except LauncherError:
        return f"it is unknown whether job {spec.name} was created: see `{PROGRAM} status {spec.name}{where}`"
    return None if state is None or state.phase.ended else report.reattach_hint(spec.name, where)


def _is_known(settings: Settings) -> bool:
    """Return whether it is known here what the run is: the run to continue may be readable in its place only."""
    return settings.train.resume is None or settings.origins["model"] != DEFAULT_ORIGIN


def _say_submitted(spec: JobSpec, submission: Submitted, *, json_: bool, alone: bool) -> None:
    """Print the submission; as a text only the name, if it stands alone."""
    if json_:
        print_json(report.submission_document(submission, spec), of_several=True)
    elif alone:
        print(spec.name)


def _check(submitter: Submitter, spec: JobSpec, reason: str, *, ask_server: bool, json_: bool) -> None:
    if reason:
        note(reason)
    verdict, warnings = submitter.check(spec, ask_server=ask_server)
    for warning in warnings:
        note(f"warning: {warning}")
    if json_:
        print_json(report.check_document(spec, verdict, warnings), of_several=True)
    else:
        print(f"job {spec.name}: {verdict}; nothing was started")
