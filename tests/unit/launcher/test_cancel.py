"""`cancel` stops one job, or every running job of a Helm release and no other job."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from launcher.backends import Listing
from launcher.cli import app
from launcher.commands import stop
from launcher.errors import LauncherError, WaitTimeoutError
from launcher.exits import run_command
from launcher.jobs import JobRef, JobState, Phase
from launcher.output.progress import JobProgress


def run(*words: str) -> int:
    return run_command(lambda: app(("cancel", *words), exit_on_error=False, print_error=False))


@pytest.mark.parametrize("words", [(), ("mine", "--release", "pnas"), ("--release", "")])
def test_it_wants_either_a_name_or_a_release(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert capsys.readouterr().err == (
        "error: give the NAME of one job, or --release for all jobs of a Helm release; see `python -m launcher cancel "
        "--help`\n"
    )


class RecordedJobs:
    """Jobs in memory."""

    def __init__(self, **jobs: tuple[Phase, str | None]) -> None:
        self.states = {
            name: JobState(JobRef("batch", name), phase, spec={"pods": {"release": release}})
            for name, (phase, release) in jobs.items()
        }
        self.refusals: dict[str, LauncherError] = {}

    def get(self, ref: JobRef) -> JobState:
        return self.states[ref.name]

    def cancel(self, ref: JobRef, *, on_asked: Callable[[], None] = lambda: None) -> None:
        if ref.name in self.refusals:
            raise self.refusals[ref.name]
        self.states[ref.name] = JobState(ref, Phase.CANCELLED)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> RecordedJobs:
    recorded = RecordedJobs(
        ended=(Phase.SUCCEEDED, "pnas"),
        first=(Phase.RUNNING, "pnas"),
        second=(Phase.PENDING, "pnas"),
        others=(Phase.RUNNING, "other"),
        mine=(Phase.RUNNING, None),
    )
    as_jobs: Any = recorded
    listing = Listing([(as_jobs, state, JobProgress()) for state in recorded.states.values()])
    monkeypatch.setattr(stop, "list_jobs", lambda _backend, _place: listing)
    return recorded


def test_a_release_is_all_its_running_jobs(jobs: RecordedJobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--release", "pnas") == 0
    assert capsys.readouterr().out == "first Cancelled\nsecond Cancelled\n"
    assert [name for name, state in jobs.states.items() if state.phase is Phase.RUNNING] == ["others", "mine"]


@pytest.mark.usefixtures("jobs")
def test_a_release_without_a_running_job_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--release", "none") == 0
    assert capsys.readouterr().err == "stopping no jobs of release none …\n"


@pytest.mark.parametrize(("release", "names"), [("pnas", ["first", "second"]), ("none", [])])
@pytest.mark.usefixtures("jobs")
def test_the_jobs_of_a_release_are_one_json_document(
    release: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--release", release, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "JobList"
    assert [(item["name"], item["status"]["phase"]) for item in document["items"]] == [
        (name, "Cancelled") for name in names
    ]


def test_a_job_that_does_not_stop_keeps_no_other_job_from_stopping(
    jobs: RecordedJobs, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.refusals["first"] = WaitTimeoutError("job first has not stopped")
    assert run("--release", "pnas") == 124
    assert capsys.readouterr().out == "first Running\nsecond Cancelled\n"


@pytest.mark.parametrize(
    ("asked", "errors"),
    [
        (False, "interrupted before job mine was asked to stop: it goes on\n"),
        (
            True,
            "job mine is asked to save and stop …\n"
            "job mine is still stopping; see how far it is with `python -m launcher status mine`\n",
        ),
    ],
)
def test_ctrl_c_says_whether_the_job_had_been_asked(
    jobs: RecordedJobs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: bool,
    errors: str,
) -> None:
    def interrupted(_ref: JobRef, *, on_asked: Callable[[], None]) -> None:
        if asked:
            on_asked()
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "cancel", interrupted)
    monkeypatch.setattr(stop, "job_named", lambda name, _where: (jobs, JobRef("batch", name)))
    assert run("mine") == 130
    assert capsys.readouterr().err == errors


def test_ctrl_c_says_how_many_jobs_of_a_release_were_asked(
    jobs: RecordedJobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    def asked(ref: JobRef, *, on_asked: Callable[[], None]) -> None:
        if ref.name == "first":
            on_asked()

    monkeypatch.setattr(jobs, "cancel", asked)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", interrupted)
        assert run("--release", "pnas") == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted: 1 of 2 jobs of release pnas have the ")
