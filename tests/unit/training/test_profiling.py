"""A profile takes the steps that it is asked for, changes no bit of the training, and costs nothing while it is off."""

import errno
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from trainer.data.loader import ImageBatch
from trainer.data.sampler import plan_epoch
from trainer.devices import profiles
from trainer.devices.cpu import CpuDevice
from trainer.devices.npu_profile import kernel_times
from trainer.devices.profiles import TorchProfile
from trainer.devices.trace_reader import operator_times
from trainer.distributed.stop_requests import Request, StopRequests
from trainer.shared import profiles as shared_profiles
from trainer.shared.config import TrainConfig
from trainer.shared.errors import FolderTakenError
from trainer.shared.profiles import PROFILE_REQUEST, ProfileRequest
from trainer.training import profiling
from trainer.training.profiling import ProfileAnswers, StepProfiler
from trainer.training.steps import StepWindow, Training, train_steps
from trainer.worker.start import build_training, make_watchdog
from trainer.worker.task import WorkerTask

REQUEST = ProfileRequest(20261130171519123, rank=0, steps=2)
SMALL = {"model": "pnasnet5tiny", "image_size": 32, "batch_size": 4, "device": "cpu", "lr": 0.05, "log_interval": 3}


def _training() -> Training:
    config = TrainConfig.model_validate(SMALL)
    task = WorkerTask(config, Path("unused"))
    runtime, watchdog = CpuDevice(), make_watchdog(task)
    return build_training(task, config, runtime, torch.device("cpu"), weights=None, num_classes=10, watchdog=watchdog)


def _batches(count: int) -> Iterator[ImageBatch]:
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (4,), generator=generator)
        yield ImageBatch(images, labels, torch.arange(4) + number * 4)


def _epoch(training: Training, profiler: StepProfiler | None, steps: int = 9) -> list[StepWindow]:
    plan = plan_epoch(steps * 4, world_size=1, batch_size=4, accumulate=1, steps_limit=steps)
    batches = _batches(steps)
    return list(train_steps(training, batches, plan, epoch=0, first_step=0, warmup_left=0, profiler=profiler))


def _profiler(run: Path, training: Training, *, rank: int = 0, world_size: int = 1) -> StepProfiler:
    return StepProfiler(ProfileAnswers(run), training.runtime, training.requests, rank=rank, world_size=world_size)


def _ask(run: Path, text: str = REQUEST.to_json()) -> None:
    (run / PROFILE_REQUEST).parent.mkdir(exist_ok=True)
    (run / PROFILE_REQUEST).write_text(text)


def _answer(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / REQUEST.answer).read_bytes())
    return values


def test_a_profile_has_the_steps_and_changes_no_bit(tmp_path: Path) -> None:
    training, plain = _training(), _training()
    profiler = _profiler(tmp_path, training)
    _ask(tmp_path)
    profiler.look()
    windows = _epoch(training, profiler)
    profiler.finish(at_most_s=60)
    assert [(window.losses, window.bad) for window in windows] == [
        (window.losses, window.bad) for window in _epoch(plain, None)
    ]
    for name, parameter in training.parameters.items():
        assert torch.equal(parameter, plain.parameters[name]), name
    # The request is posted after step 0, read after step 1, and so begins with step 2.
    assert [window.timed for window in windows] == [False, False, True]
    answer = _answer(tmp_path)
    assert (answer["epoch"], answer["first_step"], answer["steps"]) == (0, 2, 2)
    assert not (tmp_path / PROFILE_REQUEST).exists()
    assert len(answer["operators"]) == 3
    assert all(0 < one["share"] < 1 and one["calls"] > 0 for one in answer["operators"])
    with gzip.open(tmp_path / answer["trace"]) as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert sorted(name for name in names if str(name).startswith("ProfilerStep")) == [
        "ProfilerStep#0",
        "ProfilerStep#1",
    ]


def test_a_job_without_a_profile_pays_for_two_looks_at_a_variable(tmp_path: Path) -> None:
    """No function of the profiler is called but `take_window`, once for a log line."""
    training = _training()
    profiler = _profiler(tmp_path, training)
    calls: list[str] = []

    files = {module.__file__ for module in (profiling, profiles, shared_profiles, torch.profiler.profiler)}

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename in files:
            calls.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        windows = _epoch(training, profiler)
    finally:
        sys.setprofile(None)
    assert calls == ["take_window"] * len(windows)


