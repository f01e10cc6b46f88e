"""A run continues from the content of its folder, with its own settings and data, or is refused in one line."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.checkpoint.manifest import Blob
from trainer.checkpoint.reading import list_checkpoints
from trainer.checkpoint.writing import write_checkpoint
from trainer.data.index import Datasets, load_datasets
from trainer.records.lease import LOCK_FILE
from trainer.run.attempt import Attempt, RunStarter, begin_attempt, restart_run
from trainer.run.devices import keep_devices
from trainer.run.resume import result_of
from trainer.run.tries import JobRetries
from trainer.shared.config import TrainConfig, user_layers
from trainer.shared.errors import FolderTakenError, NoRetryError, TrainerError, UsageError
from trainer.shared.profiles import PROFILE_REQUEST
from trainer.topology import Topology, Worker


@dataclass(frozen=True)
class Begun:
    """The attempt that a start began, and its notes."""

    attempt: Attempt
    notes: list[str]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make empty image files in two classes; no test here decodes them."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for number in (*range(5), *range(20, 79)):  # enough for one step of two ranks; tests add some between
                (root / split / label / f"{number}.JPEG").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PNAS_DATA_PATH", str(root))
    monkeypatch.setenv("PNAS_OUTPUT", str(tmp_path / "out"))
    return root


def _load(config: TrainConfig) -> Datasets:
    return load_datasets(config.data_path)


def _begin(*, rank: int = 0, world_size: int = 1, retries: JobRetries | None = None, **flags: Any) -> Begun:
    notes: list[str] = []
    topology = Topology(world_size, 1, 0, (Worker(rank, 0, 0),), "127.0.0.1", 29500, None, "options")
    starter = RunStarter(topology, command=("train",), on_note=notes.append, on_lost=print, retries=retries)
    with begin_attempt(user_layers(flags, None), starter) as attempt:
        assert (attempt.run / LOCK_FILE).exists() is (rank == 0)
    return Begun(attempt, notes)


def _run(*steps: int, name: str = "r", **flags: Any) -> Path:
    """Begin a run and save checkpoints of these steps; return its folder."""
    attempt = _begin(run_name=name, **flags).attempt
    for step in steps:
        _save(attempt, step)
    return attempt.run


def _save(attempt: Attempt, step: int, **content: Any) -> None:
    datasets = _load(attempt.config)
    (attempt.run / "checkpoints").mkdir(exist_ok=True)
    values = {
        "config": attempt.config.model_dump(mode="json"),
        "num_classes": len(datasets.classes),
        "data": {"fingerprint": datasets.fingerprint},
        "progress": {"epoch": 1, "step": step - 10},
        "state": {},
        "arithmetic": {},
        **content,
    }
    write_checkpoint(attempt.run / "checkpoints", step, {"w": Blob("U8", (3,), memoryview(b"abc"))}, values)


def _tear(checkpoint: Path) -> None:
    (checkpoint / "state.safetensors").write_bytes(b"torn")


def _names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def _tree(folder: Path) -> dict[str, bytes]:
    """Return every file, to prove that nothing was changed."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_start_of_a_job_that_fails_before_its_workers_uses_up_a_retry(tmp_path: Path) -> None:
    run = _run(20)
    _tear(run / "checkpoints" / "step-000000020")
    start: dict[str, Any] = {"resume": "auto", "run_name": "r", "retries": JobRetries("uid", 1)}
    with pytest.raises(TrainerError, match="none of 1 checkpoints can be used") as error:
        _begin(**start)
    assert error.value.exit_code == 1
    for _ in range(2):
        with pytest.raises(NoRetryError, match=r"none of 1 checkpoints can be used.*no retry of --retries 1 is left"):
            _begin(**start)
    assert [json.loads(path.read_text())["try_ended"] for path in run.glob("attempt*.json")] == ["failed"] * 3
    usable = _run(20, name="usable")
    with pytest.raises(UsageError):
        _begin(resume="auto", run_name="usable", retries=JobRetries("uid", 1), data_path=tmp_path / "none")
    assert not [*usable.glob("attempt*.json")], "a wrong setting ends the job anyway"


