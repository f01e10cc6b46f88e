"""A local job's state follows from its folder: phases, damaged records, and processes that have reused a pid."""

import io
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.commands.parameters import Where
from launcher.commands.watch import list_
from launcher.errors import ConflictError, ExitCode, LauncherError, NotFoundError, RequestError
from launcher.jobs import JobRef, LogBlock, LogLoss, Phase
from launcher.local import records
from launcher.local.console import LineTimes, offset_at, read_blocks, read_tail
from launcher.local.jobs import LocalJobs
from launcher.local.submitter import start_job
from launcher.output import report
from launcher.output.display import PlainDisplay
from launcher.output.follow import LogFollow
from trainer.shared.files import with_home
from trainer.shared.processes import Process, identify, is_alive, send_signal

ME = {"pid": os.getpid(), "started": identify(os.getpid()).started}
ENDED_PROCESS = {"pid": os.getpid(), "started": "another boot:1"}


def job(root: Path, name: str = "a", **files: dict[str, Any]) -> JobRef:
    folder = root / name
    folder.mkdir(parents=True)
    request = {"command": ["x"], "cwd": str(root), "spec": {}, "output": str(root.parent / "out")}
    values = {"name": name, "created": time.time(), "host": socket.gethostname(), **request}
    records.write_record(folder / records.JOB, "LocalJob", values | files.pop("job", {}))
    (folder / records.CONSOLE).touch()
    for kind, record in files.items():
        records.write_record(folder / f"{kind}.json", kind, record)
    return JobRef("local", name)


def running(process: dict[str, Any]) -> dict[str, Any]:
    return {"runner": process, "trainer": process, "started": time.time()}


def ended(returncode: int) -> dict[str, Any]:
    return {"returncode": returncode, "started": 1.0, "ended": 2.0}


@pytest.mark.parametrize(
    ("files", "phase", "code"),
    [
        ({}, Phase.PENDING, None),
        ({"job": {"created": 1.0}}, Phase.LOST, 1),
        ({"processes": {"runner": ME, "trainer": None}}, Phase.PENDING, None),
        ({"processes": running(ME)}, Phase.RUNNING, None),
        ({"processes": running(ENDED_PROCESS)}, Phase.LOST, 1),
        ({"processes": running(ENDED_PROCESS), "cancel": {"requested": 1.5}}, Phase.CANCELLED, 125),
        ({"processes": running(ENDED_PROCESS), "exit": ended(0)}, Phase.SUCCEEDED, 0),
        ({"processes": running(ME), "exit": ended(0)}, Phase.SUCCEEDED, 0),
        ({"exit": ended(3)}, Phase.FAILED, 1),
        ({"exit": ended(-9)}, Phase.FAILED, 1),
        ({"exit": ended(75)}, Phase.RESUMABLE, 125),
        ({"exit": ended(75), "cancel": {"requested": 1.5}}, Phase.CANCELLED, 125),
        ({"exit": ended(1), "cancel": {"requested": 1.5}}, Phase.CANCELLED, 125),
        ({"exit": ended(0), "cancel": {"requested": 1.5}}, Phase.SUCCEEDED, 0),
        ({"job": {"host": "elsewhere"}, "processes": running(ENDED_PROCESS)}, Phase.RUNNING, None),
    ],
)
def test_the_phase_follows_from_the_records_and_the_processes(
    tmp_path: Path, files: dict[str, Any], phase: Phase, code: int | None
) -> None:
    state = LocalJobs(tmp_path).get(job(tmp_path, **files))
    assert state.phase is phase
    assert state.phase.ended == (code is not None)
    if code is not None:
        assert state.phase.exit_code == code


def job_text(**values: object) -> str:
    good = {"created": 1.0, "command": ["x"], "cwd": "/", "host": "here", "spec": {}, "output": "/"}
    return json.dumps({"apiVersion": "pnas/v1", **good, **values})


