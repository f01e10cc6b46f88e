"""Jobs on this machine: find, read, stop.

All that is known of a job is in its folder (see `records`). Nothing is kept in memory, so every launcher, now or next
week, sees the same.
"""

import difflib
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from launcher import PROGRAM
from launcher.errors import ConflictError, LauncherError, NotFoundError, RequestError, WaitTimeoutError
from launcher.exits import defer_signals
from launcher.jobs import Cause, Channel, Explanation, JobEvent, JobRef, JobState, LogBlock, LogItem, LogLoss, Phase
from launcher.local import records
from launcher.local.console import LineTimes, line_start, offset_at, read_blocks
from launcher.local.files import open_local_files
from launcher.local.log_end import LogEnd
from launcher.output.log_causes import log_causes, of_last_attempt
from launcher.output.progress import JobProgress
from trainer.shared.errors import RESUMABLE, FolderTakenError
from trainer.shared.processes import Process, is_alive, send_signal

# Seconds from a job's creation until its runner has recorded its process ids.
_START_S = 30.0
# Seconds beyond the grace that the trainer gives its workers.
_EXTRA_GRACE_S = 15.0
_POLL_S = 0.05
# The signal module has no names for real-time signals.
_SIGNALS = {number.value: number.name for number in signal.Signals}
_FOLDER_TAKEN = FolderTakenError.exit_code
# The exit code of a trainer whose last line has this outcome.
_CODES = {"succeeded": 0, "resumable": RESUMABLE, "failed": 1}