def test_auto_begins_a_run_that_does_not_exist(tmp_path: Path) -> None:
    begun = _begin(resume="auto", run_name="r")
    config, lease, memory = begun.attempt.config, begun.attempt.lease, begun.attempt.memory
    assert begun.attempt == Attempt(config, tmp_path / "out" / "r", 1, None, lease, memory)
    assert begun.notes == []
    assert yaml.safe_load((begun.attempt.run / "config.yaml").read_text())["run_name"] == "r"


def test_without_resume_a_taken_folder_is_refused_with_the_way_to_continue() -> None:
    _run(10)
    with pytest.raises(FolderTakenError, match="choose another name, or continue it with --resume auto"):
        _begin(run_name="r")


def test_auto_takes_the_newest_valid_checkpoint_and_says_which_were_refused() -> None:
    run = _run(10, 20, 30)
    checkpoints = run / "checkpoints"
    _tear(checkpoints / "step-000000030")
    begun = _begin(resume="auto", run_name="r")
    assert begun.attempt.checkpoint == checkpoints / "step-000000020"
    assert begun.attempt.number == 2
    refused, moved, going_on = begun.notes
    assert "step-000000030 refused: state.safetensors has 4 bytes" in refused
    assert "step-000000030 is newer: moved to set-aside-2/" in moved
    assert going_on.endswith("attempt 2 goes on from " + str(checkpoints / "step-000000020") + " (epoch 1, step 10)")
    assert _names(checkpoints) == ["step-000000020", "step-000000010"]
    assert (checkpoints / "set-aside-2" / "step-000000030" / "state.safetensors").read_bytes() == b"torn"


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_from_zero(tmp_path: Path) -> None:
    run = _run(10, 20)
    for path in list_checkpoints(run / "checkpoints"):
        _tear(path)
    before = _tree(tmp_path)
    with pytest.raises(TrainerError, match="none of 2 checkpoints can be used") as refused:
        _begin(resume="auto", run_name="r")
    assert refused.value.exit_code == 1
    assert _tree(tmp_path) == before


def test_a_run_that_saved_nothing_begins_again_in_its_folder_and_says_so() -> None:
    run = _run()
    begun = _begin(resume="auto", run_name="r", lr=0.1)
    assert (begun.attempt.run, begun.attempt.number, begun.attempt.checkpoint) == (run, 2, None)
    assert begun.notes == [f"resume: {run}: no checkpoint was saved: attempt 2 begins at the first step"]
    assert yaml.safe_load((run / "config.yaml").read_text())["lr"] == 0.4
    assert yaml.safe_load((run / "config-2.yaml").read_text())["lr"] == 0.1


@pytest.mark.parametrize("place", ["", "checkpoints", ".."], ids=["run", "checkpoints", "output"])
def test_a_path_without_a_name_continues_its_run(place: str) -> None:
    run = _run(10, 20, batch_size=3, lr=0.25)
    attempt = _begin(resume=run / place).attempt
    assert (attempt.run, attempt.checkpoint) == (run, run / "checkpoints" / "step-000000020")
    assert (attempt.config.batch_size, attempt.config.lr, attempt.config.run_name) == (3, 0.25, "r")


def test_one_checkpoint_continues_its_run_from_there_and_newer_ones_are_set_aside() -> None:
    run = _run(10, 20, 30)
    begun = _begin(resume=run / "checkpoints" / "step-000000010")
    assert begun.attempt.checkpoint == run / "checkpoints" / "step-000000010"
    assert _names(run / "checkpoints") == ["step-000000010"]
    assert _names(run / "checkpoints" / "set-aside-2") == ["step-000000030", "step-000000020"]
    again = _begin(resume=run / "checkpoints" / "set-aside-2" / "step-000000030")
    assert (again.attempt.run, again.attempt.number) == (run, 3)
    assert _names(run / "checkpoints" / "set-aside-2") == ["step-000000030", "step-000000020"]


def test_a_new_name_begins_another_run_from_the_state(tmp_path: Path) -> None:
    run = _run(10, 20)
    before = _tree(run)
    attempt = _begin(resume=run / "checkpoints" / "step-000000010", run_name="other").attempt
    assert (attempt.run, attempt.number) == (tmp_path / "out" / "other", 1)
    assert attempt.checkpoint == run / "checkpoints" / "step-000000010"
    assert _tree(run) == before


