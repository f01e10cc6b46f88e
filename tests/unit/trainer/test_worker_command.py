"""A worker starts with its device's defaults, unless the administrator decides otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.cli import main
from trainer.devices.runtime_env import runtime_environment
from trainer.records.lease import Lease
from trainer.run.attempt import Attempt
from trainer.run.worker_commands import worker_command
from trainer.shared.config import TrainConfig
from trainer.topology import Topology, Worker
from trainer.worker.task import TASK_VARIABLE, WorkerTask

ALONE = Topology(1, 1, 0, (Worker(0, 0, 0),), "127.0.0.1", 29500, None, "options")


def _variables(config: TrainConfig, run: Path, environ: dict[str, str]) -> dict[str, str]:
    return runtime_environment("npu", config, run, environ, evidence=run / "evidence/attempt-2/node-1", rank=9)


@pytest.mark.parametrize(("given", "device", "level"), [(None, "npu", "2"), ("1", "npu", "1"), (None, "cpu", None)])
def test_torch_npu_finds_its_queue_level_before_torch_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, device: str, level: str | None
) -> None:
    monkeypatch.delenv("TASK_QUEUE_ENABLE", raising=False)
    if given is not None:
        monkeypatch.setenv("TASK_QUEUE_ENABLE", given)
    attempt = Attempt(TrainConfig(), tmp_path, 1, None, Lease(tmp_path, ""))
    command = worker_command(ALONE.workers[0], ALONE, attempt, device=device, command=())
    assert command.env.get("TASK_QUEUE_ENABLE") == level


KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"}


@pytest.mark.parametrize(
    ("device", "environ", "expected"),
    [
        ("cpu", {}, KEPT),
        ("cpu", {"MALLOC_MMAP_MAX_": " "}, KEPT),
        ("cpu", {"MALLOC_MMAP_MAX_": "65536"}, {}),
        ("cpu", {"MALLOC_MMAP_THRESHOLD_": "1048576"}, {}),
        ("cpu", {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, {}),
        ("cpu", {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}, KEPT),
        ("cuda", {}, {}),
    ],
)
def test_a_cpu_worker_keeps_the_memory_of_a_step_for_the_next_one(
    device: str, environ: dict[str, str], expected: dict[str, str]
) -> None:
    assert (
        runtime_environment(device, TrainConfig(), Path("run"), environ, evidence=Path("evidence"), rank=0) == expected
    )


def test_a_process_that_keeps_freed_memory_has_no_page_faults_for_the_same_maps_again() -> None:
    # glibc needs a few rounds: a freed aligned block can be too small for one of the same size (its bug 30723).
    program = (
        "import resource, torch\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(8):\n"
        "    before = faults()\n"
        "    maps = [torch.ones(40 << 18) for _ in range(4)]\n"
        "    del maps\n"
        "    print(faults() - before)\n"
    )
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | KEPT).stdout
    first, *_, last = map(int, output.split())
    # 160 MiB are 40,960 pages of 4 KiB; with larger pages of the system fewer.
    assert last * 10 < first


@pytest.mark.parametrize(
    ("options", "variable", "processors", "processes", "expected"),
    [
        ({}, None, 2, 1, ("2", 2)),
        ({}, None, 1, 1, ("1", 1)),
        ({}, None, 1, 8, ("1", 1)),
        ({}, None, 64, 8, ("8", 4)),
        ({"threads": 3, "workers": 6}, None, 2, 1, ("3", 6)),
        ({"workers": 0}, None, 2, 1, ("2", 0)),
        ({}, "5", 2, 1, ("5", 2)),
        ({}, "", 2, 1, ("2", 2)),
        ({}, " ", 2, 1, ("2", 2)),
        ({}, "4,2", 2, 1, ("4,2", 2)),
        ({"threads": 3}, "abc", 2, 1, ("3", 2)),
    ],
)
@pytest.mark.parametrize("own_trainers", [False, True])
def test_threads_and_loaders_share_the_processors_that_the_container_can_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    options: dict[str, int],
    variable: str | None,
    processors: int,
    processes: int,
    expected: tuple[str, int],
    own_trainers: bool,
) -> None:
    """Torchrun starts a trainer for each process, and a trainer without it starts all of them."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr("trainer.run.worker_commands.usable_processors", lambda: processors)
    workers = tuple(Worker(i, i, i) for i in range(1 if own_trainers else processes))
    topology = Topology(processes, 1, 0, workers, "127.0.0.1", 29500, None, "torchrun" if own_trainers else "options")
    attempt = Attempt(TrainConfig.model_validate(options), tmp_path, 1, None, Lease(tmp_path, ""))
    command = worker_command(workers[0], topology, attempt, device="cpu", command=())
    task = WorkerTask.from_json(command.env[TASK_VARIABLE])
    assert (command.env["OMP_NUM_THREADS"], task.config.workers) == expected


def test_only_rank_0_inherits_the_socket_at_which_all_meet(tmp_path: Path) -> None:
    workers = (Worker(0, 0, 0), Worker(1, 1, 1))
    topology = Topology(2, 1, 0, workers, "127.0.0.1", 29500, None, "options")
    attempt = Attempt(TrainConfig(), tmp_path, 1, None, Lease(tmp_path, ""))
    commands = [worker_command(one, topology, attempt, device="cpu", command=(), listener=7) for one in workers]
    listeners = [WorkerTask.from_json(command.env[TASK_VARIABLE]).listener for command in commands]
    assert [command.pass_fds for command in commands] == [(7,), ()]
    assert listeners == [7, None]