class LocalJobs:
    """The jobs of this user on this machine. `launcher.jobs.Jobs` says what each method promises."""

    name = "local"
    place = address = "this machine"
    poll_s = 0.2

    def __init__(self, root: Path | None = None, *, extra_grace_s: float = _EXTRA_GRACE_S) -> None:
        self.root = records.state_home() if root is None else root
        self._extra_grace_s = extra_grace_s

    def check_exists(self, ref: JobRef) -> None:
        """Look for the job's folder only."""
        self._folder(ref)

    def get(self, ref: JobRef) -> JobState:
        """Return the job's state, from its records and its processes."""
        return _read_state(ref, self._folder(ref))[0]

    def logs(
        self, ref: JobRef, *, follow: bool = False, since_s: float | None = None, attempt: int | None = None
    ) -> Iterator[LogItem]:
        """Yield blocks of whole lines of the job's console, then the lines that only the run's own files have."""
        folder = records.attempt_folder(self._folder(ref), attempt)
        start = 0 if since_s is None else offset_at(folder / records.CLOCK, time.time() - since_s)

        def has_ended() -> bool:
            return not follow or self.get(ref).phase.ended

        job = records.read_record(folder / records.JOB) or {}
        stream = f"job {ref.name}, created {job.get('created')}, attempt {records.attempt_of(job)}"
        times, position, torn = LineTimes(folder / records.CLOCK), -1, b""
        for block in read_blocks(folder / records.CONSOLE, start=start, ended=has_ended):
            if block and not block.endswith(b"\n"):
                torn = block  # the last block
            else:
                position = line_start(folder / records.CONSOLE, start) if block and position < 0 else position
                yield LogBlock(block, stream, partial(_line_times, times, folder, position, block))
                position += len(block)
        state, log = _read_state(ref, folder)
        rest = () if log.in_console or not state.phase.ended else log.device_logs
        if torn and not rest:
            yield LogBlock(torn, stream)
        for path in rest:
            # The reader drops the lines that it has already, by their numbers.
            yield from (LogBlock(block, stream) for block in read_blocks(path, ended=lambda: True))
        # A job without a backend in its spec is not the trainer's, and only the trainer promises a last line.
        if state.phase is Phase.SUCCEEDED and log.outcome is None and state.spec.get("backend"):
            yield LogLoss("its last lines are not there; was the disk full?", source=state.console)

    def get_with_events(self, ref: JobRef) -> tuple[JobState, list[JobEvent]]:
        """Return the job's state, and what happened in each attempt."""
        folder = self._folder(ref)
        earlier = records.earlier_attempts(folder)
        attempts = (*earlier, folder)
        events = [event for attempt in attempts for event in _events_of(ref, attempt, numbered=bool(earlier))]
        return self.get(ref), events

    def progress(self, state: JobState) -> JobProgress:
        """Return the job's progress, from the end of its log."""
        return _read_state(state.ref, self._folder(state.ref))[1].progress

    def quick_progress(self, state: JobState) -> JobProgress:
        """Return the job's progress, from the end of its log."""
        return self.progress(state)

    def explain(self, ref: JobRef) -> Explanation:
        """Return why the job failed, from the end of its log."""
        state, log = _read_state(ref, self._folder(ref))
        if state.phase not in (Phase.FAILED, Phase.LOST):
            return Explanation(state, ())
        evidence = () if state.details["returncode"] is None else (f"exit code {state.details['returncode']}",)
        rule = "lost" if state.phase is Phase.LOST else "first-failure"
        words = Cause(rule, state.reason, evidence, (f"{PROGRAM} logs {ref.name} --tail 50",))
        return Explanation(state, tuple(log_causes(words, of_last_attempt(log.lines))))

    def cancel(self, ref: JobRef, *, on_asked: Callable[[], None] = lambda: None) -> None:
        """Send SIGTERM, which the trainer answers by saving; send SIGKILL when its grace is over."""
        folder = self._folder(ref)
        state = self.get(ref)
        if state.phase.ended:
            return
        if (host := _other_host(records.read_record(folder / records.JOB) or {})) is not None:
            raise ConflictError(f"job {ref.name} runs on {host}: cancel it there")
        grace_s = float(state.setting("grace_s") or 0) + self._extra_grace_s
        if not self._wait(ref, _START_S, until=lambda state: state.phase is not Phase.PENDING):
            raise WaitTimeoutError(f"job {ref.name} does not start; look into {folder / records.CONSOLE}")
        with defer_signals():
            records.write_record(folder / records.CANCEL, "Cancel", {"requested": time.time()})
            _signal_job(folder, signal.SIGTERM)
        on_asked()
        if self._wait(ref, grace_s, until=lambda state: state.phase.ended):
            return
        _signal_job(folder, signal.SIGKILL)
        if not self._wait(ref, _EXTRA_GRACE_S, until=lambda state: state.phase.ended):
            raise WaitTimeoutError(f"job {ref.name} does not end, not even by SIGKILL; look at its processes with `ps`")

    def recover(self, ref: JobRef, *, on_note: Callable[[str], None]) -> None:
        """Refuse: this machine answers."""
        self._folder(ref)
        raise RequestError(
            f"job {ref.name} runs on this machine, and not on a node of a cluster: see `{PROGRAM} status {ref.name}`"
        )

    def objects(self, ref: JobRef) -> Mapping[str, Any]:
        """Return the records of the latest attempt."""
        folder = self._folder(ref)
        names = (records.JOB, records.PROCESSES, records.CANCEL, records.EXIT)
        found = ((name, records.read_record(folder / name)) for name in names)
        return {name.removesuffix(".json"): record for name, record in found if record is not None}

    def known_secrets(self) -> Sequence[str]:
        """Return nothing: this machine asks for no login."""
        return ()

    def open_files(
        self, state: JobState, *, on_note: Callable[[str], None], live: bool = False
    ) -> AbstractContextManager[Channel]:
        """Return a way to the output folder, by a program on this machine."""
        del on_note, live  # nothing has to be waited for, and the files are where the job runs
        if state.output is None or not state.files:
            raise NotFoundError(
                f"job {state.ref.name}: its output folder is not on this machine: it was not made, or is removed"
            )
        return open_local_files(state.output)

    def delete(self, ref: JobRef) -> None:
        """Remove the job's folder under the state home; the output folder stays."""
        folder = self._folder(ref)
        phase = self.get(ref).phase
        if not phase.ended:
            raise ConflictError(
                f"job {ref.name} is {phase.value}: `{PROGRAM} cancel {ref.name}` first, or delete with --force"
            )
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise LauncherError(f"{folder}: cannot be removed: {error.strerror}; remove it by hand") from error

    def _list_one(self, folder: Path) -> tuple[JobState, JobProgress] | None:
        """Return a job and its progress; None if another launcher has just deleted it."""
        ref = JobRef(self.name, folder.name)
        try:
            state, log = _read_state(ref, folder)
            progress = log.progress
        except (LauncherError, OSError) as error:
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            state, progress = JobState(ref, Phase.LOST, reason), JobProgress()
        return (state, progress) if folder.is_dir() else None

    def _folder(self, ref: JobRef) -> Path:
        # `list` looks up every job: compare names, and ask the file system about one folder only.
        for entry in self.root.iterdir() if self.root.is_dir() else ():
            if entry.name == ref.name and entry.is_dir():
                return entry
        names = [folder.name for folder in _job_folders(self.root)]
        close = difflib.get_close_matches(ref.name, names)
        hint = f"did you mean {' or '.join(close)}?" if close else f"see `{PROGRAM} list`"
        raise NotFoundError(f"there is no job `{ref.name}` on this machine; {hint}")

    def _wait(self, ref: JobRef, timeout_s: float, *, until: Callable[[JobState], bool]) -> bool:
        deadline = time.monotonic() + timeout_s
        while not until(self.get(ref)):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def list(self) -> "list[tuple[JobState, JobProgress]]":
        """Return all jobs of this user on this machine, oldest first; a damaged record is shown as damaged."""
        jobs = map(self._list_one, _job_folders(self.root))
        return sorted(filter(None, jobs), key=lambda job: (job[0].created or 0, job[0].ref.name))