def test_a_checkpoint_that_was_copied_out_of_its_run_begins_a_named_run(tmp_path: Path) -> None:
    copy = tmp_path / "step-000000010"
    shutil.copytree(_run(10) / "checkpoints" / copy.name, copy)
    with pytest.raises(UsageError, match="is in no run's folder: name a new run"):
        _begin(resume=copy)
    assert _begin(resume=copy, run_name="other").attempt.checkpoint == copy


def test_other_processes_of_the_job_change_nothing_and_choose_the_same_checkpoint() -> None:
    run = _run(10, 20)
    before = _tree(run)
    begun = _begin(resume=run / "checkpoints" / "step-000000010", rank=1, world_size=2)
    assert begun.attempt.checkpoint == run / "checkpoints" / "step-000000010"
    assert begun.attempt.number == 1
    assert _tree(run) == before


def test_the_users_settings_win_over_the_checkpoints_and_these_over_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(10, epochs=5, lr=0.25, batch_size=3, workers=0, keep=9)
    monkeypatch.setenv("PNAS_BATCH_SIZE", "4")
    begun = _begin(resume="auto", run_name="r", epochs=6)
    config = begun.attempt.config
    assert (config.epochs, config.batch_size, config.lr) == (6, 4, 0.25)
    assert (config.workers, config.keep) == (None, 3), "a matter of the machine or the attempt"
    assert begun.notes[0] == "resume: batch_size 3 -> 4, epochs 5 -> 6: not the run that was begun"
    assert "lr" in config.model_fields_set, "weights must not bring settings to a run that has its own"
    assert config.output == run.parent


@pytest.mark.parametrize(
    ("begun", "changed", "note"),
    [
        ({"lr_batch": 64}, {"lr_batch": 8}, "--lr-batch is for new runs: it stays at 64"),
        ({}, {"weights": Path("other.pth")}, "--weights is for new runs: it stays at None"),
        ({}, {"match_classes": "new"}, "--match-classes is for new runs: it stays at name"),
    ],
)
def test_a_setting_that_only_a_beginning_uses_stays_as_it_was(
    begun: dict[str, Any], changed: dict[str, Any], note: str
) -> None:
    _run(10, **begun)
    resumed = _begin(resume="auto", run_name="r", **changed)
    [name] = changed
    assert getattr(resumed.attempt.config, name) == getattr(TrainConfig(**begun), name)
    assert resumed.notes[0] == f"resume: {note}"


def test_a_finetuning_run_is_resumed_without_its_weights(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").touch()
    _run(10, mode="finetune", weights=tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").unlink()
    config = _begin(resume="auto", run_name="r").attempt.config
    assert (config.mode, config.lr) == ("finetune", 0.000119)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"model": "pnasnet5tiny"}, "--model pnasnet5tiny: checkpoint step-000000010 was made with pnasnet5large"),
        ({"padding": "seed"}, "--padding seed: checkpoint step-000000010 was made with exact: leave --padding out"),
        ({"mode": "finetune", "weights": Path("w")}, "--mode finetune: checkpoint step-000000010 was made with full"),
        ({"aux": "tf"}, "--aux tf: checkpoint"),
        ({"seed": 3}, "--seed 3: checkpoint"),
        ({"mode": "eval", "weights": "w"}, "continues training; to evaluate give --weights"),
        ({"mode": "performance"}, "times steps from the start; leave --resume out"),
        ({"nesterov": True, "momentum": 0.0}, "--nesterov needs --momentum above 0"),
        ({"output": "/elsewhere"}, "the run goes on in"),
    ],
)
def test_settings_that_do_not_fit_the_checkpoint_are_refused(
    tmp_path: Path, flags: Mapping[str, Any], said: str
) -> None:
    run = _run(10)
    before = _tree(tmp_path)
    _refused(said, resume=run, **flags)
    assert _tree(tmp_path) == before


def _missing(root: Path) -> Path:
    return root / "missing"


def _empty(root: Path) -> Path:
    (root / "empty").mkdir()
    return root / "empty"


def _foreign(root: Path) -> Path:
    return root / "data"


def _several(root: Path) -> Path:
    _run(name="one")
    _run(name="two")
    return root / "out"


def _weights(root: Path) -> Path:
    (root / "best.safetensors").touch()
    return root / "best.safetensors"