DAMAGED_SPECS: tuple[object, ...] = (
    *([], {"pods": [1]}, {"given": {}}, {"given": [1]}, {"overlay": "x"}, {"train": []}, {"train": None}),
    *({"train": {"npus": "x"}}, {"train": {"nodes": [1]}}, {"train": {"grace_s": "x"}}, {"train": {"mode": {}}}),
)
DAMAGED_VALUES: list[dict[str, Any]] = [
    *({"created": value} for value in (math.nan, math.inf, 1e18, -1)),
    *({"attempt": value} for value in ("x", "1", [1])),
    *({"attempt": None}, {"command": [1, None]}),
    *({"spec": value} for value in DAMAGED_SPECS),
]

ENDED_LINE = b'[node 0 #1] ended lines="0:3" outcome=succeeded\n'
LINES = (b"[rank 0 cpu:0 #1] start\n", b"[rank 0 cpu:0 #2] eval top1=50\n", b"[rank 0 cpu:0 #3] result top1=60\n")


def with_log(ref: JobRef, root: Path, console: bytes, device_log: bytes | None = None) -> None:
    """Write the console of a job, and the file of its device in the run's folder."""
    (root / ref.name / records.CONSOLE).write_bytes(console)
    if device_log is not None:
        folder = root.parent / "out" / "0"
        folder.mkdir(parents=True)
        (folder / "console-1.log").write_bytes(device_log)
        os.utime(folder / "console-1.log", (1.5, 1.5))


@pytest.mark.parametrize(
    ("outcome", "files", "phase", "code"),
    [
        ("succeeded", {}, Phase.SUCCEEDED, 0),
        ("resumable", {}, Phase.RESUMABLE, 125),
        ("resumable", {"cancel": {"requested": 1.5}}, Phase.CANCELLED, 125),
        ("failed", {}, Phase.FAILED, 1),
    ],
)
def test_a_job_whose_runner_was_killed_ends_as_its_trainer_says(
    tmp_path: Path, outcome: str, files: dict[str, Any], phase: Phase, code: int
) -> None:
    ref = job(tmp_path, processes=running(ENDED_PROCESS), **files)
    with_log(ref, tmp_path, b"".join(LINES) + ENDED_LINE.replace(b"succeeded", outcome.encode()))
    state = LocalJobs(tmp_path).get(ref)
    assert (state.phase, state.phase.exit_code) == (phase, code)


@pytest.mark.parametrize(("code", "resumable"), [(1, True), (75, True), (6, False), (0, False)])
def test_a_job_whose_folder_is_another_ones_is_not_to_be_continued(tmp_path: Path, code: int, resumable: bool) -> None:
    ref = job(tmp_path / "jobs", job={"spec": {"train": {"mode": "full"}}}, exit=ended(code))
    (tmp_path / "out").mkdir()
    assert LocalJobs(tmp_path / "jobs").get(ref).resumable == resumable


def test_a_job_of_this_machine_has_no_node_to_recover_from(tmp_path: Path) -> None:
    ref = job(tmp_path, start=running(ME))
    with pytest.raises(RequestError, match="job a runs on this machine, and not on a node of a cluster: see"):
        LocalJobs(tmp_path).recover(ref, on_note=pytest.fail)
    with pytest.raises(NotFoundError, match="there is no job `b` on this machine"):
        LocalJobs(tmp_path).recover(JobRef("local", "b"), on_note=pytest.fail)


@pytest.mark.parametrize("files", [{}, {"cancel": {"requested": 1.5}}])
def test_the_time_of_a_job_without_an_exit_record_stands_still(tmp_path: Path, files: dict[str, Any]) -> None:
    ref = job(tmp_path, processes=running(ENDED_PROCESS), **files)
    for name in (records.CONSOLE, records.PROCESSES):
        os.utime(tmp_path / ref.name / name, (1000, 1000))
    backend = LocalJobs(tmp_path)
    state = backend.get(ref)
    assert state.ended == 1000
    assert state.took_s(now=5000) == state.took_s(now=9000)
    request = {"command": ["x"], "cwd": "/", "host": socket.gethostname(), "spec": {}, "output": "/"}
    records.begin_next(tmp_path / ref.name, {"created": time.time(), **request})
    assert 1000 in [event.time for event in backend.get_with_events(ref)[1]], "the next attempt must not change it"


