"""`report`: one run, or two side by side, as one HTML page."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from launcher.commands.common import job_named
from launcher.commands.parameters import ANYWHERE, JsonFlag, Where
from launcher.commands.printing import note, print_json
from launcher.errors import ConflictError, LauncherError, RequestError
from launcher.jobs import KIND_NAMES, JobRef, Jobs, JobState
from launcher.output.report import continuation
from launcher.results.copying import copy_of
from launcher.results.page import MADE_BY, Subject, report_page
from launcher.results.run_folder import RunData, is_record, read_run
from trainer.shared.documents import document
from trainer.shared.durations import format_duration
from trainer.shared.files import own_partial, replacing, why_no_folder
from trainer.shared.runs import is_run_folder
from trainer.shared.text import visible

_HEAD_BYTES = 2048


def report(
    name: Annotated[
        str | None,
        Parameter(help="The job, or a run's folder as a path. [default: the latest job]", show_default=False),
    ] = None,
    other: Annotated[str | None, Parameter(help="A second run, to compare with.", show_default=False)] = None,
    /,
    *,
    to: Annotated[
        Path | None, Parameter(help="The page. [default: report-NAME.html in this folder]", show_default=False)
    ] = None,
    json_: JsonFlag = False,
    where: Where = ANYWHERE,
) -> None:
    """Write one HTML page about a run, or about two that are compared.

    It has curves, attempts, settings with their origins, and provenance; of two runs, what differs comes first. It
    needs no network and no script. A run that goes on, has failed, or has damaged files has one, too: the page says
    what is missing.
    """
    names = [name] if other is None else [name, other]
    subjects = [_subject(one, where) for one in names]
    path = write_report(subjects, to)
    problems = [f"{subject.name}: {problem}" for subject in subjects for problem in subject.run.problems]
    if json_:
        runs = [{"name": subject.name, "folder": str(subject.run.folder)} for subject in subjects]
        print_json(document("Report", page=str(path), runs=runs, problems=problems))
        return
    for problem in problems:
        note(f"warning: {problem}")
    print(visible(str(path)))


def write_report(subjects: Sequence[Subject], to: Path | None) -> Path:
    """Write the page about one run or two, and return its path.

    Raises:
        ConflictError: the path has a file that is no report.
        LauncherError: it cannot be written.
    """
    path = to or Path(f"report-{'-'.join(visible(subject.name) for subject in subjects)}.html")
    _check_replaceable(path)
    page = report_page(subjects, now=time.time())
    try:
        with replacing(path, partial=own_partial(path)) as partial:
            partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise LauncherError(f"{path}: cannot be written: {error.strerror}; choose another place by --to") from error
    return path


def _subject(name: str | None, where: Where) -> Subject:
    """Return the run of a job, or of a folder, which a path names."""
    if name is not None and ("/" in name or name in (".", "..")):
        return subject_of_folder(Path(name))
    return subject_of_job(*job_named(name, where), where.words)


def subject_of_job(jobs: Jobs, ref: JobRef, where: str) -> Subject:
    """Return the run of a job.

    Args:
        where: the options that lead to the job again, for commands on the page.

    Raises:
        NotFoundError: there is no such job.
        RequestError: the place of its files is not known.
    """
    state, events = jobs.get_with_events(ref)
    if state.output is None:
        raise RequestError(f"job {ref.name} has no record of its output folder; give the folder in place of the name")
    run = _read(jobs, state)
    spec = state.spec
    return Subject(
        name=ref.name,
        run=run,
        phase=state.phase.value,
        reason=state.reason,
        facts=_facts(run, state, time.time()),
        pods=_set_pods(spec),
        origins=spec.get("origins"),
        told=spec.get("train", {}),
        events=events,
        again=continuation(state, where),
    )


def _read(jobs: Jobs, state: JobState) -> RunData:
    """Return the run of a job; of its claim, the small files that a report needs are copied for a moment."""
    assert state.output is not None
    if state.ref.backend not in KIND_NAMES:
        return read_run(state.output)
    with tempfile.TemporaryDirectory() as folder:
        copy_of(jobs, state, Path(folder), is_record, note).run()
        return replace(read_run(Path(folder)), folder=state.output)


def subject_of_folder(folder: Path) -> Subject:
    """Return the run in a folder, of which no job may be known.

    Raises:
        RequestError: no run has begun there.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder}: {why_no_folder(folder)}; give a job's name, or the folder of a run")
    if not is_run_folder(folder):
        raise RequestError(f"{folder}: no run has begun here; give the folder with its config.yaml, as OUTPUT/NAME")
    run = read_run(folder)
    last = run.attempts[-1] if run.attempts else {}
    phase = str(last.get("outcome") or "no end is recorded: it runs, or was killed")
    return Subject(name=folder.resolve().name, run=run, phase=phase, facts=_facts(run))


def _facts(run: RunData, state: JobState | None = None, now: float = 0.0) -> dict[str, str]:
    took = None if state is None else state.took_s(now)
    device = run.provenance.get("device")
    kind = device.get("kind") if isinstance(device, dict) else None
    return {
        "took": "" if took is None else format_duration(took),
        "attempts": str(len(run.attempts) or ""),
        "devices": f"{run.provenance.get('world_size', '?')} {kind}" if kind else "",
        "backend": "" if state is None else state.ref.backend,
    }


def _set_pods(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cluster's settings of a job that have a value."""
    return {name: value for name, value in spec.get("pods", {}).items() if value not in (None, [], "", False)}


def _check_replaceable(path: Path) -> None:
    """Refuse to write over a file that is not a report.

    Raises:
        ConflictError: there is one.
        LauncherError: it cannot be looked at.
    """
    try:
        with path.open("rb") as file:
            ours = f'content="{MADE_BY}"'.encode() in file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise LauncherError(f"{path}: cannot be read: {error.strerror}; choose another place by --to") from error
    if not ours:
        raise ConflictError(f"{path} exists and is no report: choose another place by --to")
