"""A process that was frozen while another one took its run over changes no file of the run when it wakes up.

Here it is frozen at the worst moments: after its check that the folder is still its own, and before the write.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer.checkpoint.manifest import Blob
from trainer.checkpoint.reading import list_checkpoints, verify_checkpoint
from trainer.checkpoint.writing import CheckpointWriter, clear_leftovers, prune_checkpoints, write_checkpoint
from trainer.records.files import AppendFile
from trainer.records.lease import LOCK_FILE, Lease, Owner

_PRELUDE = """
import itertools, os, signal, sys
from pathlib import Path
from trainer.checkpoint.manifest import Blob
from trainer.checkpoint.writing import CheckpointWriter, prune_checkpoints, write_checkpoint
from trainer.records.files import AppendFile
from trainer.records.lease import Lease
from trainer.supervisor.output import LogFile

run, freeze_at = Path(sys.argv[1]), int(sys.argv[2])
lease, proofs = Lease(run, "old", clock=itertools.count().__next__), itertools.count(1)


def prove():
    lease.prove()
    if next(proofs) == freeze_at:
        os.kill(os.getpid(), signal.SIGSTOP)
"""
OLD_OWNER = f"""{_PRELUDE}
writer, folder = CheckpointWriter(1, prove), run / "checkpoints"
log = LogFile(run / "console-1.log", lease.check)
with AppendFile(run / "metrics.jsonl", fresh=True, on_note=print, check_owner=prove) as metrics:
    for step in itertools.count(1):
        metrics.write_lines(f"old {{step}}")
        log.write(b"old\\n")
        metrics.sync()
        data = memoryview(b"old!" * 250_000)
        write_checkpoint(folder, step // 2, {{"w": Blob("U8", (len(data),), data)}}, {{}}, writer=writer)
        prune_checkpoints(folder, keep=1, writer=writer)
        print(step, flush=True)
"""
REWRITER = f"""{_PRELUDE}
with AppendFile(run / "metrics.jsonl", fresh=False, on_note=print, check_owner=prove) as metrics:
    metrics.write_lines("old 3")
    metrics.replace(lambda line: b"3" not in line, run / "metrics-replaced.jsonl")
    if freeze_at == 0:
        print(next(proofs) - 1)
"""
"""An owner that continues the metrics of an earlier attempt, and goes back by a step."""
REPEATS = int(os.environ.get("PNAS_TEST_FREEZES", "10"))
"""How often the process is frozen at a random moment."""


def _tree(run: Path) -> dict[str, tuple[int, bytes]]:
    """Return the inode and the content of every file."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    return {str(path.relative_to(run)): (path.stat().st_ino, path.read_bytes()) for path in files}


@contextmanager
def _old_owner(run: Path, freeze_at: int, program: str = OLD_OWNER) -> Iterator["subprocess.Popen[str]"]:
    (run / LOCK_FILE).write_text("old")
    command = [sys.executable, "-c", program, str(run), str(freeze_at)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _take_lock(run: Path) -> None:
    theirs = run / f".{LOCK_FILE}"
    theirs.write_text(json.dumps(vars(Owner.this_process(["new"]))))
    theirs.replace(run / LOCK_FILE)


def _take_over(run: Path) -> None:
    """Do what the next owner does: take the lock, clear the leftovers, continue the files, save and prune."""
    _take_lock(run)
    folder, lease = run / "checkpoints", Lease(run, json.loads((run / LOCK_FILE).read_text())["token"])
    clear_leftovers(folder)
    with AppendFile(run / "metrics.jsonl", fresh=False, on_note=print, check_owner=lease.check) as metrics:
        metrics.write_lines("new")
    for step in (1, 2, 3):
        data = memoryview(b"new" * step)
        blobs = {"w": Blob("U8", (len(data),), data)}
        write_checkpoint(folder, step, blobs, {}, writer=CheckpointWriter(2, lease.prove))
    prune_checkpoints(folder, keep=3, writer=CheckpointWriter(2, lease.prove))


def _wake_up_and_compare(process: "subprocess.Popen[str]", run: Path) -> None:
    _take_over(run)
    before = _tree(run)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert any(words in errors for words in ("lost to process", "No such file", "File exists")), errors
    assert _tree(run) == before
    assert len([verify_checkpoint(path) for path in list_checkpoints(run / "checkpoints")]) >= 3


@pytest.mark.parametrize("proof", range(1, 22))
def test_a_process_frozen_between_its_check_and_its_write_changes_no_file(tmp_path: Path, proof: int) -> None:
    """Its third step, for example, writes lines, replaces a checkpoint of the same step, and prunes."""
    with _old_owner(tmp_path, proof) as process:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        _wake_up_and_compare(process, tmp_path)


def test_a_process_frozen_at_any_moment_changes_no_file(tmp_path: Path) -> None:
    seed = time.time_ns()
    sys.stdout.write(f"seed {seed}\n")
    moments = random.Random(seed)
    for freeze in range(REPEATS):
        run = tmp_path / str(freeze)
        run.mkdir()
        with _old_owner(run, 0) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(moments.uniform(0, 0.1))
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            _wake_up_and_compare(process, run)


def test_a_process_frozen_while_it_rewrites_a_file_takes_no_line_from_its_successor(tmp_path: Path) -> None:
    old = "old 1\nold 2\n"
    (tmp_path / "metrics.jsonl").write_text(old)
    with _old_owner(tmp_path, 0, REWRITER) as process:
        proofs = int(process.communicate()[0])
    assert (tmp_path / "metrics.jsonl").read_text() == old
    for proof in range(1, proofs + 1):
        run = tmp_path / str(proof)
        run.mkdir()
        (run / "metrics.jsonl").write_text(old)
        with _old_owner(run, proof, REWRITER) as process:
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
            _take_lock(run)
            with AppendFile(
                run / "metrics.jsonl", fresh=False, on_note=pytest.fail, check_owner=lambda: None
            ) as metrics:
                before = (run / "metrics.jsonl").read_text()
                metrics.write_lines("new 3", "new 4")
                process.send_signal(signal.SIGCONT)
                _, errors = process.communicate(timeout=60)
                metrics.write_lines("new 5")
            assert process.returncode == 1, (proof, errors)
            assert (run / "metrics.jsonl").read_text() == f"{before}new 3\nnew 4\nnew 5\n", (proof, errors)