@pytest.mark.parametrize("console", [b"", LINES[0], LINES[0] + LINES[1][:30]])
def test_lines_that_a_full_state_folder_lacks_come_from_the_runs_own_files(tmp_path: Path, console: bytes) -> None:
    processes = running(ENDED_PROCESS) | {"started": 1.0}
    ref = job(tmp_path / "jobs", job={"spec": {"backend": "local"}}, processes=processes, exit=ended(0))
    with_log(ref, tmp_path / "jobs", console, b"".join(LINES) + ENDED_LINE)
    backend = LocalJobs(tmp_path / "jobs")
    reading = LogFollow()
    reading.run(backend.logs(ref), PlainDisplay(io.BytesIO(), io.StringIO()))
    assert (reading.demultiplexer.lines, reading.demultiplexer.missing, reading.losses) == (3, 0, [])
    [(_, listed)] = backend.list()
    for progress in (reading.progress, backend.progress(backend.get(ref)), listed):
        assert progress.result is not None
        assert progress.result.number("top1") == 60


def test_the_log_of_a_success_without_its_last_line_is_not_called_complete(tmp_path: Path) -> None:
    ref = job(tmp_path, job={"spec": {"backend": "local"}}, exit=ended(0))
    with_log(ref, tmp_path, LINES[0] + LINES[1][:30])
    items = list(LocalJobs(tmp_path).logs(ref))
    assert [item.data for item in items if isinstance(item, LogBlock)] == [LINES[0], LINES[1][:30]]
    assert [str(item) for item in items if isinstance(item, LogLoss)] == [
        f"{tmp_path / 'a' / records.CONSOLE}: lines may be lost: its last lines are not there; was the disk full?"
    ]


def test_an_output_folder_that_cannot_be_looked_at_hides_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(tmp_path / "jobs", exit=ended(1))
    exists = Path.exists

    def refuse(path: Path) -> bool:
        if path == tmp_path / "out":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refuse)
    [(state, _)] = LocalJobs(tmp_path / "jobs").list()
    assert (state.phase, state.files) == (Phase.FAILED, "")


@pytest.mark.parametrize(("train", "count", "shown"), [({}, 2, "2"), ({"npus": None}, 1, "1"), ({"npus": 8}, 2, "8")])
def test_a_list_shows_the_number_of_devices_also_if_the_trainer_chose_it(
    tmp_path: Path, train: dict[str, Any], count: int, shown: str
) -> None:
    spec = {"backend": "local", "train": {"mode": "full", **train}}
    job(tmp_path / "jobs", job={"spec": spec}, processes=running(ME) | {"started": 1.0})
    listing = LocalJobs(tmp_path / "jobs").list()
    assert listing[0][0].npus == train.get("npus"), "no device has a log yet"
    for rank in range(count):
        (tmp_path / "out" / str(rank)).mkdir(parents=True)
        (tmp_path / "out" / str(rank) / "console-1.log").touch()
    listing = LocalJobs(tmp_path / "jobs").list()
    header, row = report.list_text(listing, now=2).splitlines()
    assert row[header.index("DEVICES") :].split()[0] == shown
    assert report.list_document(listing)["items"][0]["npus"] == int(shown)


def test_the_files_of_another_attempt_do_not_count(tmp_path: Path) -> None:
    ref = job(tmp_path / "jobs", processes=running(ENDED_PROCESS) | {"started": 1.0}, exit=ended(-9))
    with_log(ref, tmp_path / "jobs", LINES[0], b"".join(LINES[:2]))
    later = tmp_path / "out" / "0" / "console-2.log"
    later.write_bytes(b"".join(LINES) + ENDED_LINE)
    assert b"".join(
        item.data for item in LocalJobs(tmp_path / "jobs").logs(ref) if isinstance(item, LogBlock)
    ) == b"".join((LINES[0], *LINES[:2]))