def _file(root: Path) -> Path:
    (root / "notes.txt").touch()
    return root / "notes.txt"


def _state_file(_root: Path) -> Path:
    return _run(10) / "checkpoints" / "step-000000010" / "state.safetensors"


def _torn(_root: Path) -> Path:
    path = _run(10) / "checkpoints" / "step-000000010"
    _tear(path)
    return path


def _newer_format(_root: Path) -> Path:
    path = _run(10) / "checkpoints" / "step-000000010"
    manifest = path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"version":', b'"version":99'))
    return path


def _never_saved(_root: Path) -> Path:
    return _run()


def _not_a_state(_root: Path) -> Path:
    attempt = _begin(run_name="r").attempt
    (attempt.run / "checkpoints").mkdir()
    write_checkpoint(attempt.run / "checkpoints", 1, {}, {"config": {}})
    return attempt.run


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (_missing, "missing: no such folder"),
        (_empty, "empty: empty; give a run's folder"),
        (_foreign, "data: neither a run nor a checkpoint of this program"),
        (_several, "holds 2 runs (one, two): name one of them"),
        (_weights, "is a weight file, which holds no training state: use --weights"),
        (_file, "is a file; give a run's folder"),
        (_state_file, "is one file of a checkpoint: give its folder"),
        (_torn, "step-000000010: state.safetensors has 4 bytes"),
        (_newer_format, "written in format 99"),
        (_never_saved, "no checkpoint was saved there; --resume auto with --run-name r begins this run again"),
        (_not_a_state, "not a training state: it lacks arithmetic, data, num_classes, progress, state"),
    ],
)
def test_a_path_that_cannot_be_resumed_is_refused_with_the_reason(
    tmp_path: Path, place: Callable[[Path], Path], said: str
) -> None:
    path = place(tmp_path)
    before = _tree(tmp_path)
    _refused(said, resume=path)
    assert _tree(tmp_path) == before


def _refused(said: str, **flags: Any) -> None:
    with pytest.raises(UsageError) as refused:
        _begin(**flags)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_auto_needs_a_name_and_the_folder_of_a_run(tmp_path: Path) -> None:
    _refused("--resume auto needs --run-name", resume="auto")
    (tmp_path / "out" / "r").mkdir(parents=True)
    (tmp_path / "out" / "r" / "thesis.tex").touch()
    _refused("is not a run's folder: choose another --run-name", resume="auto", run_name="r")


def test_a_folder_that_a_dying_process_left_empty_is_begun(tmp_path: Path) -> None:
    (tmp_path / "out" / "r" / "1").mkdir(parents=True)
    begun = _begin(resume="auto", run_name="r")
    assert (begun.attempt.number, begun.notes) == (1, [])
    assert (begun.attempt.run / "config.yaml").exists()


def test_other_modes_than_training_begin_again_but_not_in_a_training_runs_folder() -> None:
    _run(name="timed", mode="performance")
    begun = _begin(resume="auto", run_name="timed", mode="performance")
    assert begun.attempt.number == 2
    assert "--mode performance resumes nothing: attempt 2 begins at the first step" in begun.notes[0]
    _run(10, name="trained")
    with pytest.raises(FolderTakenError, match="holds a training run"):
        _begin(resume="auto", run_name="trained", mode="performance")


def test_other_classes_are_refused(data: Path) -> None:
    _run(10)
    for split in ("train", "val"):
        (data / split / "c").mkdir()
        (data / split / "c" / "0.JPEG").touch()
    _refused("3 classes, but", resume="auto", run_name="r", accept_changed_data=True)


@pytest.mark.parametrize("has_names", [True, False], ids=["names in the checkpoint", "of an earlier version"])
def test_renamed_classes_are_refused_though_the_user_accepts_changed_data(data: Path, *, has_names: bool) -> None:
    attempt = _begin(run_name="r").attempt
    fingerprint = _load(attempt.config).fingerprint
    _save(attempt, 10, data={"fingerprint": fingerprint, **({"classes": ["a", "b"]} if has_names else {})})
    for split in ("train", "val"):
        (data / split / "b").rename(data / split / "c")
    options: dict[str, Any] = {"resume": "auto", "run_name": "r", "accept_changed_data": True}
    if has_names:
        _refused("other class folders than", **options)
    else:
        assert _begin(**options).attempt.number == 2


