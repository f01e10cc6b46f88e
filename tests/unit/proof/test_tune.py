"""`prove --tune` around its decisions: the runs of the trainer, the profile, the rows, and bad input."""

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from tests.documents import one_document
from tests.unit.proof import small_checks
from trainer.cli import main
from trainer.proof import catalogue, tune
from trainer.proof.bounded_command import BoundedCommands, SignalledError
from trainer.proof.check import CheckPlace, ProofCheck, Result
from trainer.proof.sample_images import write_images
from trainer.proof.switches import Switch, is_environment_variable, switches_of
from trainer.proof.timed_run import TRAINER_COMMAND, cause, read_timing
from trainer.proof.tune import TuningPlan, plan_tuning, tune_switches
from trainer.proof.tuned_profile import TunedProfile
from trainer.shared.config import TrainConfig, resolve_train_config
from trainer.shared.config.layers import profile_layer
from trainer.shared.errors import UsageError
from trainer.topology.visible import DeviceKind, Visible

SWITCHES = (
    Switch("workers", ("8",), "loaders may be too few"),
    Switch("TASK_QUEUE_ENABLE", ("1", "0", "3"), "the step may wait for the host"),
    Switch("LD_PRELOAD", ("libjemalloc.so.2",), "another allocator"),
)
SECRET = "/home/somebody/secret"


class _SimulatedTrainer:
    """Runs of a trainer that write what a real one does; workers=8 and TASK_QUEUE_ENABLE=1 are faster."""

    def __init__(self) -> None:
        self.commands: list[tuple[tuple[str, ...], Mapping[str, str]]] = []
        self.before_run: Callable[[int], int] = lambda _run: 0
        """Called with the number of the run; returns the exit code."""
        self.limits: dict[str | None, float] = {}
        """The last limit, in seconds, of runs with each value of ACL_OP_JIT_COMPILE or --compile."""

    def __call__(self, command: Sequence[str], environ: Mapping[str, str], output: Path, limit_s: float) -> int | None:
        if tuple(command[: len(TRAINER_COMMAND)]) != TRAINER_COMMAND:
            return 0
        words = [part for word in command[len(TRAINER_COMMAND) :] for part in word.split("=")]
        options = dict(zip(words[::2], words[1::2], strict=True))
        self.commands.append((tuple(command), environ))
        self.limits[environ.get("ACL_OP_JIT_COMPILE") or options.get("--compile")] = limit_s
        if code := self.before_run(len(self.commands)):
            output.write_text(f"[node 0 #3] failed rank=0 {output.parent}/x: gone\x1b[31m\n[node 0 #4] ended\n")
            return code
        if environ.get("TASK_QUEUE_ENABLE") == "3":
            return None
        if "LD_PRELOAD" in environ:
            output.write_text("Aborted\n")
            return 134
        speed = 100.0 * (1.5 if "--workers" in options else 1) * (1.2 if environ.get("TASK_QUEUE_ENABLE") == "1" else 1)
        run = Path(options["--output"], options["--run-name"])
        run.mkdir()
        last = int(options["--steps"]) + 5
        rows = [{"kind": "step", "loss": 7.0 - step, "global_step": step} for step in range(last)]
        rows += [{"kind": "progress", "global_step": end - 1, "fps": speed} for end in (5, 10, last)]
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        facts = {
            "device": {"kind": "npu", "name": "Ascend910"},
            "world_size": 2,
            "host": "node-7.internal",
            "command": [SECRET],
            "versions": {"torch": "2.9.0", "torch-npu": "2.9.0", "numpy": "1.26"},
            "config": TrainConfig().model_dump(mode="json"),
        }
        (run / "provenance.json").write_text(json.dumps(facts))
        return 0


def _run(trainer: _SimulatedTrainer, tmp_path: Path, *switches: Switch) -> tuple[int | None, list[Result], Path]:
    profile = tmp_path / "output" / "tuned.yaml"
    place = CheckPlace("npu", (0, 1), 0, 0)
    plan = TuningPlan(place, TrainConfig(), {"HOME": SECRET}, switches or SWITCHES, TunedProfile(profile), timed_s=10.0)
    results: list[Result] = []
    stop = tune_switches(plan, tmp_path / "scratch", trainer, say=lambda _line: None, report=results.append)
    assert not (tmp_path / "scratch").exists()
    return stop, results, profile