def test_a_list_reads_the_end_of_each_log_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[Path] = []

    def read_tail(path: Path) -> bytes:
        paths.append(path)
        return b""

    monkeypatch.setattr("launcher.local.log_end.read_tail", read_tail)
    job(tmp_path, "failed", exit=ended(1))
    job(tmp_path, "lost", processes=running(ENDED_PROCESS))
    LocalJobs(tmp_path).list()
    assert sorted(paths) == [tmp_path / name / records.CONSOLE for name in ("failed", "lost")]


def test_a_failed_jobs_reason_is_its_first_cause_or_its_last_line(tmp_path: Path) -> None:
    backend = LocalJobs(tmp_path)
    ref = job(tmp_path, exit=ended(-6))
    assert backend.get(ref).reason == "the trainer was killed by SIGABRT"
    console = tmp_path / "a" / records.CONSOLE
    console.write_bytes(b"terminate called\n\n")
    assert backend.get(ref).reason == "the trainer was killed by SIGABRT: terminate called"
    console.write_bytes(b"[rank 0 cpu:0 #2] step epoch=0\n")
    assert backend.get(ref).reason == "the trainer was killed by SIGABRT", "progress is no cause"
    console.write_bytes(b'[node 0 #1] failed rank=1 device=cpu:1 cause="killed by SIGKILL"\nlater\n')
    assert backend.get(ref).reason == "rank 1 on cpu:1: killed by SIGKILL"


def test_a_job_on_another_machine_is_neither_lost_nor_signalled(tmp_path: Path) -> None:
    ref = job(tmp_path, job={"host": "elsewhere"}, processes=running(ME))
    with pytest.raises(ConflictError, match="runs on elsewhere: cancel it there"):
        LocalJobs(tmp_path).cancel(ref)
    with pytest.raises(ConflictError):
        LocalJobs(tmp_path).delete(ref)


def test_a_process_with_a_reused_pid_is_neither_alive_nor_signalled() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        own = identify(child.pid)
        foreign = Process(child.pid, "another boot:17")
        assert is_alive(own)
        assert not is_alive(foreign)
        assert not send_signal(foreign, signal.SIGKILL)
        assert child.poll() is None, "the process with another start time must survive"
        assert send_signal(own, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(own), "a zombie has ended"
    finally:
        child.kill()
        child.wait()
    assert not is_alive(own)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (records.JOB, ""),
        (records.JOB, "{"),
        (records.JOB, "\0\0\0"),
        (records.JOB, "[]"),
        (records.JOB, '{"apiVersion": "pnas/v9"}'),
        (records.JOB, '{"apiVersion": "pnas/v1"}'),
        (records.PROCESSES, '{"apiVersion": "pnas/v1", "runner": "x"}'),
        (records.EXIT, '{"apiVersion": "pnas/v1", "returncode": null, "ended": 1}'),
        (records.EXIT, '{"apiVersion": "pnas/v1", "returncode": 0, "ended": NaN}'),
        (records.EXIT, "[" * 100_000),
        *((records.JOB, job_text(**values)) for values in DAMAGED_VALUES),
    ],
)
def test_a_damaged_or_newer_record_is_named_and_does_not_hide_other_jobs(tmp_path: Path, file: str, text: str) -> None:
    backend = LocalJobs(tmp_path)
    job(tmp_path, "good", exit=ended(0))
    bad = job(tmp_path, "bad")
    (tmp_path / "bad" / file).write_text(text)
    with pytest.raises(LauncherError, match=f"^{tmp_path / 'bad' / file}: .*remove the folder {tmp_path / 'bad'}"):
        backend.get(bad)
    listing = backend.list()
    states = {state.ref.name: state for state, _ in listing}
    assert states["good"].phase is Phase.SUCCEEDED
    assert file in states["bad"].reason
    assert report.unreadable_jobs(listing) == [f"warning: job bad cannot be read: {states['bad'].reason}"]


