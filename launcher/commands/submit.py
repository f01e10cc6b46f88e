"""`submit`: start a job. The order of the function is the order of the job's life: settings, spec, backend, follow."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from launcher import report
from launcher.app import RUN, app
from launcher.commands.common import follow_to_its_end, note
from launcher.errors import Detached
from launcher.follow import Reading
from launcher.outage import patiently
from launcher.parameters import Profile, examples, flag


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
            note(job.why)
        for warning in check_only(job, dry_run):
            note(f"warning: {warning}")
        where = "the cluster accepts it" if dry_run == "server" else "its settings are valid"
        print(f"job {job.spec.name}: {where}; nothing was started")
        return
    try:
        done = job.backend.submit(job.spec, again=again)
        for text in filter(None, (job.why, done.note)):
            note(text)
        if not done.existed:
            state = patiently(lambda: job.backend.get(done.ref), note, every_s=job.backend.poll_s)
            note(report.header(job.spec_of(done), attempt=state.attempt, where=job.words))
        if detach:
            print(done.ref.name)
        else:
            follow_to_its_end(job.backend, done.ref, Reading(save=save), where=job.words)
    except KeyboardInterrupt:
        if not job.goes_on():
            raise
        raise Detached(report.come_back(job.spec.name, job.words)) from None