def test_the_profile_sets_options_and_shows_variables_and_figures_as_comments(tmp_path: Path) -> None:
    stop, results, profile = _run(_SimulatedTrainer(), tmp_path)
    assert stop is None
    assert [(result.check, result.outcome.verdict) for result in results] == [
        ("tune-defaults", "passed"),
        ("tune-workers", "passed"),
        ("tune-TASK_QUEUE_ENABLE", "passed"),
        ("tune-LD_PRELOAD", "passed"),
        ("tune-together", "passed"),
    ]
    assert results[1].place == "npu:0 npu:1"
    assert results[1].outcome.figures == {"times_as_fast": pytest.approx(1.5)}
    assert profile.read_text() == (
        "# Settings for this kind of machine, by `python -m trainer prove --tune`.\n"
        "# Devices: 2 x Ascend910 (npu); torch 2.9.0 torch-npu 2.9.0\n"
        "# Steps: pnasnet5large, 331 px, 32 images per device, precision auto; "
        "images of noise from this machine's disk.\n"
        "# Together, against the defaults: all chosen: chosen, 1.800 times as fast (1.800 to 1.800, 3 rounds)\n"
        "\n"
        "# 8: chosen, 1.500 times as fast (1.500 to 1.500, 3 rounds): loaders may be too few\n"
        "workers: '8'\n"
        "# The same next to another profile: --workers=8\n"
        "\n"
        "# Variables are no settings of a profile; give them to each run:\n"
        "#   python -m launcher submit --profile tuned.yaml --env TASK_QUEUE_ENABLE=1\n"
        "#   export TASK_QUEUE_ENABLE=1\n"
        "# TASK_QUEUE_ENABLE=1: chosen, 1.200 times as fast (1.200 to 1.200, 3 rounds): "
        "the step may wait for the host\n"
        "\n"
        "# Left as it is:\n"
        "#   TASK_QUEUE_ENABLE=0: brings nothing, 1.000 times as fast (2 rounds)\n"
        "#   TASK_QUEUE_ENABLE=3: refused, no end within 60 s: its processes were ended\n"
        "#   LD_PRELOAD=libjemalloc.so.2: refused, exit code 134: Aborted\n"
    )
    config, _ = resolve_train_config([profile_layer(str(profile))])
    assert config.workers == 8


def test_options_and_variables_reach_the_run_in_the_form_in_which_a_user_gives_them(tmp_path: Path) -> None:
    trainer = _SimulatedTrainer()
    _run(trainer, tmp_path)
    command, environ = trainer.commands[0]
    assert command[len(TRAINER_COMMAND) :][:6] == ("--device", "npu", "--npus", "2", "--nodes", "1")
    assert environ["HOME"] == SECRET
    tried = [
        (command[-1] if command[-1].startswith("--workers") else "", environ.get("TASK_QUEUE_ENABLE"))
        for command, environ in trainer.commands
    ]
    assert ("--workers=8", None) in tried
    assert ("--workers=8", "1") in tried


@pytest.mark.parametrize(("name", "value"), [("ACL_OP_JIT_COMPILE", "enable"), ("compile", "true")])
def test_a_run_that_compiles_its_kernels_gets_the_time_of_a_first_run(name: str, value: str, tmp_path: Path) -> None:
    trainer = _SimulatedTrainer()
    _run(trainer, tmp_path, Switch(name, (value,), "kernels that are compiled"))
    assert trainer.limits == {None: 60.0, value: 1800.0}


@pytest.mark.parametrize("stopped_run", [1, 2, 4, 6, 11, 12, 24])
def test_ctrl_c_at_each_moment_leaves_the_profile_of_what_was_found(stopped_run: int, tmp_path: Path) -> None:
    trainer = _SimulatedTrainer()

    def stop_at(run: int) -> int:
        if run == stopped_run:
            raise SignalledError(signal.SIGINT)
        return 0

    trainer.before_run = stop_at
    stop, results, profile = _run(trainer, tmp_path)
    assert stop == signal.SIGINT
    *finished, last = results
    assert (last.outcome.verdict, last.outcome.measured) == ("unfinished", "interrupted")
    switches = [result.check for result in finished if result.check != "tune-defaults"]
    assert profile.exists() == bool(switches)
    if switches:
        assert ("workers" in yaml.safe_load(profile.read_text())) == ("tune-workers" in switches)
        assert "# The tuning has not ended: " in profile.read_text()