def test_a_list_names_the_jobs_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(records, "state_home", lambda: tmp_path)
    job(tmp_path, "good", exit=ended(0))
    job(tmp_path, "bad")
    (tmp_path / "bad" / records.JOB).write_text("{")
    list_(where=Where(backend="local"))
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 3
    assert output.err.startswith(f"warning: job bad cannot be read: {tmp_path / 'bad' / records.JOB}: ")


def test_a_log_that_cannot_be_read_and_a_job_that_is_just_deleted_hide_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(tmp_path, "good", exit=ended(0))
    for name in ("deleted", "unreadable"):
        job(tmp_path, name, exit=ended(1))
    (tmp_path / "unreadable" / records.CONSOLE).unlink()
    (tmp_path / "unreadable" / records.CONSOLE).mkdir()

    def read_record(path: Path) -> dict[str, Any] | None:
        if path.parent.name == "deleted":
            shutil.rmtree(path.parent, ignore_errors=True)
        return read(path)

    read = records.read_record
    monkeypatch.setattr(records, "read_record", read_record)
    states = {state.ref.name: state.reason for state, _ in LocalJobs(tmp_path).list()}
    assert states.keys() == {"good", "unreadable"}
    assert states["unreadable"].startswith(str(tmp_path / "unreadable" / records.CONSOLE))


@pytest.mark.parametrize("name", ["..", ".", "", "../jobs/a", "a/", "file"])
def test_only_a_jobs_name_selects_a_job(tmp_path: Path, name: str) -> None:
    root = tmp_path / "jobs"
    job(root, exit=ended(0))
    (root / "file").touch()
    for folder in (root, tmp_path):
        os.utime(folder, (1, 1))  # old enough to look like a job that was lost
    with pytest.raises(NotFoundError):
        LocalJobs(root).delete(JobRef("local", name))
    assert (root / "a" / records.JOB).exists()


def test_the_end_can_be_recorded_on_a_disk_that_has_filled_up(tmp_path: Path) -> None:
    path = tmp_path / records.EXIT
    records.reserve_record(path)
    assert records.read_record(path) is None, "a reservation is not a record"
    [reserved] = tmp_path.iterdir()
    before = reserved.stat()
    records.write_record(path, "Exit", ended(-9))
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size), "the record uses the reserved space"
    assert records.read_record(path) == {"apiVersion": "pnas/v1", "kind": "Exit", **ended(-9)}
    assert list(tmp_path.iterdir()) == [path]


def test_an_unknown_name_is_answered_with_similar_names(tmp_path: Path) -> None:
    job(tmp_path, "pnas-full-large")
    with pytest.raises(NotFoundError, match="did you mean pnas-full-large"):
        LocalJobs(tmp_path).get(JobRef("local", "pnas-full-larg"))
    job(tmp_path, "race1")
    with pytest.raises(NotFoundError, match="launcher list"):
        LocalJobs(tmp_path).get(JobRef("local", "cc1"))
    with pytest.raises(NotFoundError, match="launcher list") as error:
        LocalJobs(tmp_path).get(JobRef("local", "../.."))
    assert error.value.exit_code is ExitCode.NOT_FOUND


def test_a_taken_name_is_a_conflict_and_does_not_change_the_job(tmp_path: Path) -> None:
    job(tmp_path, exit=ended(0))
    with pytest.raises(ConflictError, match="choose another --name"):
        start_job(LocalJobs(tmp_path), "a", ["true"], {}, {})
    assert LocalJobs(tmp_path).get(JobRef("local", "a")).phase is Phase.SUCCEEDED


def test_a_growing_log_is_read_in_whole_lines_and_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    ended = False
    blocks = read_blocks(path, ended=lambda: ended)
    assert next(blocks) == b"one\n"
    assert next(blocks) == b"", "half a line is not given yet"
    with path.open("ab") as file:
        file.write(b"o\nthree\nfou")
    assert next(blocks) == b"two\nthree\n"
    ended = True
    assert b"".join(blocks) == b"fou", "the job died in the middle of its last line"


