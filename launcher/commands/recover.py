"""`recover`: let a job go on that waits for a pod on a dead node."""

from launcher.commands.common import job_named
from launcher.commands.parameters import ANYWHERE, JobName, JsonFlag, Where
from launcher.commands.printing import note, print_json
from launcher.output import report
from trainer.shared.text import visible


def recover(name: JobName, /, *, json_: JsonFlag = False, where: Where = ANYWHERE) -> None:
    """Let a job go on whose pod cannot end, because its node is dead or cut off.

    The pod is deleted by force, after its node was shown to be silent. A pod that still runs there writes nothing more:
    its successor gets the lock of the run's folder.
    """
    jobs, ref = job_named(name, where)
    jobs.recover(ref, on_note=note)
    state = jobs.get(ref)
    if json_:
        print_json(report.job_document(state, jobs.progress(state)))
    else:
        print(f"{name} {state.phase.value}" + (f": {visible(state.reason)}" if state.reason else ""))