def _read_state(ref: JobRef, folder: Path) -> tuple[JobState, LogEnd]:
    """Return the state of the attempt whose records are in `folder`, and the end of its log, which may be unread."""
    # A job whose creation was cut short has no record yet; it is pending for a moment, then lost.
    job = records.read_record(folder / records.JOB) or {"name": ref.name, "created": folder.stat().st_mtime}
    processes = records.read_record(folder / records.PROCESSES) or {}
    runner, trainer = _processes(processes)
    # Life first, then the end: a job that ends in between has then ended, and is not lost.
    alive = is_alive(runner) or is_alive(trainer)
    end = records.read_record(folder / records.EXIT)
    cancelled = records.read_record(folder / records.CANCEL) is not None
    other_host = _other_host(job)
    alive = alive or other_host is not None
    output = Path(job["output"]) if "output" in job else None
    earlier_until = folder.stat().st_mtime if records.is_earlier(folder) else None
    log_until = end["ended"] if end is not None else earlier_until
    log = LogEnd(folder, output=output, started=processes.get("started"), ended=log_until)
    returncode = end["returncode"] if end is not None else None if alive else _CODES.get(log.outcome or "")
    age_s = time.time() - job["created"]
    phase, reason = _phase_of(processes, returncode, alive=alive, cancelled=cancelled, age_s=age_s)
    if phase is Phase.FAILED:
        # SIGKILL leaves no time for last words.
        words = "" if returncode == -signal.SIGKILL else log.last_words
        reason = log.progress.cause or (f"{reason}: {words}" if words else reason)
    elif other_host and not phase.ended:
        reason = f"on {other_host}, as far as can be known from here"
    ended = end["ended"] if end is not None else log.written or job["created"] if phase.ended else None
    spec = job.get("spec", {})
    state = JobState(
        ref=ref,
        phase=phase,
        reason=reason,
        created=job["created"],
        started=processes.get("started"),
        ended=ended,
        spec=spec,
        output=output,
        # After this code the folder, and the run in it, is another job's.
        files=str(output) if output is not None and _is_there(output) and returncode != _FOLDER_TAKEN else "",
        attempt=records.attempt_of(job),
        devices=None if spec.get("train", {}).get("npus") else len(log.device_logs) or None,
        command=job.get("command", ()),
        console=str(folder / records.CONSOLE),
        details={
            "runner": runner.pid or None,
            "trainer": trainer.pid or None,
            "returncode": None if end is None else end["returncode"],
        },
    )
    return state, log


