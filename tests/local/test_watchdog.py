"""A hanging rank ends its job; the last line names the rank and what it waits for. Real processes with real tensors."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.local.conftest import small_options
from trainer.topology.ports import free_port

# One rank of a job that reduces a tensor in each step; in the third step it does what the test chose.
RANK = """
import ctypes, os, subprocess, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from trainer.distributed.watchdog import Watchdog
rank, ranks, stuck, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
if ranks > 1:
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
address = ("127.0.0.1", int(os.environ["MASTER_PORT"])) if ranks > 1 else None
watchdog = Watchdog(rank=rank, device=f"cpu:{rank}", world_size=ranks, timeout_s=2, store_address=address)
watchdog.start()
for step in range(1000):
    last = rank + 1 == ranks and step == 2
    with watchdog.waiting("data", epoch=4, step=step):
        if last and stuck == "data":
            (folder / "pipe").open().read()
        if last and stuck == "interpreter":
            ctypes.PyDLL(None).sleep(1000)
        if last and stuck.startswith("compil"):
            watchdog.begin_compilation()
            if stuck == "compiler":
                (folder / "pipe").open().read()
            while time.thread_time() < 4:
                pass
            busy = "import time; any(time.process_time() > 3 for _ in iter(int, 1))"
            subprocess.run([sys.executable, "-c", busy], check=True)
            watchdog.end_compilation()
    with watchdog.waiting("gradient exchange", epoch=4, step=step):
        if ranks > 1:
            dist.all_reduce(torch.ones(()))
    if step == 2:
        (folder / f"pid{rank}").write_text(str(os.getpid()))
    if stuck in ("none", "compiles") and step == 40:
        break
    time.sleep(0.05)
watchdog.stop()
if ranks > 1:
    dist.barrier()
    dist.destroy_process_group()
"""
JOB = """
import json, os, sys
from pathlib import Path
from trainer.supervisor import Supervisor, WorkerCommand
commands = [
    WorkerCommand(rank, f"cpu:{rank}", tuple(argv), os.environ, Path(f"{rank}.log"))
    for rank, argv in enumerate(json.loads(sys.argv[1]))
]
with Supervisor(sys.stdout.buffer, node_rank=0) as supervisor:
    outcome = supervisor.run(commands, grace_s=5)
    supervisor.end(outcome)
