"""A request for a profile waits for its answer as long as the job runs, and each other end is one line."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.commands import profile as command
from launcher.errors import (
    ApiError,
    ConflictError,
    DetachedError,
    LauncherError,
    NotFoundError,
    RequestError,
    UnreachableError,
)
from launcher.jobs import Channel, JobRef, Jobs, JobState, Phase
from launcher.local.files import open_local_files
from launcher.results import profiling
from launcher.results.profiling import RankProfile, take_profile
from tests.documents import one_document
from trainer.shared.profiles import PROFILE_REQUEST, ProfileRequest

REF = JobRef("local", "j")
ANSWER = {
    "trace": "profiles/1-rank-1/trace.json.gz",
    "epoch": 2,
    "first_step": 7,
    "steps": 5,
    "operators": [{"name": "aten::conv\x1b[31m", "seconds": 0.5, "share": 0.25, "calls": 1200}],
}
Turn = Callable[["_Jobs"], None]


class _Jobs:
    """A job whose trainer does something at each look for the answer."""

    name, poll_s, place = "local", 0.0, "this machine"

    def __init__(self, run: Path, *turns: Turn, state: JobState) -> None:
        self.run, self.turns, self.state = run, list(turns), state
        self.opened = 0

    def get(self, _ref: JobRef) -> JobState:
        return self.state

    @contextmanager
    def open_files(self, state: JobState, *, on_note: Callable[[str], None], live: bool = False) -> Iterator[Channel]:
        assert (state.ref, live) == (REF, True)
        self.opened += 1
        with open_local_files(self.run) as channel:
            yield _Turning(channel, self)

    @property
    def request(self) -> ProfileRequest | None:
        path = self.run / PROFILE_REQUEST
        return ProfileRequest.parse(path.read_bytes()) if path.exists() else None


class _Turning:
    source = "pod j-0"

    def __init__(self, channel: Channel, jobs: _Jobs) -> None:
        self._channel, self._jobs = channel, jobs

    def send(self, data: bytes) -> None:
        if b'"answer"' in data and self._jobs.turns:
            self._jobs.turns.pop(0)(self._jobs)
        self._channel.send(data)

    def receive(self) -> bytes:
        return self._channel.receive()


def _waits(_jobs: _Jobs) -> None:
    pass


def _answers(text: str) -> Turn:
    def turn(jobs: _Jobs) -> None:
        assert jobs.request is not None
        (jobs.run / jobs.request.answer).write_text(text)
        (jobs.run / PROFILE_REQUEST).unlink()

    return turn


def _drops(jobs: _Jobs) -> None:
    (jobs.run / PROFILE_REQUEST).unlink()


def _ends(jobs: _Jobs) -> None:
    jobs.state = replace(jobs.state, phase=Phase.SUCCEEDED)


def _is_cut(_jobs: _Jobs) -> None:
    raise UnreachableError("pod j-0: the connection to the program was cut")


def _is_cut_at_the_end(jobs: _Jobs) -> None:
    _ends(jobs)
    _is_cut(jobs)


def _is_refused(_jobs: _Jobs) -> None:
    raise ApiError("you have no right to create pods/exec in namespace a", status=403, of_rights=True)


def _is_interrupted(_jobs: _Jobs) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def state(tmp_path: Path) -> JobState:
    return JobState(REF, Phase.RUNNING, output=tmp_path, files=f"{tmp_path} on claim c")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LOOK_S", "_STATE_S"):
        monkeypatch.setattr(profiling, name, 0.0)


def _take(jobs: _Jobs, *, rank: int = 1, steps: int = 5) -> RankProfile:
    # It has only what a profile needs.
    backend: Jobs = jobs  # type: ignore[assignment]
    return take_profile(backend, REF, rank=rank, steps=steps, on_note=lambda _: None)[0]


def test_the_answer_is_waited_for_also_over_a_cut_connection(tmp_path: Path, state: JobState) -> None:
    jobs = _Jobs(tmp_path, _waits, _is_cut, _waits, _answers(json.dumps(ANSWER)), state=state)
    found = _take(jobs)
    assert (found.rank, found.steps, found.epoch, found.first_step, found.trace) == (1, 5, 2, 7, ANSWER["trace"])
    assert [(one.name, one.calls) for one in found.operators] == [("aten::conv\x1b[31m", 1200)]
    assert jobs.opened == 2


@pytest.mark.parametrize("arrives", [True, False])
def test_a_request_whose_connection_was_cut_is_made_again(
    tmp_path: Path, state: JobState, arrives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = _Jobs(tmp_path, _waits, _answers(json.dumps(ANSWER)), state=state)
    send = _Turning.send

    def cut(self: _Turning, data: bytes) -> None:
        if arrives:
            send(self, data)
            self.receive()
        monkeypatch.setattr(_Turning, "send", send)
        _is_cut(jobs)

    monkeypatch.setattr(_Turning, "send", cut)
    assert _take(jobs).trace == ANSWER["trace"]
    assert jobs.opened == 2


@pytest.mark.parametrize(
    ("turns", "error", "text"),
    [
        ([_drops], LauncherError, "the request for a profile was dropped: .* --rank 1 --tail 20"),
        ([_waits, _ends], ConflictError, r"job j ended \(Succeeded\) before its profile was taken"),
        ([_is_cut_at_the_end], ConflictError, r"job j ended \(Succeeded\) before its profile was taken"),
        ([_is_refused], ApiError, "no right to create pods/exec"),
        ([_waits, _is_interrupted], DetachedError, "interrupted: the request is withdrawn, and job j goes on"),
        ([_answers('{"error": "no room"}')], LauncherError, "rank 1 could not be profiled: no room; the job"),
        ([_answers('{"error": "x", "world_size": 1}')], NotFoundError, "no rank 1: its ranks are 0 to 0"),
        ([_answers('{"trace": 7}')], LauncherError, "cannot be read: is its trainer another version"),
        ([_answers("{")], LauncherError, "cannot be read"),
    ],
)
def test_every_other_end_is_one_line(
    tmp_path: Path, state: JobState, turns: list[Turn], error: type[LauncherError], text: str
) -> None:
    jobs = _Jobs(tmp_path, *turns, state=state)
    with pytest.raises(error, match=text) as caught:
        _take(jobs)
    assert "\n" not in str(caught.value)
    # A channel that is cut or refused cannot take the request back.
    assert (jobs.request is not None) is (turns[0] in (_is_cut_at_the_end, _is_refused))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"phase": Phase.SUCCEEDED}, ConflictError, r"^job j has ended \(Succeeded\)"),
        ({"phase": Phase.PENDING, "reason": "no NPU"}, ConflictError, "is Pending, no NPU: .*explain j`$"),
        ({"phase": Phase.SUSPENDED}, ConflictError, "is Suspended: it can be profiled when it trains"),
        ({"spec": {"train": {"mode": "eval"}}}, RequestError, "evaluates: only training steps"),
    ],
)
def test_a_job_that_cannot_be_profiled_gets_no_request(
    tmp_path: Path, state: JobState, changes: dict[str, Any], error: type[LauncherError], text: str
) -> None:
    with pytest.raises(error, match=text):
        _take(_Jobs(tmp_path, state=replace(state, **changes)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"steps": 0}, r"^--steps 0: a profile has 1 to 20 steps$"),
        ({"steps": 10**9}, r"^--steps 1000000000: a profile has 1 to 20 steps$"),
        ({"rank": -1}, r"^--rank -1: ranks count from 0$"),
    ],
)
def test_steps_and_a_rank_that_cannot_be_are_refused(
    tmp_path: Path, state: JobState, values: dict[str, int], text: str
) -> None:
    with pytest.raises(RequestError, match=text):
        _take(_Jobs(tmp_path, state=state), **values)
    assert list(tmp_path.iterdir()) == []


def test_of_two_requests_the_first_one_counts(tmp_path: Path, state: JobState) -> None:
    def second(jobs: _Jobs) -> None:
        first = jobs.request
        with pytest.raises(ConflictError, match=r"job j has a request for a profile already \(5 steps of rank 1\)"):
            _take(_Jobs(tmp_path, state=state), rank=0)
        assert jobs.request == first

    assert _take(_Jobs(tmp_path, second, _answers(json.dumps(ANSWER)), state=state)).steps == 5
    (tmp_path / PROFILE_REQUEST).write_text("{")
    with pytest.raises(ConflictError, match="has a request for a profile already: wait"):
        _take(_Jobs(tmp_path, state=state))


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path: Path, state: JobState) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    (run / "profiles").symlink_to(outside)
    with pytest.raises(LauncherError, match="the run's folder: "):
        _take(_Jobs(run, state=state))
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("json_", [False, True])
def test_the_command_shows_the_trace_and_the_operators(
    tmp_path: Path, state: JobState, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], json_: bool
) -> None:
    jobs = _Jobs(tmp_path, _answers(json.dumps(ANSWER)), state=state)
    monkeypatch.setattr(command, "job_named", lambda *_: (jobs, REF))
    command.profile("j", rank=1, json_=json_)
    shown = capsys.readouterr().out
    trace = f"{tmp_path}/{ANSWER['trace']} on claim c"
    if json_:
        document = one_document(shown, "Profile")
        assert (document["trace"], document["operators"][0]["calls"]) == (trace, 1200)
    else:
        assert shown == (
            f"rank 1, 5 steps from step 7 of epoch 2: {trace}\n"
            "  25.0%      100.0 ms a step  aten::conv\\x1b[31m (1,200 calls)\n"
        )
