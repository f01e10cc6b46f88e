"""`cancel` and `delete`: end a job, and forget it."""

from typing import Annotated

from launcher import PROGRAM
from launcher.app import STOP, app
from launcher.commands.common import job_of, words_of
from launcher.commands.parameters import JobName, Json, Where, examples, flag
from launcher.commands.printing import note, print_json
from launcher.errors import DetachedError
from launcher.jobs import Backend, JobRef
from launcher.output import report


@app.command(group=STOP, help_epilogue=examples("cancel NAME"))
def cancel(name: JobName, /, *, json_: Json = False, where: Where | None = None) -> None:
    """Ask a job to save its state and stop, and wait until it has."""
    found, ref = job_of(name, where)
    if (state := found.get(ref)).phase.ended:
        note(f"job {name} had ended already: {state.phase.value}")
    else:
        note(f"job {name} is asked to save and stop …")
        _cancel(found, ref, where)
        state = found.get(ref)
    if json_:
        print_json(report.job_document(state, found.progress(ref)))
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
    found, ref = job_of(name, where)
    if force:
        _cancel(found, ref, where)
    files = found.get(ref).files
    found.delete(ref)
    if json_:
        print_json(report.deleted_document(ref, files))
    else:
        print(f"{name} deleted" + (f"; its files stay in {files}" if files else ""))


def _cancel(backend: Backend, ref: JobRef, where: Where | None) -> None:
    try:
        backend.cancel(ref)
    except KeyboardInterrupt:
        again = f"{PROGRAM} status {ref.name}{words_of(where)}"
        raise DetachedError(f"job {ref.name} is still stopping; see how far it is with `{again}`") from None
