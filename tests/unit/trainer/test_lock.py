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
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer.run.lock import LOCK_FILE, Owner, Pace, locked
from trainer.shared.errors import FolderTakenError, TrainerError

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
    with locked(run, command=["me"], on_note=notes.append, on_lost=notes.append, pace=pace):
        assert json.loads((run / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert list(run.iterdir()) == []
    return notes


def _foreign(run: Path) -> Path:
    """Write the lock of a process on another machine."""
    lock = run / LOCK_FILE
    mine = vars(Owner.this_process(["train", "--npus", "8"]))
    owner = {**mine, "host": "other-node", "process_start": "another boot:17", "pid": 7}
    lock.write_text(json.dumps(owner))
    return lock


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
    touching = f"while touch {lock}; do sleep 0.2; done"
    with subprocess.Popen(["sh", "-c", touching], start_new_session=True) as other:
        try:
            with pytest.raises(FolderTakenError, match="process 7 on other-node"):
                _take(tmp_path, Pace(watch_s=60))
        finally:
            os.killpg(other.pid, signal.SIGKILL)
    assert json.loads(lock.read_text())["host"] == "other-node"


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
    told, lost = threading.Event(), list[str]()

    def on_lost(why: str) -> None:
        lost.append(why)
        told.set()

    with locked(tmp_path, command=["me"], on_note=lost.append, on_lost=on_lost, pace=QUICK):
        theirs = _foreign(tmp_path).read_text()
        assert told.wait(timeout=60)
    assert "lost to process 7 on other-node" in lost[0]
    assert (tmp_path / LOCK_FILE).read_text() == theirs


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
