"""`submit`: start a job. The functions stand in the order of the job's life: settings, spec, backend, follow."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from launcher.commands.common import follow_to_its_end
from launcher.commands.parameters import Profile, flag
from launcher.commands.prepare import PreparedJob, prepare_job
from launcher.commands.printing import note
from launcher.commands.settings import takes_settings
from launcher.errors import DetachedError, EndedError, RequestError
from launcher.jobs import Submitted, find_state
from launcher.output import report
from launcher.output.follow import LogView


@takes_settings
def submit(
    *,
    profile: Profile = None,
    dry_run: Annotated[
        Literal["client", "server"] | None,
        Parameter(help="Start nothing: check here, or have the cluster check too.", group="Job", show_default=False),
    ] = None,
    again: Annotated[bool, flag("Start the same job once more, though it has ended.", group="Job")] = False,
    once: Annotated[bool, flag("Succeed without a start if the same job has ended.", group="Job")] = False,
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
    job = prepare_job(options, profile, now=datetime.now().astimezone(), again=again)
    if dry_run is not None:
        _check(job, dry_run)
        return
    try:
        _show(job, job.submitter.submit(job.spec), detach=detach, save=save)
    except RequestError as error:
        if not job.choice_reason:
            raise
        # The request may be right for another place, such as a cluster whose kubeconfig was not found.
        raise RequestError(f"{error} ({job.choice_reason})") from None
    except EndedError as error:
        if not once:
            raise
        note(str(error))
        print(job.spec.name)
    except KeyboardInterrupt:
        state = find_state(job.submitter.jobs, job.spec.name)
        if state is None or state.phase.ended:
            raise
        raise DetachedError(report.reattach_hint(job.spec.name, job.where)) from None


def _check(job: PreparedJob, how: Literal["client", "server"]) -> None:
    if job.choice_reason:
        note(job.choice_reason)
    verdict, warnings = job.submitter.check(job.spec, ask_server=how == "server")
    for warning in warnings:
        note(f"warning: {warning}")
    print(f"job {job.spec.name}: {verdict}; nothing was started")


def _show(job: PreparedJob, submitted: Submitted, *, detach: bool, save: Path | None) -> None:
    for text in filter(None, (job.choice_reason, "; ".join(submitted.notes))):
        note(text)
    if not submitted.existed:
        note(report.job_header(job.spec, attempt=submitted.attempt, where=job.where))
    if detach:
        print(submitted.ref.name)
    else:
        follow_to_its_end(job.submitter.jobs, submitted.ref, LogView(save=save), where=job.where)
