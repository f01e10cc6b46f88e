"""`--resume` finds the job or run to continue and its settings, and says why it cannot continue one."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.errors import ConflictError, LauncherError
from launcher.local import records
from launcher.local.jobs import LocalJobs
from launcher.local.submitter import LocalSubmitter
from launcher.settings.layers import Settings, resolve_settings
from launcher.settings.spec import JobSpec, trainer_options
from tests.unit.launcher.test_settings import NOON
from trainer.shared.config import TrainConfig
from trainer.shared.runs import run_folder_of

ENDED = {"returncode": 75, "started": 1.0, "ended": 2.0}


class Bench:
    """Jobs and their runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.submitter = LocalSubmitter(LocalJobs(folder / "jobs"))

    def run(self, name: str, **train: Any) -> Path:
        """Create the folder of a run with these settings."""
        run = self.folder / "out" / name
        (run / "checkpoints" / "step-000000007").mkdir(parents=True)
        values = TrainConfig(**train).model_dump(mode="json")
        (run / "config.yaml").write_text(yaml.safe_dump(values))
        return run

    def job(self, name: str, flags: dict[str, Any], **end: Any) -> Path:
        """Create the records of an ended job, and its run."""
        settings = resolve_settings({"output": self.folder / "out", "name": name, **flags}, None, {})
        spec = self.submitter.build(settings, now=NOON)
        folder = self.folder / "jobs" / name
        folder.mkdir(parents=True)
        job = {"name": name, "created": time.time(), "host": socket.gethostname(), "cwd": str(self.folder)}
        job |= {"command": ["x"], "spec": spec.model_dump(mode="json"), "output": str(spec.output)}
        records.write_record(folder / records.JOB, "LocalJob", job)
        records.write_record(folder / records.EXIT, "Exit", ENDED | end)
        return self.run(name, **flags)

    def resolve(self, flags: dict[str, Any], environ: dict[str, str] | None = None) -> Settings:
        """Resolve the settings of these flags, as `submit` does."""
        name, earlier = self.submitter.earlier(resolve_settings(flags, None, environ or {}))
        return resolve_settings({**flags, "name": name}, None, environ or {}, earlier=earlier)

    def spec(self, flags: dict[str, Any], environ: dict[str, str] | None = None) -> JobSpec:
        return self.submitter.build(self.resolve(flags, environ), now=NOON)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return Bench(tmp_path)


FLAGS = {"data_path": Path("/images"), "model": "pnasnet5tiny", "npus": 2, "device": "cpu", "lr": 0.1}


def test_a_name_is_enough_to_continue_a_job_from_any_folder(bench: Bench) -> None:
    run = bench.job("mine", FLAGS)
    spec = bench.spec({"resume": "auto", "name": "mine"})
    assert spec.output == run
    assert trainer_options(spec) == [
        *("--data-path", "/images", "--output", str(run.parent), "--run-name", "mine", "--resume", "auto"),
        *("--model", "pnasnet5tiny", "--lr", "0.1", "--device", "cpu", "--npus", "2"),
    ]


def test_a_new_setting_wins_over_the_earlier_attempts_and_names_its_origin(bench: Bench) -> None:
    bench.job("mine", FLAGS)
    settings = bench.resolve({"resume": "auto", "name": "mine", "npus": 1}, {"PNAS_LR": "0.2"})
    origins = {name: (value, origin) for name, value, origin in settings.items()}
    assert origins["npus"] == (1, "flag")
    assert origins["lr"] == (0.2, "environment")
    assert origins["model"] == ("pnasnet5tiny", "attempt 1")


@pytest.mark.parametrize("codes", [(75, 2), (75, 2, 2), (2, 2)])
def test_the_options_of_a_refused_attempt_do_not_count(bench: Bench, codes: tuple[int, ...]) -> None:
    bench.job("mine", FLAGS, returncode=codes[0])
    folder = bench.folder / "jobs" / "mine"
    for code in codes[1:]:
        job = records.read_record(folder / records.JOB) or {}
        refused = {
            **job["spec"],
            "train": {**job["spec"]["train"], "seed": 5},
            "given": [*job["spec"]["given"], "seed"],
        }
        records.begin_next(folder, {**job, "spec": refused})
        records.write_record(folder / records.EXIT, "Exit", ENDED | {"returncode": code})
    settings = bench.resolve({"resume": "auto", "name": "mine"})
    assert (settings.train.seed, settings.train.npus, settings.origins["npus"]) == (0, 2, "attempt 1")


