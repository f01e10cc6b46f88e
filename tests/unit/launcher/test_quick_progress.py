"""The progress of a list's running jobs: of the latest ones, several at a time, and only what comes at once."""

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from launcher import backends
from launcher.backends import MOST_PROGRESS, Listing, quick_progress
from launcher.cluster.jobs import ClusterJobs
from launcher.errors import NotFoundError, UnreachableError
from launcher.jobs import JobRef, JobState, Phase
from launcher.kinds import kind_named
from launcher.output.lines import parse_lines
from launcher.output.progress import JobProgress

AHEAD = b"[rank 0 npu:0 #1] progress done=12 left_s=60 left_low_s=50 left_high_s=80\n"
READ = JobProgress().update_all(parse_lines(AHEAD))


class _Jobs:
    """Jobs whose progress is what `answer` returns; `asked` has their names."""

    def __init__(self, answer: Callable[[JobState], JobProgress] = lambda _state: READ) -> None:
        self.asked: list[str] = []
        self._answer = answer

    def quick_progress(self, state: JobState) -> JobProgress:
        self.asked.append(state.ref.name)
        return self._answer(state)


def _states(count: int, phase: Phase = Phase.RUNNING) -> list[JobState]:
    return [JobState(JobRef("batch", f"{phase.value}-{number}"), phase) for number in range(count)]


def _listing(jobs: Any, states: Sequence[JobState], progress: JobProgress | None = None) -> Listing:
    return Listing([(jobs, state, progress or JobProgress()) for state in states])


def test_the_latest_running_jobs_have_their_progress_by_one_question_each() -> None:
    jobs = _Jobs()
    listing = _listing(jobs, [*_states(2, Phase.PENDING), *_states(MOST_PROGRESS + 3), *_states(2, Phase.FAILED)])
    listed = {state.ref.name: progress for _, state, progress in listing.with_progress().jobs}
    expected = [f"Running-{number}" for number in range(3, MOST_PROGRESS + 3)]
    assert sorted(jobs.asked) == sorted(expected)
    assert [name for name, progress in listed.items() if progress is READ] == expected
    assert len(listed) == len(listing.jobs)


def test_a_job_whose_progress_the_list_tells_is_not_asked() -> None:
    jobs = _Jobs()
    assert [progress for _, _, progress in _listing(jobs, _states(3), READ).with_progress().jobs] == [READ] * 3
    assert jobs.asked == []


def test_a_job_that_hangs_or_is_deleted_costs_only_its_own_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "PROGRESS_S", 2.0)
    goes_on = threading.Event()

    def answer(state: JobState) -> JobProgress:
        if state.ref.name == "Running-0":
            goes_on.wait()
        if state.ref.name == "Running-1":
            raise NotFoundError("it was deleted")
        return READ

    jobs: Any = _Jobs(answer)
    read = quick_progress([(jobs, state) for state in _states(4)])
    goes_on.set()
    assert sorted(ref.name for ref in read) == ["Running-2", "Running-3"]


@pytest.mark.parametrize(
    ("logs", "asked"),
    [
        ({"a-0": AHEAD, "a-1": b""}, ["a-0"]),
        ({"a-0": b"[rank 8 npu:0 #1] step step=1\n", "a-1": AHEAD}, ["a-0", "a-1"]),  # a rank table's own order
        ({f"a-{number}": b"" for number in range(6)}, ["a-0", "a-1", "a-2", "a-3"]),
        ({"a-0": None, "a-1": AHEAD}, ["a-0", "a-1"]),
    ],
)
def test_on_a_cluster_the_first_pods_are_asked_until_one_tells_it(
    logs: dict[str, bytes | None], asked: list[str]
) -> None:
    names: list[str] = []

    def read(path: str, _query: object, *, action: str) -> bytes:
        names.append(path.split("/")[-2])
        log = logs[names[-1]]
        if log is None:
            raise UnreachableError(action)
        return log

    api: Any = SimpleNamespace(namespace="training", read=read)
    pods = [{"name": name, "phase": "Running"} for name in reversed(logs)] + [{"name": "a", "phase": "Pending"}]
    state = JobState(JobRef("batch", "a"), Phase.RUNNING, details={"pods": pods})
    progress = ClusterJobs(kind_named("batch"), api).quick_progress(state)
    assert names == asked
    assert (progress.ahead is not None) == (AHEAD in logs.values())
