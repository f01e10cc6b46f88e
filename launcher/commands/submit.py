"""`submit`: start a job. The order of the functions is the order of the job's life: settings, spec, backend, follow.

What only shows a job is imported when there is one: while its pods start, nobody waits for it.
"""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from launcher.app import RUN, app
from launcher.commands.parameters import Profile, examples, flag
from launcher.commands.printing import note
from launcher.errors import DetachedError

if TYPE_CHECKING:
    from launcher.commands.prepare import Prepared
    from launcher.jobs import Submitted


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
    from launcher.commands.prepare import prepare  # noqa: PLC0415  # pydantic

    job = prepare(options, profile, now=datetime.now().astimezone())
    if dry_run is not None:
        _check(job, dry_run, again=again)
        return
    try:
        _show(job, job.backend.submit(job.spec, again=again), detach=detach, save=save)
    except KeyboardInterrupt as interrupt:
        from launcher.output.report import come_back  # noqa: PLC0415  # see above

        name = next(iter(interrupt.args), job.spec.name)
        if not job.goes_on(name):
            raise
        raise DetachedError(come_back(name, job.words)) from None


def _check(job: "Prepared", how: Literal["client", "server"], *, again: bool) -> None:
    from launcher.commands.prepare import check_only  # noqa: PLC0415  # pydantic

    if job.why:
        note(job.why)
    for warning in check_only(job, how, again=again):
        note(f"warning: {warning}")
    where = "the cluster accepts it" if how == "server" else "its settings are valid"
    print(f"job {job.spec.name}: {where}; nothing was started")


def _show(job: "Prepared", done: "Submitted", *, detach: bool, save: Path | None) -> None:
    from launcher.commands.common import follow_to_its_end  # noqa: PLC0415  # see above
    from launcher.output.follow import Reading  # noqa: PLC0415
    from launcher.output.report import header  # noqa: PLC0415

    for text in filter(None, (job.why, done.note)):
        note(text)
    if not done.existed:
        note(header(job.spec_of(done), attempt=done.attempt, where=job.words))
    if detach:
        print(done.ref.name)
    else:
        follow_to_its_end(job.backend, done.ref, Reading(save=save), where=job.words)
