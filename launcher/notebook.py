"""The launcher for notebooks and programs: the jobs, settings, rules and errors of the command line.

    from launcher import Launcher

    job = Launcher(namespace="training").submit(npus=8, mode="full", data_path="/data/imagenet")
    for line in job.log(follow=True):
        print(line)
    print(job.wait().phase, job.progress().result)
    print(job.report())

Every error is a `launcher.errors.LauncherError` or a `trainer.shared.errors.UsageError`, and its text is one line: what
is wrong, where, and the next step.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from launcher.backends import find_job, list_jobs
from launcher.commands.bundle import write_bundle
from launcher.commands.common import wait_for_end
from launcher.commands.fetch import copy_of_job
from launcher.commands.parameters import Where
from launcher.commands.prepare import resolve_job
from launcher.commands.printing import note
from launcher.commands.report import subject_of_job, write_report
from launcher.jobs import BackendName, Explanation, JobRef, Jobs, JobState, LogBlock, LogLoss
from launcher.output.lines import Demultiplexer, LogGap
from launcher.output.progress import JobProgress
from launcher.results.copying import Copied
from launcher.results.profiling import RankProfile, take_profile
from trainer.shared.durations import format_duration
from trainer.shared.text import visible


@dataclass(frozen=True)
class Job:
    """A job that was found or started; it does not need this program, and goes on without it.

    Attributes:
        notes: what the user should know of its start.
    """

    _jobs: Jobs
    _ref: JobRef
    notes: Sequence[str] = ()
    _where: str = ""

    @property
    def name(self) -> str:
        """The job's name."""
        return self._ref.name

    def state(self) -> JobState:
        """Return the job's phase, the reason for it, its times, settings and folder.

        Raises:
            NotFoundError: the job was deleted.
        """
        return self._jobs.get(self._ref)

    def progress(self) -> JobProgress:
        """Return the latest step, evaluation and result, read from the end of the log."""
        return self._jobs.progress(self.state())

    def explain(self) -> Explanation:
        """Return why the job waits or failed, the most likely cause first."""
        return self._jobs.explain(self._ref)

    def log(self, *, follow: bool = False) -> Iterator[str]:
        """Yield the lines of all devices, each once and without control characters.

        A line that begins with `---` says which lines are missing, as `logs` does.

        Args:
            follow: go on until the job has ended.
        """
        demultiplexer = Demultiplexer(from_start=True)
        for item in self._jobs.logs(self._ref, follow=follow):
            if isinstance(item, LogLoss):
                yield f"--- {visible(str(item))} ---"
            elif isinstance(item, LogBlock):
                for piece in demultiplexer.feed(item.data, item.stream, ()):
                    if isinstance(piece, LogGap):
                        yield f"--- {piece} ---"
                    else:
                        yield visible(piece.shown.decode("utf-8", "replace"))

    def wait(self, timeout_s: float = math.inf) -> JobState:
        """Wait until the job has ended; return how.

        Raises:
            WaitTimeoutError: it has not ended after `timeout_s` seconds; it goes on.
        """
        waited = "" if math.isinf(timeout_s) else format_duration(timeout_s)
        return wait_for_end(self._jobs, self._ref, time.monotonic() + timeout_s, waited)

    def profile(self, *, rank: int = 0, steps: int = 5) -> RankProfile:
        """Have the next training steps of a rank profiled; return where the trace is, and the largest operators.

        Raises:
            RequestError: there are no such steps.
            NotFoundError: there is no such rank.
            ConflictError: the job does not train, ended meanwhile, or is being profiled.
            LauncherError: the trace could not be written; the job goes on.
        """
        return take_profile(self._jobs, self._ref, rank=rank, steps=steps, on_note=note)[0]

    def report(self, other: "Job | None" = None, *, to: Path | str | None = None) -> Path:
        """Write one HTML page about the run, and return its path.

        Args:
            other: a second run, to compare with.
            to: the page. [default: report-NAME.html in this folder]

        Raises:
            RequestError: the place of the run's files is not known.
            ConflictError: `to` is a file that is no report.
            LauncherError: the page cannot be written, or the files cannot be read.
        """
        subjects = [subject_of_job(job._jobs, job._ref, job._where) for job in (self, other) if job is not None]
        return write_report(subjects, None if to is None else Path(to))

    def fetch(self, to: Path | str | None = None, *, checkpoints: bool = False) -> Copied:
        """Copy the run's results, metrics and logs to a folder of this machine, and return what was copied.

        Each file is checked by its hash. The same call again copies what is new, and goes on where it was interrupted.

        Args:
            to: the folder. [default: ./NAME]
            checkpoints: copy the checkpoints to resume from, too.

        Raises:
            NotFoundError: the place of the run's files is not known.
            ConflictError: the folder has other files, or another launcher copies to it.
            LauncherError: a file cannot be read or written; what is copied stays.
        """
        return copy_of_job(self._jobs, self._ref, Path(to or self.name), checkpoints=checkpoints).run()

    def bundle(self, to: Path | str | None = None) -> Path:
        """Pack what tells of the job's faults into one archive, without secrets, and return its path.

        Args:
            to: the archive. [default: bundle-NAME.tar.gz in this folder]

        Raises:
            ConflictError: `to` exists.
            LauncherError: it cannot be written.
        """
        return write_bundle(self._jobs, self._ref, None if to is None else Path(to))[0]

    def cancel(self) -> JobState:
        """Ask the job to save its state and stop, wait until it has, and return how it ended."""
        self._jobs.cancel(self._ref)
        return self.state()

    def delete(self) -> None:
        """Forget an ended job; the files in its output folder stay.

        Raises:
            ConflictError: it has not ended.
        """
        self._jobs.delete(self._ref)


