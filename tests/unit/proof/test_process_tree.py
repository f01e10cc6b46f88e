"""A process is killed with all that it has started, and no supervisor among them starts anything again."""

import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from trainer.proof.process_tree import kill_tree

WORKERS = 20
# Each process sleeps longer than a test may last: it must be killed.
LEADER = """
import os, signal, subprocess, sys, threading
sleep = ["sleep", "1000"]
{body}
print("started", flush=True)
signal.pause()
"""
SUPERVISOR = f"""
def start(*_):
    subprocess.Popen(sleep, start_new_session=True)
signal.signal(signal.SIGCHLD, start)
for _ in range({WORKERS}):
    start()
"""
BODIES = {
    "nothing": "",
    "workers that are started again": SUPERVISOR,
    "workers that are being started": """
threading.Thread(target=lambda: [subprocess.Popen(sleep, start_new_session=True) for _ in range(500)]).start()
""",
    "a child in its group": "subprocess.Popen(sleep)",
    "a grandchild in a session of its own": """
subprocess.Popen(["sh", "-c", "setsid sleep 1000 & echo; wait"], start_new_session=True, stdout=-1).stdout.readline()
""",
    "an orphan in its group": 'subprocess.run(["sh", "-c", "sleep 1000 &"])',
}


@pytest.mark.parametrize("body", BODIES)
def test_nothing_is_left(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNAS_TEST_TREE", str(tmp_path))
    command = [sys.executable, "-S", "-c", LEADER.format(body=BODIES[body])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == b"started\n"
        before = len(_members(tmp_path))
        descendants = kill_tree(leader)
    _await_end([*descendants, *_members(tmp_path)])
    assert (before > 0, _members(tmp_path)) == (True, [])


def test_a_group_is_killed_after_its_leader_has_ended() -> None:
    script = "sleep 1000 & echo $!; exec 1>&-; exit 0"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True, text=True) as leader:
        assert leader.stdout is not None
        child = psutil.Process(int(leader.stdout.readline()))
        leader.wait()
        assert child.is_running()
        assert kill_tree(leader) == []
    _await_end([child])
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def _await_end(processes: list[psutil.Process]) -> None:
    """Wait until processes have ended, which then can stay as zombies for some time."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            end = os.pidfd_open(process.pid)
            assert select.select([end], [], [], 30)[0]
            os.close(end)


def _members(folder: Path) -> list[psutil.Process]:
    return [
        process for process in psutil.process_iter() if process.pid != psutil.Process().pid and _is_of(process, folder)
    ]


def _is_of(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get("PNAS_TEST_TREE") == str(folder)
    except psutil.Error:
        return False
