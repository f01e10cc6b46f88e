"""Have some steps of a running job profiled: leave a request in the run's folder, and wait for its answer.

The request is a file, so that it survives the launcher's connection, and reaches the job in a pod as on this machine.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone

from launcher import PROGRAM
from launcher.errors import (
    ConflictError,
    DetachedError,
    LauncherError,
    NotFoundError,
    RequestError,
    UnreachableError,
)
from launcher.jobs import JobRef, Jobs, JobState, Phase
from launcher.kube.retry import poll
from launcher.results.file_client import FileClient
from trainer.shared.profiles import MOST_PROFILED_STEPS, ProfileRequest

_LOOK_S = 1.0
_STATE_S = 5.0
_NOTE_S = 30.0


@dataclass(frozen=True)
class LargeOperator:
    """An operator of a profile.

    Attributes:
        seconds: in all its calls, on the device where the profiler knows that.
        share: of the time of all operators.
    """

    name: str
    seconds: float
    share: float
    calls: int


@dataclass(frozen=True)
class RankProfile:
    """A profile of one rank.

    Attributes:
        steps: the steps that were profiled: fewer than asked for if the epoch ended.
        epoch, first_step: where they began.
        trace: the path of the trace, from the run's folder.
        operators: the largest ones, the largest first.
    """

    rank: int
    steps: int
    epoch: int
    first_step: int
    trace: str
    operators: tuple[LargeOperator, ...]


def take_profile(
    jobs: Jobs, ref: JobRef, *, rank: int, steps: int, on_note: Callable[[str], None]
) -> tuple[RankProfile, JobState]:
    """Have the next steps of a rank profiled. Return the profile, and the job's state before it.

    Args:
        on_note: called with lines for the user.

    Raises:
        RequestError: there are no such steps.
        NotFoundError: there is no such rank.
        ConflictError: the job does not train, ended meanwhile, or is being profiled.
        DetachedError: the wait was interrupted; the job goes on.
        LauncherError: the trace could not be written; the job goes on.
    """
    if not 0 < steps <= MOST_PROFILED_STEPS:
        raise RequestError(f"--steps {steps}: a profile has 1 to {MOST_PROFILED_STEPS} steps")
    if rank < 0:
        raise RequestError(f"--rank {rank}: ranks count from 0")
    state = jobs.get(ref)
    _check_trains(state)
    now = datetime.now(timezone.utc)
    request = ProfileRequest(int(now.strftime("%Y%m%d%H%M%S%f")[:-3]), rank, steps)
    waiting = _Waiting(jobs, state, request, on_note)
    try:
        return waiting.run(), state
    except KeyboardInterrupt:
        with suppress(LauncherError):
            waiting.withdraw()
        raise DetachedError(f"interrupted: the request is withdrawn, and job {ref.name} goes on") from None


def _check_trains(state: JobState) -> None:
    """Refuse a job that takes no training steps now.

    Raises:
        ConflictError, RequestError: it does not.
    """
    name, reason = state.ref.name, f", {state.reason}" if state.reason else ""
    if state.phase.ended:
        raise ConflictError(f"job {name} has ended ({state.phase.value}): only a job that trains can be profiled")
    if state.phase is not Phase.RUNNING:
        raise ConflictError(
            f"job {name} is {state.phase.value}{reason}: it can be profiled when it trains; see "
            f"`{PROGRAM} explain {name}`"
        )
    if state.setting("mode") == "eval":
        raise RequestError(f"job {name} evaluates: only training steps can be profiled")


class _Waiting:
    """The wait for one answer, over as many connections as it takes."""

    def __init__(self, jobs: Jobs, state: JobState, request: ProfileRequest, on_note: Callable[[str], None]) -> None:
        self._jobs, self._state, self._request, self._on_note = jobs, state, request, on_note
        self._text = request.to_json()
        self._asked = self._is_there = False

    def run(self) -> RankProfile:
        """Return the answer; connect again after a cut."""
        return poll(self._connect, every_s=_LOOK_S, note=self._on_note)

    def _connect(self) -> RankProfile:
        try:
            with self._jobs.open_files(self._state, on_note=self._on_note, live=True) as channel:
                client = FileClient(channel)
                self._ask(client)
                return self._wait(client)
        except UnreachableError:
            self._check_goes_on()
            raise

    def withdraw(self) -> None:
        """Take the request back."""
        if self._asked:
            with self._jobs.open_files(self._state, on_note=self._on_note, live=True) as channel:
                FileClient(channel).withdraw(self._text)

    def _ask(self, client: FileClient) -> None:
        if self._is_there:
            return
        # After a cut, the request may be there or not; a second one with an answer does nothing.
        self._asked = True
        if (waits := client.ask_for_profile(self._text)) == self._text:
            self._is_there = True
            return
        self._asked = False
        other = ProfileRequest.parse(waits.encode())
        what = "" if other is None else f" ({other.steps} steps of rank {other.rank})"
        raise ConflictError(
            f"job {self._state.ref.name} has a request for a profile already{what}: wait until it is answered"
        )

    def _wait(self, client: FileClient) -> RankProfile:
        began = looked = noted = time.monotonic()
        while True:
            waits, text = client.read_answer(self._request.answer)
            if text is not None:
                return self._read(text)
            if waits != self._text:
                raise LauncherError(
                    f"job {self._state.ref.name}: the request for a profile was dropped: the run began again, or its "
                    f"disk is full; see `{PROGRAM} logs {self._state.ref.name} --rank {self._request.rank} --tail 20`"
                )
            now = time.monotonic()
            if now - looked >= _STATE_S:
                looked = now
                self._check_goes_on(client)
            if now - noted >= _NOTE_S:
                noted = now
                self._on_note(
                    f"no profile after {now - began:.0f} s: the job starts, evaluates, saves or reads the trace, or "
                    "its trainer is too old for profiles; Ctrl-C leaves, and the job goes on"
                )
            time.sleep(_LOOK_S)

    def _check_goes_on(self, client: FileClient | None = None) -> None:
        """Refuse to wait for a job that has ended; `client` is asked once more, and takes the request back."""
        state = self._jobs.get(self._state.ref)
        if not state.phase.ended:
            return
        if client is not None:
            if client.read_answer(self._request.answer)[1] is not None:
                return
            client.withdraw(self._text)
        raise ConflictError(f"job {state.ref.name} ended ({state.phase.value}) before its profile was taken")

    def _read(self, text: str) -> RankProfile:
        name, rank = self._state.ref.name, self._request.rank
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        match answer:
            case {"error": str(), "world_size": int(world_size)}:
                raise NotFoundError(f"job {name} has no rank {rank}: its ranks are 0 to {world_size - 1}")
            case {"error": str(reason)}:
                raise LauncherError(f"job {name}: rank {rank} could not be profiled: {reason}; the job goes on")
            case {
                "trace": str(trace),
                "steps": int(steps),
                "epoch": int(epoch),
                "first_step": int(first_step),
                "operators": list(rows),
            }:
                operators = tuple(filter(None, map(_operator, rows)))
                return RankProfile(rank, steps, epoch, first_step, trace, operators)
        raise LauncherError(f"job {name}: {self._request.answer} cannot be read: is its trainer another version?")


def _operator(row: object) -> LargeOperator | None:
    match row:
        case {"name": str(name), "seconds": float(seconds), "share": float(share), "calls": int(calls)}:
            return LargeOperator(name, seconds, share, calls)
    return None