def test_a_profile_ends_with_its_epoch_and_another_rank_only_knows_of_it(tmp_path: Path) -> None:
    training = _training()
    _ask(tmp_path, ProfileRequest(REQUEST.number, 0, 20).to_json())
    profiler, other = _profiler(tmp_path, training), _profiler(tmp_path, training, rank=1, world_size=2)
    profiler.look()
    _epoch(training, profiler, steps=4)
    profiler.finish(at_most_s=60)
    assert _answer(tmp_path)["steps"] == 2
    other.begin(ProfileRequest(REQUEST.number, 0, 2), epoch=0, step=0)
    running = []
    for _ in range(2):
        running.append(other.running is not None)
        other.end_step(last=False)
    assert (running, other.running) == ([True, True], None)
    assert (other.take_window(), other.take_window()) == (True, False)


def test_a_request_during_a_profile_that_was_withdrawn_waits_for_its_end(tmp_path: Path) -> None:
    training = _training()
    profiler = _profiler(tmp_path, training)
    second = ProfileRequest(REQUEST.number + 1, 0, 2)
    for request in (ProfileRequest(REQUEST.number, 0, 5), second):
        _ask(tmp_path, request.to_json())  # the second one takes the place of the first one, as after a withdrawal
        profiler.look()
    _epoch(training, profiler)
    profiler.finish(at_most_s=60)
    answer = json.loads((tmp_path / second.answer).read_bytes())
    assert (answer["first_step"], answer["steps"]) == (7, 2)
    assert not (tmp_path / PROFILE_REQUEST).exists()


def test_a_request_in_an_evaluation_waits_for_the_next_step() -> None:
    requests = StopRequests(None)
    requests.ask_for_profile(REQUEST)
    for _ in range(4):
        assert requests.all_reduce_requests(Request.NONE) is Request.NONE
    assert requests.take_profile() == REQUEST
    assert requests.profile is None


@pytest.mark.parametrize(
    ("text", "asked", "answer"),
    [
        (REQUEST.to_json(), [REQUEST], None),
        (ProfileRequest(REQUEST.number, 7, 2).to_json(), [], "there is no rank 7"),
        ('{"number": 1, "rank": 0, "steps": 100000}', [], None),
        ('{"number": 20261130171519123, "ra', [], None),
        ("[" * 100_000, [], None),
        ("", [], None),
    ],
    ids=["good", "no-rank", "huge", "torn", "nested", "empty"],
)
def test_a_request_is_passed_on_once_or_answered_or_dropped(
    tmp_path: Path, text: str, asked: list[ProfileRequest], answer: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    training, passed = _training(), list[ProfileRequest]()
    training.requests.ask_for_profile = passed.append  # type: ignore[assignment,method-assign]  # the test looks at it
    profiler = _profiler(tmp_path, training)
    profiler.look()
    _ask(tmp_path, text)
    for _ in range(3):
        profiler.look()
    assert passed == asked
    assert (tmp_path / PROFILE_REQUEST).exists() is bool(asked)
    if answer is not None:
        failed = json.loads((tmp_path / f"profiles/{REQUEST.number}-rank-7.json").read_bytes())
        assert failed == {"error": answer, "world_size": 1}
        assert answer in capsys.readouterr().out


def test_a_worker_that_starts_again_takes_the_request_up_and_a_request_with_an_answer_goes(tmp_path: Path) -> None:
    training = _training()
    _ask(tmp_path)
    for _ in range(2):
        _profiler(tmp_path, training).look()
    assert [training.requests.all_reduce_requests(Request.NONE) for _ in range(2)]
    assert training.requests.take_profile() == REQUEST
    (tmp_path / REQUEST.answer).write_text("{}")
    _profiler(tmp_path, training).look()
    assert not (tmp_path / PROFILE_REQUEST).exists()


class _Failing:
    """A profile whose step, end or trace fails."""

    def __init__(self, place: str) -> None:
        self._place = place

    def _fail_at(self, place: str) -> None:
        if place == self._place:
            raise OSError(errno.ENOSPC, "No space left on device")

    def start(self) -> None:
        self._fail_at("start")

    def step(self) -> None:
        self._fail_at("step")

    def stop(self) -> None:
        self._fail_at("stop")

    def write(self) -> tuple[Path, list[Any]]:
        self._fail_at("write")
        raise RuntimeError("torch_npu has written no trace")


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        *((place, "No space left on device") for place in ("start", "step", "stop", "write")),
        ("", "torch_npu has written no trace"),
    ],
)
def test_a_profile_that_fails_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str, reason: str
) -> None:
    monkeypatch.setattr(CpuDevice, "profile", lambda *_: _Failing(place))
    training = _training()
    profiler = _profiler(tmp_path, training)
    _ask(tmp_path)
    profiler.look()
    windows = _epoch(training, profiler)
    profiler.finish(at_most_s=60)
    assert sum(len(window.losses) for window in windows) == 9
    assert _answer(tmp_path) == {"error": reason}
    assert f"{reason}; training goes on" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "profiles").iterdir()] == [Path(REQUEST.answer).name]