def test_a_failing_default_is_the_last_row_with_its_reason_and_without_paths(tmp_path: Path) -> None:
    trainer = _SimulatedTrainer()
    trainer.before_run = lambda _run: 1
    stop, [row], profile = _run(trainer, tmp_path)
    assert stop is None
    assert row.outcome.verdict == "failed"
    assert row.outcome.measured == (r"a run with the defaults fails: exit code 1: failed rank=0 …/x: gone")
    assert not profile.exists()


def test_a_profile_that_can_no_longer_be_written_ends_the_tuning_with_a_row(tmp_path: Path) -> None:
    trainer = _SimulatedTrainer()

    def lose_folder(run: int) -> int:
        if run == 8:
            (tmp_path / "output").rename(tmp_path / "gone")
        return 0

    trainer.before_run = lose_folder
    _, results, _ = _run(trainer, tmp_path)
    assert results[-1].outcome.verdict == "failed"
    assert "tuned.yaml: cannot be written: " in results[-1].outcome.measured


def test_an_existing_profile_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tuned.yaml").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"tuned.yaml: exists: move it away, or choose another --output$"):
        plan_tuning(Visible("cpu", ()), 1, tmp_path / "tuned.yaml", {}, on_cpu=True)


def test_the_speed_is_the_one_after_the_warm_up() -> None:
    rows = [{"kind": "step", "loss": None if step == 1 else 1.0, "global_step": step} for step in range(15)]
    ends = [(5, 1.0), (10, 100.0), (15, 50.0)]
    rows += [{"kind": "progress", "global_step": end - 1, "fps": fps} for end, fps in ends]
    timing = read_timing(map(json.dumps, rows))
    assert timing.images_per_s == pytest.approx(10 / (5 / 100 + 5 / 50))
    assert timing.losses == (1.0, None, *[1.0] * 13)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("", "exit code 2"),
        (
            "environment ok\nerror: --graph on: a CPU has no graphs\n",
            "exit code 2: error: --graph on: a CPU has no graphs",
        ),
        (
            "[node 0 #2] failed rank=1 device=npu:1: EI0002\n[node 0 #3] ended x\n",
            "exit code 2: failed rank=1 device=npu:1: EI0002",
        ),
        ("Segmentation fault\n\n", "exit code 2: Segmentation fault"),
        ("error: API_TOKEN=hunter2hunter2 is wrong\n", "exit code 2: error: API_TOKEN=(hidden) is wrong"),
    ],
)
def test_the_cause_of_a_failed_run_is_one_line(output: str, reason: str) -> None:
    assert cause(output, 2) == reason


def test_images_are_links_to_a_few_files_and_more_can_be_added(tmp_path: Path) -> None:
    write_images(tmp_path, 70, 16)
    write_images(tmp_path, 200, 16)
    images = list((tmp_path / "train").rglob("*.jpg"))
    assert len(images) == 200
    assert len({path.stat().st_ino for path in images}) == 64
    assert len(list((tmp_path / "val").rglob("*.jpg"))) == 10


@pytest.mark.parametrize(("kind", "devices"), [("npu", 8), ("npu", 1), ("cuda", 2), ("cpu", 2)])
def test_each_kind_has_its_switches_and_no_value_is_the_present_one(kind: DeviceKind, devices: int) -> None:
    environ = {"TASK_QUEUE_ENABLE": "1", "HCCL_BUFFSIZE": "400", "PYTORCH_NPU_ALLOC_CONF": "max_split_size_mb:64"}
    affinity = "1,npu0:0-23"
    config = TrainConfig(workers=8, memory_format="nchw")
    switches = switches_of(kind, config, environ, devices=devices, processors=16, affinity=affinity)
    values = {switch.name: switch.values for switch in switches}
    options = {name for name in values if not is_environment_variable(name)}
    assert options <= TrainConfig.model_fields.keys()
    assert values["workers"] == ("0", "2", "4", "16")
    assert values["threads"] == ("1", "8")
    if kind == "npu":
        assert values["CPU_AFFINITY_CONF"] == ("2,npu0:0-23", "0")
        assert values["TASK_QUEUE_ENABLE"] == ("2",)
        assert values["graph"] == ("on",)
        assert ("HCCL_OP_EXPANSION_MODE" in values) == (devices > 1)
        assert values.keys().isdisjoint({"HCCL_BUFFSIZE", "PYTORCH_NPU_ALLOC_CONF"})
    else:
        assert values["memory_format"] == ("nhwc",)
        assert "TASK_QUEUE_ENABLE" not in values
    assert ("bucket_mib" in values) == (devices > 1)
    assert ("compile" in values) == (kind == "cuda")