sys.exit(outcome.exit_code)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a supervisor with its ranks; kill the supervisors at the end."""
    os.mkfifo(tmp_path / "pipe")
    environ = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    with ExitStack() as stack:

        def start(stuck: str, *, ranks: int = 2) -> "subprocess.Popen[str]":
            argv = [[sys.executable, "-u", "-c", RANK, str(r), str(ranks), stuck, str(tmp_path)] for r in range(ranks)]
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", JOB, json.dumps(argv)],
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=tmp_path,
                    env=os.environ | environ | {"MASTER_PORT": str(free_port())},
                )
            )
            stack.callback(process.kill)
            return process

        yield start


def end(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Wait until a job has failed; return its whole output, and the cause in its last line."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1, out
    last_line = re.fullmatch(r'\[node 0 #\d+\] failed rank=(\d) device=cpu:\1 cause="(.*)"', out.splitlines()[-1])
    assert last_line, out
    return out, last_line[2]


def pid_of(rank: int, folder: Path) -> int:
    """Wait until a rank has reached its third step; return its process id."""
    path = folder / f"pid{rank}"
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return int(path.read_text())


def test_a_rank_that_waits_for_data_is_the_cause_and_not_its_peers(start: Start) -> None:
    out, cause = end(start("data"))
    assert re.match(r"rank 1 cpu:1 has waited \d+ s for data at epoch 4 step 2: check the storage", cause)
    assert re.search(r"\[rank 1 cpu:1 #\d+\]   File .*pathlib.py.* in open", out), "its stack shows where it hangs"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_compilation_may_last_as_long_as_it_computes(start: Start, ranks: int) -> None:
    process = start("compiles", ranks=ranks)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out


def test_a_compiler_that_waits_is_the_cause_and_not_its_peers(start: Start) -> None:
    _, cause = end(start("compiler"))
    assert re.match(r"rank 1 cpu:1 has waited \d+ s for the compiler at epoch 4 step 2: it does not compute", cause)


def test_a_peer_names_a_frozen_rank_although_this_rank_holds_the_store(start: Start, tmp_path: Path) -> None:
    process = start("frozen")
    os.kill(pid_of(0, tmp_path), signal.SIGSTOP)
    _, cause = end(process)
    assert re.match(
        r"rank 1 cpu:1 has waited \d+ s for its peers \(gradient exchange at epoch 4 step \d+\): "
        r"rank 0 \(.*\) has been silent for \d+ s; look at its log and its machine",
        cause,
    ), cause


def test_the_one_rank_of_a_job_names_what_it_waits_for(start: Start) -> None:
    _, cause = end(start("data", ranks=1))
    assert re.match(r"rank 0 cpu:0 has waited \d+ s for data at epoch 4 step 2", cause)


def test_native_code_that_holds_the_interpreters_lock_does_not_stop_the_watchdog(start: Start) -> None:
    out, cause = end(start("interpreter", ranks=1))
    assert "Timeout (0:00:04)!" in out
    assert "exit code 1" in cause


def test_ranks_that_make_progress_run_to_their_end_without_a_word(start: Start) -> None:
    process = start("none", ranks=3)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    # gloo of torch 2.9 prints a line for each peer.
    assert not [line for line in out.splitlines() if "[Gloo]" not in line and " ended lines=" not in line]


def training(output: Path, data: Path, *options: str) -> "subprocess.Popen[str]":
    """Start the trainer with a limit for each wait; on a busy machine the start of all ranks takes ten seconds."""
    folders = ("--data-path", str(data), "--output", str(output), "--run-name", "run", "--epochs", "50")
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *small_options(*options, "--stall-timeout-s", "15"), *folders],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def workers_of(process: "subprocess.Popen[str]", *, line: str = " step epoch=") -> list[int]:
    """Wait for a line that contains `line`; return the process of each rank, in the order of the ranks."""
    assert process.stdout is not None
    for printed in process.stdout:
        if line in printed:
            break
    return children(process.pid)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def test_the_trainer_names_a_frozen_rank(tmp_path: Path, digits: Path) -> None:
    process = training(tmp_path, digits, "--npus", "2")
    os.kill(workers_of(process)[1], signal.SIGSTOP)
    _, cause = end(process)
    assert re.match(
        r"rank 0 cpu:0 has waited \d+ s for its peers \(.* epoch \d+ step \d+( part 0)?\): rank 1 \(", cause
    )
    assert "has been silent for" in cause


def test_the_trainer_names_a_rank_frozen_in_an_evaluation(tmp_path: Path, digits: Path) -> None:
    process = training(tmp_path, digits, "--npus", "2", "--steps", "2", "--batch-size", "2")
    os.kill(workers_of(process, line=" step=2 steps=2 ")[1], signal.SIGSTOP)
    _, cause = end(process)
    assert re.match(
        r"rank 0 cpu:0 has waited \d+ s for its peers \(.* epoch 0( evaluation_round \d+)?\): rank 1 \(", cause
    )
    assert "has been silent for" in cause


def test_the_trainer_names_the_rank_of_a_frozen_loader(tmp_path: Path, digits: Path) -> None:
    process = training(tmp_path, digits, "--npus", "2", "--workers", "1")
    rank = workers_of(process)[1]
    for loader in children(rank):
        os.kill(loader, signal.SIGSTOP)
    _, cause = end(process)
    assert re.match(r"rank 1 cpu:1 has waited \d+ s for data at epoch \d+ step \d+: check the storage", cause), cause
