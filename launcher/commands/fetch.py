"""`fetch`: copy a run's results, metrics and logs from where it ran."""

import re
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from launcher.commands.common import job_named
from launcher.commands.parameters import ANYWHERE, JsonFlag, LatestName, Where, flag
from launcher.commands.printing import note, print_json
from launcher.errors import DetachedError, NotFoundError
from launcher.jobs import JobRef, Jobs
from launcher.results.copying import RunCopy, copy_of
from trainer.shared.documents import document
from trainer.shared.text import visible

# A state to resume from is as large as the whole result, and of use only next to its claim.
_STATES = re.compile(r"checkpoints/(?:step-\d+|\.[^/]*)/")
# Of the process that works there now.
_LOCK = "run.lock"


def fetch(
    name: LatestName = None,
    /,
    *,
    to: Annotated[Path | None, Parameter(help="Folder for the files. [default: ./NAME]", show_default=False)] = None,
    checkpoints: Annotated[bool, flag("Copy the checkpoints to resume from, too.")] = False,
    json_: JsonFlag = False,
    where: Where = ANYWHERE,
) -> None:
    """Copy a run's results, metrics and logs to this machine.

    Each file is checked by its hash. The same command again copies what is new, and goes on where it was interrupted.
    On a cluster a pod of the job reads the files; if none runs, a small pod is started for it, with the job's image and
    restrictions and without NPUs.
    """
    jobs, ref = job_named(name, where)
    folder = to or Path(ref.name)
    copy = copy_of_job(jobs, ref, folder, checkpoints=checkpoints)
    try:
        copied = copy.run()
    except KeyboardInterrupt:
        raise DetachedError(
            f"interrupted after {len(copy.copied.files)} files: the same command goes on where it ended"
        ) from None
    for problem in copied.problems:
        note(f"warning: {problem}")
    if json_:
        files, size, unchanged, problems = copied.files, copied.size, copied.unchanged, copied.problems
        facts = {"files": files, "bytes": size, "unchanged": unchanged, "problems": problems}
        print_json(document("Fetched", name=ref.name, backend=ref.backend, folder=str(folder), **facts))
        return
    already = f", {copied.unchanged:,} were there" if copied.unchanged else ""
    count = len(copied.files)
    print(visible(f"{folder}: {count:,} file{'' if count == 1 else 's'} copied, {copied.size / 1e6:,.1f} MB{already}"))


def copy_of_job(jobs: Jobs, ref: JobRef, folder: Path, *, checkpoints: bool) -> RunCopy:
    """Return the copy of a job's results, metrics and logs to a folder, with `checkpoints` of its states too.

    Raises:
        NotFoundError: there is no such job, or the place of its files is not known.
    """
    state = jobs.get(ref)
    if state.output is None:
        raise NotFoundError(f"job {ref.name} has no record of its output folder, so its files cannot be found")
    return copy_of(jobs, state, folder, lambda path: path != _LOCK and (checkpoints or not _STATES.match(path)), note)