def test_changed_data_is_refused_with_the_changes_until_the_user_accepts_it(data: Path) -> None:
    run = _run(10)
    first = (run / "data_index.npz").read_bytes()
    for number in range(6, 11):
        (data / "train" / "a" / f"{number}.JPEG").touch()
    (data / "val" / "b" / "3.JPEG").unlink()
    _refused(
        "train/: 5 added (a/10.JPEG, a/6.JPEG, a/7.JPEG, ...); val/: 1 removed (b/3.JPEG); put them back, or give "
        "--accept-changed-data",
        **{"resume": "auto", "run_name": "r"},
    )
    assert (run / "data_index.npz").read_bytes() == first
    begun = _begin(resume="auto", run_name="r", accept_changed_data=True)
    assert begun.notes[0].endswith("val/: 1 removed (b/3.JPEG): accepted")
    assert (run / "data_index-1.npz").read_bytes() == first
    _save(begun.attempt, 20)
    assert _begin(resume="auto", run_name="r").attempt.number == 3


def test_changed_data_is_refused_even_without_a_list_of_the_images(data: Path) -> None:
    run = _run(10)
    (run / "data_index.npz").write_bytes(b"torn")
    (data / "train" / "a" / "9.JPEG").touch()
    _refused("there is no list of its images to compare with", resume="auto", run_name="r")


@dataclass(frozen=True)
class Machine:
    """The devices and processors of the machine that resumes."""

    npus: int = 0
    processors: int = 8


NPU_RUN = {"device": "npu", "world_size": 8, "threads": 4}
CPU_RUN = {"device": "cpu", "world_size": 2, "threads": 3}


@pytest.mark.parametrize(
    ("saved", "flags", "machine", "kept"),
    [
        (CPU_RUN, {}, Machine(), {"device": "cpu", "npus": 2, "threads": 3}),
        (CPU_RUN, {"npus": 2}, Machine(), {"device": "cpu", "npus": 2, "threads": 3}),
        (CPU_RUN, {"npus": 4}, Machine(), {"device": "cpu"}),
        (CPU_RUN, {"nodes": 2, "master_addr": "a"}, Machine(), {}),
        (CPU_RUN, {}, Machine(processors=2), {"device": "cpu", "npus": 2}),
        (CPU_RUN, {}, Machine(npus=4), {"device": "cpu", "npus": 2, "threads": 3}),
        (NPU_RUN, {}, Machine(npus=16), {"device": "npu", "npus": 8, "threads": 4}),
        (NPU_RUN, {}, Machine(npus=4), {"device": "npu"}),
        (NPU_RUN, {}, Machine(), {}),
        (NPU_RUN, {"device": "cpu"}, Machine(npus=16), {}),
        ({}, {}, Machine(), {}),
    ],
)
def test_a_resumed_run_keeps_its_devices_and_threads_where_the_machine_has_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    saved: Mapping[str, Any],
    flags: Mapping[str, Any],
    machine: Machine,
    kept: Mapping[str, Any],
) -> None:
    attempt = _begin(run_name="r").attempt
    _save(attempt, 10, arithmetic=saved)
    _save(attempt, 20, arithmetic=saved)
    (attempt.run / "checkpoints" / "step-000000020" / "manifest.json").write_text("torn")
    monkeypatch.setattr("trainer.run.devices.usable_processors", lambda: machine.processors)
    (tmp_path / "dev").mkdir()
    for number in range(machine.npus):
        (tmp_path / "dev" / f"davinci{number}").touch()
    environ = {"PNAS_DEVICE_FILES": str(tmp_path / "dev")}
    notes: list[str] = []
    layers = user_layers({"resume": attempt.run, **flags}, None)
    layer = keep_devices(layers, environ, notes.append)
    assert layer.values == kept
    lacks_some = not flags and bool(saved) and kept.keys() != {"device", "npus", "threads"}
    assert len(notes) == int(lacks_some)


def test_a_run_whose_devices_another_program_counts_keeps_none() -> None:
    attempt = _begin(run_name="r").attempt
    _save(attempt, 10, arithmetic=CPU_RUN)
    torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    assert not keep_devices(user_layers({"resume": attempt.run}, None), torchrun, print).values