def test_a_disk_without_room_for_the_answer_too_takes_the_request_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(profiling, "replacing", fail)
    _ask(tmp_path)
    ProfileAnswers(tmp_path).fail(REQUEST, "No space left on device")
    assert list((tmp_path / "profiles").iterdir()) == []


def test_a_run_whose_folder_is_lost_writes_nothing_there(tmp_path: Path) -> None:
    def lost() -> None:
        raise FolderTakenError("lost")

    _ask(tmp_path)
    ProfileAnswers(tmp_path, check_owner=lost).fail(REQUEST, "no")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")] == [PROFILE_REQUEST]


@pytest.mark.parametrize("words", ["", "profiler is closed", "{}", "[1]", '{"trace": "t", "operators": [[1]]}'])
def test_other_words_in_the_place_of_the_readers_result_are_an_error(
    tmp_path: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "module_command", lambda _: ("sh", "-c", f"echo '{words}'"))
    with pytest.raises(RuntimeError, match=r"^the profile's reader says no result: "):
        profiles.read_profile("m", tmp_path)


def test_a_trace_that_a_full_disk_has_cut_is_an_error_and_no_trace(tmp_path: Path) -> None:
    profile = TorchProfile(tmp_path, 1)
    profile.start()
    torch.ones(8) + 1
    profile.step()
    cut = profile._profile.export_chrome_trace

    def cut_short(path: str) -> None:
        cut(path)
        text = Path(path).read_bytes()
        Path(path).write_bytes(text[: len(text) // 2])

    profile._profile.export_chrome_trace = cut_short  # type: ignore[assignment]  # a disk that fills
    with pytest.raises(RuntimeError, match="the trace is not whole; is the disk full"):
        profile.write()


def _event(name: str, start: float, duration: float, *, category: str = "cpu_op", **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration, "tid": 1, **more}


def _number(value: int) -> dict[str, Any]:
    return {"args": {"External id": value}}


@pytest.mark.parametrize(
    ("events", "times"),
    [
        ([], {}),
        ([{"ph": "s", "cat": "cpu_op", "name": "a"}], {}),
        ([_event("a", 0, 10), _event("b", 2, 3), _event("b", 6, 4), _event("a", 12, 1)], {"a": (4, 2), "b": (7, 2)}),
        ([_event("a", 0, 10), _event("b", 0, 10), _event("c", 1, 1)], {"a": (0, 1), "b": (9, 1), "c": (1, 1)}),
        ([_event("a", 0, 10), _event("a", 5, 10, tid=2)], {"a": (20, 2)}),
        ([_event("step", 0, 9, category="user_annotation"), _event("a", 1, 2)], {"a": (2, 1)}),
        (
            [
                _event("conv", 0, 2, **_number(7)),
                _event("volta_gemm", 5, 30, category="kernel", **_number(7)),
                _event("copy", 40, 5, category="gpu_memcpy", **_number(8)),
            ],
            {"conv": (30, 1), "copy": (5, 1)},
        ),
    ],
    ids=["empty", "flow", "nested", "same-start", "threads", "annotation", "gpu"],
)
def test_operators_have_their_own_time(events: list[dict[str, Any]], times: dict[str, tuple[int, int]]) -> None:
    found = {name: (round(seconds * 1e6), calls) for name, (seconds, calls) in operator_times(events).items()}
    assert found == times


@pytest.mark.parametrize(
    ("text", "times"),
    [
        (None, {}),
        ("", {}),
        ("Name,Type,Duration(us)\nx,Conv2D,2.5\ny,Conv2D,1\nz,Add,N/A\n", {"Conv2D": (3.5, 2)}),
        ("Name,Type\nx,Conv2D\n", {}),
        ("Type,Duration(us)\nConv2D\n,3\n\xff,1\n", {"?": (3, 1), "\xff": (1, 1)}),
    ],
    ids=["missing", "empty", "usual", "no-times", "odd"],
)
def test_kernels_of_an_npu_are_added_up(tmp_path: Path, text: str | None, times: dict[str, tuple[float, int]]) -> None:
    path = tmp_path / "kernel_details.csv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    found = {name: (round(seconds * 1e6, 3), calls) for name, (seconds, calls) in kernel_times(path).items()}
    assert found == times