def test_a_reader_waits_for_a_log_that_does_not_exist_yet(tmp_path: Path) -> None:
    path = tmp_path / "log"
    ended = False
    blocks = read_blocks(path, ended=lambda: ended)
    assert next(blocks) == b""
    path.write_bytes(b"one\n")
    assert next(blocks) == b"one\n"
    assert list(read_blocks(tmp_path / "never", ended=lambda: True)) == []


def test_each_line_has_the_time_at_which_the_log_had_grown_to_it(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    times = LineTimes(clock)
    assert times.of(0, b"a\nb\n", 7) == ["1970-01-01T00:00:07Z"] * 2
    clock.write_text("10.250 4\n20.500 12\n30.0 ")
    block = b"one\ntwo\nthree\nfour\n"
    seconds = [moment[-4:-1] for moment in times.of(0, block, 33)]
    assert seconds == [":10", ":20", ":33", ":33"]
    assert [moment[-4:-1] for moment in times.of(4, block[4:], 33)] == seconds[1:]
    assert (offset_at(clock, 15), offset_at(clock, 5), offset_at(clock, 99)) == (4, 0, 12)


@pytest.mark.parametrize(
    "damage", [b"\0" * 40, b"\0\0 \0\n", b"\xff\xfe 12\n", b"abc def\n", b"nan 5\n", b"20.5 1", b"20."]
)
def test_a_damaged_note_of_a_time_does_not_count(tmp_path: Path, damage: bytes) -> None:
    """A power failure leaves NUL bytes; a full disk leaves half a note, to which the next one is appended."""
    clock = tmp_path / "clock"
    clock.write_bytes(b"10.250 4\n" + damage + b"30.000 7\n40.000 12\n")
    seconds = [moment[-4:-1] for moment in LineTimes(clock).of(0, b"one\ntwo\nxxx\n", 50)]
    assert (seconds[0], seconds[-1]) == (":10", ":40")
    assert (offset_at(clock, 15), offset_at(clock, 99)) == (4, 12)


def test_other_files_among_the_attempts_do_not_count(tmp_path: Path) -> None:
    ref = job(tmp_path, exit=ended(0))
    for name in (".DS_Store", "1x", "copy of 1"):
        (tmp_path / ref.name / "attempts" / name).mkdir(parents=True)
    assert len(LocalJobs(tmp_path).get_with_events(ref)[1]) == 2


def test_a_log_is_read_from_the_first_whole_line_after_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\nthree\n")
    assert b"".join(read_blocks(path, start=4, ended=lambda: True)) == b"two\nthree\n"
    assert b"".join(read_blocks(path, start=5, ended=lambda: True)) == b"three\n"
    assert read_tail(path, 7) == b"three\n"
    assert read_tail(path) == b"one\ntwo\nthree\n"
    assert read_tail(tmp_path / "none") == b""


def test_since_starts_at_the_first_line_after_that_time(tmp_path: Path) -> None:
    ref = job(tmp_path, exit=ended(0))
    (tmp_path / "a" / records.CONSOLE).write_bytes(b"one\ntwo\nthree\n")
    now = time.time()
    (tmp_path / "a" / records.CLOCK).write_text(f"{now - 100:.3f} 4\n{now - 10:.3f} 8\n{now - 1:.3f} 14\n{now:.3f}")
    backend = LocalJobs(tmp_path)
    for since_s, lines in ((1000, b"one\ntwo\nthree\n"), (50, b"two\nthree\n"), (5, b"three\n")):
        blocks = backend.logs(ref, since_s=since_s)
        assert b"".join(block.data for block in blocks if isinstance(block, LogBlock)) == lines


def test_the_state_folder_does_not_depend_on_the_working_folder(tmp_path: Path) -> None:
    assert records.state_home({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "pnas" / "jobs"
    default = Path.home() / ".local" / "state" / "pnas" / "jobs"
    assert records.state_home({}) == records.state_home({"XDG_STATE_HOME": "state"}) == default


def test_a_user_without_a_home_folder_has_the_root_as_in_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "relative")
    assert records.state_home({}) == Path("/.local/state/pnas/jobs")
    assert with_home(Path("~nobody-of-this-name/x")) == Path("~nobody-of-this-name/x")