def test_sixteen_switches_are_tried_on_a_node_of_npus() -> None:
    switches = switches_of("npu", TrainConfig(), {}, devices=8, processors=24, affinity="1,npu0:0-23")
    assert len({switch.name for switch in switches} - {"LD_PRELOAD"}) == 16  # an image can lack other allocators


def test_one_processor_has_no_numbers_of_threads_to_try() -> None:
    switches = switches_of("cpu", TrainConfig(), {}, devices=2, processors=1, affinity="")
    assert {switch.name: switch.values for switch in switches if switch.name in ("threads", "workers")} == {
        "workers": ("0",)
    }


def test_a_command_that_hangs_is_killed_with_its_children_at_the_limit(tmp_path: Path) -> None:
    script = "setsid sleep 600 & echo $!; wait"
    with BoundedCommands() as commands:
        assert commands.run(["sh", "-c", script], os.environ, tmp_path / "out", 3.0) is None
        assert commands.run(["true"], os.environ, tmp_path / "quick", 60.0) == 0
    child = int((tmp_path / "out").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_signal_ends_a_command_and_its_children(tmp_path: Path) -> None:
    script = f"kill -INT {os.getpid()}; sleep 600"
    with BoundedCommands() as commands, pytest.raises(SignalledError, match=r"^SIGINT$"):
        commands.run(["sh", "-c", script], os.environ, tmp_path / "out", 600.0)


PASSES = small_checks.passes.__name__


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> _SimulatedTrainer:
    """Let prove have one check, which passes, and simulated runs of the trainer."""
    check = ProofCheck(PASSES, "a small check", "device", f"{small_checks.__name__}:{PASSES}", 60.0, opens=True)
    monkeypatch.setattr(catalogue, "CHECKS", (check,))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setattr(tune, "switches_of", lambda *_arguments, **_options: SWITCHES)
    trainer = _SimulatedTrainer()
    monkeypatch.setattr(BoundedCommands, "run", lambda _self, *arguments: trainer(*arguments))
    return trainer


def test_the_command_tunes_after_the_checks_and_its_rows_are_in_the_report(
    simulated: _SimulatedTrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prove", "--device", "cpu", "--npus", "1", "--output", str(tmp_path / "output"), "--tune"]
    assert main([*words, "--json"]) == 0
    report = one_document(capsys.readouterr().out, "Proof")
    names = [result["check"] for result in report["results"]]
    assert names == [
        PASSES,
        "tune-defaults",
        "tune-workers",
        "tune-TASK_QUEUE_ENABLE",
        "tune-LD_PRELOAD",
        "tune-together",
    ]
    assert simulated.commands[0][1]["PNAS_MODEL"] == "pnasnet5mobile", "a step that a CPU can take"
    assert main(words) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/output/tuned.yaml: exists: move it away, or choose another --output\n"
    )


def test_a_job_tunes_the_steps_of_its_settings_and_keeps_earlier_profiles(
    simulated: _SimulatedTrainer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = ["--mode", "prove", "--tune", "--device", "cpu", "--output", str(tmp_path), "--run-name", "proof"]
    for profile in ("tuned.yaml", "tuned-2.yaml"):
        assert main([*job, "--batch-size", "4", "--nesterov"]) == 0
        assert "workers: '8'" in (tmp_path / "proof" / profile).read_text()
    report = one_document((tmp_path / "proof/proof.json").read_text(), "Proof")
    assert [result["check"] for result in report["results"]][-1] == "tune-together"
    assert "tune-workers" in capfd.readouterr().out
    environ = simulated.commands[0][1]
    assert {name: value for name, value in environ.items() if name.startswith("PNAS_")} == {
        "PNAS_BATCH_SIZE": "4",
        "PNAS_NESTEROV": "true",
    }
