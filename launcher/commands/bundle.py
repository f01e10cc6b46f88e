"""`bundle`: pack all that tells of a job's faults, for people who help to find them."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from launcher.commands.common import job_named
from launcher.commands.parameters import ANYWHERE, JsonFlag, LatestName, Where
from launcher.commands.printing import note, print_json
from launcher.errors import LauncherError
from launcher.jobs import JobRef, Jobs, JobState, LogBlock, LogLoss
from launcher.output import report
from launcher.output.explanation import explanation_text
from launcher.results.bundle import Bundle, is_of_use, node_of_ranks, open_bundle
from launcher.results.copying import copy_of
from launcher.results.run_folder import read_run
from trainer.shared.attempts import timestamp
from trainer.shared.documents import document, json_text
from trainer.shared.redaction import Redactor
from trainer.shared.secrets import looks_secret
from trainer.shared.text import visible


def bundle(
    name: LatestName = None,
    /,
    *,
    to: Annotated[
        Path | None, Parameter(help="The archive. [default: bundle-NAME.tar.gz in this folder]", show_default=False)
    ] = None,
    json_: JsonFlag = False,
    where: Where = ANYWHERE,
) -> None:
    """Pack what tells of a job's faults into one archive, without secrets.

    It has console, CANN's logs, each attempt's environment, rank table, events, objects, settings and metrics, in the
    layout that Huawei's ascend-fd reads. A part that cannot be had is left out, and named.
    """
    jobs, ref = job_named(name, where)
    path, archive = write_bundle(jobs, ref, to)
    if json_:
        facts = {"files": archive.files, "hidden": archive.redactor.hidden, "leftOut": archive.left_out}
        print_json(document("Bundle", name=ref.name, backend=ref.backend, archive=str(path), **facts))
    else:
        hidden = archive.redactor.hidden
        print(visible(f"{path}: {len(archive.files):,} files, {hidden:,} secret{'' if hidden == 1 else 's'} hidden"))


def write_bundle(jobs: Jobs, ref: JobRef, to: Path | None) -> tuple[Path, Bundle]:
    """Write a job's archive; return its path, and what it has.

    Raises:
        NotFoundError: there is no such job.
        ConflictError: the path is taken.
        LauncherError: it cannot be written.
    """
    state = jobs.get(ref)
    path = to or Path(f"bundle-{ref.name}.tar.gz")
    redactor = Redactor([*jobs.known_secrets(), *_secrets_of_this_shell()])
    with open_bundle(path, ref.name, redactor) as archive:
        for part in (_add_status, _add_objects, _add_events, _add_explanation, _add_log, _add_files):
            with _left_out_if_impossible(archive):
                part(archive, jobs, ref, state)
    for text in archive.left_out:
        note(f"warning: not in the bundle: {text}")
    return path, archive


@contextmanager
def _left_out_if_impossible(archive: Bundle) -> Iterator[None]:
    """Go on without a part that this user cannot read, or that is not there."""
    try:
        yield
    except LauncherError as error:
        archive.left_out.append(str(error))


def _secrets_of_this_shell() -> Iterator[str]:
    """Yield the secrets in the launcher's own environment: its user may have printed one in a job."""
    yield from (value for name, value in os.environ.items() if looks_secret(name, value))


def _add_status(archive: Bundle, jobs: Jobs, ref: JobRef, state: JobState) -> None:
    document_of_job = archive.redactor.value(report.job_document(state, jobs.progress(state)))
    archive.add_lines("status.json", [f"{json_text(document_of_job)}\n"], clean=True)


def _add_objects(archive: Bundle, jobs: Jobs, ref: JobRef, _state: JobState) -> None:
    for name, item in jobs.objects(ref).items():
        text = json.dumps(archive.redactor.value(item), indent=1)
        archive.add_lines(f"cluster/{name}.json", [f"{text}\n"], clean=True)


def _add_events(archive: Bundle, jobs: Jobs, ref: JobRef, _state: JobState) -> None:
    _, events = jobs.get_with_events(ref)
    lines = [f"{timestamp(event.time)}  {visible(event.text)}\n" for event in events]
    archive.add_lines("events.txt", lines)


def _add_explanation(archive: Bundle, jobs: Jobs, ref: JobRef, _state: JobState) -> None:
    archive.add_text("explanation.txt", explanation_text(jobs.explain(ref), now=time.time(), where="") + "\n")


def _add_log(archive: Bundle, jobs: Jobs, ref: JobRef, _state: JobState) -> None:
    def lines() -> Iterator[str]:
        for item in jobs.logs(ref):
            if isinstance(item, LogBlock):
                yield from item.data.decode("utf-8", "surrogateescape").splitlines(keepends=True)
            elif isinstance(item, LogLoss):
                yield f"--- {item} ---\n"

    archive.add_lines("console.log", lines())


def _add_files(archive: Bundle, jobs: Jobs, _ref: JobRef, state: JobState) -> None:
    if state.output is None:
        raise LauncherError("the run's files: no record tells where they are")
    with tempfile.TemporaryDirectory() as folder:
        copied = copy_of(jobs, state, Path(folder), is_of_use, note).run()
        archive.left_out += copied.problems
        run = read_run(Path(folder))
        archive.add_run(Path(folder), node_of_ranks(run.provenance, int(state.setting("nodes") or 1)))