@pytest.mark.parametrize("text", ["0", "-1", "abc", "4,", "4,0", "2.5", "1e1", "\u0661", "99999", "4;2"])
def test_a_number_of_threads_that_openmp_ignores_is_refused_before_anything_is_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert main(["--device", "cpu", "--data-path", str(tmp_path), "--output", str(tmp_path / "output")]) == 2
    output = capsys.readouterr()
    assert output.err == f"error: OMP_NUM_THREADS={text} is not a number of threads: correct or unset it\n"
    assert output.out == "", "a fault is told once"
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("stall_s", "environ", "expected"),
    [
        (900, {}, {"HCCL_EXEC_TIMEOUT": "1836", "HCCL_EVENT_TIMEOUT": "1904"}),
        (3600, {}, {"HCCL_EXEC_TIMEOUT": "3944", "HCCL_EVENT_TIMEOUT": "4012"}),
        (1e6, {}, {"HCCL_EXEC_TIMEOUT": "17340", "HCCL_EVENT_TIMEOUT": "17408"}),
        (900, {"HCCL_EXEC_TIMEOUT": "600"}, {"HCCL_EVENT_TIMEOUT": "668"}),
        (900, {"HCCL_EXEC_TIMEOUT": "0"}, {}),
        (900, {"HCCL_CONNECT_TIMEOUT": "3600"}, {"HCCL_EXEC_TIMEOUT": "3604", "HCCL_EVENT_TIMEOUT": "3672"}),
        (900, {"HCCL_CONNECT_TIMEOUT": "7200"}, {"HCCL_EXEC_TIMEOUT": "7208", "HCCL_EVENT_TIMEOUT": "7276"}),
        (900, {"HCCL_EXEC_TIMEOUT": " "}, {"HCCL_EXEC_TIMEOUT": "1836", "HCCL_EVENT_TIMEOUT": "1904"}),
    ],
)
def test_hccl_waits_longer_than_the_watchdog_and_torch_npu_longer_than_hccl(
    tmp_path: Path, stall_s: float, environ: dict[str, str], expected: dict[str, str]
) -> None:
    defaults = _variables(TrainConfig(stall_timeout_s=stall_s), tmp_path / "run", environ)
    assert {
        name: value for name, value in defaults.items() if name.endswith(("EXEC_TIMEOUT", "EVENT_TIMEOUT"))
    } == expected


@pytest.mark.parametrize(
    ("given", "connect_s"),
    [("544", "476"), ("600", "476"), ("150", "120"), ("668", "544"), ("2400", "600"), ("0", "600"), (None, "600")],
)
def test_the_time_to_connect_is_shorter_than_the_given_time_of_a_collective(
    tmp_path: Path, given: str | None, connect_s: str
) -> None:
    environ = {} if given is None else {"HCCL_EXEC_TIMEOUT": given}
    assert _variables(TrainConfig(), tmp_path / "run", environ)["HCCL_CONNECT_TIMEOUT"] == connect_s


@pytest.mark.parametrize("text", ["20m", "-1", "1e3", "\u0661", "1" * 10])
def test_an_hccl_limit_that_is_no_number_is_refused_before_anything_is_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/davinci0").touch()
    monkeypatch.setenv("PNAS_DEVICE_FILES", str(tmp_path / "dev"))
    monkeypatch.setenv("HCCL_EXEC_TIMEOUT", text)
    assert main(["--device", "npu", "--data-path", str(tmp_path), "--output", str(tmp_path / "output")]) == 2
    output = capsys.readouterr()
    assert output.err == f"error: HCCL_EXEC_TIMEOUT={text} is not a whole number of seconds: correct or unset it\n"
    assert output.out == "", "a fault is told once"
    assert not (tmp_path / "output").exists()


def test_compiled_operators_stay_next_to_the_runs(tmp_path: Path) -> None:
    defaults = _variables(TrainConfig(), tmp_path / "run", {})
    assert defaults["ACL_OP_COMPILER_CACHE_DIR"] == str(tmp_path / ".ascend-kernels")


LOGS = "evidence/attempt-2/node-1/process_log/rank-9"


@pytest.mark.parametrize(
    ("environ", "logs", "files"),
    [
        ({}, LOGS, "2"),
        ({"ASCEND_PROCESS_LOG_PATH": " "}, LOGS, "2"),
        ({"ASCEND_PROCESS_LOG_PATH": "/logs"}, None, "2"),
        ({"ASCEND_WORK_PATH": "/work"}, None, "2"),
        ({"ASCEND_HOST_LOG_FILE_NUM": "50"}, LOGS, None),
    ],
)
def test_cann_writes_its_log_into_the_run_unless_the_administrator_has_chosen_a_place(
    environ: dict[str, str], logs: str | None, files: str | None
) -> None:
    run = Path("/output/run")
    defaults = _variables(TrainConfig(), run, environ)
    expected = None if logs is None else str(run / logs)
    assert (defaults.get("ASCEND_PROCESS_LOG_PATH"), defaults.get("ASCEND_HOST_LOG_FILE_NUM")) == (expected, files)
    assert defaults["OOM_SNAPSHOT_PATH"] == str(run / "evidence/attempt-2/node-1")
    assert "ASCEND_LOG_SYNC_SAVE" not in defaults, "a slow disk must not make training wait"


def test_cann_gets_no_path_that_it_would_cut_off() -> None:
    assert "ASCEND_PROCESS_LOG_PATH" not in _variables(TrainConfig(), Path("/output") / ("long" * 50), {})