def test_a_run_that_no_job_started_continues_under_its_own_name(bench: Bench) -> None:
    run = bench.run("direct", mode="finetune", weights=Path("/w.pth"), model="pnasnet5mobile", data_path=Path("/i"))
    for path in (run, run / "checkpoints", run / "checkpoints" / "step-000000007"):
        spec = bench.spec({"resume": path})
        assert (spec.name, spec.output) == ("direct", run)
        assert (spec.train.mode, spec.train.model) == ("finetune", "pnasnet5mobile"), "shown as it is"
        assert trainer_options(spec) == [
            *("--output", str(run.parent), "--run-name", "direct", "--resume", str(path))
        ], "the checkpoint gives the other settings"


def test_another_name_starts_another_run_from_the_checkpoint(bench: Bench) -> None:
    run = bench.run("direct")
    spec = bench.spec({"resume": run, "name": "other"})
    assert spec.output == Path.cwd() / "output" / "other"


def test_an_unknown_name_starts_a_new_job_that_can_continue_later(bench: Bench) -> None:
    spec = bench.spec({"resume": "auto", "name": "new", "data_path": Path("/images")})
    words = trainer_options(spec)
    assert spec.output == Path.cwd() / "output" / "new"
    assert "--mode" not in words
    assert words[-2:] == ["--resume", "auto"]


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"resume": "auto"}, LauncherError, "--resume auto needs --name, the job to continue: it can be mine (Resum"),
        ({"resume": Path("../out/none")}, LauncherError, "/out/none: no such folder; give a run's folder or one of"),
        ({"resume": Path("../w.safetensors")}, LauncherError, "is a file; weights are given with --weights"),
        ({"resume": Path("../out")}, LauncherError, "neither a run's folder nor inside one"),
        ({"resume": Path("../out/Big_One")}, LauncherError, "its run's name, Big_One, cannot be a job's"),
        ({"resume": Path("../out/Big_One"), "name": "mine"}, ConflictError, "already, whose run is"),
        ({"resume": "auto", "name": "mine", "output": Path("here")}, LauncherError, "leave --output out"),
    ],
)
def test_a_job_that_cannot_continue_is_refused_in_one_line(
    bench: Bench, flags: dict[str, Any], error: type[LauncherError], message: str
) -> None:
    bench.job("mine", FLAGS)
    bench.job("done", FLAGS, returncode=0)
    bench.run("Big_One")
    (bench.folder / "w.safetensors").touch()
    with pytest.raises(error) as refusal:
        bench.resolve(flags)
    assert message in str(refusal.value)
    assert "done" not in str(refusal.value), "a job that succeeded has nothing to continue"
    assert "\n" not in str(refusal.value)


def test_a_runs_folder_is_recognised_by_its_content(bench: Bench) -> None:
    run = bench.run("direct")
    assert run_folder_of(run / "checkpoints" / "step-000000007") == run_folder_of(run) == run
    assert run_folder_of(bench.folder) is None


def test_a_run_in_a_folder_called_checkpoints_is_recognised(tmp_path: Path) -> None:
    run = tmp_path / "checkpoints" / "direct"
    (run / "checkpoints").mkdir(parents=True)
    assert run_folder_of(run / "checkpoints" / "step-000000007") == run_folder_of(run) == run


def test_settings_of_a_damaged_run_are_left_to_the_trainer(bench: Bench) -> None:
    run = bench.run("direct")
    for text in (b"\xff", b"a: [", b"- 1", b"new_setting: 3"):
        (run / "config.yaml").write_bytes(text)
        assert bench.spec({"resume": run}).given == ("output", "run_name", "resume")