def _is_there(output: Path) -> bool:
    with suppress(OSError):  # one output folder that cannot be looked at must not hide the other jobs
        return output.exists()
    return False


def _phase_of(
    processes: Mapping[str, Any], returncode: int | None, *, alive: bool, cancelled: bool, age_s: float
) -> tuple[Phase, str]:
    """Return the phase that the records, the log and the processes add up to, and the reason.

    SIGKILL leaves no record. A job without living processes, without an exit record and without an outcome in its log
    is lost: neither running nor a success.
    """
    if returncode is not None:
        return _outcome(returncode, cancelled=cancelled)
    if alive:
        return (Phase.RUNNING, "") if processes.get("trainer") else (Phase.PENDING, "starting")
    if not processes and age_s < _START_S:
        return Phase.PENDING, "starting"
    if cancelled:
        return Phase.CANCELLED, "stopped, but its exit status was not recorded"
    return Phase.LOST, "its processes are gone and left no exit status (killed, or the machine was restarted)"


def _outcome(returncode: int, *, cancelled: bool) -> tuple[Phase, str]:
    if returncode == 0:
        return Phase.SUCCEEDED, ""
    stopped = "stopped by SIGTERM; it can go on"
    if cancelled:
        return Phase.CANCELLED, stopped if returncode == RESUMABLE else "stopped before it was done"
    if returncode == RESUMABLE:
        return Phase.RESUMABLE, stopped
    if returncode < 0:
        name = _SIGNALS.get(-returncode, f"signal {-returncode}")
        return Phase.FAILED, f"the trainer was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    return Phase.FAILED, f"the trainer ended with exit code {returncode}"


def _line_times(times: LineTimes, folder: Path, position: int, block: bytes) -> list[str]:
    end = records.read_record(folder / records.EXIT)
    return times.of(position, block, time.time() if end is None else end["ended"]) if block else []


def _events_of(ref: JobRef, folder: Path, *, numbered: bool) -> list[JobEvent]:
    """Return what happened in the attempt whose records are in `folder`."""
    state, _ = _read_state(ref, folder)
    cancel = records.read_record(folder / records.CANCEL)
    subject = f"attempt {state.attempt} " if numbered else ""
    times = [
        (state.created, "created"),
        (state.started, f"started as process {state.details['trainer']}"),
        (None if cancel is None else cancel["requested"], "asked to save and stop"),
        (state.ended, f"ended: {state.phase.value}{f', {state.reason}' if state.reason else ''}"),
    ]
    return [JobEvent(moment, f"{subject}{text}") for moment, text in times if moment is not None]


def _signal_job(folder: Path, number: signal.Signals) -> None:
    runner, trainer = _processes(records.read_record(folder / records.PROCESSES) or {})
    # The runner passes SIGTERM on. It never gets SIGKILL, so that it can record the end.
    if number is signal.SIGKILL or not send_signal(runner, number):
        send_signal(trainer, number)


def _job_folders(root: Path) -> list[Path]:
    return [entry for entry in root.iterdir() if entry.is_dir()] if root.is_dir() else []


def _other_host(job: dict[str, Any]) -> str | None:
    """Return the other machine that runs the job and shares the state home: its pids mean nothing here."""
    this_host = socket.gethostname()
    host = str(job.get("host", this_host))
    return None if host == this_host else host


def _processes(record: dict[str, Any]) -> tuple[Process, Process]:
    """Return the runner and the trainer; a process that was never recorded does not live."""
    return _process(record.get("runner")), _process(record.get("trainer"))


def _process(values: object) -> Process:
    match values:
        case {"pid": int(pid), "started": str(started)}:
            return Process(pid, started)
    return Process(0, "")
