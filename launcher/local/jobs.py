"""Jobs on this machine: the same trainer, one process per device, started so that it outlives the launcher.

All that is known of a job is in its folder (see `local_records`); this backend keeps nothing in memory, so any
launcher, now or next week, sees the same.
"""

import difflib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import ConflictError, LauncherError, NotFoundError, WaitTimeoutError
from launcher.exits import defer_signals
from launcher.jobs import TRAINING, Block, JobEvent, JobRef, JobState, Phase, Submitted
from launcher.local import records
from launcher.local.attempts import attempt_folder, attempt_of, begin_next, earlier_attempts, only_one
from launcher.local.console import offset_at, read_blocks, read_tail
from launcher.local.phase import START_S, phase_of
from launcher.output.lines import Demultiplexer, Line
from launcher.output.progress import Progress
from trainer.shared.processes import Process, is_alive, send_signal

if TYPE_CHECKING:
    from launcher.settings.spec import JobSpec

# On top of the trainer's own grace, which it gives its workers.
_EXTRA_GRACE_S = 15.0
_POLL_S = 0.05


class LocalBackend:
    """Backend `local`. See `launcher.jobs.Backend` for what each method promises."""

    name = "local"
    where = "this machine"
    poll_s = 0.2

    def __init__(self, root: Path | None = None) -> None:
        self._root = records.state_home() if root is None else root

    def submit(self, spec: "JobSpec", *, again: bool = False) -> Submitted:
        """Start a job in a process of its own. Names are chosen by the time of day, so that each start is a new job."""
        from launcher.local.preflight import check  # noqa: PLC0415  # pydantic: only a submit pays for it
        from launcher.settings.spec import trainer_options  # noqa: PLC0415

        check(spec)
        command = [sys.executable, "-m", "trainer", *trainer_options(spec)]
        # Settings are on the command line now; a variable that gave one must not be read a second time.
        known = {f"PNAS_{field.upper()}" for field in type(spec.train).model_fields}
        environ = {name: value for name, value in os.environ.items() if name not in known}
        record = {"spec": spec.model_dump(mode="json"), "output": str(spec.output)}
        ref = self.start(spec.name, command, record, environ, resume=spec.continues)
        return Submitted(ref, attempt=self.get(ref).attempt)

    def start(
        self, name: str, command: list[str], record: dict[str, Any], environ: dict[str, str], *, resume: bool = False
    ) -> JobRef:
        """Start any command as a job, or with `resume` as the next attempt of an ended one.

        `record` holds the spec and the output folder.
        """
        folder, ref = self._root / name, JobRef(self.name, name)
        job = {"name": name, "created": time.time(), "host": socket.gethostname(), "cwd": str(Path.cwd())}
        job |= {"command": command, **record}
        with defer_signals():
            if resume and folder.is_dir():
                with only_one(folder):
                    self._refuse_if_running(ref)
                    begin_next(folder, job)
            else:
                self._create(folder, job)
            self._launch(folder, environ)
        return ref

    def _refuse_if_running(self, ref: JobRef) -> None:
        state = self.get(ref)
        if not state.phase.ended:
            where = f", {state.reason}" if state.reason else ""
            raise ConflictError(
                f"job {ref.name} still runs ({state.phase.value}{where}): follow it with `python -m launcher logs "
                f"{ref.name} -f`, or cancel it first"
            )

    @staticmethod
    def _create(folder: Path, job: dict[str, Any]) -> None:
        name = folder.name
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise ConflictError(
                f"there is a job {name} already: choose another --name, continue it with --resume auto, or "
                f"`python -m launcher delete {name}`"
            ) from None
        except OSError as error:
            raise LauncherError(f"{folder}: cannot be created: {error.strerror}; set XDG_STATE_HOME") from error
        try:
            records.write_record(folder / records.JOB, "LocalJob", job)
        except LauncherError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _launch(self, folder: Path, environ: dict[str, str]) -> None:
        """Start the runner of a recorded job, and return once it has recorded what it started."""
        with (folder / records.CONSOLE).open("ab") as console:
            done = subprocess.run(
                [sys.executable, "-m", "launcher.local.runner", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=environ,
                start_new_session=True,
                check=False,
            )
        if done.returncode:
            words = self._last_words(folder) or f"exit {done.returncode}"
            raise LauncherError(f"job {folder.name} could not be started: {words}; see {folder / records.CONSOLE}")

    def get(self, ref: JobRef) -> JobState:
        """The job's state, from its records and its processes."""
        folder = self._folder(ref)
        job = records.read_record(folder / records.JOB)
        # A job whose creation was cut short has no record yet; it is pending for a moment, then lost.
        job = {"name": ref.name, "created": folder.stat().st_mtime} if job is None else job
        processes = records.read_record(folder / records.PROCESSES) or {}
        runner, trainer = _processes(processes)
        # Life first, then the end: a job that ends in between is then seen to have ended, not to be lost.
        alive = is_alive(runner) or is_alive(trainer)
        end = records.read_record(folder / records.EXIT)
        cancel = records.read_record(folder / records.CANCEL)
        age_s = time.time() - job["created"]
        elsewhere = _elsewhere(job)
        phase, reason = phase_of(
            processes, end, alive=alive or elsewhere is not None, cancelled=cancel is not None, age_s=age_s
        )
        if phase is Phase.FAILED:
            words = self._last_words(folder)
            reason = self._recent(folder).cause or (f"{reason}: {words}" if words else reason)
        elif elsewhere and not phase.ended:
            reason = f"on {elsewhere}, as far as can be known from here"
        output = Path(job["output"]) if "output" in job else None
        begun = output is not None and output.exists()
        trains = job.get("spec", {}).get("train", {}).get("mode") in TRAINING
        return JobState(
            ref=ref,
            phase=phase,
            reason=reason,
            created=job["created"],
            started=processes.get("started"),
            ended=None if end is None else end["ended"],
            spec=job.get("spec", {}),
            output=output,
            files=str(output) if begun else "",
            attempt=attempt_of(job),
            resumable=begun and trains and phase.ended and phase is not Phase.SUCCEEDED,
            details={
                "command": job.get("command", []),
                "console": str(folder / records.CONSOLE),
                "runner": runner.pid or None,
                "trainer": trainer.pid or None,
                "returncode": None if end is None else end["returncode"],
            },
        )

    def progress(self, ref: JobRef) -> Progress:
        """The job's latest news, from the end of its log."""
        return self._recent(self._folder(ref))

    def glance(self, state: JobState) -> Progress:
        """All of it: it is at hand. A job with a damaged record has none."""
        return self.progress(state.ref) if state.spec else Progress()

    def events(self, ref: JobRef) -> list[JobEvent]:
        """What happened to the job."""
        folder = self._folder(ref)
        state = self.get(ref)
        cancel = records.read_record(folder / records.CANCEL)
        earlier = [event for kept in earlier_attempts(folder) for event in _attempt_events(kept)]
        found = [
            (state.created, "created" if state.attempt == 1 else f"attempt {state.attempt} created"),
            (state.started, f"started as process {state.details['trainer']}"),
            (None if cancel is None else cancel["requested"], "asked to save and stop"),
            (state.ended, f"ended: {state.phase.value}{f', {state.reason}' if state.reason else ''}"),
        ]
        return [*earlier, *(JobEvent(time_, text) for time_, text in found if time_ is not None)]

    def logs(
        self, ref: JobRef, *, follow: bool = False, since_s: float | None = None, attempt: int | None = None
    ) -> Iterator[Block]:
        """Blocks of whole lines of the job's console."""
        folder = attempt_folder(self._folder(ref), attempt)
        start = 0 if since_s is None else offset_at(folder / records.CLOCK, time.time() - since_s)

        def ended() -> bool:
            return not follow or self.get(ref).phase.ended

        return map(Block, read_blocks(folder / records.CONSOLE, start=start, ended=ended))

    def cancel(self, ref: JobRef) -> None:
        """SIGTERM, which the trainer answers by saving; SIGKILL when its grace is over."""
        folder = self._folder(ref)
        state = self.get(ref)
        if state.phase.ended:
            return
        if (host := _elsewhere(records.read_record(folder / records.JOB) or {})) is not None:
            raise ConflictError(f"job {ref.name} runs on {host}: cancel it there")
        grace_s = float(state.setting("grace_s") or 0) + _EXTRA_GRACE_S
        records.write_record(folder / records.CANCEL, "Cancel", {"requested": time.time()})
        if not self._wait(ref, START_S, until=lambda state: state.phase is not Phase.PENDING):
            raise WaitTimeoutError(f"job {ref.name} does not start; look into {folder / records.CONSOLE}")
        self._signal(folder, signal.SIGTERM)
        if self._wait(ref, grace_s, until=lambda state: state.phase.ended):
            return
        self._signal(folder, signal.SIGKILL)
        if not self._wait(ref, _EXTRA_GRACE_S, until=lambda state: state.phase.ended):
            raise WaitTimeoutError(f"job {ref.name} does not end, not even by SIGKILL; look at its processes with `ps`")

    def delete(self, ref: JobRef) -> None:
        """Remove the job's folder under the state home; the output folder is not touched."""
        folder = self._folder(ref)
        phase = self.get(ref).phase
        if not phase.ended:
            raise ConflictError(
                f"job {ref.name} is {phase.value}: `python -m launcher cancel {ref.name}` first, or delete with --force"
            )
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise LauncherError(f"{folder}: cannot be removed: {error.strerror}; remove it by hand") from error

    def list(self) -> "list[JobState]":
        """All jobs of this user on this machine, oldest first. A damaged record is shown as what it is."""
        states = [self._get_anyway(JobRef(self.name, folder.name)) for folder in _job_folders(self._root)]
        return sorted(states, key=lambda state: (state.created or 0, state.ref.name))

    def _get_anyway(self, ref: JobRef) -> JobState:
        try:
            return self.get(ref)
        except LauncherError as error:
            return JobState(ref, Phase.LOST, str(error))

    def _folder(self, ref: JobRef) -> Path:
        folders = {folder.name: folder for folder in _job_folders(self._root)}
        if ref.name not in folders:
            close = difflib.get_close_matches(ref.name, folders, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "see `python -m launcher list`"
            raise NotFoundError(f"there is no job `{ref.name}` on this machine; {hint}")
        return folders[ref.name]

    @staticmethod
    def _recent(folder: Path) -> Progress:
        demultiplexer = Demultiplexer(from_start=False)
        items = demultiplexer.feed(read_tail(folder / records.CONSOLE))
        return Progress().update_all(item for item in items if isinstance(item, Line))

    @staticmethod
    def _last_words(folder: Path) -> str:
        """The console's last line: of a program that ended without a tagged word, the best there is."""
        lines = read_tail(folder / records.CONSOLE).decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    @staticmethod
    def _signal(folder: Path, number: signal.Signals) -> None:
        runner, trainer = _processes(records.read_record(folder / records.PROCESSES) or {})
        # The runner passes SIGTERM on. It is never killed, so that it can record the end.
        if number is signal.SIGKILL or not send_signal(runner, number):
            send_signal(trainer, number)

    def _wait(self, ref: JobRef, timeout_s: float, *, until: Callable[[JobState], bool]) -> bool:
        deadline = time.monotonic() + timeout_s
        while not until(self.get(ref)):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True


def _job_folders(root: Path) -> list[Path]:
    return [entry for entry in root.iterdir() if entry.is_dir()] if root.is_dir() else []


def _elsewhere(job: dict[str, Any]) -> str | None:
    """The machine that runs the job, if it is another one that shares the state home: its processes are not ours."""
    here = socket.gethostname()
    host = str(job.get("host", here))
    return None if host == here else host


def _attempt_events(kept: Path) -> list[JobEvent]:
    """What happened to an earlier attempt."""
    job = records.read_record(kept / records.JOB)
    end = records.read_record(kept / records.EXIT)
    cancelled = records.read_record(kept / records.CANCEL) is not None
    phase, reason = phase_of({}, end, alive=False, cancelled=cancelled, age_s=START_S)
    found = [
        (None if job is None else job["created"], "created"),
        (None if end is None else end["ended"], f"ended: {phase.value}{f', {reason}' if reason else ''}"),
    ]
    return [JobEvent(time_, f"attempt {kept.name} {text}") for time_, text in found if time_ is not None]


def _processes(record: dict[str, Any]) -> tuple[Process, Process]:
    """The runner and the trainer; one that was never recorded is a process that does not live."""
    return _process(record.get("runner")), _process(record.get("trainer"))


def _process(values: object) -> Process:
    match values:
        case {"pid": int(pid), "started": str(started)}:
            return Process(pid, started)
    return Process(0, "")