def _restart(*, steps: tuple[int, ...] = (), add_image: bool = False, data: Path, **flags: Any) -> Begun:
    """Begin an attempt, save checkpoints of these steps, and begin the next one as after a crash."""
    notes: list[str] = []
    topology = Topology(1, 1, 0, (Worker(0, 0, 0),), "127.0.0.1", 29500, None, "options")
    starter = RunStarter(topology, command=("train",), on_note=notes.append, on_lost=print)
    with begin_attempt(user_layers(flags, None), starter) as attempt:
        for step in steps:
            _save(attempt, step)
        if add_image:
            (data / "train/a/new.JPEG").touch()
        return Begun(restart_run(attempt, starter), notes)


def test_a_restart_in_the_pod_is_the_next_attempt_from_the_newest_checkpoint(data: Path) -> None:
    begun = _restart(steps=(10, 20), data=data, run_name="r", snapshot_every="never")
    checkpoint, attempt = begun.attempt.checkpoint, begun.attempt
    assert checkpoint is not None
    assert (attempt.number, checkpoint.name) == (2, "step-000000020")
    assert (attempt.run / "config-2.yaml").read_text() == (attempt.run / "config.yaml").read_text()
    assert begun.notes[-1].startswith(f"resume: {attempt.run}: attempt 2 goes on from {checkpoint} ")


def test_a_request_for_a_profile_outlives_a_restart_in_the_pod_and_no_other_start(data: Path) -> None:
    request = _run(10, name="r") / PROFILE_REQUEST
    request.parent.mkdir()
    request.write_text("{}")
    _begin(resume="auto", run_name="r")
    assert not request.exists()
    topology = Topology(1, 1, 0, (Worker(0, 0, 0),), "127.0.0.1", 29500, None, "options")
    starter = RunStarter(topology, command=("train",), on_note=print, on_lost=print)
    with begin_attempt(user_layers({"resume": "auto", "run_name": "r"}, None), starter) as attempt:
        request.write_text("{}")
        restart_run(attempt, starter)
    assert request.exists()


def test_a_restart_before_the_first_checkpoint_begins_where_the_first_attempt_did(data: Path) -> None:
    begun = _restart(data=data, run_name="r", snapshot_every="never")
    assert (begun.attempt.number, begun.attempt.checkpoint) == (2, None)
    assert "no checkpoint was saved: attempt 2 begins at the first step" in begun.notes[-1]
    other = _run(30, name="other")
    begun = _restart(data=data, resume=str(other / "checkpoints/step-000000030"), run_name="from-other")
    assert begun.attempt.number == 2
    assert begun.attempt.checkpoint == other / "checkpoints/step-000000030"


def test_a_restart_refuses_data_that_changed_during_the_crash(data: Path) -> None:
    with pytest.raises(UsageError, match=r"the images have changed since step-000000010: .*a/new.JPEG"):
        _restart(steps=(10,), add_image=True, data=data, run_name="r", snapshot_every="never")


@pytest.mark.parametrize(
    ("epochs", "written_ns", "text", "complete"),
    [
        (1, 0, "Network = a", True),
        (2, 0, "Network = a", False),
        (1, -1_000_000, "Network = a", False),  # of the run before it got more epochs
        (1, 0, "", False),  # killed in the middle
        (1, 0, None, False),
    ],
)
def test_a_run_is_complete_if_its_result_was_written_after_the_end_of_its_last_epoch(
    epochs: int, written_ns: int, text: str | None, *, complete: bool
) -> None:
    run = _run(20)
    checkpoint = run / "checkpoints" / "step-000000020"
    result = run / "PnasNet5Tiny_bs16_2p_acc.log"
    saved = (checkpoint / "manifest.json").stat().st_mtime_ns
    if text is not None:
        result.write_text(text)
        os.utime(result, ns=(saved + written_ns, saved + written_ns))
    for chosen in (checkpoint, None):
        assert result_of(run, epochs=epochs, checkpoint=chosen) == (result if complete else None)
    (checkpoint / "manifest.json").write_text("torn")
    assert result_of(run, epochs=epochs) is None
    assert result_of(run.with_name("none"), epochs=epochs) is None