class Launcher:
    """Starts and finds jobs in one place; PNAS_BACKEND, PNAS_NAMESPACE, … give what is left out."""

    def __init__(
        self,
        backend: BackendName | None = None,
        *,
        namespace: str | None = None,
        context: str | None = None,
        kubeconfig: Path | str | None = None,
    ) -> None:
        """Choose the place; a cluster is asked later.

        Args:
            backend: this machine, or a kind of job on a cluster. [default: what is there]
            namespace: of the cluster. [default: the context's]
            context: of the kubeconfig. [default: its current one]
            kubeconfig: a file. [default: KUBECONFIG or ~/.kube/config]
        """
        self._where = Where(backend, namespace, context, None if kubeconfig is None else Path(kubeconfig))

    def submit(self, *, profile: str | None = None, again: bool = False, **settings: Any) -> Job:
        """Start a job and return it, or return the same job if it runs already.

        Args:
            profile: settings from a YAML file, or `seed`, `recommended` or `digits`.
            again: start the same job once more, though it has ended.
            settings: the options of `submit` with `_` for `-` (docs/options.md), such as `npus=8`.

        Raises:
            UsageError: a setting cannot be used; nothing was started.
            RequestError: the job cannot run there; nothing was started.
            PreflightError: the cluster is not ready for it; nothing was created.
            ConflictError: the name is taken.
        """
        kubeconfig = self._where.kubeconfig
        place = {
            "backend": self._where.backend,
            "namespace": self._where.namespace,
            "context": self._where.context,
            "kubeconfig": None if kubeconfig is None else str(kubeconfig),
        }
        resolved, submitter, _ = resolve_job(place | settings, profile)
        spec = submitter.build(resolved, now=datetime.now().astimezone(), again=again)
        submission = submitter.submit(spec)
        return Job(submitter.jobs, submission.ref, submission.notes, self._where.words)

    def job(self, name: str) -> Job:
        """Return the job called `name`.

        Raises:
            NotFoundError: there is no such job.
        """
        jobs, ref = find_job(name, self._where.backend_name, self._where.access)
        return Job(jobs, ref, _where=self._where.words)

    def jobs(self) -> list[Job]:
        """Return all jobs, oldest first.

        Raises:
            LauncherError: some of them cannot be seen.
        """
        listing = list_jobs(self._where.backend_name, self._where.access)
        if listing.problem is not None:
            raise listing.problem
        return [Job(jobs, state.ref, _where=self._where.words) for jobs, state, _ in listing.jobs]
