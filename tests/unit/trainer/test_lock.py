"""A run's folder has one owner: a second process is refused while it is alive, and takes over at once afterwards."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from trainer.records.lease import LOCK_FILE, Lease, Owner, clock_s, describe_loss
from trainer.run.lock import REQUEST_FILE, Pace, locked
from trainer.run.termination import RunTermination
from trainer.shared.errors import FolderTakenError, StoppedError, TrainerError
from trainer.supervisor.output import LogFile

QUICK = Pace(heartbeat_s=0.2, watch_s=1.0, settle_s=0.2)

HOLDER = """
import sys
from pathlib import Path
from trainer.shared.errors import FolderTakenError
from trainer.run.lock import Pace, locked

say = lambda text: print(text, flush=True)
pace = Pace(heartbeat_s=0.2, watch_s=5.0, settle_s=1.0)
sys.stdin.readline()
try:
    with locked(Path(sys.argv[1]), command=["holder"], on_note=say, on_lost=say, pace=pace):
        say("mine")
        sys.stdin.readline()
except FolderTakenError as error:
    say(f"refused {error}")
"""


def _start(run: Path) -> "subprocess.Popen[str]":
    command = (sys.executable, "-c", HOLDER, str(run))
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


def _go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def _verdict(process: "subprocess.Popen[str]") -> str:
    while (line := _line(process)).startswith(("mine", "refused")) is False:
        assert line, "it ended without a word"
    return line


@contextmanager
def _holding(run: Path) -> Iterator["subprocess.Popen[str]"]:
    with _start(run) as process:
        try:
            _go(process)
            assert _line(process) == "mine"
            yield process
        finally:
            process.kill()


def _take(run: Path, pace: Pace = QUICK) -> list[str]:
    """Take and release the lock; return the notes."""
    notes: list[str] = []
    with locked(run, command=["me"], on_note=notes.append, on_lost=print, pace=pace):
        assert json.loads((run / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert list(run.iterdir()) == []
    return notes


def _foreign(run: Path, **more: str) -> Path:
    """Write the lock of a process on another machine."""
    lock = run / LOCK_FILE
    mine = vars(Owner.this_process(["train", "--npus", "8"]))
    owner = {**mine, "host": "other-node", "process_start": "another boot:17", "pid": 7, **more}
    lock.write_text(json.dumps(owner))
    return lock


@contextmanager
def _touching(lock: Path, *, until_asked: bool) -> Iterator[None]:
    """Touch a lock as its owner does; `until_asked` leaves when a successor asks this owner."""
    token, request = json.loads(lock.read_text())["token"], lock.with_name(REQUEST_FILE)
    leave = f"grep -q {token} {request} 2>/dev/null && rm {lock} && exit" if until_asked else "true"
    script = f"while touch -c {lock}; do {leave}; sleep 0.1; done"
    with subprocess.Popen(["sh", "-c", script], start_new_session=True) as other:
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(other.pid, signal.SIGKILL)


def test_a_second_process_is_refused_with_the_owners_host_process_and_start(tmp_path: Path) -> None:
    with _holding(tmp_path) as owner:
        with pytest.raises(FolderTakenError) as refused:
            _take(tmp_path)
        assert f"in use by process {owner.pid} on {os.uname().nodename}, since 20" in str(refused.value)
        assert "(holder): wait for its end, stop it, or choose another --run-name" in str(refused.value)
        _go(owner)
        owner.wait()
        assert _take(tmp_path) == []


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    with _holding(tmp_path) as owner:
        owner.kill()
        # Not reaped yet: a process that has ended still has this id.
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
        [note] = _take(tmp_path)
        assert f"taken over from process {owner.pid} on" in note


def test_a_later_process_with_the_same_id_does_not_keep_a_lock(tmp_path: Path) -> None:
    mine = Owner.this_process(["before"])
    boot, _, ticks = mine.process_start.partition(":")
    (tmp_path / LOCK_FILE).write_text(json.dumps({**vars(mine), "process_start": f"{boot}:{int(ticks) - 1}"}))
    [note] = _take(tmp_path)
    assert "taken over" in note


def test_the_lock_of_an_earlier_release_names_its_process_and_is_taken_over_at_once(tmp_path: Path) -> None:
    """It has the boot and the ticks of its process in two fields."""
    values = vars(Owner.this_process(["before"]))
    boot, _, ticks = values.pop("process_start").partition(":")
    (tmp_path / LOCK_FILE).write_text(json.dumps({**values, "boot": boot, "ticks": int(ticks) - 1}))
    [note] = _take(tmp_path)
    assert f"taken over from process {os.getpid()} on" in note


@pytest.mark.parametrize("content", [None, "", '{"host": "other-no'], ids=["foreign", "empty", "torn"])
def test_a_lock_of_an_unknown_process_is_watched_and_taken_over_if_no_process_touches_it(
    tmp_path: Path, content: str | None
) -> None:
    lock = _foreign(tmp_path)
    if content is not None:
        lock.write_text(content)
    watched, taken = _take(tmp_path)
    assert "watching up to 1 s" in watched
    assert ("process 7 on other-node" if content is None else "an unknown process") in taken


def test_a_lock_that_another_machine_touches_is_respected(tmp_path: Path) -> None:
    lock = _foreign(tmp_path)
    with _touching(lock, until_asked=True), pytest.raises(FolderTakenError, match="process 7 on other-node"):
        _take(tmp_path, Pace(watch_s=60))
    assert json.loads(lock.read_text())["host"] == "other-node"


@pytest.fixture
def as_pod(monkeypatch: pytest.MonkeyPatch) -> str:
    """Make this process a pod of a job, and return the job as locks have it."""
    monkeypatch.setenv("POD_NAMESPACE", "training")
    monkeypatch.setenv("POD_JOB", "jobs.batch/r1")
    return "training/jobs.batch/r1"


def test_an_earlier_pod_of_the_same_job_is_asked_to_leave_and_leaves(tmp_path: Path, as_pod: str) -> None:
    lock = _foreign(tmp_path, job=as_pod)
    with _touching(lock, until_asked=True):
        notes = _take(tmp_path, Pace(watch_s=60))
    assert "other-node, an earlier pod of this job, still works in this folder: it is asked" in notes[1]


def test_an_earlier_pod_that_does_not_leave_costs_no_try_and_a_silent_one_is_taken_over(
    tmp_path: Path, as_pod: str
) -> None:
    lock = _foreign(tmp_path, job=as_pod)
    with (
        _touching(lock, until_asked=False),
        pytest.raises(StoppedError, match="still in use by process 7 on other-node"),
    ):
        _take(tmp_path, Pace(watch_s=60, handover_s=1))
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE], "no request stays"
    assert "taken over" in _take(tmp_path)[-1]


def test_pods_of_another_job_and_processes_of_the_same_pod_are_not_asked(tmp_path: Path, as_pod: str) -> None:
    lock = _foreign(tmp_path, job="training/jobs.batch/other")
    with _touching(lock, until_asked=True), pytest.raises(FolderTakenError):
        _take(tmp_path, Pace(watch_s=60))
    lock.unlink()
    with _holding(tmp_path), pytest.raises(FolderTakenError):  # it inherits the pod's environment
        _take(tmp_path)


def test_an_owner_is_told_once_that_a_later_pod_of_its_job_waits(tmp_path: Path, as_pod: str) -> None:
    told = threading.Semaphore(0)
    mine = Owner.this_process(["me"])
    successor = json.dumps({**vars(mine), "host": "r1-0-later"})
    stranger = json.dumps({**vars(mine), "job": "training/jobs.batch/other"})
    with locked(tmp_path, command=["me"], on_note=print, on_lost=print, on_asked=told.release, pace=QUICK) as lease:
        for text in (f"{mine.token}\n{successor}", f"{lease.token}\n{stranger}", "torn"):
            (tmp_path / REQUEST_FILE).write_text(text)
            assert not told.acquire(timeout=3 * QUICK.heartbeat_s), "for an earlier owner, of another job, torn"
        (tmp_path / REQUEST_FILE).write_text(f"{lease.token}\n{successor}")
        assert told.acquire(timeout=60)
        assert not told.acquire(timeout=3 * QUICK.heartbeat_s)


def test_an_owner_that_lost_to_a_later_pod_of_its_job_can_be_resumed(tmp_path: Path, as_pod: str) -> None:
    with locked(tmp_path, command=["me"], on_note=print, on_lost=print, pace=QUICK) as lease:
        _foreign(tmp_path, job=as_pod)
        with pytest.raises(StoppedError, match="other-node, a later pod of this job, continues the run"):
            lease.prove()
        (tmp_path / LOCK_FILE).unlink()
        with pytest.raises(FolderTakenError, match="lost to a process that removed it"):
            lease.prove()


def test_a_lease_reads_the_lock_only_after_a_quarter_of_a_second_of_a_clock_that_also_counts_sleep(
    tmp_path: Path,
) -> None:
    now = 100.0
    (tmp_path / LOCK_FILE).write_text("the-token")
    lease = Lease(tmp_path, "the-token", clock=lambda: now)
    lease.check()
    (tmp_path / LOCK_FILE).write_text("another's")
    now = 100.2
    lease.check()
    now = 100.25
    with pytest.raises(FolderTakenError, match="lost to an unknown process"):
        lease.check()
    Lease(tmp_path, "").check()
    assert clock_s() == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=60)


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EMFILE", "EACCES"])
def test_only_a_folder_that_is_gone_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / LOCK_FILE).write_text("the-token")
    lease, termination = Lease(tmp_path, "the-token"), RunTermination()

    def fail(path: Path) -> None:
        raise OSError(getattr(errno, name), "it does not answer", str(path))

    for call in ("stat", "read_bytes"):
        with monkeypatch.context() as failing:
            failing.setattr(Path, call, fail)
            assert termination.find_loss(lease, tmp_path) is None
    for gone in (tmp_path / "none", tmp_path / LOCK_FILE, tmp_path / LOCK_FILE / "none"):
        assert "this folder was removed or renamed" in str(describe_loss(gone))
    assert termination.loss is None


@pytest.mark.parametrize("name", ["EIO", "ETIMEDOUT", "ENOTCONN", "ESTALE", "EMFILE", "ENFILE", "ENOMEM", "EACCES"])
def test_a_lock_that_cannot_be_read_proves_nothing_unless_its_server_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / LOCK_FILE).write_text("the-token")
    path, lease, number = tmp_path / "console-1.log", Lease(tmp_path, "the-token"), getattr(errno, name)
    log = LogFile(path, lease.prove)
    log.write(b"1\n")

    def fail(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as failing:
        failing.setattr(Path, "read_bytes", fail)
        log.write(b"2\n")
    written = path.read_bytes()
    assert written == (b"1\n2\n" if name in ("EIO", "ETIMEDOUT", "ENOTCONN") else b"1\n")
    if log.pending:
        (tmp_path / LOCK_FILE).write_text("another's")
        log.write(b"3\n")
        assert path.read_bytes() == written, "its folder was taken meanwhile"
        log = LogFile(path, lease.prove)
        (tmp_path / LOCK_FILE).write_text("the-token")
        with monkeypatch.context() as failing:
            failing.setattr(Path, "read_bytes", fail)
            log.write(b"2\n")
        log.close()
        assert path.read_bytes() == b"1\n2\n", "it waited in memory"
    LogFile(tmp_path / "none" / "console-1.log", lease.prove).close()


def test_of_eight_processes_that_find_a_stale_lock_exactly_one_wins(tmp_path: Path) -> None:
    with _holding(tmp_path) as owner:
        owner.kill()
    racers = [_start(tmp_path) for _ in range(8)]
    try:
        for racer in racers:
            _go(racer)
        last = [_verdict(racer) for racer in racers]
        assert sorted(line.split()[0] for line in last) == ["mine", *["refused"] * 7]
        winner = racers[last.index("mine")]
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == winner.pid
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_an_owner_learns_that_its_lock_was_taken_and_leaves_it_to_the_new_owner(tmp_path: Path) -> None:
    told, lost = threading.Event(), list[TrainerError]()

    def on_lost(why: TrainerError) -> None:
        lost.append(why)
        told.set()

    with locked(tmp_path, command=["me"], on_note=print, on_lost=on_lost, pace=QUICK) as lease:
        theirs = _foreign(tmp_path).read_text()
        with pytest.raises(FolderTakenError):
            lease.prove()
        assert told.wait(timeout=60)
    assert "lost to process 7 on other-node" in str(lost[0])
    assert (tmp_path / LOCK_FILE).read_text() == theirs


def test_an_owner_that_was_frozen_while_it_left_does_not_remove_its_successors_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(tmp_path, command=["me"], on_note=print, on_lost=print, pace=QUICK):
        theirs = _foreign(tmp_path).read_text()
        # It has seen its own lock just before.
        monkeypatch.setattr("trainer.run.lock._holds", lambda path, content: path.name == LOCK_FILE)
    assert (tmp_path / LOCK_FILE).read_text() == theirs
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_the_owner_touches_its_lock(tmp_path: Path) -> None:
    with locked(tmp_path, command=["me"], on_note=print, on_lost=print, pace=QUICK):
        lock = tmp_path / LOCK_FILE
        os.utime(lock, (0, 0))
        until = time.monotonic() + 60
        while lock.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.05)
        assert lock.stat().st_mtime > 0


def test_a_file_system_without_links_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(path: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted", str(path), None, str(target))

    # Such a file system cannot be mounted without privileges.
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    with locked(tmp_path, command=["me"], on_note=print, on_lost=print, pace=QUICK), pytest.raises(FolderTakenError):
        _take(tmp_path)
    assert _take(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"run.lock: cannot be written: No such file or directory"):
        _take(tmp_path / "missing")


def test_a_lock_that_is_a_link_to_nowhere_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.lock").symlink_to(tmp_path / "gone")
    with pytest.raises(TrainerError, match=r"run.lock: is a link to a file that is not there: remove it"):
        _take(tmp_path)
